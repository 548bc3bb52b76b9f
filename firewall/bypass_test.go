package firewall

import (
	"net/netip"
	"slices"
	"testing"

	"gatun/attribution"
	"gatun/intel"
	"gatun/network"
	"gatun/network/packet"
	"gatun/profiles"
)

// rebinding is every form in which a public name can lead into this machine or network.
func rebinding() []string {
	return []string{
		"127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.127.255.255",
		"0.0.0.0", "0.1.2.3", "::1", "::", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "fe80::1", "febf::1", "fc00::1", "fdff::1", "fec0::1",
		"64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b::c0a8:101", "64:ff9b:1::a9fe:1", "::10.0.0.1", "2002:a00:1::1", "2002:c0a8:101::1",
		"224.0.0.251", "255.255.255.255", "ff02::fb",
	}
}

func TestResolverScope(t *testing.T) {
	m := policy(t, "")
	good := netip.MustParseAddr("198.51.100.1")
	for _, text := range rebinding() {
		bad := netip.MustParseAddr(text)
		n := Name{Owner: curl(), Domain: "rebound.example"}
		if d, _ := m.DecideOnCommunicationAfterIntel(n, []netip.Addr{bad}); d.Verdict != network.Block {
			t.Errorf("%s alone: %v (%s)", text, d.Verdict, d.Reason)
		}
		d, removed := m.DecideOnCommunicationAfterIntel(n, []netip.Addr{good, bad})
		if d.Verdict != network.Accept || !slices.Equal(removed, []netip.Addr{bad}) {
			t.Errorf("%s as second record: %v, removed %v", text, d.Verdict, removed)
		}
		if d := m.Decide(comm("rebound.example", text), flow(packet.TCP, netip.AddrPortFrom(bad, 80).String())); d.Verdict != network.Block {
			t.Errorf("a connection to %s: %v (%s)", text, d.Verdict, d.Reason)
		}
	}
	for _, text := range []string{"198.51.100.1", "100.128.0.1", "172.32.0.1", "2001:db8::1", "64:ff9b::c633:6401", "2002:c633:6401::1"} {
		if outOfScope(netip.MustParseAddr(text)) {
			t.Errorf("%s is out of scope", text)
		}
	}
}

func TestResolverScopeIsForPublicNames(t *testing.T) {
	lan := []netip.Addr{netip.MustParseAddr("192.168.1.1")}
	for _, c := range []struct {
		name, yaml, domain string
		local              bool
		want               network.Verdict
	}{
		{"public", "", "nas.example", false, network.Block},
		{"of this network", "", "nas.lan", false, network.Accept},
		{"by mDNS", "", "nas.local", false, network.Accept},
		{"a single label", "", "nas", false, network.Accept},
		{"a nameserver that was chosen for it", "", "nas.example", true, network.Accept},
		{"a rule beats it", "filter: {endpoints: [\"+ nas.example\"]}\n", "nas.example", false, network.Accept},
		{"switched off", "filter: {removeOutOfScopeDNS: off}\n", "nas.example", false, network.Accept},
		{"removeBlockedDNS does not switch it off", "filter: {removeBlockedDNS: off}\n", "nas.example", false, network.Block},
	} {
		m := policy(t, c.yaml)
		if d, _ := m.DecideOnCommunicationAfterIntel(Name{Owner: curl(), Domain: c.domain, Local: c.local}, lan); d.Verdict != c.want {
			t.Errorf("%s: %v (%s), want %v", c.name, d.Verdict, d.Reason, c.want)
		}
		link := comm(c.domain, "192.168.1.1")
		link.Entity.Local = c.local
		if d := m.Decide(link, flow(packet.TCP, "192.168.1.1:80")); d.Verdict != c.want {
			t.Errorf("%s: connection: %v (%s), want %v", c.name, d.Verdict, d.Reason, c.want)
		}
	}
	m := policy(t, "filter: {removeBlockedDNS: off}\n")
	if _, removed := m.DecideOnCommunicationAfterIntel(Name{Owner: curl(), Domain: "a.example"}, []netip.Addr{netip.MustParseAddr("198.51.100.1"), lan[0]}); !slices.Equal(removed, lan) {
		t.Errorf("removed %v while removeBlockedDNS is off, want %v", removed, lan)
	}
}

// portal is a policy while a captive portal is there.
type portal struct{ Profiles }

