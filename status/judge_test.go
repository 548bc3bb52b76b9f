package status

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatun/config"
	"gatun/netenv"
	"pgregory.net/rapid"
)

// policy is a configuration as people make it.
type policy struct {
	file    string
	env     []string
	flags   map[string]string
	runtime any // network/rating set at run time; nil: not
}

func (p policy) load(t testing.TB) *config.Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gatun.yaml")
	if err := os.WriteFile(path, []byte("version: 1\n"+p.file), 0o600); err != nil {
		t.Fatal(err)
	}
	src := config.Source{File: path, Env: p.env, Flags: p.flags, Data: config.OpenData("")}
	if p.runtime != nil {
		src.Edit = src.Data.Edit()
		src.Edit.Set("network/rating", p.runtime)
	}
	cfg, err := config.Load(src)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestPrecedence(t *testing.T) {
	const (
		holds  = "  - {rating: danger, interface: wlan0}\n"
		fails  = "  - {rating: danger, interface: eth9}\n"
		always = "  - {rating: untrusted}\n"
	)
	rules := func(r ...string) string { return "  ratingRules:\n  " + strings.Join(r, "  ") }
	rated := func(r string) string { return "network:\n  rating: " + r + "\n" }
	for _, c := range []struct {
		name   string
		p      policy
		rating Rating
		origin string
	}{
		{"default", policy{}, Trusted, "default"},
		{"file", policy{file: rated("untrusted")}, Untrusted, "gatun.yaml:3"},
		{"rule that holds", policy{file: "network:\n" + rules(holds)}, Danger, "rule gatun.yaml:4"},
		{"rule that does not hold", policy{file: "network:\n" + rules(fails)}, Trusted, "default"},
		{"rule that does not hold over the file", policy{file: rated("untrusted") + rules(fails)}, Untrusted, "gatun.yaml:3"},
		{"rule over the file", policy{file: rated("danger") + rules(always)}, Untrusted, "rule gatun.yaml:5"},
		{"first rule that holds", policy{file: "network:\n" + rules(fails, always, holds)}, Untrusted, "rule gatun.yaml:5"},
		{"the same, the other way round", policy{file: "network:\n" + rules(fails, holds, always)}, Danger, "rule gatun.yaml:5"},
		{"run time over the default", policy{runtime: "untrusted"}, Untrusted, "config.json"},
		{"run time over rules", policy{file: "network:\n" + rules(holds), runtime: "trusted"}, Trusted, "config.json"},
		{"environment over rules", policy{file: "network:\n" + rules(holds), env: []string{"GATUN_NETWORK__RATING=trusted"}},
			Trusted, "environment GATUN_NETWORK__RATING"},
		{"environment over the file", policy{file: rated("danger"), env: []string{"GATUN_NETWORK__RATING=trusted"}},
			Trusted, "environment GATUN_NETWORK__RATING"},
		{"flag over all", policy{file: rated("danger") + rules(holds), env: []string{"GATUN_NETWORK__RATING=danger"},
			flags: map[string]string{"network/rating": "untrusted"}}, Untrusted, "flag network/rating"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := c.p.load(t)
			s := Judge(cfg, home(), at("12:00:00"))
			origin := strings.Replace(s.Origin, filepath.Dir(cfg.Files()[0])+"/", "", 1)
			if s.Rating != c.rating || origin != c.origin {
				t.Errorf("%s by %q, want %s by %q", s.Rating, origin, c.rating, c.origin)
			}
			if !s.Next.IsZero() {
				t.Errorf("it may change at %v", s.Next)
			}
		})
	}
}

const profiles = `
profiles:
  - {name: always, when: {}}
  - {name: cable, when: {interface: eth0}}
  - {name: elsewhere, when: {gatewayMAC: "02:00:5e:10:00:09"}}
  - {name: night, when: {time: "22:00-06:00"}}
  - {name: curl, match: [{path: /usr/bin/curl}]}
`

func TestConditionalProfiles(t *testing.T) {
	cfg := policy{file: profiles}.load(t)
	s := Judge(cfg, home(), at("23:00:00"))
	want := State{Rating: Trusted, Origin: "default", Holds: map[string]bool{"always": true, "cable": true, "elsewhere": false, "night": true}}
	if !s.Equal(want) {
		t.Errorf("got %+v, want %+v", s, want)
	}
	if got := s.Next.Format(time.DateTime); got != at("23:00:00").Add(7*time.Hour).Format(time.DateTime) {
		t.Errorf("next is %s", got)
	}
	later := Judge(cfg, netenv.Snapshot{}, s.Next)
	want.Holds["night"], want.Holds["cable"] = false, false
	if !later.Equal(want) {
		t.Errorf("got %+v, want %+v", later, want)
	}
}

func TestRuleByTime(t *testing.T) {
	cfg := policy{file: "network:\n  ratingRules:\n    - {rating: danger, time: \"22:00-06:00\"}\n    - {rating: untrusted, time: \"08:00-09:00\"}\n"}.load(t)
	for clock, want := range map[string]struct {
		rating Rating
		next   string
	}{
		"07:00:00": {Trusted, "08:00"}, "08:30:00": {Untrusted, "09:00"}, "12:00:00": {Trusted, "22:00"}, "23:00:00": {Danger, "06:00"},
	} {
		s := Judge(cfg, home(), at(clock))
		if s.Rating != want.rating || s.Next.Format("15:04") != want.next {
			t.Errorf("%s: %s until %s, want %s until %s", clock, s.Rating, s.Next.Format("15:04"), want.rating, want.next)
		}
	}
	byHand := policy{file: "network:\n  ratingRules: [{rating: danger, time: \"22:00-06:00\"}]\n", runtime: "trusted"}.load(t)
	if s := Judge(byHand, home(), at("12:00:00")); !s.Next.IsZero() {
		t.Errorf("rules that do not count may change the judgement at %v", s.Next)
	}
}

