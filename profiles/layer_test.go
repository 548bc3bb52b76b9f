package profiles

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gatun/attribution"
	"gatun/status"
)

// anyOverlay is one layer with few keys, so that layers often set the same.
func anyOverlay(name string) *rapid.Generator[overlay] {
	return rapid.Custom(func(t *rapid.T) overlay {
		o := overlay{names: []string{name}}
		for _, key := range []string{"filter/defaultAction", "filter/blockLAN", "filter/askTimeout"} {
			if rapid.Bool().Draw(t, "sets") {
				if o.set == nil {
					o.set = map[string]setting{}
				}
				value := map[string]any{"filter/defaultAction": "block", "filter/blockLAN": true, "filter/askTimeout": time.Second}[key]
				o.set[key] = setting{value: value, origin: Origin(name), profile: name}
			}
		}
		rules := func(label string) []Layer {
			n := rapid.IntRange(0, 2).Draw(t, label)
			if n == 0 {
				return nil
			}
			return []Layer{{Profile: name, Rules: NewRuleSet(make([]Rule, n))}}
		}
		o.endpoints, o.services = rules("rules"), rules("incoming")
		return o
	})
}

// TestLayeringIsAssociative: only the order of the layers matters.
func TestLayeringIsAssociative(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var layers []overlay
		for i := range rapid.IntRange(1, 6).Draw(t, "layers") {
			layers = append(layers, anyOverlay(fmt.Sprint("l", i)).Draw(t, "layer"))
		}
		// fold lays the layers over each other in an order of its own choice.
		fold := func(label string) overlay {
			list := append([]overlay(nil), layers...)
			for len(list) > 1 {
				i := rapid.IntRange(0, len(list)-2).Draw(t, label)
				list = append(append(list[:i:i], list[i].over(list[i+1])), list[i+2:]...)
			}
			return list[0]
		}
		one, two := fold("first"), fold("second")
		if !one.same(two) {
			t.Fatalf("%+v is not %+v", one, two)
		}
		// The definition: the first that sets a scalar wins, all lists one after another.
		for key := range one.set {
			for _, l := range layers {
				if v, sets := l.set[key]; sets {
					if one.set[key] != v {
						t.Fatalf("%s is %+v, want %+v", key, one.set[key], v)
					}
					break
				}
			}
		}
		var want []string
		for _, l := range layers {
			for range l.endpoints {
				want = append(want, l.names[0])
			}
		}
		var got []string
		for _, l := range one.endpoints {
			got = append(got, l.Profile)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

const layered = `version: 1
filter:
  defaultAction: permit
  blockP2P: on
  endpoints: ["- global.example"]
profiles:
  - name: curl
    match: [{path: /usr/bin/curl}]
    layers: [tools, net]
    filter: {blockLocal: on, endpoints: ["+ curl.example"], serviceEndpoints: ["+ LAN"]}
  - name: tools
    layers: [all]
    filter: {defaultAction: block, blockLAN: on, endpoints: ["- tools.example"]}
  - name: net
    match: [{path: /usr/bin/net}]
    filter: {defaultAction: ask, blockLAN: off, endpoints: ["- net.example"]}
  - name: all
    filter: {blockInternet: on, defaultAction: permit, endpoints: ["- all.example"]}
  - name: home
    when: {interface: wlan0}
    filter: {blockInternet: off, blockP2P: off, endpoints: ["- home.example"]}
  - name: night
    when: {time: "22:00-06:00"}
    filter: {blockP2P: danger, blockInbound: off}
`

// TestLayersOverEachOther: application, its groups in order with theirs, the networks that hold,
// the global settings.
func TestLayersOverEachOther(t *testing.T) {
	cfg := loadText(t, layered)
	s, err := NewStore(cfg, status.State{Holds: map[string]bool{"home": true, "night": true}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	curl := owner(attribution.Process{Path: "/usr/bin/curl"})
	got := s.For(curl)
	want := func(what string, got, want any) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(what, diff)
		}
	}
	want("layers", got.LayerNames, []string{"curl", "tools", "all", "net", "home", "night", "global"})
	want("default action of the first group", []any{got.DefaultAction, got.DefaultActionProfile}, []any{Block, "tools"})
	want("blockLAN", []any{got.BlockLAN.Active, got.BlockLAN.Profile}, []any{true, "tools"})
	want("blockInternet of the group's group", []any{got.BlockInternet.Active, got.BlockInternet.Profile}, []any{true, "all"})
	want("blockLocal", []any{got.BlockLocal.Active, got.BlockLocal.Profile}, []any{true, "curl"})
	want("blockP2P of the network", []any{got.BlockP2P.Active, got.BlockP2P.Profile}, []any{false, "home"})
	want("blockInbound of the second network", []any{got.BlockInbound.Active, got.BlockInbound.Profile}, []any{false, "night"})
	rules := func(list []Layer) (names []string) {
		for _, l := range list {
			names = append(names, l.Profile+" "+l.Rules.Rules()[0].Ref.Text)
		}
		return names
	}
	want("rules", rules(got.Endpoints), []string{"curl + curl.example", "tools - tools.example", "all - all.example", "net - net.example", "home - home.example", " - global.example"})
	want("incoming", rules(got.ServiceEndpoints), []string{"curl + LAN"})
	unknown := s.For(attribution.Unidentified("x"))
	want("unidentified", unknown.LayerNames, []string{"unidentified", "home", "night", "global"})
	want("a program without a profile", s.For(owner(attribution.Process{Path: "/x"})).LayerNames, []string{"home", "night", "global"})

	revision := s.Revision()
	if err := s.Swap(cfg, status.State{Holds: map[string]bool{"home": false, "night": true}}); err != nil {
		t.Fatal(err)
	}
	left := s.For(curl)
	want("away from home", left.LayerNames, []string{"curl", "tools", "all", "net", "night", "global"})
	want("blockP2P", []any{left.BlockP2P.Active, left.BlockP2P.Profile}, []any{false, "night"})
	if s.Revision() != revision+1 {
		t.Errorf("revision %d after %d", s.Revision(), revision)
	}
	if err := s.Swap(cfg, status.State{Rating: status.Danger, Holds: map[string]bool{"night": true}}); err != nil {
		t.Fatal(err)
	}
	want("in danger", s.For(curl).BlockP2P.Active, true)
}

// TestSettingsFields: every setting that the deciders read arrives.
func TestSettingsFields(t *testing.T) {
	s := newStore(t, "version: 1\ncore: {releaseLevel: beta}\nfilter: {askTimeout: 7s, autoPermitRelated: on, geoMissing: block, defaultAction: ask}\n", Options{})
	got := s.For(attribution.Unidentified("x"))
	if got.AskTimeout != 7*time.Second || !got.AutoPermitRelated || !got.GeoMissingBlocks || got.DefaultAction != Ask || got.Paused {
		t.Errorf("%+v", got)
	}
	if got := newStore(t, "version: 1\n", Options{}).For(attribution.Unidentified("x")); got.AskTimeout != time.Minute || got.AutoPermitRelated || got.GeoMissingBlocks {
		t.Errorf("defaults: %+v", got)
	}
}

// TestRevision: it grows exactly when something changes for somebody.
func TestRevision(t *testing.T) {
	file := t.TempDir() + "/gatun.yaml"
	text := "version: 1\nfilter: {blockP2P: danger, endpoints: [\"- a.example\"]}\nprofiles:\n  - {name: a, match: [{path: /a}], layers: [g]}\n  - {name: g, filter: {blockLAN: on}}\n  - {name: n, when: {interface: x}}\n"
	s, err := NewStore(loadFile(t, file, text), status.State{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	rules := s.For(attribution.Unidentified("x")).Endpoints[0].Rules
	change := func(what, from, to string, st status.State, grows bool) {
		t.Helper()
		before := s.Revision()
		if err := s.Swap(loadFile(t, file, strings.Replace(text, from, to, 1)), st); err != nil {
			t.Fatal(err)
		}
		if grew := s.Revision() == before+1; grew != grows || !grows && s.Revision() != before {
			t.Errorf("%s: revision %d after %d", what, s.Revision(), before)
		}
		if got := s.For(attribution.Unidentified("x")).Revision; got != s.Revision() {
			t.Errorf("%s: settings of revision %d", what, got)
		}
		if err := s.Swap(loadFile(t, file, text), status.State{}); err != nil {
			t.Fatal(err)
		}
	}
	change("the same", "", "", status.State{}, false)
	change("a comment at the end", "interface: x}}\n", "interface: x}}\n# nothing\n", status.State{}, false)
	change("a rating that nothing depends on", "", "", status.State{Rating: status.Untrusted}, false)
	change("a rating that something depends on", "", "", status.State{Rating: status.Danger}, true)
	change("a condition holds", "", "", status.State{Holds: map[string]bool{"n": true}}, true)
	change("a rule", "- a.example", "- b.example", status.State{}, true)
	change("a rule on another line", "version: 1\n", "version: 1\n\n", status.State{}, true)
	change("a value", "blockLAN: on", "blockLAN: off", status.State{}, true)
	change("a fingerprint", "path: /a", "path: /b", status.State{}, true)
	change("a name", "{name: a,", "{name: b,", status.State{}, true)
	change("a layer", "layers: [g]", "filter: {removeBlockedDNS: on}", status.State{}, true)
	change("a profile less", "  - {name: n, when: {interface: x}}\n", "", status.State{}, true)
	if got := s.For(attribution.Unidentified("x")).Endpoints[0].Rules; got == rules {
		t.Error("the rules were replaced twice and are the same")
	}
	same := s.For(attribution.Unidentified("x")).Endpoints[0].Rules
	change("the same", "", "", status.State{}, false)
	if s.For(attribution.Unidentified("x")).Endpoints[0].Rules != same {
		t.Error("rules that did not change were parsed again")
	}
}
