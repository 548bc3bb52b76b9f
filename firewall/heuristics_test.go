package firewall

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gatun/intel"
	"gatun/network"
	"gatun/network/packet"
	"gatun/profiles"
)

const generated = "xkvbnqwrtzplmc.com"

func TestGeneratedNames(t *testing.T) {
	heuristics := profiles.Settings{DefaultAction: profiles.Allow, DomainHeuristics: true}
	off := profiles.Settings{DefaultAction: profiles.Allow}
	for _, c := range []struct {
		name, domain string
		settings     *profiles.Settings
		want         network.Verdict
		code         string
	}{
		{"generated", generated, &heuristics, network.Block, "generated-name"},
		{"below one", "www." + generated, &heuristics, network.Block, "generated-name"},
		{"switched off", generated, &off, network.Accept, "default-action"},
		{"a host of a content network", "d111111abcdef8.cloudfront.net", &heuristics, network.Accept, "default-action"},
		{"of this network", "xkvbnqwrtzplmc.local", &heuristics, network.Accept, "default-action"},
		{"punycode", "xn--80ak6aa92e.com", &heuristics, network.Accept, "default-action"},
		{"a name", "wikipedia.org", &heuristics, network.Accept, "default-action"},
		{"no name", "", &heuristics, network.Accept, "default-action"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := New(as{c.settings})
			n := Name{Owner: curl(), Domain: c.domain, Type: 1}
			before := m.DecideOnCommunicationBeforeIntel(n)
			after, _ := m.DecideOnCommunicationAfterIntel(n, []netip.Addr{netip.MustParseAddr("198.51.100.1")})
			if c.domain != "" && (before.Verdict != c.want || after.Verdict != c.want) {
				t.Errorf("query: %+v, %+v", before, after)
			}
			comm, f := comm(c.domain, "198.51.100.1"), flow(packet.TCP, "198.51.100.1:443")
			for range 2 { // the second is cached
				if d := m.Decide(comm, f); d.Verdict != c.want || d.Code != c.code {
					t.Errorf("flow: %+v", d)
				}
			}
			comm.Direction = network.Inbound
			if d := m.DecideOnLink(comm, f); d.Code != "default-inbound" {
				t.Errorf("inbound: %+v", d)
			}
			d, trail := m.Why(Question{Owner: curl(), Entity: network.Entity{Domain: c.domain}, Flow: f})
			if d.Verdict != c.want {
				t.Errorf("why: %+v", d)
			}
			if text := wordOf(trail, "domain-heuristics"); c.settings.DomainHeuristics && c.domain != "" && !network.LocalName(c.domain) && !strings.Contains(text, "score") {
				t.Errorf("why says %q and no score", text)
			}
		})
	}
}

// wordOf returns what a decider said last.
func wordOf(t Trail, decider string) (text string) {
	for _, s := range t.Steps {
		if s.Decider == decider {
			text = s.Result
		}
	}
	return text
}

// TestRulesBeatHeuristics: a guess is taken back by a line of the user's.
func TestRulesBeatHeuristics(t *testing.T) {
	m := policy(t, "filter:\n  endpoints:\n    - \"+ ."+generated+"\"\n    - \"+ .tunnel.example.org\"\n")
	m.Tunnels = intel.NewTunnels(nil)
	if d := m.DecideOnCommunicationBeforeIntel(Name{Owner: curl(), Domain: "www." + generated}); d.Verdict != network.Accept || d.Code != "rule" {
		t.Errorf("a permitted name: %+v", d)
	}
	if d := m.DecideOnCommunicationBeforeIntel(Name{Owner: curl(), Domain: "qq" + generated}); d.Verdict != network.Block || d.Code != "generated-name" {
		t.Errorf("the default of the setting: %+v", d)
	}
	for i := range 2000 {
		if d := m.DecideOnCommunicationBeforeIntel(Name{Owner: curl(), Domain: carrying(i, "tunnel.example.org"), Type: 16}); d.Verdict != network.Accept {
			t.Fatalf("query %d of a permitted tunnel: %+v", i, d)
		}
	}
}

// carrying returns the n-th name of a tunnel.
func carrying(n int, domain string) string {
	b := make([]byte, 30)
	for i := range b {
		n = n*1103515245 + 12345
		b[i] = byte(n >> 16)
	}
	return hex.EncodeToString(b) + "." + domain
}

