package policytest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
)

// World is what random policies and flows are made of. It is small on purpose, so that most flows
// are touched by some rule.
type World struct {
	Programs   []Program
	Names      []Name
	Addresses  []string // beside those that the names have
	Ports      []int
	Protos     []int // of the flows
	Data       *Data // what is known of names and addresses; nil: nothing
	Inbound    bool  // some flows are inbound
	Specials   bool  // some flows have no program
	Network    Network
	Conditions bool // rating rules and profiles with conditions on the network
	Layers     bool // profiles that lie under others
	Only       bool // some policies are `run --only`
	Runtime    bool // some settings and rules were made at run time, or gatun is paused
	Ask        bool // some rules and defaults ask
	// Fixed are settings that every policy has.
	Fixed map[string]string
}

// Name is a domain with what it resolves to.
type Name struct {
	Domain string
	CNAMEs []string
	Addrs  []string
}

// DefaultWorld is a world in which everything occurs.
func DefaultWorld() *World {
	return &World{
		Programs: []Program{
			{Path: "/usr/bin/curl", Cmdline: "curl -s https://a.example", Tags: map[string]string{"user": "alice"}},
			{Path: "/usr/bin/wget", Cmdline: "wget -q b.example", Tags: map[string]string{"user": "bob"}, Env: map[string]string{"STAGE": "test"}},
			{Path: "/opt/app/bin/worker", Cmdline: "worker --fast", Tags: map[string]string{"user": "alice", "systemd-unit": "worker.service"}},
			{Path: "/opt/app/bin/helper", Cmdline: "helper", Tags: map[string]string{"user": "carol", "container": "web"}, Env: map[string]string{"STAGE": "live"}},
			{Path: "/opt/shop/bin/agent", Cmdline: "agent", Tags: map[string]string{"user": "bob", "flatpak": "test.shop.Agent"}},
			{Path: "/usr/bin/python3", Cmdline: "python3 /srv/job.py", Tags: map[string]string{"user": "carol", "script": "/srv/job.py"}},
		},
		Names: []Name{
			{"a.example", nil, []string{"198.51.100.1", "2001:db8::1"}},
			{"www.a.example", []string{"a.example"}, []string{"198.51.100.1", "198.51.100.2"}},
			{"ads.a.example", []string{"cdn.tracker.test", "edge.tracker.test"}, []string{"203.0.113.7"}},
			{"b.example", nil, []string{"203.0.113.8", "10.1.2.3"}},
			{"intranet.b.example", nil, []string{"10.1.2.3", "fd00::5"}},
			{"xn--bcher-kva.example", nil, []string{"203.0.113.9", "127.0.0.1"}},
			{"rebound.example", []string{"b.example"}, []string{"64:ff9b::c0a8:101", "198.51.100.3"}},
			{"mozilla.cloudflare-dns.com", nil, []string{"198.51.100.4"}},
			{"use-application-dns.net", nil, []string{"198.51.100.5"}},
			{"www.xkvbnqwrtzplmc.com", nil, []string{"198.51.100.6"}},
			{"d111111abcdef8.cloudfront.net", []string{"www.xkvbnqwrtzplmc.com"}, []string{"198.51.100.7"}},
			{"tracker.test", nil, []string{"203.0.113.7", "0.0.0.0"}},
			{"img.shop.test", nil, []string{"198.51.100.78", "fd00::6"}},
			{"api.shop.test", []string{"www.a.example"}, []string{"2001:db8:7::9", "198.51.100.77"}},
		},
		Addresses: []string{"1.1.1.1", "2606:4700:4700::1111", "198.51.100.200", "2001:db8:9::1", "10.9.9.9", "192.168.1.1", "127.0.0.1", "::1", "169.254.1.1", "fe80::1", "100.64.0.1", "100.127.0.1", "100.128.0.1", "224.0.0.251", "255.255.255.255", "240.1.1.1", "0.1.2.3", "::", "172.31.0.1", "172.32.0.1"},
		Ports:     []int{22, 53, 80, 443, 853, 3478, 5349, 8080, 19305, 65535},
		Protos:    []int{6, 6, 6, 17, 17, 1, 58, 47, 132},
		Data:      DefaultData(), Inbound: true, Specials: true, Conditions: true, Layers: true, Only: true, Runtime: true, Ask: true,
		Network: Network{
			Interfaces: map[string][]netip.Prefix{"eth0": {netip.MustParsePrefix("10.0.0.2/24")}, "wlan0": {netip.MustParsePrefix("192.168.1.20/24")}},
			Gateways:   map[string]netip.Addr{"eth0": netip.MustParseAddr("10.0.0.1")},
		},
	}
}

