package firewall

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"gatun/e2e/policytest"
	"gatun/network"
	"gatun/network/packet"
)

const endpoints = "filter/endpoints"

// room says how much a decision lets through: nothing, what a person says, everything.
func room(d network.Decision) int {
	switch {
	case d.Asks():
		return 1
	case d.Verdict.Permits(), d.Verdict == network.Undecided: // undecided: the name is resolved
		return 2
	default:
		return 0
	}
}

// permitted is what one flow gets at all stages: room before and after the name is resolved, the
// addresses that are left, and room at the first packet.
type permitted struct {
	before, after, first int
	addrs                []netip.Addr
}

func (l *live) permitted(f *policytest.Flow) permitted {
	q := question(f)
	p := permitted{before: 2, after: 2}
	if f.Domain != "" && !f.Inbound {
		n := Name{Owner: q.Owner, Domain: f.Domain}
		p.before = room(l.master.DecideOnCommunicationBeforeIntel(n))
		n.CNAMEs = f.CNAMEs
		d, removed := l.master.DecideOnCommunicationAfterIntel(n, f.Answer)
		p.after = room(d)
		if p.after > 0 {
			p.addrs = slices.DeleteFunc(slices.Clone(f.Answer), func(a netip.Addr) bool { return slices.Contains(removed, a) })
		}
	}
	p.first = room(l.master.Decide(communication(q, f), q.Flow))
	return p
}

// within reports whether p lets through nothing that o does not.
func (p permitted) within(o permitted) bool {
	return p.before <= o.before && p.after <= o.after && p.first <= o.first &&
		!slices.ContainsFunc(p.addrs, func(a netip.Addr) bool { return !slices.Contains(o.addrs, a) })
}

// insert puts a rule somewhere into one of the policy's lists.
func insert(p *policytest.Policy, r *rand.Rand, rule string) {
	lists := []map[string][]policytest.Rule{p.Lists}
	for i := range p.Profiles {
		lists = append(lists, p.Profiles[i].Lists)
	}
	list := lists[r.IntN(len(lists))]
	key := []string{endpoints, endpoints, "filter/serviceEndpoints"}[r.IntN(3)]
	list[key] = slices.Insert(list[key], r.IntN(len(list[key])+1), policytest.Rule{Text: rule})
}

// TestAddingARule: a block rule anywhere never widens what is let through, at any stage; an
// allow rule never narrows it.
func TestAddingARule(t *testing.T) {
	oneGoroutine(t)
	world, dir, base := policytest.DefaultWorld(), t.TempDir(), seed(t)
	narrowed, widened := 0, 0
	for i := range uint64(200) {
		g := world.Generate(base + i)
		p := g.Policy()
		r := rand.New(rand.NewPCG(base+i, 1))
		was, err := load(dir, p, world.Network)
		if err != nil {
			t.Fatal(err)
		}
		for _, verdict := range []string{"-", "--", "+"} {
			q := p.Clone()
			rule := g.RuleOf(verdict)
			insert(q, r, rule)
			is, err := load(dir, q, world.Network)
			if err != nil {
				t.Fatalf("%v\n%s", err, q.Render())
			}
			for range 50 {
				f := g.Flow()
				before, after := was.permitted(f), is.permitted(f)
				less, more := after, before
				if verdict == "+" {
					less, more = before, after
				}
				if !less.within(more) {
					t.Fatalf("seed %d: the rule %q changes %+v to %+v for %+v in\n%s", base+i, rule, before, after, *f, is.text)
				}
				if fmt.Sprint(before) != fmt.Sprint(after) {
					if verdict == "+" {
						widened++
					} else {
						narrowed++
					}
				}
			}
		}
	}
	if narrowed < 200 || widened < 50 {
		t.Errorf("only %d flows were narrowed and %d widened: the rules say too little", narrowed, widened)
	}
	t.Logf("%d flows narrowed by a block rule, %d widened by an allow rule", narrowed, widened)
}

// merge puts one profile over another, as one.
func merge(over, under policytest.Profile) policytest.Profile {
	m := over
	m.Settings, m.Lists = maps.Clone(under.Settings), map[string][]policytest.Rule{}
	maps.Copy(m.Settings, over.Settings)
	for _, key := range []string{endpoints, "filter/serviceEndpoints"} {
		if list := slices.Concat(over.Lists[key], under.Lists[key]); len(list) > 0 {
			m.Lists[key] = list
		}
	}
	return m
}

