package dns

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"

	"gatun/network"
)

const (
	maxURL    = 32 << 10
	maxSearch = 100
	maxLabel  = 64 // characters of name=
)

// grammarError says what is wrong with a resolver URL and what to write instead, if that is known.
type grammarError struct{ message, suggestion string }

func (e *grammarError) Error() string {
	if e.suggestion == "" {
		return e.message
	}
	return fmt.Sprintf("%s (did you mean %q?)", e.message, e.suggestion)
}

func wrong(format string, args ...any) error {
	return &grammarError{message: fmt.Sprintf(format, args...)}
}

func instead(suggestion, format string, args ...any) error {
	return &grammarError{message: fmt.Sprintf(format, args...), suggestion: suggestion}
}

// ParseResolver reads a resolver URL (dns.md):
//
//	scheme://host[:port][/path]?name=&verify=&ip=&blockedif=&search=&search-only&link-local
//
// or an address, with or without a port, which means dns://.
func ParseResolver(text string) (Resolver, error) {
	r, err := parseResolver(text)
	if err != nil {
		return Resolver{}, fmt.Errorf("resolver %q: %w", shorten(text), err)
	}
	return r, nil
}

// CheckResolver says what is wrong with a resolver URL, "" if nothing is, and what to write
// instead if that is known.
func CheckResolver(text string) (message, suggestion string) {
	_, err := parseResolver(text)
	if err == nil {
		return "", ""
	}
	if e, ok := err.(*grammarError); ok {
		return e.message, e.suggestion
	}
	return err.Error(), ""
}

func shorten(text string) string {
	if len(text) > 200 {
		return text[:200] + "…"
	}
	return text
}

// parseResolver returns a *grammarError if the text is no resolver.
func parseResolver(text string) (Resolver, error) {
	switch {
	case text == "":
		return Resolver{}, wrong("want a resolver such as 192.0.2.53 or dot://192.0.2.53?verify=dns.example, got nothing")
	case len(text) > maxURL || !utf8.ValidString(text):
		return Resolver{}, wrong("want at most %d bytes of UTF-8", maxURL)
	case strings.ContainsFunc(text, func(c rune) bool { return unicode.IsSpace(c) || !unicode.IsPrint(c) }):
		return Resolver{}, wrong("there is a space or a control character in it; in a parameter write %%20")
	case strings.Contains(text, "#"):
		return Resolver{}, wrong("a resolver has no fragment; remove %q", text[strings.IndexByte(text, '#'):])
	case strings.Contains(text, "{?dns}"):
		return Resolver{}, instead(strings.ReplaceAll(text, "{?dns}", ""), "the template's {?dns} is left out: queries are sent by POST")
	}
	scheme, rest, found := strings.Cut(text, "://")
	if !found {
		scheme, rest = string(SchemeDNS), text
	}
	s, err := parseScheme(scheme, rest)
	if err != nil {
		return Resolver{}, err
	}
	rest, query, asked := strings.Cut(rest, "?")
	host, path, slash := strings.Cut(rest, "/")
	if !found && (slash || asked) {
		return Resolver{}, instead(string(SchemeDNS)+"://"+text, "an address alone takes neither path nor parameters")
	}
	r := Resolver{Scheme: s}
	p := parameters{r: &r}
	if err := r.parseHost(host); err != nil {
		return Resolver{}, err
	}
	if err := r.parsePath(path); err != nil {
		return Resolver{}, err
	}
	if err := p.parse(query); err != nil {
		return Resolver{}, err
	}
	if err := p.check(); err != nil {
		return Resolver{}, err
	}
	return r, nil
}

func parseScheme(scheme, rest string) (Scheme, error) {
	switch s := Scheme(strings.ToLower(scheme)); s {
	case SchemeDNS, SchemeTCP, SchemeDoT, SchemeHTTPS, SchemeDoQ, SchemeH3:
		return s, nil
	case "tls":
		return SchemeDoT, nil
	case "doh":
		return SchemeHTTPS, nil
	case "quic":
		return SchemeDoQ, nil
	case "udp":
		return "", instead("dns://"+rest, "unknown scheme udp://; dns:// asks over UDP")
	case "http":
		return "", instead("https://"+rest, "unknown scheme http://; DNS over HTTP is encrypted always")
	case "sdns":
		return "", wrong("sdns:// (a DNSCrypt stamp) is not supported; want dns, tcp, dot, https, doq or h3")
	}
	return "", wrong("unknown scheme %q; want dns, tcp, dot (or tls), https (or doh), doq (or quic) or h3", shorten(scheme))
}