// Generator makes random policies and flows. The same seed makes the same ones.
type Generator struct {
	*World
	r *rand.Rand
}

// Generate returns a generator.
func (w *World) Generate(seed uint64) *Generator {
	return &Generator{w, rand.New(rand.NewPCG(seed, 0))}
}

func pick[T any](g *Generator, list []T) T { return list[g.r.IntN(len(list))] }

func (g *Generator) chance(percent int) bool { return g.r.IntN(100) < percent }

// Policy makes a policy.
func (g *Generator) Policy() *Policy {
	p := &Policy{Settings: g.settings(true), Lists: g.lists(15)}
	g.listSettings(p.Settings)
	if g.chance(15) {
		p.Preset = pick(g, []string{"desktop", "server"})
	}
	if g.Only && g.chance(6) {
		for range 1 + g.r.IntN(2) {
			p.Only = append(p.Only, g.body())
		}
	}
	for range g.r.IntN(5) {
		g.addProfile(p)
	}
	if g.Conditions {
		g.conditions(p)
	}
	if g.Runtime {
		g.runtime(p)
	}
	return p
}

func (g *Generator) runtime(p *Policy) {
	p.Paused = g.chance(2)
	if g.chance(20) {
		p.Runtime = g.settings(true)
	}
	if p.Only != nil { // which of the two comes first is not said
		return
	}
	for range max(0, g.r.IntN(6)-3) {
		t := Temporary{Rule: g.Rule()}
		if len(p.Profiles) > 0 && g.chance(50) {
			t.Profile = pick(g, p.Profiles).Name
		}
		if !slices.Contains(p.Temporary, t) { // it would replace the one before
			p.Temporary = append(p.Temporary, t)
		}
	}
}

func (g *Generator) conditions(p *Policy) {
	for range g.r.IntN(3) {
		p.Ratings = append(p.Ratings, Rating{pick(g, []string{"trusted", "untrusted", "danger"}), g.condition()})
	}
	if g.chance(25) {
		c := g.condition()
		p.Profiles = append(p.Profiles, Profile{Name: "here", When: &c, Settings: g.settings(false), Lists: g.lists(3)})
	}
}

