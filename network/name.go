package network

import "strings"

// LocalName reports whether a name means something on this network or machine only: a single
// label, a special-use name (RFC 6761, RFC 6762, RFC 8375, internal by ICANN's resolution of
// 2024-07-29), or one of the private top-level domains of RFC 6762, appendix G. Such a name may
// lead to private addresses; any other that does is how a web page reaches into the local
// network (DNS rebinding). The name is lower-case, without the final dot.
func LocalName(name string) bool {
	if name == "" {
		return false
	}
	switch name[strings.LastIndexByte(name, '.')+1:] {
	case name, "localhost", "local", "test", "internal", "intranet", "private", "corp", "home", "lan", "localdomain":
		return true
	case "arpa":
		return name == "home.arpa" || strings.HasSuffix(name, ".home.arpa")
	}
	return false
}

// ConnectivityName reports whether a name is one by which systems and browsers find out whether
// they are online or behind a captive portal. Answers to it are never cached: a portal gives
// false ones.
func ConnectivityName(name string) bool {
	switch name {
	case "captive.apple.com", "gsp1.apple.com", "connectivitycheck.gstatic.com", "connectivitycheck.android.com",
		"clients3.google.com", "detectportal.firefox.com", "detectportal.prod.mozaws.net",
		"www.msftconnecttest.com", "ipv6.msftconnecttest.com", "www.msftncsi.com", "dns.msftncsi.com",
		"nmcheck.gnome.org", "network-test.debian.org", "connectivity-check.ubuntu.com",
		"conncheck.opensuse.org", "ping.archlinux.org", "networkcheck.kde.org", "connectivity.samsung.com.cn", "connect.rom.miui.com":
		return true
	}
	return false
}