// Between now and Next nothing changes, with several conditions at once; two calls with the
// same arguments agree.
func TestJudgeIsSteadyUntilNext(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var file strings.Builder
		file.WriteString("network:\n  ratingRules:\n    - {rating: danger, interface: eth9}\n")
		for range rapid.IntRange(0, 3).Draw(rt, "rules") {
			fmt.Fprintf(&file, "    - {rating: %s, time: %q}\n", rapid.SampledFrom([]string{"trusted", "untrusted", "danger"}).Draw(rt, "rating"), windowGen().Draw(rt, "window"))
		}
		file.WriteString("profiles:\n  - {name: cable, when: {interface: eth0}}\n")
		for i := range rapid.IntRange(0, 3).Draw(rt, "profiles") {
			fmt.Fprintf(&file, "  - {name: p%d, when: {time: %q}}\n", i, windowGen().Draw(rt, "window"))
		}
		cfg := policy{file: file.String()}.load(t)
		now := momentGen().Draw(rt, "now")
		s := Judge(cfg, home(), now)
		if again := Judge(cfg, home(), now); !again.Equal(s) || !again.Next.Equal(s.Next) {
			rt.Fatalf("the same arguments give %+v and %+v", s, again)
		}
		if s.Next.IsZero() {
			if strings.Contains(file.String(), "time") {
				rt.Fatal("there is no next change")
			}
			return
		}
		if !s.Next.After(now) {
			rt.Fatalf("next is %v, now is %v", s.Next, now)
		}
		for i := range 20 {
			then := now.Add(s.Next.Sub(now) / 20 * time.Duration(i))
			if later := Judge(cfg, home(), then); !later.Equal(s) || !later.Next.Equal(s.Next) {
				rt.Fatalf("%+v at %v, %+v at %v", s, now, later, then)
			}
		}
	})
}

func TestWait(t *testing.T) {
	now := time.Now() // with a monotonic reading, as cmd has it
	for _, c := range []struct {
		next time.Time
		want time.Duration
		ok   bool
	}{
		{time.Time{}, 0, false},
		{now.Add(8 * time.Hour), time.Minute, true},
		{now.Add(20 * time.Second), 20 * time.Second, true},
		{now.Add(-time.Second), 0, true},
	} {
		if !c.next.IsZero() {
			c.next = c.next.Round(0)
		}
		if d, ok := (State{Next: c.next}).Wait(now); d != c.want || ok != c.ok {
			t.Errorf("until %v: %v, %v, want %v, %v", c.next, d, ok, c.want, c.ok)
		}
	}
}

func TestStateEqual(t *testing.T) {
	s := State{Rating: Untrusted, Origin: "default", Holds: map[string]bool{"a": true}}
	for name, o := range map[string]State{
		"rating": {Trusted, "default", map[string]bool{"a": true}, false, "", time.Time{}},
		"origin": {Untrusted, "config.json", map[string]bool{"a": true}, false, "", time.Time{}},
		"holds":  {Untrusted, "default", map[string]bool{"a": false}, false, "", time.Time{}},
		"number": {Untrusted, "default", nil, false, "", time.Time{}},
		"portal": {Untrusted, "default", map[string]bool{"a": true}, true, "", time.Time{}},
	} {
		if s.Equal(o) {
			t.Errorf("%s is no difference", name)
		}
	}
	if o := (State{Untrusted, "default", map[string]bool{"a": true}, false, "", time.Unix(1, 0)}); !s.Equal(o) {
		t.Error("when it may change is a difference")
	}
}

// TestPortalIsJudged: the firewall learns of a portal through the state, and rules of it through
// their conditions.
func TestPortalIsJudged(t *testing.T) {
	cfg := policy{file: "network: {ratingRules: [{rating: danger, portal: on}, {rating: untrusted, dnsSuffix: cafe.example}]}\n" +
		"profiles: [{name: cafe, when: {portal: on}}, {name: out, when: {portal: off}}]\n"}.load(t)
	for _, c := range []struct {
		online    netenv.OnlineState
		portal    bool
		rating    Rating
		cafe, out bool
	}{
		{netenv.Unknown, false, Untrusted, false, false},
		{netenv.Offline, false, Untrusted, false, true},
		{netenv.Limited, false, Untrusted, false, true},
		{netenv.Portal, true, Danger, true, false},
		{netenv.SemiOnline, false, Untrusted, false, true},
		{netenv.Online, false, Untrusted, false, true},
	} {
		env := home()
		env.Online, env.DNSSuffixes = c.online, []string{"cafe.example"}
		env.PortalURL = "http://Login.Cafe.example.:8080/?from=here"
		s := Judge(cfg, env, at("12:00:00"))
		if host := map[bool]string{true: "login.cafe.example"}[c.portal]; s.PortalHost != host {
			t.Errorf("%s: its page is at %q, want %q", c.online, s.PortalHost, host)
		}
		if s.Portal != c.portal || s.Rating != c.rating || s.Holds["cafe"] != c.cafe || s.Holds["out"] != c.out {
			t.Errorf("%s: %+v", c.online, s)
		}
	}
}
