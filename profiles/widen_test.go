package profiles

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gatun/attribution"
	"gatun/config"
	"gatun/network"
	"gatun/network/packet"
	"gatun/status"
)

// lists are the rules of a policy with three layers: the application's, its group's, everybody's.
type lists [3][]string

func (l lists) yaml(action string) string {
	quoted := func(rules []string) string {
		var items []string
		for _, r := range rules {
			items = append(items, fmt.Sprintf("%q", r))
		}
		return strings.Join(items, ", ")
	}
	return fmt.Sprintf(`version: 1
filter: {defaultAction: %s, endpoints: [%s]}
profiles:
  - {name: app, match: [{path: /app}], layers: [group], filter: {endpoints: [%s]}}
  - {name: group, filter: {endpoints: [%s]}}
`, action, quoted(l[2]), quoted(l[0]), quoted(l[1]))
}

// freedom is what a layered list gives: nothing, a question, or the way out. What cannot be
// decided yet may become anything that a later stage allows.
type freedom int

const (
	closed freedom = iota
	asked
	open
	undecided
)

// firstMatch is policy.md section 4 for the rules of all layers.
func firstMatch(s *Settings, f *Facts) freedom {
	of := func(a Action) freedom {
		switch a {
		case Allow:
			return open
		case Ask:
			return asked
		default:
			return closed
		}
	}
	for _, l := range s.Endpoints {
		r, m, _ := l.Rules.First(f, nil)
		switch m {
		case Matched:
			return of(r.Action)
		case Unknown:
			return undecided
		}
	}
	return of(s.DefaultAction)
}

func anyRule(verdicts ...string) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		return rapid.SampledFrom(verdicts).Draw(t, "verdict") + " " +
			rapid.SampledFrom([]string{"*", "a.example", ".example", "www.*", "192.0.2.0/24", "192.0.2.7", "LAN", "Internet", "!.example", "{b.example,10.0.0.0/8}", "2001:db8::/32"}).Draw(t, "entity") +
			rapid.SampledFrom([]string{"", "", " TCP", " TCP/443", " UDP", " */53-80"}).Draw(t, "protocol")
	})
}

// anyFlow draws the facts of a first packet, or of a question for a name.
func anyFlow(t *rapid.T) Facts {
	f := Facts{Entity: network.Entity{Domain: rapid.SampledFrom([]string{"", "a.example", "b.example", "www.test"}).Draw(t, "domain")}}
	if rapid.Bool().Draw(t, "aliases") {
		f.Entity.CNAMEs = []string{"c.example"}
	}
	if f.Entity.Domain != "" && rapid.Bool().Draw(t, "query") {
		return f
	}
	f.Entity.Addr = addr(rapid.SampledFrom([]string{"192.0.2.7", "192.0.2.9", "10.1.1.1", "198.51.100.1", "2001:db8::1"}).Draw(t, "address"))
	f.Proto = rapid.SampledFrom([]packet.Proto{packet.TCP, packet.UDP, packet.ICMP}).Draw(t, "protocol")
	f.Port, f.PortKnown, f.Final = rapid.SampledFrom([]uint16{53, 443}).Draw(t, "port"), true, true
	return f
}