// TestLayersAreAssociative: a program's profile over a group over another group is the same as
// either two of them put together first, and as the second group lying under the first.
func TestLayersAreAssociative(t *testing.T) {
	oneGoroutine(t)
	world, dir, base := policytest.DefaultWorld(), t.TempDir(), seed(t)
	world.Conditions, world.Runtime, world.Only = false, false, false
	differ := 0
	for i := range uint64(100) {
		g := world.Generate(base + i)
		p := g.Policy()
		a, b, c := part(g, "a"), part(g, "b"), part(g, "c")
		for _, prog := range world.Programs {
			a.Match = append(a.Match, policytest.Fingerprint{Type: "path", Op: "equals", Value: prog.Path})
		}
		under := func(p policytest.Profile, names ...string) policytest.Profile { p.Layers = names; return p }
		ab, bc := merge(a, b), merge(b, c)
		variants := [][]policytest.Profile{
			{under(a, "b", "c"), b, c},
			{under(a, "b"), under(b, "c"), c},
			{under(ab, "c"), c},
			{under(a, "b"), bc},
			{under(a, "b", "c"), under(b, "c"), c}, // named twice
			{merge(ab, c)}, {merge(a, bc)},
		}
		var loaded []*live
		for _, v := range variants {
			q := p.Clone()
			q.Profiles = v
			l, err := load(dir, q, world.Network)
			if err != nil {
				t.Fatalf("%v\n%s", err, q.Render())
			}
			loaded = append(loaded, l)
		}
		for range 50 {
			f := g.Flow()
			want := loaded[0].words(f)
			for _, l := range loaded[1:] {
				if have := l.words(f); have != want {
					t.Fatalf("seed %d: %+v\n%s\n%s\n----\n%s\n%s", base+i, *f, want, loaded[0].text, have, l.text)
				}
			}
			if q := question(f); loaded[0].master.Settings(q.Owner).ProfileID == "a" {
				differ++
			}
		}
	}
	if differ < 1000 {
		t.Errorf("only %d flows are judged by the layers", differ)
	}
}

// part makes a profile of which anything may be set.
func part(g *policytest.Generator, name string) policytest.Profile {
	for {
		if p := g.Policy(); len(p.Profiles) > 0 {
			q := p.Profiles[0]
			q.Name, q.Match, q.Layers = name, nil, nil
			return q
		}
	}
}

// words are the decisions on a flow without the places that the rules were written at.
func (l *live) words(f *policytest.Flow) string {
	q := question(f)
	say := func(d network.Decision) string {
		return fmt.Sprintf("%v %v %v %q %q", d.Verdict, d.Asks(), d.Stage, d.Setting, d.Rule.Text)
	}
	text := ""
	if f.Domain != "" && !f.Inbound {
		n := Name{Owner: q.Owner, Domain: f.Domain}
		text = say(l.master.DecideOnCommunicationBeforeIntel(n)) + "; "
		n.CNAMEs = f.CNAMEs
		d, removed := l.master.DecideOnCommunicationAfterIntel(n, f.Answer)
		text += say(d) + fmt.Sprintf(" removed %v; ", removed)
	}
	return text + say(l.master.Decide(communication(q, f), q.Flow))
}

// TestSamePolicySameDecisions: a policy that is loaded twice decides the same, every field of it.
func TestSamePolicySameDecisions(t *testing.T) {
	oneGoroutine(t)
	world, dir, base := policytest.DefaultWorld(), t.TempDir(), seed(t)
	for i := range uint64(200) {
		g := world.Generate(base + i)
		p := g.Policy()
		one, err := load(dir, p, world.Network)
		if err != nil {
			t.Fatal(err)
		}
		two, err := load(dir, p.Clone(), world.Network)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			f := g.Flow()
			q := question(f)
			have, want := one.master.Decide(communication(q, f), q.Flow), two.master.Decide(communication(q, f), q.Flow)
			if have != want || one.words(f) != two.words(f) {
				t.Fatalf("seed %d: %+v and %+v", base+i, have, want)
			}
		}
	}
}

// TestCommunicationSpeaksForItsLinks: what is cached for a Communication is what each of its links
// would get with all facts of its own: any address, protocol and port, port 53 among them.
func TestCommunicationSpeaksForItsLinks(t *testing.T) {
	oneGoroutine(t)
	world, dir, base := policytest.DefaultWorld(), t.TempDir(), seed(t)
	cached, links := 0, 0
	for i := range uint64(400) {
		g := world.Generate(base + i)
		p := g.Policy()
		l, err := load(dir, p, world.Network)
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			f := g.Flow()
			q := question(f)
			c := communication(q, f)
			for range 25 {
				o := another(g, f)
				have, want := l.master.Decide(c, o), l.master.DecideOnLink(communication(q, f), o)
				if have.Stage == network.StageCommunication {
					links++
					have.Stage = want.Stage
				}
				if have != want {
					t.Fatalf("seed %d: the Communication of %+v says %+v for its link %v, the link %+v\n%s", base+i, *f, have, o, want, l.text)
				}
			}
			if c.Cached(l.master.Settings(q.Owner).Revision) != nil {
				cached++
			}
		}
	}
	t.Logf("%d decisions on Communications spoke for %d links", cached, links)
	if cached < 300 || links < 20*300 {
		t.Errorf("only %d decisions were cached, for %d links", cached, links)
	}
}

// another draws one more link of the flow's Communication.
func another(g *policytest.Generator, f *policytest.Flow) packet.Flow {
	o := g.Flow()
	for o.Inbound != f.Inbound {
		o = g.Flow()
	}
	flow := question(o).Flow
	if f.Domain == "" { // the address is what they share
		flow.Remote = netip.AddrPortFrom(f.Remote, flow.Remote.Port())
	}
	return flow
}
