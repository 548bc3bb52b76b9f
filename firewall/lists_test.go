package firewall

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"gatun/intel"
	"gatun/network"
	"gatun/network/packet"
	"gatun/profiles"
)

// known is intelligence by hand: matches of names and addresses, and the country of all addresses.
type known struct {
	matches map[string][]intel.Match
	country string
	asked   []string
}

func (k *known) Stamp(domain string, cnames []string, addr netip.Addr) *intel.Stamp {
	k.asked = append(k.asked, strings.Join(append([]string{domain}, cnames...), " ")+" "+addr.String())
	s := &intel.Stamp{}
	s.Lists = append(s.Lists, k.matches[domain]...)
	for _, c := range cnames {
		for _, m := range k.matches[c] {
			m.Alias = true
			s.Lists = append(s.Lists, m)
		}
	}
	s.MoreByAddr = !addr.IsValid()
	if addr.IsValid() {
		s.Country = k.country
		s.Lists = append(s.Lists, k.matches[addr.String()]...)
	}
	return s
}

func newKnown() *known {
	one := func(id, category, name string, above bool) intel.Match {
		return intel.Match{ID: id, Category: category, Name: name, Above: above}
	}
	return &known{country: "DE", matches: map[string][]intel.Match{
		"ads.example":    {one("ads", "ADS", "ads.example", false)},
		"x.ads.example":  {one("ads", "ADS", "ads.example", true)},
		"ok.ads.example": {one("ads", "ADS", "ads.example", true), one("fix", intel.Unbreak, "ok.ads.example", false)},
		"fix.example":    {one("fix", intel.Unbreak, "fix.example", false)},
		"bad.example":    {one("mine", "BAD", "bad.example", false)},
		"198.51.100.66":  {one("ips", "MAL", "198.51.100.66/32", false)},
		"198.51.100.67":  {one("ips", "MAL", "198.51.100.67/32", false), one("fix", intel.Unbreak, "198.51.100.67/32", false)},
	}}
}

func TestFilterLists(t *testing.T) {
	all := profiles.Settings{DefaultAction: profiles.Allow, Lists: []string{"TRAC", "MAL", "UNBREAK"}, IncludeSubdomains: true, IncludeCNAMEs: true, ListsProfile: "web"}
	with := func(f func(*profiles.Settings)) *profiles.Settings { s := all; f(&s); return &s }
	for _, c := range []struct {
		name, domain, alias, to string
		settings                *profiles.Settings
		before, link            network.Verdict
		list                    string
	}{
		{"listed", "ads.example", "", "198.51.100.1", &all, network.Block, network.Block, "ads"},
		{"below", "x.ads.example", "", "198.51.100.1", &all, network.Block, network.Block, "ads"},
		{"below, not included", "x.ads.example", "", "198.51.100.1", with(func(s *profiles.Settings) { s.IncludeSubdomains = false }), network.Accept, network.Accept, ""},
		{"unbroken", "ok.ads.example", "", "198.51.100.1", &all, network.Accept, network.Accept, ""},
		{"unbroken, but nobody wants that", "ok.ads.example", "", "198.51.100.1", with(func(s *profiles.Settings) { s.Lists = []string{"TRAC"} }), network.Block, network.Block, "ads"},
		{"alias", "clean.example", "ads.example", "198.51.100.1", &all, network.Accept, network.Block, "ads"},
		{"alias, not included", "clean.example", "ads.example", "198.51.100.1", with(func(s *profiles.Settings) { s.IncludeCNAMEs = false }), network.Accept, network.Accept, ""},
		{"an alias frees nothing", "ads.example", "fix.example", "198.51.100.1", with(func(s *profiles.Settings) { s.Lists = []string{"ads", "fix"} }), network.Block, network.Block, "ads"},
		{"another list", "bad.example", "", "198.51.100.1", &all, network.Accept, network.Accept, ""},
		{"by its id", "bad.example", "", "198.51.100.1", with(func(s *profiles.Settings) { s.Lists = []string{"mine"} }), network.Block, network.Block, "mine"},
		{"no lists", "ads.example", "", "198.51.100.66", with(func(s *profiles.Settings) { s.Lists = nil }), network.Accept, network.Accept, ""},
		{"address", "clean.example", "", "198.51.100.66", &all, network.Accept, network.Block, "ips"},
		{"address without a name", "", "", "198.51.100.66", &all, network.Accept, network.Block, "ips"},
		{"unbroken address", "clean.example", "", "198.51.100.67", &all, network.Accept, network.Accept, ""},
		{"paused", "ads.example", "", "198.51.100.66", with(func(s *profiles.Settings) { s.Paused = true }), network.Accept, network.Accept, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := New(as{c.settings})
			m.Intel = newKnown()
			n := Name{Owner: curl(), Domain: c.domain}
			if d := m.DecideOnCommunicationBeforeIntel(n); c.domain != "" && d.Verdict != c.before {
				t.Errorf("before intel: %v %s", d.Verdict, d.Reason)
			}
			comm := comm(c.domain, c.to)
			if c.alias != "" {
				n.CNAMEs, comm.Entity.CNAMEs = []string{c.alias}, []string{c.alias}
			}
			if d, _ := m.DecideOnCommunicationAfterIntel(n, []netip.Addr{netip.MustParseAddr(c.to)}); c.domain != "" && d.Verdict != c.link {
				t.Errorf("after intel: %v %s", d.Verdict, d.Reason)
			}
			for range 2 { // the second may be cached
				d := m.Decide(comm, flow(packet.TCP, c.to+":443"))
				if d.Verdict != c.link || d.List != c.list || c.list != "" && (d.Code != "filter-list" || d.Profile != "web" || !strings.Contains(d.Reason, "filter list "+c.list)) {
					t.Errorf("link: %+v", d)
				}
			}
			q := Question{Owner: curl(), Entity: comm.Entity, Flow: flow(packet.TCP, c.to+":443")}
			if d, trail := m.Why(q); d.Verdict != c.link || c.list != "" && !slices.ContainsFunc(trail.Steps, func(s Step) bool { return s.List == c.list }) {
				t.Errorf("why: %+v %+v", d, trail)
			}
		})
	}
}