// TestBlockRuleNeverWidens: wherever a block rule is put, in whatever layer or as a temporary
// one, nothing gets out that did not before; whatever allow rule is taken away, likewise.
func TestBlockRuleNeverWidens(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gatun.yaml")
	rapid.Check(t, func(t *rapid.T) {
		load := func(text string) *config.Config {
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg, err := config.Load(config.Source{File: file})
			if err != nil {
				t.Fatal(err)
			}
			return cfg
		}
		var l lists
		for i := range l {
			l[i] = rapid.SliceOfN(anyRule("+", "-", "--", "?"), 0, 4).Draw(t, "rules")
		}
		action := rapid.SampledFrom([]string{"permit", "block", "ask"}).Draw(t, "default")
		s, err := NewStore(load(l.yaml(action)), status.State{}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		app, other := owner(attribution.Process{Path: "/app"}), attribution.Unidentified("x")
		before := []*Settings{s.For(app), s.For(other)}

		block := anyRule("-", "--").Draw(t, "block")
		if layer := rapid.IntRange(0, 3).Draw(t, "layer"); layer == 3 {
			if _, err := s.AddTemporary(Temporary{Rule: block}); err != nil {
				t.Fatal(err)
			}
		} else {
			at := rapid.IntRange(0, len(l[layer])).Draw(t, "place")
			l[layer] = append(append(l[layer][:at:at], block), l[layer][at:]...)
			if err := s.Swap(load(l.yaml(action)), status.State{}); err != nil {
				t.Fatal(err)
			}
		}
		after := []*Settings{s.For(app), s.For(other)}
		for range 20 {
			f := anyFlow(t)
			for i := range before {
				was, is := firstMatch(before[i], &f), firstMatch(after[i], &f)
				if is > was && f.Final || was == closed && is != closed {
					t.Fatalf("%q in %q: %d became %d for %+v", block, l, was, is, f)
				}
			}
		}
	})
}

// TestIdenticalSwapChangesNothing: revision and settings of everybody stay, whatever the policy.
func TestIdenticalSwapChangesNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gatun.yaml")
	rapid.Check(t, func(t *rapid.T) {
		var l lists
		for i := range l {
			l[i] = rapid.SliceOfN(anyRule("+", "-", "--", "?"), 0, 4).Draw(t, "rules")
		}
		if err := os.WriteFile(file, []byte(l.yaml("ask")), 0o600); err != nil {
			t.Fatal(err)
		}
		load := func() *config.Config {
			cfg, err := config.Load(config.Source{File: file})
			if err != nil {
				t.Fatal(err)
			}
			return cfg
		}
		made := 0
		s, err := NewStore(load(), status.State{}, Options{Created: func(config.ProfileSpec) { made++ }})
		if err != nil {
			t.Fatal(err)
		}
		owners := []attribution.Owner{owner(attribution.Process{Path: "/app"}), owner(attribution.Process{Path: "/new"}), attribution.Unidentified("x")}
		for _, rule := range rapid.SliceOfN(anyRule("+", "-"), 0, 2).Draw(t, "temporary") {
			if _, err := s.AddTemporary(Temporary{Rule: rule, Profile: rapid.SampledFrom([]string{"", "app"}).Draw(t, "whose")}); err != nil {
				t.Fatal(err)
			}
		}
		var before []Settings
		for _, o := range owners {
			before = append(before, *s.For(o))
		}
		revision := s.Revision()
		// A rating that nothing depends on: the policy is made anew and found to be the same.
		rating := status.Rating(rapid.IntRange(0, 2).Draw(t, "rating"))
		if err := s.Swap(load(), status.State{Rating: rating}); err != nil {
			t.Fatal(err)
		}
		for i, o := range owners {
			got := *s.For(o)
			same := cmp.Comparer(func(a, b *RuleSet) bool { return sameLayer(Layer{Rules: a}, Layer{Rules: b}) })
			if diff := cmp.Diff(before[i], got, same); diff != "" || s.Revision() != revision {
				t.Fatalf("revision %d after %d: %s", s.Revision(), revision, diff)
			}
		}
		if made != 1 {
			t.Fatalf("%d profiles were made", made)
		}
	})
}

// FuzzMerge merges profiles of any text: what loads gives settings to everybody, and gives the
// same ones when it is loaded again.
func FuzzMerge(f *testing.F) {
	f.Add([]byte(layered), uint8(0))
	f.Add([]byte(manyProfiles), uint8(1))
	f.Add([]byte(crowdOf(5)), uint8(2))
	f.Add([]byte("version: 1\nprofiles:\n  - {name: a, layers: [b]}\n  - {name: b, layers: [a]}\n"), uint8(0))
	f.Fuzz(func(t *testing.T, text []byte, rating uint8) {
		file := filepath.Join(t.TempDir(), "gatun.yaml")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(config.Source{File: file})
		if err != nil {
			return
		}
		st := status.State{Rating: status.Rating(rating % 3), Holds: map[string]bool{}}
		for _, p := range cfg.Profiles() {
			st.Holds[p.Name] = p.When != nil
		}
		environ := func(*attribution.Process) []string { return []string{"A=b", "PROFILE=token"} }
		s, err := NewStore(cfg, st, Options{Environ: environ, Created: func(config.ProfileSpec) {}})
		if err != nil {
			return
		}
		owners := []attribution.Owner{attribution.Unidentified("x"), owner(attribution.Process{Path: "/usr/bin/curl", Args: []string{"curl"}, User: "u"})}
		for _, p := range cfg.Profiles() {
			for _, m := range p.Match {
				owners = append(owners, owner(attribution.Process{Path: m.Value, Args: []string{m.Value}, Script: m.Value}))
			}
		}
		for _, o := range owners {
			got, report := s.For(o), s.Match(o)
			if got == nil || got.ProfileName != report.Profile || got.LayerNames[len(got.LayerNames)-1] != globalName {
				t.Fatalf("%+v: %+v, reported %+v", o.Process, got, report)
			}
		}
		if err := s.Swap(cfg, st); err != nil || s.Revision() != 1 {
			t.Fatalf("revision %d, %v", s.Revision(), err)
		}
		s.Profiles()
	})
}
