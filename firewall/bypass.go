package firewall

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"gatun/intel"
	"gatun/network"
	"gatun/network/packet"
	"gatun/profiles"
)

// CodeCanary marks the refusal of a name by which a network tells programs to use its own
// nameserver. Only "there is no such name" says so, whatever blocked names are answered with.
const CodeCanary = "bypass-canary"

// bypass refuses other ways to resolve names than the built-in nameserver: what resolves past it
// is judged by addresses alone. A resolver daemon of the system is one of its ways, not a way
// around it.
func bypass(r *request) outcome {
	e := r.facts.Entity
	if !r.settings.PreventBypassing || r.direction != network.Outbound || isResolver(r) {
		return outcome{}
	}
	d := network.Decision{Verdict: network.Block, Code: "bypass", Setting: "filter/preventBypassing"}
	switch {
	case isCanary(e.Domain):
		d.Code, d.Reason = CodeCanary, "this name is asked to find out whether names may be resolved elsewhere: they may not"
	case isResolverName(e.Domain):
		d.Reason = e.Domain + " is a resolver: names would be resolved past the firewall"
	case r.facts.PortKnown && bypassPort(r.facts.Proto, r.facts.Port) != "":
		d.Reason = "names would be resolved past the firewall: " + bypassPort(r.facts.Proto, r.facts.Port)
	case r.facts.PortKnown && isHTTPS(r.facts.Proto, r.facts.Port) && isResolverAddr(e.Addr):
		d.Reason = "names would be resolved past the firewall: DNS over HTTPS at a known address"
	default:
		on := onList(r, "SECUREDNS")
		if on == nil {
			return outcome{unknown: !e.Addr.IsValid() && r.intel != nil}
		}
		d.Reason, d.List = on.Name+" is on the list "+on.ID+" of resolvers: names would be resolved past the firewall", on.ID
		return outcome{ends: true, decision: d, match: on}
	}
	return decided(d)
}

// isResolver reports whether the program is the system's resolver daemon for sure.
func isResolver(r *request) bool {
	return identified(r.owner) && profiles.IsSystemResolver(r.owner.Process.Path)
}

// onList returns the first list of a category that the name or address is on, nil if none is.
func onList(r *request, category string) *intel.Match {
	stamp, _ := r.listed()
	if stamp == nil {
		return nil
	}
	for i := range stamp.Lists {
		if stamp.Lists[i].Category == category {
			return &stamp.Lists[i]
		}
	}
	return nil
}

// bypassPort says what resolves names at a port, "" for nothing. Port 53 comes here only where
// the built-in nameserver does not answer it.
func bypassPort(p packet.Proto, port uint16) string {
	if p != packet.UDP && p != packet.TCP {
		return ""
	}
	switch port {
	case dnsPort:
		return "DNS"
	case 853:
		if p == packet.UDP {
			return "DNS over QUIC"
		}
		return "DNS over TLS"
	case 5443:
		return "DNSCrypt"
	case 5353:
		return "multicast DNS"
	case 5355:
		return "LLMNR"
	}
	return ""
}

func isHTTPS(p packet.Proto, port uint16) bool {
	return port == 443 && (p == packet.TCP || p == packet.UDP)
}

// decidedByPort reports whether decider bypass looks at the port of this flow: what holds for
// the other flows to the address does not hold for it.
func decidedByPort(f packet.Flow) bool {
	port := f.Remote.Port()
	return bypassPort(f.Proto, port) != "" || isHTTPS(f.Proto, port) && isResolverAddr(f.Remote.Addr())
}

// isCanary knows the names by which browsers and systems ask whether they may resolve names
// themselves (Mozilla, "Canary domain use-application-dns.net"; Apple, "Prepare your network for
// iCloud Private Relay").
func isCanary(name string) bool {
	switch name {
	case "use-application-dns.net", "mask.icloud.com", "mask-h2.icloud.com":
		return true
	}
	return false
}