func (p portal) For(o attribution.Owner) *profiles.Settings {
	s := *p.Profiles.For(o)
	s.Portal, s.PortalHost = true, "login.hotel.example"
	return &s
}

func TestConnectivity(t *testing.T) {
	m := policy(t, "filter: {defaultAction: block}\n")
	c, f := comm("detectportal.firefox.com", "198.51.100.1"), flow(packet.TCP, "198.51.100.1:80")
	if d := m.Decide(c, f); d.Verdict != network.Block {
		t.Errorf("no portal: %v (%s)", d.Verdict, d.Reason)
	}
	there := New(portal{m.profiles})
	if d := there.Decide(comm("detectportal.firefox.com", "198.51.100.1"), f); d.Verdict != network.Accept || d.Code != "connectivity" {
		t.Errorf("portal: %v (%s)", d.Verdict, d.Reason)
	}
	for _, to := range [][2]string{{"login.hotel.example", "10.1.1.1"}, {"detectportal.firefox.com", "10.1.1.1"}} {
		if d, removed := there.DecideOnCommunicationAfterIntel(Name{Owner: curl(), Domain: to[0]}, []netip.Addr{netip.MustParseAddr(to[1])}); d.Verdict != network.Accept || removed != nil {
			t.Errorf("%s behind the portal: %v (%s)", to[0], d.Verdict, d.Reason)
		}
		if d := there.Decide(comm(to[0], to[1]), flow(packet.TCP, to[1]+":80")); d.Verdict != network.Accept {
			t.Errorf("a connection to %s behind the portal: %v (%s)", to[0], d.Verdict, d.Reason)
		}
		if d, _ := m.DecideOnCommunicationAfterIntel(Name{Owner: curl(), Domain: to[0]}, []netip.Addr{netip.MustParseAddr(to[1])}); d.Verdict != network.Block {
			t.Errorf("%s without a portal: %v (%s)", to[0], d.Verdict, d.Reason)
		}
	}
	if d, _ := there.DecideOnCommunicationAfterIntel(Name{Owner: curl(), Domain: "a.example"}, []netip.Addr{netip.MustParseAddr("10.1.1.1")}); d.Verdict != network.Block {
		t.Errorf("another name that leads into the network: %v (%s)", d.Verdict, d.Reason)
	}
	if d := there.Decide(comm("a.example", "198.51.100.1"), f); d.Verdict != network.Block {
		t.Errorf("another name: %v (%s)", d.Verdict, d.Reason)
	}
	strict := New(portal{policy(t, "filter: {endpoints: [\"- .firefox.com\"]}\n").profiles})
	if d := strict.DecideOnCommunicationBeforeIntel(Name{Owner: curl(), Domain: "detectportal.firefox.com"}); d.Verdict != network.Block {
		t.Errorf("a rule is a person's word: %v (%s)", d.Verdict, d.Reason)
	}
}

func TestBypassNames(t *testing.T) {
	m := policy(t, "")
	m.Intel = &known{matches: map[string][]intel.Match{"doh.listed.example": {{ID: "doh", Category: "SECUREDNS", Name: "doh.listed.example"}}}}
	for name, code := range map[string]string{
		"use-application-dns.net": CodeCanary, "mask.icloud.com": CodeCanary, "mask-h2.icloud.com": CodeCanary,
		"dns.google": "bypass", "mozilla.cloudflare-dns.com": "bypass", "abc123.dns.nextdns.io": "bypass",
		"2.dnscrypt-cert.resolver.example": "bypass", "_dns.resolver.example": "bypass", "doh.listed.example": "bypass",
		"example.org": "", "google": "", "icloud.com": "", "xdns.google": "", "dns.google.example": "",
	} {
		d := m.DecideOnCommunicationBeforeIntel(Name{Owner: curl(), Domain: name})
		if got := d.Code; code == "" && got == "bypass" || code != "" && (got != code || d.Verdict != network.Block) {
			t.Errorf("%s: %v %q, want %q", name, d.Verdict, got, code)
		}
	}
	off := policy(t, "filter: {preventBypassing: off}\n")
	if d := off.DecideOnCommunicationBeforeIntel(Name{Owner: curl(), Domain: "dns.google"}); d.Decided() && !d.Verdict.Permits() {
		t.Errorf("switched off: %v (%s)", d.Verdict, d.Reason)
	}
}