// parseHost reads an address or a name, with or without a port; an IPv6 address with a port
// needs brackets.
func (r *Resolver) parseHost(text string) error {
	if text == "" {
		return wrong("the host is missing: want %s://HOST", r.Scheme)
	}
	if strings.Contains(text, "@") {
		return wrong("a resolver takes no user and no password; remove %q", text[:strings.LastIndexByte(text, '@')+1])
	}
	host, port, err := splitPort(text, r.Scheme.port())
	if err != nil {
		return err
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		r.Addr = netip.AddrPortFrom(addr.Unmap(), port)
		return checkAddr(addr)
	}
	if !r.Encrypted() {
		return wrong("%s:// needs an address as host, got %q: want an IP address, because a name could not be resolved before there is a resolver", r.Scheme, host)
	}
	if r.Host, err = parseName(host); err != nil {
		return err
	}
	if isNumber(lastLabel(r.Host)) {
		return wrong("%q is neither an IP address nor a name", host)
	}
	r.Addr = netip.AddrPortFrom(netip.Addr{}, port)
	return nil
}

func checkAddr(a netip.Addr) error {
	if strings.ContainsFunc(a.Zone(), func(c rune) bool { return notInName(unicode.ToLower(c)) && c != '.' }) {
		return wrong("%q is not the name of an interface", a.Zone())
	}
	if a.IsUnspecified() || a.IsMulticast() || a.Unmap() == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return wrong("%s is not the address of a nameserver", a)
	}
	return nil
}

func splitPort(host string, standard uint16) (addr string, port uint16, err error) {
	rest := ""
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if addr, rest, ok = strings.Cut(inner, "]"); !ok || !strings.Contains(addr, ":") {
			return "", 0, wrong("want an IPv6 address between [ and ], got %q", host)
		}
	} else if i := strings.IndexByte(host, ':'); i >= 0 && i == strings.LastIndexByte(host, ':') {
		addr, rest = host[:i], host[i:]
	} else {
		addr = host
	}
	if rest == "" {
		return addr, standard, nil
	}
	digits, ok := strings.CutPrefix(rest, ":")
	n, err := strconv.ParseUint(digits, 10, 16)
	if !ok || err != nil || n == 0 || digits[0] == '+' {
		return "", 0, wrong("want a port from 1 to 65535, got %q", rest)
	}
	return addr, uint16(n), nil
}

// parseName reads a name and returns its usual form: lower-case, without the final dot.
func parseName(text string) (string, error) {
	name := strings.TrimSuffix(lower(text), ".")
	if len(name) > 253 {
		return "", wrong("%q is no name: it has more than 253 characters", shorten(text))
	}
	for i := range len(name) {
		if name[i] >= utf8.RuneSelf {
			ascii, err := idna.Lookup.ToASCII(name)
			if err != nil {
				return "", wrong("%q is no name of a host", text)
			}
			return "", instead(ascii, "write %q in its ASCII form", text)
		}
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, notInName) {
			return "", wrong("%q is no name of a host: want letters, digits and hyphens between dots", text)
		}
	}
	return name, nil
}

func notInName(c rune) bool {
	return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_'
}

func isNumber(label string) bool {
	_, err := strconv.ParseUint(label, 0, 64)
	return err == nil
}

func (r *Resolver) parsePath(path string) error {
	if !r.Scheme.http() {
		if path != "" {
			return wrong("%s:// has no path; remove %q", r.Scheme, "/"+path)
		}
		return nil
	}
	r.Path = "/" + path
	if path == "" {
		r.Path = defaultPath
	}
	if u, err := url.ParseRequestURI(r.Path); err != nil || u.RequestURI() != r.Path {
		return wrong("%q is no path of a URL: write other characters than letters, digits and -._~!$&'()*+,;=:@/ as %%XX", r.Path)
	}
	return nil
}

// parameters reads what stands behind the question mark.
type parameters struct {
	r    *Resolver
	seen []string
	ip   netip.Addr
}

func (p *parameters) given(name string) bool { return slices.Contains(p.seen, name) }

func (p *parameters) parse(query string) error {
	if query == "" {
		return nil
	}
	for part := range strings.SplitSeq(query, "&") {
		name, raw, valued := strings.Cut(part, "=")
		if part == "" {
			return wrong("there is nothing between two &, or behind the last; remove the &")
		}
		if p.given(name) {
			return wrong("%s is given twice", name)
		}
		p.seen = append(p.seen, name)
		value, err := url.QueryUnescape(raw)
		if err != nil || !utf8.ValidString(value) {
			return wrong("%s: %q is not escaped as in a URL: want %%XX", name, raw)
		}
		if err := p.set(name, value, valued); err != nil {
			return err
		}
	}
	return nil
}