// TestFilterListsAreNotCached: a name goes to many addresses, and one that is on no list must not
// free another one of the same name that is.
func TestFilterListsAreNotCached(t *testing.T) {
	m := New(as{&profiles.Settings{DefaultAction: profiles.Allow, Lists: []string{"MAL"}, IncludeSubdomains: true, IncludeCNAMEs: true}})
	m.Intel = newKnown()
	c := comm("clean.example", "198.51.100.1")
	if d := m.Decide(c, flow(packet.TCP, "198.51.100.1:443")); d.Verdict != network.Accept {
		t.Errorf("an address on no list: %+v", d)
	}
	if d := m.Decide(c, flow(packet.TCP, "198.51.100.66:443")); d.Verdict != network.Block || d.List != "ips" {
		t.Errorf("another address of the name: %+v", d)
	}
	in := comm("", "198.51.100.66")
	in.Direction = network.Inbound
	if d := m.Decide(in, flow(packet.TCP, "198.51.100.66:443")); d.Verdict != network.Drop || d.List != "ips" {
		t.Errorf("inbound: %+v", d)
	}
	if d, removed := m.DecideOnCommunicationAfterIntel(Name{Owner: curl(), Domain: "clean.example"}, []netip.Addr{netip.MustParseAddr("198.51.100.66")}); d.Verdict != network.Block || len(removed) != 1 {
		t.Errorf("an answer of listed addresses only: %+v %v", d, removed)
	}
}

// TestStampsInRules: rules about lists and countries see what is known as soon as the address is.
func TestStampsInRules(t *testing.T) {
	m := policy(t, "filter:\n  defaultAction: block\n  endpoints:\n    - \"- L:mine\"\n    - \"- L:TRAC\"\n    - \"+ DE\"\n")
	have := newKnown()
	m.Intel = have
	for _, c := range []struct {
		domain string
		want   network.Verdict
		rule   string
	}{{"bad.example", network.Block, "- L:mine"}, {"ads.example", network.Block, "- L:TRAC"}, {"clean.example", network.Accept, "+ DE"}} {
		if d := m.DecideOnCommunicationBeforeIntel(Name{Owner: curl(), Domain: c.domain}); d.Decided() {
			t.Errorf("%s before intel: %+v", c.domain, d)
		}
		if d, _ := m.DecideOnCommunicationAfterIntel(Name{Owner: curl(), Domain: c.domain}, []netip.Addr{netip.MustParseAddr("198.51.100.1")}); d.Verdict != c.want || d.Rule.Text != c.rule {
			t.Errorf("%s after intel: %+v", c.domain, d)
		}
		if d := m.Decide(comm(c.domain, "198.51.100.1"), flow(packet.TCP, "198.51.100.1:443")); d.Verdict != c.want || d.Rule.Text != c.rule {
			t.Errorf("%s: %+v", c.domain, d)
		}
	}
	have.country = "US"
	if d := m.Decide(comm("clean.example", "198.51.100.1"), flow(packet.TCP, "198.51.100.1:443")); d.Verdict != network.Block || d.Code != "default-action" {
		t.Errorf("another country: %+v", d)
	}
}

