package dns

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Scheme is how an upstream nameserver is asked.
type Scheme string

// The schemes that are built. The encrypted ones of dns.md come with their own files.
const (
	SchemeDNS Scheme = "dns" // UDP, and TCP for what does not fit
	SchemeTCP Scheme = "tcp"
)

const dnsPort = 53

// Resolver is one upstream nameserver. It is comparable.
type Resolver struct {
	Scheme Scheme
	Addr   netip.AddrPort

	Search     string // domains that it is preferred for, comma-joined; "" is none
	SearchOnly bool   // it is asked for names in Search only
	LinkLocal  bool   // it is also asked for the names of this network
}

// String formats the resolver as its URL.
func (r Resolver) String() string { return string(r.Scheme) + "://" + r.Addr.String() }

// ParseResolver reads scheme://host[:port], or a bare address, which means dns://.
func ParseResolver(text string) (Resolver, error) {
	scheme, rest, found := strings.Cut(text, "://")
	if !found {
		scheme, rest = string(SchemeDNS), text
	}
	s, err := parseScheme(scheme, text)
	if err != nil {
		return Resolver{}, err
	}
	host, query, _ := strings.Cut(rest, "?")
	if query != "" {
		return Resolver{}, fmt.Errorf("resolver %q: %s:// takes no parameters; remove %q", text, s, "?"+query)
	}
	host, path, _ := strings.Cut(host, "/")
	if path != "" {
		return Resolver{}, fmt.Errorf("resolver %q: %s:// has no path; remove %q", text, s, "/"+path)
	}
	addr, err := parseHost(host)
	if err != nil {
		return Resolver{}, fmt.Errorf("resolver %q: %w", text, err)
	}
	return Resolver{Scheme: s, Addr: addr}, nil
}

func parseScheme(scheme, text string) (Scheme, error) {
	switch s := Scheme(strings.ToLower(scheme)); s {
	case SchemeDNS, SchemeTCP:
		return s, nil
	case "dot", "tls", "doh", "https", "doq", "quic", "h3":
		return "", fmt.Errorf("resolver %q: %s:// is not supported by this version; use dns:// or tcp://", text, s)
	}
	return "", fmt.Errorf("resolver %q: want dns:// or tcp://, got %q", text, scheme)
}

// parseHost reads an address with or without a port; with a port, IPv6 needs brackets.
func parseHost(host string) (netip.AddrPort, error) {
	text, port, err := splitPort(host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("want an IP address, got %q", text)
	}
	if addr.IsUnspecified() || addr.IsMulticast() {
		return netip.AddrPort{}, fmt.Errorf("%s is not the address of a nameserver", addr)
	}
	return netip.AddrPortFrom(addr.Unmap(), port), nil
}

func splitPort(host string) (addr string, port uint16, err error) {
	rest := ""
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if addr, rest, ok = strings.Cut(inner, "]"); !ok || !strings.Contains(addr, ":") {
			return "", 0, fmt.Errorf("want an IPv6 address between [ and ], got %q", host)
		}
	} else if i := strings.IndexByte(host, ':'); i >= 0 && i == strings.LastIndexByte(host, ':') {
		addr, rest = host[:i], host[i:]
	} else {
		addr = host
	}
	if rest == "" {
		return addr, dnsPort, nil
	}
	digits, ok := strings.CutPrefix(rest, ":")
	n, err := strconv.ParseUint(digits, 10, 16)
	if !ok || err != nil || n == 0 {
		return "", 0, fmt.Errorf("want a port from 1 to 65535, got %q", rest)
	}
	return addr, uint16(n), nil
}