// isResolverName knows public resolvers that programs bring along (the built-in lists of Firefox,
// Chromium, Android, Windows 11 and dnscrypt-proxy, as their makers document them), names below
// them, DNSCrypt certificates, and names by which encrypted resolvers are discovered (RFC 9461).
func isResolverName(name string) bool {
	if strings.HasPrefix(name, "2.dnscrypt-cert.") || strings.HasPrefix(name, "_dns.") {
		return true
	}
	for rest, found := name, true; found; _, rest, found = strings.Cut(rest, ".") {
		switch rest {
		case "dns.google", "dns64.dns.google", "cloudflare-dns.com", "one.one.one.one", "dns.quad9.net", "dns9.quad9.net", "dns10.quad9.net",
			"dns11.quad9.net", "dns12.quad9.net", "doh.opendns.com", "doh.familyshield.opendns.com", "doh.sandbox.opendns.com",
			"dns.opendns.com", "doh.umbrella.com", "dns.umbrella.com", "dns.nextdns.io", "dns1.nextdns.io", "dns2.nextdns.io",
			"anycast.dns.nextdns.io", "dns.adguard.com", "dns.adguard-dns.com", "dns-family.adguard.com", "family.adguard-dns.com",
			"unfiltered.adguard-dns.com", "dns-unfiltered.adguard.com", "doh.cleanbrowsing.org", "family-filter-dns.cleanbrowsing.org",
			"adult-filter-dns.cleanbrowsing.org", "security-filter-dns.cleanbrowsing.org", "dns.mullvad.net", "doh.mullvad.net",
			"dns0.eu", "zero.dns0.eu", "kids.dns0.eu", "open.dns0.eu", "dns.controld.com", "freedns.controld.com", "doh.dns.sb", "dot.sb",
			"dns.switch.ch", "odvr.nic.cz", "doh.xfinity.com", "dot.xfinity.com", "dns.alidns.com", "doh.pub", "dot.pub", "doh.360.cn",
			"dot.360.cn", "dns.twnic.tw", "doh.applied-privacy.net", "dot1.applied-privacy.net", "dns.digitale-gesellschaft.ch",
			"doh.libredns.gr", "dot.libredns.gr", "ordns.he.net", "doh.ffmuc.net", "dot.ffmuc.net", "dnsforge.de", "wikimedia-dns.org",
			"jp.tiar.app", "jp.tiarap.org", "public.dns.iij.jp", "dns.comss.one", "private.canadianshield.cira.ca",
			"protected.canadianshield.cira.ca", "family.canadianshield.cira.ca", "doh.cox.net", "dot.cox.net", "doh.quickline.ch",
			"dns.bebasid.com", "dns.aa.net.uk", "unicast.uncensoreddns.org", "anycast.uncensoreddns.org", "dns.surfsharkdns.com",
			"dns.njal.la", "dns.decloudus.com", "dns.rabbitdns.org", "basic.rethinkdns.com", "max.rethinkdns.com", "sky.rethinkdns.com":
			return true
		}
	}
	return false
}

// isResolverAddr knows the addresses of the largest of them, as their makers document them.
func isResolverAddr(a netip.Addr) bool {
	a = a.Unmap()
	if a.Is4() {
		b := a.As4()
		return isResolver4(binary.BigEndian.Uint32(b[:]))
	}
	if !a.Is6() {
		return false
	}
	b := a.As16()
	switch binary.BigEndian.Uint64(b[:8]) >> 16 { // a /48 that serves nothing else
	case 0x2606_4700_4700, // Cloudflare
		0x2001_4860_4860,                                     // Google
		0x2620_00fe_0000,                                     // Quad9
		0x2620_0119_0035, 0x2620_0119_0053, 0x2620_0119_00fc, // OpenDNS
		0x2a10_50c0_0000,                   // AdGuard
		0x2a07_a8c0_0000, 0x2a07_a8c1_0000, // NextDNS
		0x2a07_e340_0000,                   // Mullvad
		0x2a0d_2a00_0001, 0x2a0d_2a00_0002, // CleanBrowsing
		0x2606_1a40_0000, 0x2606_1a40_0001, // Control D
		0x2400_3200_0000, 0x2400_3200_baba: // AliDNS
		return true
	}
	return false
}

func isResolver4(a uint32) bool {
	switch a {
	case 0x01010101, 0x01000001, 0x01010102, 0x01000002, 0x01010103, 0x01000003, 0x68_10_f8_f9, 0x68_10_f9_f9, // Cloudflare
		0x08080808, 0x08080404, // Google
		0x09090909, 0x95_70_70_70, 0x0909090a, 0x95_70_70_0a, 0x0909090b, 0x95_70_70_0b, // Quad9
		0xd0_43_de_de, 0xd0_43_dc_dc, 0xd0_43_de_7b, 0xd0_43_dc_7b, // OpenDNS
		0x5e_8c_0e_0e, 0x5e_8c_0f_0f, 0x5e_8c_0e_0f, 0x5e_8c_0f_10, 0x5e_8c_0e_8c, 0x5e_8c_0e_8d, // AdGuard
		0x2d_5a_1c_00, 0x2d_5a_1e_00, // NextDNS
		0xc2_f2_02_02, 0xc2_f2_02_03, 0xc2_f2_02_04, // Mullvad
		0xb9_e4_a8_09, 0xb9_e4_a9_09, 0xb9_e4_a8_a8, 0xb9_e4_a9_a8, 0xb9_e4_a8_0a, 0xb9_e4_a9_0b, // CleanBrowsing
		0x4c_4c_02_00, 0x4c_4c_0a_00, // Control D
		0xdf_05_05_05, 0xdf_06_06_06: // AliDNS
		return true
	}
	return false
}
