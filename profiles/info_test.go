package profiles

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gatun/attribution"
	"gatun/status"
)

func TestProfiles(t *testing.T) {
	c := &creations{}
	cfg := loadText(t, layered)
	s, err := NewStore(cfg, status.State{Holds: map[string]bool{"night": true}}, Options{Created: c.created})
	if err != nil {
		t.Fatal(err)
	}
	for pid := 1; pid <= 3; pid++ {
		s.For(owner(attribution.Process{PID: pid, Path: "/usr/bin/curl"}))
		s.For(owner(attribution.Process{PID: pid, Path: "/usr/bin/curl"})) // looked at again: the same process
	}
	s.For(owner(attribution.Process{PID: 9, Path: "/usr/bin/zed"}))
	s.For(owner(attribution.Process{PID: 10, Path: "/usr/bin/dig"}))
	var got []string
	for _, i := range s.Profiles() {
		var layers []string
		for _, l := range i.Layers {
			layers = append(layers, l.Name+"/"+l.Origin)
		}
		got = append(got, fmt.Sprintf("%s %s %s match=%v layers=%v condition=%v,%v processes=%d", i.Name, i.Origin,
			strings.TrimPrefix(i.Position, cfg.Files()[0]), i.Match, layers, i.Condition, i.Holds, i.Processes))
	}
	want := []string{
		"curl pinned :7 match=[path equals /usr/bin/curl] layers=[tools/pinned all/pinned net/pinned night/pinned global/built-in] condition=false,false processes=3",
		"tools pinned :11 match=[] layers=[all/pinned night/pinned global/built-in] condition=false,false processes=0",
		"net pinned :14 match=[path equals /usr/bin/net] layers=[night/pinned global/built-in] condition=false,false processes=0",
		"all pinned :17 match=[] layers=[night/pinned global/built-in] condition=false,false processes=0",
		"home pinned :19 match=[] layers=[night/pinned global/built-in] condition=true,false processes=0",
		"night pinned :22 match=[] layers=[global/built-in] condition=true,true processes=0",
		"dig automatic  match=[path equals /usr/bin/dig] layers=[night/pinned global/built-in] condition=false,false processes=1",
		"zed automatic  match=[path equals /usr/bin/zed] layers=[night/pinned global/built-in] condition=false,false processes=1",
		"unidentified built-in  match=[] layers=[night/pinned global/built-in] condition=false,false processes=0",
		"self built-in  match=[] layers=[night/pinned global/built-in] condition=false,false processes=0",
		"unsolicited built-in  match=[] layers=[night/pinned global/built-in] condition=false,false processes=0",
		"system built-in  match=[] layers=[night/pinned global/built-in] condition=false,false processes=0",
		"system-resolver built-in  match=[] layers=[night/pinned global/built-in] condition=false,false processes=0",
		"global built-in  match=[] layers=[night/pinned global/built-in] condition=false,false processes=0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	text, err := json.Marshal(s.Profiles()[0])
	if err != nil || !strings.HasPrefix(string(text), `{"name":"curl","origin":"pinned","position":"`) || strings.Contains(string(text), "created") || strings.Contains(string(text), "null") {
		t.Errorf("%s, %v", text, err)
	}
}

func TestMatchReport(t *testing.T) {
	c := &creations{}
	s := newStore(t, `version: 1
profiles:
  - {name: a, match: [{path: /x}], layers: [g]}
  - {name: b, match: [{path: /x}]}
  - {name: c, match: [{path: /x}, {cmdline: {prefix: x -v}}]}
  - {name: g}
  - {name: resolver, match: [{tag: special, equals: system-resolver}]}
  - {name: mystery, match: [{tag: special, equals: unidentified}]}
`, Options{Created: c.created})
	table := []struct {
		what string
		o    attribution.Owner
		want string
	}{
		{"ties", owner(attribution.Process{Path: "/x"}), "a pinned [path equals /x] 13002 [b c] [g global]"},
		{"a better one", owner(attribution.Process{Path: "/x", Args: []string{"x", "-v"}}), "c pinned [cmdline prefix x -v] 42004 [] [global]"},
		{"nobody's", owner(attribution.Process{Path: "/y"}), "global built-in [] 0 [] [global]"},
		{"resolver", owner(attribution.Process{Path: "/usr/sbin/unbound"}), "resolver pinned [tag special equals system-resolver] 53015 [] [global]"},
		{"unidentified", attribution.Unidentified("x"), "mystery pinned [] 0 [] [global]"},
		{"ambiguous", attribution.Owner{Process: owner(attribution.Process{Path: "/x"}).Process, Confidence: attribution.Ambiguous}, "mystery pinned [] 0 [] [global]"},
		{"system", attribution.Owner{Process: &attribution.Process{Kind: attribution.KindSystem, Path: "/x"}, Confidence: attribution.Exact}, "system built-in [] 0 [] [global]"},
	}
	for _, c := range table {
		r := s.Match(c.o)
		var layers []string
		for _, l := range r.Layers {
			layers = append(layers, l.Name)
		}
		if got := fmt.Sprintf("%s %s [%s] %d %v %v", r.Profile, r.Origin, r.Fingerprint, r.Score, r.Ties, layers); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
	if len(c.list) != 0 {
		t.Error("asking made a profile")
	}
	y := owner(attribution.Process{Path: "/y"})
	s.For(y)
	if r := s.Match(y); r.Profile != "y" || r.Origin != "automatic" || r.Fingerprint != "path equals /y" || r.Score != 13_002 {
		t.Errorf("after it was seen: %+v", r)
	}
	for _, c := range table { // the report says what For does
		if r, got := s.Match(c.o), s.For(c.o); r.Profile != got.ProfileName {
			t.Errorf("%s: reported %s, in force %s", c.what, r.Profile, got.ProfileName)
		}
	}
}
