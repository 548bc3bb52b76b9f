package profiles

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"gatun/network"
	"gatun/network/packet"
)

func mustSet(t testing.TB, texts ...string) *RuleSet {
	t.Helper()
	rules := make([]Rule, len(texts))
	for i, text := range texts {
		rules[i] = mustRule(t, text)
	}
	return NewRuleSet(rules)
}

// TestFirst: first match wins, an unknown block rule is passed over, an unknown allow rule
// ends the list.
func TestFirst(t *testing.T) {
	query := dnsFacts("www.a.example")
	named := linkFacts("www.a.example", "192.0.2.7", packet.TCP, 443)
	table := []struct {
		name    string
		rules   []string
		facts   Facts
		rule    string
		match   Match
		skipped bool
	}{
		{"empty", nil, query, "", NoMatch, false},
		{"first of two", []string{"+ .a.example", "- .a.example"}, query, "+ .a.example", Matched, false},
		{"zone before exact", []string{"- .example", "+ www.a.example"}, query, "- .example", Matched, false},
		{"exact before any", []string{"+ www.a.example", "- *"}, query, "+ www.a.example", Matched, false},
		{"any before exact", []string{"- *", "+ www.a.example"}, query, "- *", Matched, false},
		{"trailing block does not kill a query that an address rule may allow", []string{"+ 192.0.2.0/24", "- *"}, query, "+ 192.0.2.0/24", Unknown, false},
		{"the same with the address", []string{"+ 192.0.2.0/24", "- *"}, named, "+ 192.0.2.0/24", Matched, false},
		{"unknown block is passed over", []string{"- 192.0.2.0/24", "+ *"}, query, "+ *", Matched, true},
		{"unknown block behind the result does not count", []string{"+ *", "- 192.0.2.0/24"}, query, "+ *", Matched, false},
		{"unknown block and nothing else", []string{"- 192.0.2.0/24", "- 198.51.100.1"}, query, "", NoMatch, true},
		{"unknown block before an unknown allow", []string{"- LAN", "+ * TCP/443", "- *"}, query, "+ * TCP/443", Unknown, true},
		{"port of an exact name", []string{"+ www.a.example TCP/80", "- .a.example"}, named, "- .a.example", Matched, false},
		{"several rules of one name", []string{"- www.a.example UDP", "+ www.a.example TCP/80", "+ www.a.example TCP/443"}, named, "+ www.a.example TCP/443", Matched, false},
		{"short prefix first", []string{"- 192.0.0.0/8", "+ 192.0.2.7"}, named, "- 192.0.0.0/8", Matched, false},
		{"long prefix first", []string{"+ 192.0.2.7", "- 192.0.0.0/8"}, named, "+ 192.0.2.7", Matched, false},
		{"prefix above with the right port", []string{"- 192.0.2.7 UDP", "- 192.0.2.0/24 TCP/80", "+ 192.0.0.0/8 TCP"}, named, "+ 192.0.0.0/8 TCP", Matched, false},
		{"set is found by each entity", []string{"- {b.example,192.0.2.7,.a.example}"}, named, "- {b.example,192.0.2.7,.a.example}", Matched, false},
		{"name is not known and never will be", []string{"+ .a.example", "- *"}, linkFacts("", "192.0.2.7", packet.TCP, 443), "- *", Matched, false},
		{"name is not known yet", []string{"+ .a.example", "- *"}, Facts{Entity: network.Entity{Addr: addr("192.0.2.7")}}, "+ .a.example", Unknown, false},
		{"alias blocks", []string{"+ .cdn.example", "- .cdn.example", "+ *"}, dnsFacts("www.a.example", "x.cdn.example"), "- .cdn.example", Matched, false},
	}
	for _, c := range table {
		set := mustSet(t, c.rules...)
		for _, visit := range []func(*Rule, Match){nil, func(*Rule, Match) {}} {
			rule, match, skipped := set.First(&c.facts, visit)
			text := ""
			if rule != nil {
				text = rule.Ref.Text
			}
			if text != c.rule || match != c.match || skipped != c.skipped {
				t.Errorf("%s (visit %v): got %q %v skipped %v, want %q %v %v", c.name, visit != nil, text, match, skipped, c.rule, c.match, c.skipped)
			}
		}
	}
}

// TestVisit: "why" is told every rule up to the one that decides, in order.
func TestVisit(t *testing.T) {
	set := mustSet(t, "- b.example", "- 192.0.2.0/24", "+ .a.example", "- *")
	f := dnsFacts("a.example")
	var seen []string
	set.First(&f, func(r *Rule, m Match) { seen = append(seen, r.String()+": "+m.String()) })
	want := []string{"- b.example: no match", "- 192.0.2.0/24: unknown yet", "+ .a.example: match"}
	if !slices.Equal(seen, want) {
		t.Errorf("visited %q, want %q", seen, want)
	}
	if set.Len() != 4 || set.Rules()[3].String() != "- *" {
		t.Errorf("Len %d, Rules %v", set.Len(), set.Rules())
	}
}

