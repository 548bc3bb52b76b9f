package dns

import (
	"net/netip"
	"net/url"
	"strings"
)

// Scheme is how an upstream nameserver is asked.
type Scheme string

// The schemes. A URL may also say tls:// for dot://, doh:// for https:// and quic:// for doq://.
const (
	SchemeDNS   Scheme = "dns"   // UDP, and TCP for what does not fit
	SchemeTCP   Scheme = "tcp"   // RFC 7766
	SchemeDoT   Scheme = "dot"   // RFC 7858
	SchemeHTTPS Scheme = "https" // RFC 8484, HTTP/2
	SchemeDoQ   Scheme = "doq"   // RFC 9250
	SchemeH3    Scheme = "h3"    // RFC 8484, HTTP/3
)

// Encrypted reports whether neither the queries nor the answers can be read or changed on the way.
func (s Scheme) Encrypted() bool {
	switch s {
	case SchemeDoT, SchemeHTTPS, SchemeDoQ, SchemeH3:
		return true
	}
	return false
}

func (s Scheme) port() uint16 {
	switch s {
	case SchemeDoT, SchemeDoQ:
		return 853
	case SchemeHTTPS, SchemeH3:
		return 443
	}
	return dnsPort
}

func (s Scheme) http() bool { return s == SchemeHTTPS || s == SchemeH3 }

const (
	dnsPort = 53

	// defaultPath is where nearly all DoH servers answer, and what RFC 8484 uses.
	defaultPath = "/dns-query"
)

// BlockForm is the form of answer by which a resolver says that it blocks a name.
type BlockForm uint8

// The forms. None of them is how a name that does not exist is answered.
const (
	BlockZeroIP   BlockForm = iota // only the addresses 0.0.0.0 and ::
	BlockEmpty                     // no record at all, not even the SOA that a negative answer has
	BlockRefused                   // REFUSED
	BlockDisabled                  // it never says so
)

var blockForms = [...]string{BlockZeroIP: "zeroip", BlockEmpty: "empty", BlockRefused: "refused", BlockDisabled: "disabled"}

// String is the form's name in a URL.
func (b BlockForm) String() string { return blockForms[b] }

// Resolver is one upstream nameserver. It is comparable.
type Resolver struct {
	Scheme Scheme
	Addr   netip.AddrPort // is dialled
	Host   string         // the URL's host if it is a name; then Addr is from ip=
	Path   string         // of https and h3

	Verify     string // the name in the certificate where the host is an address
	Name       string // for people; may be empty
	BlockedIf  BlockForm
	Search     string // names below which this resolver is asked first, sorted, joined with commas
	SearchOnly bool   // it is asked for no other names
	LinkLocal  bool   // it belongs to this network: it is asked for its names and may answer with its addresses
}

// Encrypted reports whether neither the queries nor the answers can be read or changed on the way.
func (r Resolver) Encrypted() bool { return r.Scheme.Encrypted() }

// Label is what people call the resolver: its name, else its host.
func (r Resolver) Label() string {
	switch {
	case r.Name != "":
		return r.Name
	case r.Host != "":
		return r.Host
	case r.Verify != "":
		return r.Verify
	}
	return r.Addr.Addr().String()
}

// SearchDomains returns the names below which this resolver is asked first.
func (r Resolver) SearchDomains() []string {
	if r.Search == "" {
		return nil
	}
	return strings.Split(r.Search, ",")
}

// certificateName is what the server's certificate must be for.
func (r Resolver) certificateName() string {
	if r.Host != "" {
		return r.Host
	}
	return r.Verify
}

// String formats the resolver as its URL, which ParseResolver reads as the same value.
func (r Resolver) String() string {
	host := r.Addr.String()
	if r.Host != "" {
		host = r.Host + host[strings.LastIndexByte(host, ':'):]
	}
	var b strings.Builder
	b.WriteString(string(r.Scheme) + "://" + host + r.Path)
	separator := byte('?')
	add := func(parameter, value string) {
		if value != "" {
			b.WriteByte(separator)
			b.WriteString(parameter + value)
			separator = '&'
		}
	}
	add("name=", url.QueryEscape(r.Name))
	add("verify=", r.Verify)
	if r.Host != "" {
		add("ip=", strings.ReplaceAll(r.Addr.Addr().String(), "%", "%25"))
	}
	if r.BlockedIf != BlockZeroIP {
		add("blockedif=", r.BlockedIf.String())
	}
	add("search=", r.Search)
	if r.SearchOnly {
		add("", "search-only")
	}
	if r.LinkLocal {
		add("", "link-local")
	}
	return b.String()
}