func (p *parameters) set(name, value string, valued bool) (err error) {
	switch name {
	case "search-only", "link-local":
		if valued {
			return wrong("%s takes no value: write %s alone", name, name)
		}
		p.r.SearchOnly = p.r.SearchOnly || name == "search-only"
		p.r.LinkLocal = p.r.LinkLocal || name == "link-local"
		return nil
	case "name", "verify", "ip", "blockedif", "search":
		if value == "" {
			return wrong("%s has no value: give it one or leave it out", name)
		}
	default:
		return wrong("unknown parameter %q; want name, verify, ip, blockedif, search, search-only or link-local", shorten(name))
	}
	switch name {
	case "name":
		if utf8.RuneCountInString(value) > maxLabel || strings.ContainsFunc(value, func(c rune) bool { return !unicode.IsPrint(c) }) {
			return wrong("name: want at most %d printable characters", maxLabel)
		}
		p.r.Name = value
	case "verify":
		p.r.Verify, err = parseVerify(value)
	case "ip":
		p.ip, err = parseIP(value)
	case "blockedif":
		i := slices.Index(blockForms[:], value)
		if i < 0 {
			return wrong("blockedif: want zeroip, empty, refused or disabled, got %q", shorten(value))
		}
		p.r.BlockedIf = BlockForm(i)
	case "search":
		p.r.Search, err = parseSearch(value)
	}
	return err
}

// parseVerify reads the name that the certificate must be for; some are for addresses.
func parseVerify(value string) (string, error) {
	if a, err := netip.ParseAddr(value); err == nil && a.Zone() == "" {
		return a.Unmap().String(), nil
	}
	name, err := parseName(value)
	if err == nil && isNumber(lastLabel(name)) {
		err = wrong("%q is neither an IP address nor a name", value)
	}
	return name, prefixed("verify", err)
}

func parseIP(value string) (netip.Addr, error) {
	a, err := netip.ParseAddr(value)
	if err != nil {
		if ap, err := netip.ParseAddrPort(value); err == nil {
			return a, wrong("ip: want an address without a port, got %q: the port stands behind the host", ap)
		}
		return a, wrong("ip: want an IP address, got %q", shorten(value))
	}
	return a.Unmap(), prefixed("ip", checkAddr(a))
}

// parseSearch reads names joined with commas. A name that a registry gives names below would
// take the queries for other people's domains along.
func parseSearch(value string) (string, error) {
	list := strings.Split(value, ",")
	if len(list) > maxSearch {
		return "", wrong("search: want at most %d names, got %d", maxSearch, len(list))
	}
	for i, text := range list {
		name, err := parseName(strings.TrimPrefix(text, "."))
		if err != nil {
			return "", prefixed("search", err)
		}
		suffix, icann := publicsuffix.PublicSuffix(name)
		// A top-level domain that the list does not know is a private one.
		public := icann && name != "home.arpa" || strings.Contains(suffix, ".") && !network.LocalName(name)
		if public && len(name) <= len(suffix) {
			return "", wrong("search: everyone can register names below %q; want a name below it, such as example.%s", name, name)
		}
		list[i] = name
	}
	slices.Sort(list)
	return strings.Join(slices.Compact(list), ","), nil
}

func prefixed(parameter string, err error) error {
	if e, ok := err.(*grammarError); ok {
		return &grammarError{message: parameter + ": " + e.message, suggestion: e.suggestion}
	}
	return err
}

// check applies the rules between the parts.
func (p *parameters) check() error {
	r := p.r
	switch {
	case !r.Encrypted() && p.given("verify"):
		return wrong("%s:// is not encrypted, so there is nothing to verify; remove verify", r.Scheme)
	case r.Host == "" && p.given("ip"):
		return wrong("the host is an address already; remove ip")
	case r.Host != "" && p.given("verify"):
		return wrong("the certificate is checked for the host %s; remove verify", r.Host)
	case r.Host != "" && !p.given("ip"):
		return wrong("want ip=ADDRESS: %s could not be resolved before there is a resolver", r.Host)
	case r.Encrypted() && r.Host == "" && !p.given("verify"):
		return wrong("want verify=NAME, the name in the server's certificate, because the host is an address")
	case r.SearchOnly && r.Search == "":
		return wrong("search-only without search: the resolver would never be asked; add search=NAME")
	}
	if r.Host != "" {
		r.Addr = netip.AddrPortFrom(p.ip, r.Addr.Port())
	}
	return nil
}