// TestTunnelQueries: queries that carry data are blocked from the limit on, for this program and
// domain only; asking why, and connections, neither count nor are blocked.
func TestTunnelQueries(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	m := New(as{&profiles.Settings{DefaultAction: profiles.Allow, DomainHeuristics: true}})
	m.Tunnels = intel.NewTunnels(func() time.Time { return now })
	other := curl()
	p := *other.Process
	p.Path = "/usr/bin/other"
	other.Process = &p
	why := func(i int) network.Decision {
		d, _ := m.Why(Question{Owner: curl(), Entity: network.Entity{Domain: carrying(i, "t.example.com")}})
		return d
	}
	for i := range 3000 {
		if d := why(i); d.Verdict != network.Accept {
			t.Fatalf("asking why counts: %+v", d)
		}
		if d := m.DecideOnCommunicationBeforeIntel(Name{Owner: curl(), Domain: carrying(i, "t.example.com"), Type: 16, Dry: true}); !d.Verdict.Permits() {
			t.Fatalf("a dry query counts: %+v", d)
		}
	}
	blocked := 0
	for i := range 400 {
		n := Name{Owner: curl(), Domain: carrying(i, "t.example.com"), Type: 16}
		d := m.DecideOnCommunicationBeforeIntel(n)
		if d.Verdict.Permits() {
			if blocked > 0 {
				t.Fatalf("query %d after one was blocked: %+v", i, d)
			}
			d, _ = m.DecideOnCommunicationAfterIntel(n, nil) // does not count again
			if !d.Verdict.Permits() {
				t.Fatalf("query %d after it was resolved: %+v", i, d)
			}
			continue
		}
		if blocked++; d.Code != "dns-tunnel" || !strings.Contains(d.Reason, "example.com") || d.Stage != network.StageBeforeIntel {
			t.Fatalf("%+v", d)
		}
	}
	// Some new names count as known: the set of those is a small one (see intel.Tunnels).
	if want := 400 - intel.TunnelBytes/120; blocked < want-20 || blocked > want+2 {
		t.Errorf("%d of 400 were blocked, want about %d", blocked, want)
	}
	if d := why(1); d.Verdict != network.Block || d.Code != "dns-tunnel" {
		t.Errorf("why: %+v", d)
	}
	if d := m.DecideOnCommunicationBeforeIntel(Name{Owner: curl(), Domain: carrying(1, "t.example.com"), Type: 16, Dry: true}); d.Code != "dns-tunnel" {
		t.Errorf("a dry query is decided otherwise: %+v", d)
	}
	for _, n := range []Name{
		{Owner: curl(), Domain: "www.example.com", Type: 1}, {Owner: curl(), Domain: "example.com", Type: 1},
		{Owner: curl(), Domain: carrying(1, "t.example.net"), Type: 16}, {Owner: other, Domain: carrying(1, "t.example.com"), Type: 16},
		{Owner: curl(), Domain: carrying(1, "t.home.arpa"), Type: 16},
	} {
		if d := m.DecideOnCommunicationBeforeIntel(n); d.Verdict != network.Accept {
			t.Errorf("%s: %+v", n.Domain, d)
		}
	}
	if d := m.Decide(comm(carrying(1, "t.example.com"), "198.51.100.1"), flow(packet.TCP, "198.51.100.1:443")); d.Verdict != network.Accept {
		t.Errorf("a connection: %+v", d)
	}
	now = now.Add(11 * time.Minute)
	if d := m.DecideOnCommunicationBeforeIntel(Name{Owner: curl(), Domain: carrying(9999, "t.example.com"), Type: 16}); d.Verdict != network.Accept {
		t.Errorf("later: %+v", d)
	}
}

// BenchmarkHeuristics is what the deciders of a query cost with and without them.
func BenchmarkHeuristics(b *testing.B) {
	for _, on := range []bool{false, true} {
		b.Run(fmt.Sprint(on), func(b *testing.B) {
			m := New(as{&profiles.Settings{DefaultAction: profiles.Allow, DomainHeuristics: on}})
			m.Tunnels = intel.NewTunnels(nil)
			n := Name{Owner: curl(), Domain: "www.some-quite-long-name.example.com", Type: 1}
			b.ReportAllocs()
			for b.Loop() {
				m.DecideOnCommunicationBeforeIntel(n)
			}
		})
	}
}
