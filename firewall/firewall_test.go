package firewall

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatun/attribution"
	"gatun/config"
	"gatun/netenv"
	"gatun/network"
	"gatun/network/packet"
	"gatun/profiles"
	"gatun/status"
)

// policy loads a configuration as the program does.
func policy(t *testing.T, yaml string, only ...string) *Master {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gatun.yaml")
	if err := os.WriteFile(file, []byte("version: 1\n"+yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(config.Source{File: file})
	if err != nil {
		t.Fatal(err)
	}
	store, err := profiles.NewStore(cfg, status.Judge(cfg, netenv.Snapshot{}, time.Now()), profiles.Options{Only: only})
	if err != nil {
		t.Fatal(err)
	}
	return New(store)
}

func curl() attribution.Owner {
	return attribution.Owner{
		Process:    &attribution.Process{PID: 7, Path: "/usr/bin/curl", Name: "curl", Kind: attribution.KindProgram},
		Confidence: attribution.Exact,
	}
}

// comm is what curl means by a domain ("" for none) at an address.
func comm(domain, addr string) *network.Communication {
	e := network.Entity{Addr: netip.MustParseAddr(addr), Domain: domain}
	if domain != "" {
		e.Source = network.DomainDNS
	}
	return &network.Communication{Owner: curl(), Entity: e}
}

func flow(proto packet.Proto, to string) packet.Flow {
	return packet.Flow{Proto: proto, Local: netip.MustParseAddrPort("10.0.0.2:40000"), Remote: netip.MustParseAddrPort(to)}
}

func TestDecideOnFirstPacket(t *testing.T) {
	const rulesYAML = `
filter:
  defaultAction: block
  endpoints:
    - "- 198.51.100.66"
    - "-- .evil.example"
    - "+ .example TCP/443"
    - "+ 198.51.100.0/24 TCP/80"
    - "+ LAN"
`
	tests := []struct {
		name, yaml, domain, to string
		proto                  packet.Proto
		want                   network.Verdict
		code, setting          string
		line                   int
	}{
		{"nothing set permits", "", "", "198.51.100.1:443", packet.TCP, network.Accept, "default-action", "filter/defaultAction", 0},
		{"default block", "filter: {defaultAction: block}\n", "", "198.51.100.1:443", packet.TCP, network.Block, "default-action", "filter/defaultAction", 0},
		{"rule by name and port", rulesYAML, "a.example", "198.51.100.1:443", packet.TCP, network.Accept, "rule", "filter/endpoints", 8},
		{"other port of the name", rulesYAML, "a.example", "203.0.113.1:444", packet.TCP, network.Block, "default-action", "filter/defaultAction", 0},
		{"other protocol", rulesYAML, "a.example", "203.0.113.1:443", packet.UDP, network.Block, "default-action", "filter/defaultAction", 0},
		{"first match wins over the name", rulesYAML, "a.example", "198.51.100.66:443", packet.TCP, network.Block, "rule", "filter/endpoints", 6},
		{"double minus is silence", rulesYAML, "x.evil.example", "203.0.113.1:443", packet.TCP, network.Drop, "rule", "filter/endpoints", 7},
		{"rule by address", rulesYAML, "", "198.51.100.1:80", packet.TCP, network.Accept, "rule", "filter/endpoints", 9},
		{"name rules need a name", rulesYAML, "", "203.0.113.1:443", packet.TCP, network.Block, "default-action", "filter/defaultAction", 0},
		{"scope", rulesYAML, "", "10.1.1.1:9", packet.UDP, network.Accept, "rule", "filter/endpoints", 10},
		{"force block beats a rule", rulesYAML + "  blockLAN: on\n", "", "10.1.1.1:9", packet.UDP, network.Block, "scope-lan", "filter/blockLAN", 0},
		{"force block beats a rule on the name", rulesYAML + "  blockInternet: on\n", "a.example", "198.51.100.1:443", packet.TCP, network.Block, "scope-internet", "filter/blockInternet", 0},
		{"graded below the rating", "filter: {blockInternet: danger}\n", "", "198.51.100.1:1", packet.TCP, network.Accept, "default-action", "filter/defaultAction", 0},
		{"graded at the rating", "filter: {blockInternet: danger}\nnetwork: {rating: danger}\n", "", "198.51.100.1:1", packet.TCP, network.Block, "scope-internet", "filter/blockInternet", 0},
		{"dns goes to us, udp", "filter: {defaultAction: block}\n", "", "198.51.100.1:53", packet.UDP, network.RerouteToNameserver, "dns-interception", "filter/dnsQueryInterception", 0},
		{"dns goes to us, tcp6", "filter: {defaultAction: block}\n", "", "[2001:db8::1]:53", packet.TCP, network.RerouteToNameserver, "dns-interception", "filter/dnsQueryInterception", 0},
		{"ping is no dns", "filter: {defaultAction: block}\n", "", "198.51.100.1:0", packet.ICMP, network.Block, "default-action", "filter/defaultAction", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := policy(t, tt.yaml)
			f := flow(tt.proto, tt.to)
			c := comm(tt.domain, f.Remote.Addr().String())
			d := m.Decide(c, f)
			if d.Verdict != tt.want || d.Code != tt.code || d.Setting != tt.setting || d.Rule.Line != tt.line {
				t.Fatalf("got %v %q %q line %d (%s), want %v %q %q line %d", d.Verdict, d.Code, d.Setting, d.Rule.Line, d.Reason, tt.want, tt.code, tt.setting, tt.line)
			}
			again := m.Decide(c, f)
			if again != d {
				t.Errorf("the second link of the Communication got %+v, the first %+v", again, d)
			}
			why, trail := m.Why(Question{Owner: curl(), Entity: c.Entity, Flow: f})
			if why.Verdict != d.Verdict || why.Rule != d.Rule {
				t.Errorf("why says %v %v, the live decision %v %v", why.Verdict, why.Rule, d.Verdict, d.Rule)
			}
			if len(trail.Steps) == 0 {
				t.Error("why has no trail")
			}
		})
	}
}

// A Communication may only carry a decision that no missing fact could change: here the same
// name is permitted on one port and refused on another.
func TestCommunicationIsNotCachedWhileAFactIsMissing(t *testing.T) {
	m := policy(t, "filter: {endpoints: [\"- 198.51.100.66\", \"+ .example\"], defaultAction: block}\n")
	c := comm("a.example", "198.51.100.1")
	if d := m.Decide(c, flow(packet.TCP, "198.51.100.1:443")); d.Verdict != network.Accept || d.Stage != network.StageLink {
		t.Fatalf("got %v at %v", d.Verdict, d.Stage)
	}
	if d := m.Decide(c, flow(packet.TCP, "198.51.100.66:443")); d.Verdict != network.Block {
		t.Fatalf("the block rule on the address was skipped: %v", d.Verdict)
	}

	m = policy(t, "filter: {endpoints: [\"+ .example\"], defaultAction: block}\n")
	c = comm("a.example", "198.51.100.1")
	d := m.Decide(c, flow(packet.TCP, "198.51.100.1:443"))
	if d.Verdict != network.Accept || d.Stage != network.StageCommunication {
		t.Fatalf("got %v at %v, want the Communication to carry it", d.Verdict, d.Stage)
	}
	if c.Cached(m.Settings(curl()).Revision) == nil {
		t.Error("the decision was not kept")
	}
	query := flow(packet.UDP, "198.51.100.1:53")
	if d := m.Decide(c, query); d.Verdict != network.RerouteToNameserver {
		t.Errorf("a query inherited the decision of its Communication: %v", d.Verdict)
	}
	if d, _ := m.Why(Question{Owner: curl(), Entity: c.Entity, Flow: query}); d.Verdict != network.RerouteToNameserver {
		t.Errorf("why says %v about a query", d.Verdict)
	}
}

func TestOwnTrafficIsCut(t *testing.T) {
	m := policy(t, "filter: {endpoints: [\"+ *\"]}\n")
	c := comm("", "198.51.100.1")
	c.Owner = attribution.Owner{Process: &attribution.Process{PID: 1, Kind: attribution.KindSelf}, Confidence: attribution.Exact}
	for _, to := range []string{"198.51.100.1:443", "198.51.100.1:53"} {
		if d := m.Decide(c, flow(packet.UDP, to)); d.Verdict != network.Block || d.Code != "own-traffic" {
			t.Errorf("%s: own traffic got %v %q", to, d.Verdict, d.Code)
		}
	}
}

func TestAnotherProgramsRulesNeverCount(t *testing.T) {
	m := policy(t, `
filter: {defaultAction: block}
profiles:
  - name: curl
    match: [{path: /usr/bin/curl}]
    filter: {endpoints: ["+ *"]}
`)
	f := flow(packet.TCP, "198.51.100.1:443")
	c := comm("", "198.51.100.1")
	if d := m.Decide(c, f); d.Verdict != network.Accept || d.Profile != "curl" {
		t.Fatalf("curl: got %v by profile %q", d.Verdict, d.Profile)
	}
	for name, o := range map[string]attribution.Owner{
		"unidentified": attribution.Unidentified("gone"),
		"ambiguous":    {Process: curl().Process, Confidence: attribution.Ambiguous},
		"another path": {Process: &attribution.Process{PID: 8, Path: "/tmp/curl", Kind: attribution.KindProgram}, Confidence: attribution.Exact},
	} {
		c := comm("", "198.51.100.1")
		c.Owner = o
		if d := m.Decide(c, f); d.Verdict != network.Block {
			t.Errorf("%s: got %v by profile %q", name, d.Verdict, d.Profile)
		}
	}
}

func TestInbound(t *testing.T) {
	in := func(m *Master) network.Decision {
		c := comm("", "198.51.100.1")
		c.Direction = network.Inbound
		return m.Decide(c, packet.Flow{Proto: packet.TCP, Local: netip.MustParseAddrPort("192.0.2.2:22"), Remote: netip.MustParseAddrPort("198.51.100.1:5000")})
	}
	if d := in(policy(t, "")); d.Verdict != network.Drop || d.Setting != "filter/blockInbound" {
		t.Errorf("default: got %v %q", d.Verdict, d.Setting)
	}
	if d := in(policy(t, "filter: {blockInbound: off}\n")); d.Verdict != network.Drop || d.Setting != "filter/serviceEndpoints" {
		t.Errorf("no rule: got %v %q", d.Verdict, d.Setting)
	}
	if d := in(policy(t, "filter: {blockInbound: off, serviceEndpoints: [\"- 198.51.100.1\"]}\n")); d.Verdict != network.Drop || d.Code != "rule" {
		t.Errorf("minus rule: got %v %q, want silence", d.Verdict, d.Code)
	}
	if d := in(policy(t, "filter: {blockInbound: off, serviceEndpoints: [\"+ * TCP/22\"]}\n")); d.Verdict != network.Accept {
		t.Errorf("plus rule on the service's port: got %v", d.Verdict)
	}
}

func addrs(list ...string) []netip.Addr {
	out := make([]netip.Addr, 0, len(list))
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestDNSStages(t *testing.T) {
	tests := []struct {
		name, yaml    string
		only          []string
		domain        string
		answer        []netip.Addr
		before, after network.Verdict
		removed       int
	}{
		{"no rule speaks about it", "filter: {defaultAction: block}\n", nil, "a.example", addrs("198.51.100.1"), network.Accept, network.Accept, 0},
		{"blocked before it is resolved", "filter: {endpoints: [\"- .example\"]}\n", nil, "a.example", nil, network.Block, network.Block, 0},
		{"silence", "filter: {endpoints: [\"-- .example\"]}\n", nil, "a.example", nil, network.Drop, network.Drop, 0},
		{"a trailing minus star does not kill names that ports permit", "filter: {endpoints: [\"+ .example TCP/443\", \"- *\"]}\n", nil, "a.example", addrs("198.51.100.1"), network.Undecided, network.Accept, 0},
		{"one address of two is out", "filter: {endpoints: [\"- 198.51.100.66\", \"+ .example\"]}\n", nil, "a.example", addrs("198.51.100.66", "198.51.100.1"), network.Accept, network.Accept, 1},
		{"all addresses are out", "filter: {endpoints: [\"- 198.51.100.0/24\", \"+ .example\"]}\n", nil, "a.example", addrs("198.51.100.66", "198.51.100.1"), network.Accept, network.Block, 2},
		{"scope after the answer", "filter: {blockLAN: on}\n", nil, "a.example", addrs("10.0.0.1"), network.Accept, network.Block, 1},
		{"localhost answers", "filter: {blockLocal: on}\n", nil, "a.example", addrs("127.0.0.1"), network.Accept, network.Block, 1},
		{"only: another name", "", []string{".example"}, "a.test", nil, network.Block, network.Block, 0},
		{"only: the name", "", []string{".example"}, "a.example", addrs("198.51.100.1"), network.Accept, network.Accept, 0},
		{"only: an address", "", []string{"198.51.100.0/24"}, "a.test", addrs("198.51.100.1"), network.Undecided, network.Accept, 0},
		{"only: not that address", "", []string{"198.51.100.0/24"}, "a.test", addrs("203.0.113.1"), network.Undecided, network.Block, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := policy(t, tt.yaml, tt.only...)
			n := Name{Owner: curl(), Domain: tt.domain}
			if d := m.DecideOnCommunicationBeforeIntel(n); d.Verdict != tt.before {
				t.Errorf("before: got %v (%s), want %v", d.Verdict, d.Reason, tt.before)
			}
			d, removed := m.DecideOnCommunicationAfterIntel(n, tt.answer)
			if d.Verdict != tt.after || len(removed) != tt.removed {
				t.Errorf("after: got %v (%s) and %v removed, want %v and %d", d.Verdict, d.Reason, removed, tt.after, tt.removed)
			}
		})
	}
}

// Names behind an alias are judged too: a tracker cannot hide behind the site's own name.
func TestCNAMEIsJudged(t *testing.T) {
	m := policy(t, "filter: {endpoints: [\"- .tracker.example\"]}\n")
	n := Name{Owner: curl(), Domain: "metrics.shop.test"}
	if d := m.DecideOnCommunicationBeforeIntel(n); !d.Verdict.Permits() {
		t.Fatalf("before: %v", d.Verdict)
	}
	n.CNAMEs = []string{"shop.tracker.example"}
	if d, _ := m.DecideOnCommunicationAfterIntel(n, addrs("198.51.100.1")); d.Verdict != network.Block {
		t.Errorf("after: got %v", d.Verdict)
	}
}

func TestDeciderOrder(t *testing.T) {
	var names []string
	for _, d := range deciders() {
		names = append(names, d.name)
	}
	const want = "no-process own-traffic nameserver pause own-query block-inbound block-p2p scope rules invalid-address resolver-scope connectivity bypass filter-lists custom-lists domain-heuristics related default-action"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("the order is the policy: got %s", got)
	}
}