// TestCustomLists: a person's own lists hold for all programs, whatever their settings name, and no
// list takes them back; rules come before them.
func TestCustomLists(t *testing.T) {
	own := func(name string, above bool) intel.Match {
		return intel.Match{ID: "custom-own", Category: intel.Custom, Source: "/own", Line: 3, Name: name, Above: above}
	}
	have := newKnown()
	have.matches["own.example"] = []intel.Match{own("own.example", false), {ID: "fix", Category: intel.Unbreak, Name: "own.example"}}
	have.matches["x.own.example"] = []intel.Match{own("own.example", true)}
	have.matches["198.51.100.70"] = []intel.Match{own("198.51.100.70/32", false)}
	none := profiles.Settings{DefaultAction: profiles.Allow, IncludeSubdomains: true, IncludeCNAMEs: true}
	unbreak := none
	unbreak.Lists = []string{"UNBREAK"}
	exact := profiles.Settings{DefaultAction: profiles.Allow}
	for _, c := range []struct {
		name, domain, alias, to string
		settings                *profiles.Settings
		before, link            network.Verdict
	}{
		{"listed", "own.example", "", "198.51.100.1", &none, network.Block, network.Block},
		{"not taken back", "own.example", "", "198.51.100.1", &unbreak, network.Block, network.Block},
		{"below", "x.own.example", "", "198.51.100.1", &none, network.Block, network.Block},
		{"below, not included", "x.own.example", "", "198.51.100.1", &exact, network.Accept, network.Accept},
		{"alias", "clean.example", "own.example", "198.51.100.1", &none, network.Accept, network.Block},
		{"alias, not included", "clean.example", "own.example", "198.51.100.1", &exact, network.Accept, network.Accept},
		{"address", "clean.example", "", "198.51.100.70", &none, network.Accept, network.Block},
	} {
		m := New(as{c.settings})
		m.Intel = have
		n := Name{Owner: curl(), Domain: c.domain}
		if d := m.DecideOnCommunicationBeforeIntel(n); d.Verdict != c.before {
			t.Errorf("%s: before intel: %+v", c.name, d)
		}
		q := Question{Owner: curl(), Entity: comm(c.domain, c.to).Entity, Flow: flow(packet.TCP, c.to+":443")}
		if c.alias != "" {
			q.Entity.CNAMEs = []string{c.alias}
		}
		communication := &network.Communication{Owner: q.Owner, Entity: q.Entity}
		d := m.Decide(communication, q.Flow)
		if d.Verdict != c.link || d.Verdict == network.Block && (d.List != "custom-own" || d.Code != "custom-list" || d.Setting != "filter/customLists" || d.Profile != "") {
			t.Errorf("%s: link: %+v", c.name, d)
		}
		why, trail := m.Why(q)
		last := trail.Steps[len(trail.Steps)-1]
		if why.Verdict != c.link || why.Verdict == network.Block && (last.Decider != "custom-lists" || last.Place == nil || last.Place.Source != "/own" || last.Place.Line != 3 || last.Place.Category != "CUSTOM") {
			t.Errorf("%s: why: %+v %+v", c.name, why, last)
		}
	}
	m := policy(t, "filter:\n  endpoints: [\"+ own.example\"]\n")
	m.Intel = have
	if d := m.DecideOnCommunicationBeforeIntel(Name{Owner: curl(), Domain: "own.example"}); d.Verdict != network.Accept {
		t.Errorf("a rule comes first: %+v", d)
	}
}

// TestSecondAddress: what is known of a link is that of its own address, not of the one with which its
// name was seen first.
func TestSecondAddress(t *testing.T) {
	m := policy(t, "filter:\n  removeOutOfScopeDNS: off\n  endpoints:\n    - \"- DE\"\n")
	places := byPlace{"198.51.100.1": "US", "198.51.100.2": "DE"}
	m.Intel = places
	c := comm("a.example", "198.51.100.1")
	for _, x := range []struct {
		to, country string
		want        network.Verdict
	}{{"198.51.100.1", "US", network.Accept}, {"198.51.100.2", "DE", network.Block}, {"198.51.100.3", "", network.Accept}, {"198.51.100.1", "US", network.Accept}} {
		f := flow(packet.TCP, x.to+":443")
		if d := m.Decide(c, f); d.Verdict != x.want {
			t.Errorf("%s: %+v", x.to, d)
		}
		if s := m.Stamp(c, f); s.Country != x.country {
			t.Errorf("%s: %+v, want the country %q", x.to, s, x.country)
		}
	}
	m.Intel, c.Entity.Stamp = nil, &intel.Stamp{Country: "DE"} // a case of `check --cases`: of its own address
	if d := m.Decide(c, flow(packet.TCP, "198.51.100.1:443")); d.Verdict != network.Block {
		t.Errorf("its own address: %+v", d)
	}
	if d := m.Decide(c, flow(packet.TCP, "198.51.100.9:443")); d.Verdict != network.Accept {
		t.Errorf("another address: %+v", d)
	}
}

// byPlace knows countries by address.
type byPlace map[string]string

func (p byPlace) Stamp(_ string, _ []string, a netip.Addr) *intel.Stamp {
	return &intel.Stamp{Country: p[a.String()]}
}