// TestBypassPorts has every form that a port or an address gives away: refused, unless the setting
// is off, a rule permits it, or it is the system's own resolver.
func TestBypassPorts(t *testing.T) {
	forms := []struct {
		proto packet.Proto
		to    string
	}{
		{packet.TCP, "198.51.100.1:853"}, {packet.UDP, "198.51.100.1:853"}, {packet.UDP, "198.51.100.1:5443"}, {packet.TCP, "198.51.100.1:5443"},
		{packet.UDP, "198.51.100.1:5353"}, {packet.UDP, "198.51.100.1:5355"}, {packet.UDP, "224.0.0.251:5353"},
		{packet.TCP, "1.1.1.1:443"}, {packet.UDP, "8.8.8.8:443"}, {packet.TCP, "[2606:4700:4700::1111]:443"}, {packet.TCP, "[2620:fe::fe]:443"},
		{packet.TCP, "198.51.100.77:443"}, {packet.TCP, "198.51.100.77:8443"}, // on a list
	}
	const experimental = "core: {releaseLevel: experimental}\n"
	daemon := attribution.Owner{Process: &attribution.Process{PID: 9, Path: "/usr/sbin/unbound", Kind: attribution.KindProgram}, Confidence: attribution.Exact}
	for _, c := range []struct {
		name, yaml string
		owner      attribution.Owner
		want       network.Verdict
	}{
		{"block", "", curl(), network.Block},
		{"off", "filter: {preventBypassing: off}\n", curl(), network.Accept},
		{"rule", "filter: {endpoints: [\"+ *\"]}\n", curl(), network.Accept},
		{"resolver daemon", "", daemon, network.Accept},
		{"may be the resolver daemon", "", attribution.Owner{Process: daemon.Process, Confidence: attribution.Ambiguous}, network.Block},
	} {
		m := policy(t, c.yaml)
		m.Intel = &known{matches: map[string][]intel.Match{"198.51.100.77": {{ID: "doh", Category: "SECUREDNS", Name: "198.51.100.77/32"}}}}
		for _, f := range forms {
			addr := netip.MustParseAddrPort(f.to).Addr().String()
			link := &network.Communication{Owner: c.owner, Entity: network.Entity{Addr: netip.MustParseAddr(addr)}}
			if d := m.Decide(link, flow(packet.TCP, netip.AddrPortFrom(link.Entity.Addr, 80).String())); d.Code == "bypass" && addr != "198.51.100.77" {
				t.Errorf("%s: port 80 of %s: %v (%s)", c.name, addr, d.Verdict, d.Reason)
			}
			if d := m.Decide(link, flow(f.proto, f.to)); d.Verdict != c.want { // whatever was cached for port 80
				t.Errorf("%s: %v to %s: %v (%s), want %v", c.name, f.proto, f.to, d.Verdict, d.Reason, c.want)
			}
		}
	}
	for yaml, want := range map[string]network.Verdict{
		"": network.RerouteToNameserver,
		"filter: {dnsQueryInterception: off}\n" + experimental:                        network.Block,
		"filter: {dnsQueryInterception: off, preventBypassing: off}\n" + experimental: network.Accept,
	} {
		m := policy(t, yaml)
		for _, p := range []packet.Proto{packet.UDP, packet.TCP} {
			if d := m.Decide(comm("", "198.51.100.1"), flow(p, "198.51.100.1:53")); d.Verdict != want {
				t.Errorf("%q: port 53: %v (%s), want %v", yaml, d.Verdict, d.Reason, want)
			}
		}
	}
}

func TestPeerToPeerLists(t *testing.T) {
	m := policy(t, "filter: {blockP2P: on}\n")
	m.Intel = &known{matches: map[string][]intel.Match{"tracker.example": {{ID: "peers", Category: "P2P", Name: "tracker.example"}}}}
	if d := m.Decide(comm("tracker.example", "198.51.100.1"), flow(packet.TCP, "198.51.100.1:443")); d.Verdict != network.Block || d.List != "peers" {
		t.Errorf("listed: %v (%s) list %q", d.Verdict, d.Reason, d.List)
	}
	if d := m.Decide(comm("a.example", "198.51.100.1"), flow(packet.TCP, "198.51.100.1:443")); d.Verdict != network.Accept {
		t.Errorf("not listed: %v (%s)", d.Verdict, d.Reason)
	}
}