func (g *Generator) condition() Condition {
	var c Condition
	if g.chance(60) {
		c.Interface = pick(g, []string{"eth0", "wlan0", "ppp0"})
	}
	if g.chance(30) {
		c.Gateway = pick(g, []string{"10.0.0.1", "192.168.1.1"})
	}
	if c == (Condition{}) || g.chance(20) {
		c.Address = pick(g, []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.1.0/24"})
	}
	return c
}

func (g *Generator) addProfile(p *Policy) {
	q := Profile{Name: fmt.Sprintf("p%d", len(p.Profiles)), Settings: g.settings(false), Lists: g.lists(6)}
	g.listSettings(q.Settings)
	for range 1 + g.r.IntN(3) {
		f := g.fingerprint()
		// How long a match by a regular expression is, and which of two equal profiles wins, is not
		// said: neither must matter here.
		taken := func(o Fingerprint) bool {
			return o.Type == f.Type && o.Op == f.Op && (o.Op == "regex" || len(o.Value) == len(f.Value))
		}
		if !slices.ContainsFunc(p.Profiles, func(o Profile) bool { return slices.ContainsFunc(o.Match, taken) }) && !slices.ContainsFunc(q.Match, taken) {
			q.Match = append(q.Match, f)
		}
	}
	if g.Layers {
		for i := range p.Profiles { // only those above: no circles
			if g.chance(40) {
				q.Layers = append(q.Layers, p.Profiles[i].Name)
			}
		}
	}
	if len(q.Match) > 0 {
		p.Profiles = append(p.Profiles, q)
	}
}

func (g *Generator) fingerprint() Fingerprint {
	prog := pick(g, g.Programs)
	cut := func(s string) string { return s[:1+g.r.IntN(len(s))] }
	switch n := g.r.IntN(10); {
	case n < 2:
		return Fingerprint{"path", "", "equals", prog.Path}
	case n < 4:
		return Fingerprint{"path", "", "prefix", cut(prog.Path)}
	case n < 5:
		return Fingerprint{"path", "", "regex", pick(g, []string{"bin", "^/usr/", "er$"})}
	case n < 7 && prog.Cmdline != "":
		return Fingerprint{"cmdline", "", "prefix", cut(prog.Cmdline)}
	case n < 8 && g.Specials:
		return Fingerprint{"tag", "special", "equals", pick(g, []string{"unidentified", "unsolicited", "system"})}
	case n < 9 && prog.Env["STAGE"] != "":
		return Fingerprint{"env", "STAGE", "prefix", cut(prog.Env["STAGE"])}
	default:
		name := pick(g, slices.Sorted(maps.Keys(prog.Tags)))
		return Fingerprint{"tag", name, "equals", prog.Tags[name]}
	}
}

// settings makes scalars, all of them or those that a profile may have.
func (g *Generator) settings(global bool) map[string]string {
	s := map[string]string{}
	actions := []string{"permit", "block", "block"}
	if g.Ask {
		actions = append(actions, "ask")
	}
	if g.chance(60) {
		s["filter/defaultAction"] = pick(g, actions)
	}
	grades := []string{"off", "trusted", "untrusted", "danger", "on", "true", "false"}
	for _, k := range []struct {
		key     string
		percent int
	}{{"blockInternet", 4}, {"blockLAN", 10}, {"blockLocal", 10}, {"blockP2P", 6}, {"blockInbound", 35}} {
		if g.chance(k.percent) {
			s["filter/"+k.key] = pick(g, grades)
		}
	}
	for _, key := range []string{"filter/removeBlockedDNS", "filter/autoPermitRelated", "filter/removeOutOfScopeDNS", "filter/preventBypassing", heuristics} {
		if g.chance(20) {
			s[key] = pick(g, []string{"on", "on", "off"})
		}
	}
	if global {
		g.globalSettings(s)
	}
	return s
}

// listSettings adds the settings about filter lists, which only a file can have.
func (g *Generator) listSettings(s map[string]string) {
	if g.Data == nil {
		return
	}
	if g.chance(40) {
		s["filter/lists"] = pick(g, []string{"[]", "[]", "[TRAC, UNBREAK]", "[ads, mal]", "[DECEP, fix]", "[MAL, TRAC, fix]", "[PHISH]", "[own]"})
	}
	for _, key := range []string{"filter/includeSubdomains", "filter/includeCNAMEs"} {
		if g.chance(15) {
			s[key] = pick(g, []string{"on", "off"})
		}
	}
}

func (g *Generator) globalSettings(s map[string]string) {
	for _, k := range []struct {
		key     string
		percent int
		values  []string
	}{
		{"filter/dnsQueryInterception", 30, []string{"on", "off", "off"}},
		{"filter/geoMissing", 30, []string{"nomatch", "block"}},
		{"core/releaseLevel", 50, []string{"stable", "beta", "experimental", "experimental"}},
		{"network/rating", 50, []string{"trusted", "untrusted", "danger"}},
		{"filter/blockInbound", 50, []string{"off"}},
	} {
		if g.chance(k.percent) {
			s[k.key] = pick(g, k.values)
		}
	}
	for k, v := range g.Fixed {
		s[k] = v
	}
}

func (g *Generator) lists(most int) map[string][]Rule {
	lists := map[string][]Rule{}
	for range g.r.IntN(most + 1) {
		lists[outgoing] = append(lists[outgoing], Rule{Text: g.Rule()})
	}
	if g.Inbound {
		for range g.r.IntN(most) {
			lists[incoming] = append(lists[incoming], Rule{Text: g.Rule()})
		}
	}
	return lists
}

// RuleOf makes a rule of that verdict.
func (g *Generator) RuleOf(verdict string) string { return verdict + " " + g.body() }

// Rule makes a rule.
func (g *Generator) Rule() string {
	verdicts := []string{"+", "+", "+", "-", "-", "-", "--"}
	if g.Ask {
		verdicts = append(verdicts, "?")
	}
	return g.RuleOf(pick(g, verdicts))
}

// body makes a rule without its verdict.
func (g *Generator) body() string {
	s := g.entity(0)
	if g.chance(33) {
		s += " " + g.proto()
	}
	if g.chance(4) {
		s += " app=" + pick(g, []string{"tls", "http", "quic"})
	}
	if g.chance(5) {
		s += " # because"
	}
	return s
}

func (g *Generator) proto() string {
	name := pick(g, []string{"TCP", "TCP", "tcp", "UDP", "udp", "*", "6", "17"})
	switch g.r.IntN(5) {
	case 0:
		return pick(g, []string{"ICMP", "ICMPv6", "1", "58", "GRE", "47", "SCTP", "132"})
	case 1:
		return name
	case 2:
		return name + "/" + fmt.Sprint(pick(g, g.Ports))
	case 3:
		from := pick(g, g.Ports)
		return fmt.Sprintf("%s/%d-%d", name, from, min(65535, from+g.r.IntN(1000)))
	default:
		a, b := pick(g, g.Ports), pick(g, g.Ports)
		if a == b {
			return name + "/" + fmt.Sprint(a)
		}
		return fmt.Sprintf("%s/%d,%d", name, a, b)
	}
}

func (g *Generator) entity(depth int) string {
	if depth < 2 {
		switch n := g.r.IntN(100); {
		case n < 8:
			return "!" + g.entity(depth+1)
		case n < 18:
			var of []string
			for range 1 + g.r.IntN(3) {
				of = append(of, g.single())
			}
			return "{" + strings.Join(of, ",") + "}"
		}
	}
	if depth == 0 && g.chance(8) {
		return "*"
	}
	s := g.single()
	if strings.HasPrefix(s, "L:") && g.chance(30) {
		s += ",DECEP"
	}
	if s == "LAN" && g.chance(50) {
		s = pick(g, []string{"LAN,Localhost", "LAN,Internet", "Internet,Localhost"})
	}
	return s
}

// single makes an entity without commas.
func (g *Generator) single() string {
	switch n := g.r.IntN(100); {
	case n < 45:
		return g.domain()
	case n < 80:
		return g.address()
	case n < 88:
		return pick(g, []string{"Localhost", "LAN", "LAN", "Internet"})
	case g.Data == nil:
		return g.address()
	default:
		return pick(g, []string{"US", "DE", "C:EU", "C:NA", "AS64500", "AS64501", "L:ads", "L:TRAC", "L:mal", "L:fix", "L:CUSTOM"})
	}
}

func (g *Generator) domain() string {
	name := pick(g, g.Names).Domain
	if n := pick(g, g.Names); len(n.CNAMEs) > 0 && g.chance(25) {
		name = pick(g, n.CNAMEs)
	}
	label, parent, _ := strings.Cut(name, ".")
	if strings.HasPrefix(label, "xn--") { // half a label in punycode is another name
		return pick(g, []string{name, "." + name, "bücher.example", ".Bücher.example"})
	}
	switch g.r.IntN(8) {
	case 0, 1:
		return name
	case 2, 3:
		return "." + pick(g, []string{name, parent})
	case 4:
		return "*" + name[g.r.IntN(len(label)):]
	case 5:
		return label + ".*"
	case 6:
		return "*" + label + "*"
	default:
		return pick(g, []string{"/^" + label + `\./`, `/\.` + strings.ReplaceAll(parent, ".", `\.`) + "$/", "/[a-c]\\.ex/"})
	}
}

func (g *Generator) address() string {
	a := netip.MustParseAddr(g.anyAddress())
	switch g.r.IntN(4) {
	case 0, 1:
		bits := pick(g, []int{8, 16, 24, 25, 31})
		if a.Is6() {
			bits = pick(g, []int{16, 32, 48, 64, 127})
		}
		p, _ := a.Prefix(bits)
		return p.String()
	case 2:
		from, to := a, a
		for range g.r.IntN(9) {
			if n := from.Prev(); n.IsValid() {
				from = n
			}
			if n := to.Next(); n.IsValid() {
				to = n
			}
		}
		return from.String() + "-" + to.String()
	default:
		return a.String()
	}
}

func (g *Generator) anyAddress() string {
	if g.chance(60) {
		return pick(g, pick(g, g.Names).Addrs)
	}
	return pick(g, g.Addresses)
}

// Flow makes a flow.
func (g *Generator) Flow() *Flow {
	f := &Flow{Program: pick(g, g.Programs), Proto: pick(g, g.Protos), LocalPort: 40000}
	if g.Specials && g.chance(15) {
		special := pick(g, []string{"unidentified", "unidentified", "unsolicited", "system", "self"})
		if special != "unidentified" || g.chance(50) {
			f.Program = Program{}
		}
		f.Program.Special = special
	}
	f.Inbound = g.Inbound && g.chance(20)
	remote := pick(g, g.Addresses)
	if !f.Inbound && g.chance(75) {
		n := pick(g, g.Names)
		f.Domain, f.CNAMEs = n.Domain, n.CNAMEs
		for _, a := range n.Addrs {
			f.Answer = append(f.Answer, netip.MustParseAddr(a))
		}
		g.r.Shuffle(len(f.Answer), func(i, j int) { f.Answer[i], f.Answer[j] = f.Answer[j], f.Answer[i] })
		remote = pick(g, n.Addrs)
	} else if g.chance(50) {
		remote = g.anyAddress()
	}
	f.Remote = netip.MustParseAddr(remote)
	if f.Proto == 1 && f.Remote.Is6() || f.Proto == 58 && f.Remote.Is4() {
		f.Proto = 1 + 58 - f.Proto
	}
	if hasPorts(f.Proto) {
		f.RemotePort = pick(g, g.Ports)
	}
	if f.Inbound {
		f.RemotePort, f.LocalPort = f.LocalPort, f.RemotePort
		f.Solicited = f.Proto == 17 && g.chance(10)
	}
	return f
}
