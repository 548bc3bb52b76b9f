package config

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
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

// checkRetryRate refuses what would be an attack on a resolver that is down.
func checkRetryRate(v any) (message, suggestion string) {
	if d := v.(time.Duration); d < time.Second || d > 24*time.Hour {
		return fmt.Sprintf("want 1s to 24h, got %s", d), ""
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

// nameserversKey is the setting whose texts Source.CheckResolver checks.
const nameserversKey = "dns/nameservers"

// checkNameservers refuses what is no resolver at all, where nobody gave a Source.CheckResolver.
func checkNameservers(v any) (message, suggestion string) {
	if s := v.(string); s == "" || strings.ContainsAny(s, " \t\r\n") {
		return fmt.Sprintf("want an address or a URL such as dns://192.0.2.53, got %q", s), ""
	}
	return "", ""
}

// checkOnlineCheck wants a page that a captive portal can answer in place of its owner.
func checkOnlineCheck(v any) (message, suggestion string) {
	const example = "http://detectportal.firefox.com/success.txt"
	text := v.(string)
	if text == "" || text == "off" {
		return "", ""
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Hostname() == "" || strings.ContainsAny(text, " \t\r\n"):
		return fmt.Sprintf("want the address of a page such as %s, or off, got %q", example, text), ""
	case u.Scheme == "https":
		return "want a page in plain HTTP: no captive portal can answer in place of an encrypted one", "http" + strings.TrimPrefix(text, "https")
	case u.Scheme != "http":
		return fmt.Sprintf("want a page in plain HTTP such as %s, got %q", example, text), ""
	case u.User != nil:
		return "want no user name or password: everybody on the way could read it", ""
	case u.Port() != "":
		if port, err := strconv.ParseUint(u.Port(), 10, 16); err != nil || port == 0 {
			return fmt.Sprintf("want a port from 1 to 65535, got %q", u.Port()), ""
		}
	}
	return "", ""
}
