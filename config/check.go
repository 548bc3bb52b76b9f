package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

func checkPath(v any) (message, suggestion string) {
	p := v.(string)
	switch {
	case p == "" || filepath.IsAbs(p) && filepath.Clean(p) == p:
		return "", ""
	case filepath.IsAbs(p):
		return fmt.Sprintf("want a clean path, got %q", p), filepath.Clean(p)
	default:
		return fmt.Sprintf("want an absolute path, got %q", p), ""
	}
}

// checkFailOpen accepts what is true anyway.
func checkFailOpen(v any) (message, suggestion string) {
	if v == true {
		return "on is not available in this version: it always fails closed", ""
	}
	return "", ""
}

// checkAskTimeout refuses what nobody could answer in, and what outlives every connection.
func checkAskTimeout(v any) (message, suggestion string) {
	if d := v.(time.Duration); d < time.Second || d > time.Hour {
		return fmt.Sprintf("want 1s to 1h, got %s", d), ""
	}
	return "", ""
}

func checkMark(v any) (message, suggestion string) {
	if n := v.(int); n < 0 || n > 0xffffffff {
		return fmt.Sprintf("want a number from 1 to 0xffffffff, or 0, got %d", n), ""
	}
	return "", ""
}

// checkRoutingTable refuses the kernel's own tables: a default route in one of them would
// replace the machine's.
func checkRoutingTable(v any) (message, suggestion string) {
	n := v.(int)
	if n < 0 || n > 0xffffffff {
		return fmt.Sprintf("want a number from 1 to 0xffffffff, or 0, got %d", n), ""
	}
	if n >= 253 && n <= 255 {
		return fmt.Sprintf("table %d belongs to the kernel; want another number", n), ""
	}
	return "", ""
}

// checkNameservers checks one resolver of the list.
func checkNameservers(v any) (message, suggestion string) {
	s := v.(string)
	if _, err := netip.ParseAddr(s); err == nil {
		return "", ""
	}
	if a, err := netip.ParseAddrPort(s); err == nil {
		return "want an address alone or a URL such as dns://192.0.2.53:5353", "dns://" + a.String()
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || u.Host == "" {
		return fmt.Sprintf("want an address or a URL such as dns://192.0.2.53, got %q", s), ""
	}
	switch u.Scheme {
	case "dns", "tcp":
		return checkPlainResolver(u)
	case "dot", "tls", "doh", "https", "doq", "quic", "h3":
		return fmt.Sprintf("%s:// is not available in this version: it needs encrypted resolvers", u.Scheme), ""
	default:
		return fmt.Sprintf("unknown scheme %s://; want dns or tcp", u.Scheme), nearest(u.Scheme, []string{"dns", "tcp"})
	}
}

func checkPlainResolver(u *url.URL) (message, suggestion string) {
	if u.Path != "" && u.Path != "/" || u.User != nil || u.Fragment != "" {
		return fmt.Sprintf("%s:// takes an address and a port only", u.Scheme), u.Scheme + "://" + u.Host
	}
	for name := range u.Query() {
		return fmt.Sprintf("unknown parameter %q; in this version %s:// takes none", name, u.Scheme), u.Scheme + "://" + u.Host
	}
	if _, err := netip.ParseAddr(strings.Trim(u.Host, "[]")); err == nil {
		return "", ""
	}
	if a, err := netip.ParseAddrPort(u.Host); err == nil && a.Port() != 0 {
		return "", ""
	}
	return fmt.Sprintf("%s:// needs an address as host, got %q: a name could not be resolved before there is a resolver", u.Scheme, u.Host), ""
}