func TestUndecidedNeverPasses(t *testing.T) {
	m := policy(t, "")
	m.order = nil
	if d := m.Decide(comm("", "198.51.100.1"), flow(packet.TCP, "198.51.100.1:1")); d.Verdict != network.Block {
		t.Errorf("an empty list gave %v", d.Verdict)
	}
}

func TestWhyStopsWhereTheNameIsDenied(t *testing.T) {
	m := policy(t, "filter: {endpoints: [\"- .example\"]}\n")
	f := flow(packet.TCP, "198.51.100.1:443")
	d, trail := m.Why(Question{Owner: curl(), Entity: network.Entity{Domain: "a.example", Source: network.DomainDNS, Addr: f.Remote.Addr()}, Flow: f})
	if d.Verdict != network.Block || d.Stage != network.StageBeforeIntel {
		t.Fatalf("got %v at %v", d.Verdict, d.Stage)
	}
	for _, s := range trail.Steps {
		if s.Stage != "before-intel" {
			t.Errorf("the trail went on to %s", s.Stage)
		}
	}
}

func BenchmarkDecideCached(b *testing.B) {
	m := New(fixed{})
	c, f := comm("", "198.51.100.1"), flow(packet.TCP, "198.51.100.1:443")
	d := network.Decision{Verdict: network.Accept}
	c.Cache(1, &d)
	b.ReportAllocs()
	for b.Loop() {
		if m.Decide(c, f).Verdict != network.Accept {
			b.Fatal("not cached")
		}
	}
}

// fixed is the policy that permits everything.
type fixed struct{}

func (fixed) For(attribution.Owner) *profiles.Settings { return &permitAll }

var permitAll = profiles.Settings{Revision: 1, DefaultAction: profiles.Allow}