// Generators draw from few names and addresses, so that rules and facts meet.
var (
	drawName  = rapid.SampledFrom([]string{"a.example", "www.a.example", "b.example", "cdn.b.example", "example"})
	drawAddr  = rapid.SampledFrom([]string{"192.0.2.7", "192.0.2.8", "198.51.100.1", "10.0.0.1", "2001:db8::1", "fe80::1"})
	drawProto = rapid.SampledFrom([]packet.Proto{packet.TCP, packet.UDP, packet.ICMP})
)

func drawLeaf(t *rapid.T) string {
	return rapid.OneOf(
		drawName,
		rapid.Custom(func(t *rapid.T) string { return "." + drawName.Draw(t, "zone") }),
		drawAddr,
		rapid.SampledFrom([]string{"*", "192.0.2.0/24", "192.0.0.0/16", "0.0.0.0/0", "2001:db8::/32", "192.0.2.1-192.0.2.7", "LAN", "LAN,Internet", "*example", "www.*", "/b/", "{b.example,192.0.2.0/24}", "!.a.example", "!{LAN,b.example}"}),
	).Draw(t, "entity")
}

func drawRule(t *rapid.T) string {
	options := rapid.SampledFrom([]string{"", " TCP", " UDP/53", " TCP/443", " */80-90", " ICMP", " app=tls"}).Draw(t, "options")
	return rapid.SampledFrom([]string{"+", "-", "--", "?"}).Draw(t, "verdict") + " " + drawLeaf(t) + options
}

func drawFacts(t *rapid.T) Facts {
	var f Facts
	if rapid.Bool().Draw(t, "addr known") {
		f.Entity.Addr = addr(drawAddr.Draw(t, "addr"))
	}
	if rapid.Bool().Draw(t, "name known") {
		f.Entity.Domain = drawName.Draw(t, "name")
		f.Entity.CNAMEs = rapid.SliceOfN(drawName, 0, 2).Draw(t, "aliases")
	}
	if rapid.Bool().Draw(t, "proto known") {
		f.Proto = drawProto.Draw(t, "proto")
		f.PortKnown = rapid.Bool().Draw(t, "port known")
		f.Port = rapid.SampledFrom([]uint16{53, 80, 443}).Draw(t, "port")
	}
	f.App = rapid.SampledFrom([]string{"", "tls", "ssh"}).Draw(t, "app")
	f.Final = rapid.Bool().Draw(t, "final")
	return f
}

// TestIndexEqualsList: the indexed look-up and a plain walk over the list always agree.
func TestIndexEqualsList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		texts := rapid.SliceOfN(rapid.Custom(drawRule), 0, 12).Draw(t, "rules")
		rules := make([]Rule, len(texts))
		for i, text := range texts {
			r, err := ParseRule(text, network.RuleRef{})
			if err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			rules[i] = r
		}
		set, f := NewRuleSet(rules), drawFacts(t)
		rule, match, skipped := set.First(&f, nil)
		wantRule, wantMatch, wantSkipped := first(set.Rules(), &f)
		if rule != wantRule || match != wantMatch || skipped != wantSkipped {
			t.Fatalf("%q with %+v: got %v %v %v, want %v %v %v", texts, f, rule, match, skipped, wantRule, wantMatch, wantSkipped)
		}
		rule, match, skipped = set.First(&f, func(*Rule, Match) {})
		if rule != wantRule || match != wantMatch || skipped != wantSkipped {
			t.Fatalf("visited: %q with %+v: got %v %v %v, want %v %v %v", texts, f, rule, match, skipped, wantRule, wantMatch, wantSkipped)
		}
	})
}

// first is policy.md section 4 in the plainest words.
func first(rules []Rule, f *Facts) (rule *Rule, m Match, skipped bool) {
	for i := range rules {
		r := &rules[i]
		switch r.Match(f) {
		case Matched:
			return r, Matched, skipped
		case Unknown:
			if r.Action == Allow || r.Action == Ask {
				return r, Unknown, skipped
			}
			skipped = true
		}
	}
	return nil, NoMatch, skipped
}

// TestBlockNeverWidens: a block rule added anywhere allows nothing that was not allowed.
func TestBlockNeverWidens(t *testing.T) {
	permits := func(rules []Rule, f *Facts) bool {
		r, m, _ := NewRuleSet(rules).First(f, nil)
		return m == Matched && r.Action == Allow
	}
	rapid.Check(t, func(t *rapid.T) {
		var rules []Rule
		for _, text := range rapid.SliceOfN(rapid.Custom(drawRule), 0, 8).Draw(t, "rules") {
			r, err := ParseRule(text, network.RuleRef{})
			if err != nil {
				t.Fatal(err)
			}
			rules = append(rules, r)
		}
		block, err := ParseRule("- "+drawLeaf(t), network.RuleRef{})
		if err != nil {
			t.Fatal(err)
		}
		at := rapid.IntRange(0, len(rules)).Draw(t, "at")
		f := drawFacts(t)
		if permits(slices.Insert(slices.Clone(rules), at, block), &f) && !permits(rules, &f) {
			t.Fatalf("%q at %d allows %+v", block.String(), at, f)
		}
	})
}
