package profiles

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gatun/attribution"
	"gatun/config"
	"gatun/status"
)

// creations collects the profiles that a store made.
type creations struct {
	mu   sync.Mutex
	list []config.ProfileSpec
}

func (c *creations) created(p config.ProfileSpec) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, p)
}

func (c *creations) names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := []string{}
	for _, p := range c.list {
		names = append(names, p.Name)
	}
	return names
}

func automaticStore(t *testing.T, text string) (*Store, *creations) {
	t.Helper()
	c := &creations{}
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	return newStore(t, text, Options{Created: c.created, Clock: func() time.Time { return now }}), c
}

// TestAutomatic: one profile at first sight, bound to the binary, for nobody else.
func TestAutomatic(t *testing.T) {
	s, c := automaticStore(t, "version: 1\nprofiles:\n  - {name: usr-lib, match: [{path: {prefix: /usr/lib/}}]}\n  - {name: ssh, match: [{path: /nowhere}]}\n")
	revision := s.Revision()
	first := s.For(owner(attribution.Process{PID: 1, Path: "/usr/bin/curl", Args: []string{"curl", "-s\n", strings.Repeat("x", 999)}, User: "u", Unit: "a.service"}))
	second := s.For(owner(attribution.Process{PID: 2, Path: "/usr/bin/curl"}))
	if first != second || first.ProfileID != "curl" || first.ProfileName != "curl" || s.Revision() != revision || first.Revision != revision {
		t.Errorf("%+v and %+v at revision %d", first, second, s.Revision())
	}
	if diff := cmp.Diff([]string{"curl", "global"}, first.LayerNames); diff != "" {
		t.Error(diff)
	}
	if len(c.list) != 1 {
		t.Fatalf("made %v", c.names())
	}
	p := c.list[0]
	want := config.NewProfile("curl", []config.Fingerprint{{Type: "path", Op: "equals", Value: "/usr/bin/curl"}}, config.Automatic, nil)
	facts := map[string]string{"path": "/usr/bin/curl", "args": ("curl -s  " + strings.Repeat("x", 999))[:maxFactRunes], "user": "u", "unit": "a.service"}
	if p.Name != want.Name || p.Origin != want.Origin || !p.Created.Equal(s.clock()) || cmp.Diff(want.Match, p.Match) != "" || cmp.Diff(facts, p.Facts) != "" {
		t.Errorf("made %+v", p)
	}
	p.Facts["path"], p.Match[0].Value = "changed", "changed" // the receiver owns its copy

	for _, c := range []struct {
		what string
		p    attribution.Process
		want string
	}{
		{"another directory", attribution.Process{Path: "/usr/local/bin/curl"}, "curl (/usr/local/bin)"},
		{"a name that is taken", attribution.Process{Path: "/opt/ssh"}, "ssh (/opt)"},
		{"a built-in name", attribution.Process{Path: "/opt/system"}, "system (/opt)"},
		{"the name of the temporary rules", attribution.Process{Path: "/temporary"}, "temporary (/)"},
		{"a profile fits", attribution.Process{Path: "/usr/lib/x"}, "usr-lib"},
		{"a long name", attribution.Process{Path: "/opt/" + strings.Repeat("ü", 200)}, strings.Repeat("ü", 58)},
		{"another long name", attribution.Process{Path: "/opt/" + strings.Repeat("ü", 201)}, strings.Repeat("ü", 58) + " 2"},
		{"a package", attribution.Process{Path: "/app/bin/edit (other mount namespace)", Flatpak: "org.example.Edit"}, "org.example.Edit"},
		{"an AppImage", attribution.Process{Path: "/tmp/.mount_Xy/e", AppImage: "/home/u/Editor.AppImage"}, "Editor"},
		{"its next mount", attribution.Process{Path: "/tmp/.mount_Zz/e", AppImage: "/home/u/Editor.AppImage"}, "Editor"},
		{"Windows", attribution.Process{Path: `C:\Program Files\Edit\edit.exe`}, "edit"},
		{"a deleted binary", attribution.Process{Path: "/usr/bin/wget (deleted)"}, "global"},
		{"another mount namespace", attribution.Process{Path: "/usr/bin/wget (other mount namespace)"}, "global"},
		{"no path", attribution.Process{}, "global"},
		{"no file could name it", attribution.Process{Path: "/usr/bin/\xff"}, "global"},
		{"nor that", attribution.Process{Path: "/usr/bin/a\nb"}, "global"},
		{"the system's resolver", attribution.Process{Path: "/usr/sbin/unbound"}, "system-resolver"},
	} {
		for range 2 {
			if got := s.For(owner(c.p)).ProfileName; got != c.want {
				t.Errorf("%s: profile %q, want %q", c.what, got, c.want)
			}
		}
	}
	for _, kind := range []attribution.Kind{attribution.KindSelf, attribution.KindSystem, attribution.KindUnidentified} {
		s.For(attribution.Owner{Process: &attribution.Process{Kind: kind, Path: "/usr/bin/other"}, Confidence: attribution.Exact})
	}
	s.For(attribution.Owner{Process: owner(attribution.Process{Path: "/usr/bin/other"}).Process, Confidence: attribution.Ambiguous})
	if n := len(c.names()); n != 10 {
		t.Errorf("%d profiles were made: %q", n, c.names())
	}
	if s.Revision() != revision {
		t.Errorf("the revision is %d", s.Revision())
	}
}

// TestAutomaticNotForQuestions: asking what would be leaves no trace, and tells what is.
func TestAutomaticNotForQuestions(t *testing.T) {
	s, c := automaticStore(t, "version: 1\n")
	question := attribution.Owner{Process: &attribution.Process{Kind: attribution.KindProgram, Path: "/usr/bin/curl"}, Confidence: attribution.Exact}
	if got := s.For(question); got.ProfileName != "global" || len(c.list) != 0 {
		t.Errorf("profile %q, made %q", got.ProfileName, c.names())
	}
	s.For(owner(attribution.Process{Path: "/usr/bin/curl"}))
	again := *question.Process
	question.Process = &again
	if got := s.For(question); got.ProfileName != "curl" || s.Profiles()[0].Processes != 1 {
		t.Errorf("profile %q of %+v", got.ProfileName, s.Profiles()[0])
	}
}

// TestAutomaticOff: by the setting, in a server's preset, and where nobody listens.
func TestAutomaticOff(t *testing.T) {
	curl := owner(attribution.Process{Path: "/usr/bin/curl"})
	for _, text := range []string{"version: 1\ncore: {autoProfiles: off}\n", "version: 1\npreset: server\n"} {
		if s, c := automaticStore(t, text); s.For(curl).ProfileName != "global" || len(c.names()) != 0 {
			t.Errorf("%q: made %q", text, c.names())
		}
	}
	if got := newStore(t, "version: 1\n", Options{}).For(curl).ProfileName; got != "global" {
		t.Errorf("without a listener: %q", got)
	}
}

// TestAutomaticIsKept: written to the data directory and read again, changed there, deleted.
func TestAutomaticIsKept(t *testing.T) {
	file := t.TempDir() + "/gatun.yaml"
	data := config.OpenData("")
	load := func(text string) *config.Config {
		t.Helper()
		loadFile(t, file, text)
		cfg, err := config.Load(config.Source{File: file, Data: data, CheckRule: CheckRule})
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	commit := func(change func(*config.Edit)) {
		t.Helper()
		e := data.Edit()
		change(e)
		_, err := config.Load(config.Source{File: file, Data: data, Edit: e, CheckRule: CheckRule})
		if err = errors.Join(err, e.Commit()); err != nil {
			t.Fatal(err)
		}
	}
	c := &creations{}
	s, err := NewStore(load("version: 1\n"), status.State{}, Options{Created: c.created})
	if err != nil {
		t.Fatal(err)
	}
	swap := func(text string) {
		t.Helper()
		if err := s.Swap(load(text), status.State{}); err != nil {
			t.Fatal(err)
		}
	}
	curl := owner(attribution.Process{Path: "/usr/bin/curl"})
	expect := func(what, profile string, revision uint64, made int) {
		t.Helper()
		if got := s.For(curl); got.ProfileName != profile || s.Revision() != revision || got.Revision != revision || len(c.list) != made {
			t.Errorf("%s: profile %q at revision %d (%d), made %q; want %q at %d, %d", what, got.ProfileName, s.Revision(), got.Revision, c.names(), profile, revision, made)
		}
	}
	expect("first sight", "curl", 1, 1)
	swap("version: 1\n# not written yet\n")
	expect("before it is written", "curl", 1, 1)
	if p := s.Pending(); len(p) != 1 || cmp.Diff(c.list[0].Match, p[0].Match)+cmp.Diff(c.list[0].Facts, p[0].Facts) != "" || p[0].Name != "curl" {
		t.Errorf("pending %+v", p)
	}
	commit(func(e *config.Edit) { e.PutProfile(c.list[0]) })
	swap("version: 1\n")
	expect("written", "curl", 1, 1)
	if p := s.Pending(); len(p) != 0 {
		t.Errorf("still pending: %v", p)
	}
	swap("version: 1\n")
	expect("read again", "curl", 1, 1)
	commit(func(e *config.Edit) { e.SetInProfile("curl", "filter/defaultAction", "block") })
	swap("version: 1\n")
	expect("changed", "curl", 2, 1)
	if s.For(curl).DefaultAction != Block {
		t.Error("the change has no effect")
	}
	commit(func(e *config.Edit) { e.DeleteProfile("curl") })
	swap("version: 1\n")
	expect("deleted and seen again", "curl", 3, 2)
	// The human gives the name to another program: ours gets another one.
	swap("version: 1\nprofiles: [{name: curl, match: [{path: /opt/curl}]}]\n")
	expect("renamed", "curl (/usr/bin)", 4, 3)
	// The human's own profile for that program wins, and nothing is made any more.
	swap("version: 1\nprofiles: [{name: mine, match: [{path: /usr/bin/curl}], filter: {blockLAN: on}}]\n")
	expect("pinned", "mine", 5, 3)
	swap("version: 1\ncore: {autoProfiles: off}\n")
	expect("switched off", "global", 6, 3)
}

// TestOriginSettlesTies: pinned beats run-time beats automatic, and a better fingerprint beats
// all of them.
func TestOriginSettlesTies(t *testing.T) {
	match := []config.Fingerprint{{Type: "path", Op: "equals", Value: "/usr/bin/curl"}}
	made := config.NewProfile("made", match, config.Automatic, nil)
	byHand := config.NewProfile("z-hand", match, config.Runtime, nil)
	curl := attribution.Process{Path: "/usr/bin/curl", Unit: "u.service"}
	for _, c := range []struct {
		text string
		put  []config.ProfileSpec
		want string
	}{
		{"version: 1\n", []config.ProfileSpec{made}, "made"},
		{"version: 1\n", []config.ProfileSpec{made, byHand}, "z-hand"},
		{"version: 1\nprofiles: [{name: pinned, match: [{path: /usr/bin/curl}]}]\n", []config.ProfileSpec{made, byHand}, "pinned"},
		{"version: 1\nprofiles: [{name: pinned, match: [{path: {prefix: /usr/bin/}}]}]\n", []config.ProfileSpec{made}, "made"},
		{"version: 1\nprofiles: [{name: pinned, match: [{path: /usr/bin/curl}]}, {name: unit, match: [{tag: systemd-unit, equals: u.service}]}]\n", []config.ProfileSpec{made}, "unit"},
	} {
		file, data := t.TempDir()+"/gatun.yaml", config.OpenData("")
		loadFile(t, file, c.text)
		e := data.Edit()
		for _, p := range c.put {
			e.PutProfile(p)
		}
		cfg, err := config.Load(config.Source{File: file, Data: data, Edit: e})
		if err != nil {
			t.Fatal(err)
		}
		s, err := NewStore(cfg, status.State{}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Match(owner(curl)); got.Profile != c.want || len(got.Ties) != 0 || len(s.Warnings()) != 0 {
			t.Errorf("%q: %+v, warnings %v; want %s", c.text, got, s.Warnings(), c.want)
		}
	}
}

// TestAutomaticIsBounded: who copies a binary around does not fill the disk.
func TestAutomaticIsBounded(t *testing.T) {
	s, c := automaticStore(t, "version: 1\n")
	for i := range maxAutomatic + 10 {
		s.For(owner(attribution.Process{Path: fmt.Sprintf("/tmp/%d/tool", i)}))
	}
	if n := len(c.list); n != maxAutomatic {
		t.Errorf("%d profiles were made", n)
	}
	if got := s.For(owner(attribution.Process{Path: "/tmp/x/other"})).ProfileName; got != "global" {
		t.Errorf("profile %q", got)
	}
}

// TestAutomaticRace makes profiles from many goroutines while the policy is swapped: each
// program gets one (run with -race).
func TestAutomaticRace(t *testing.T) {
	s, c := automaticStore(t, "version: 1\n")
	other := loadText(t, "version: 1\nfilter: {blockLAN: on}\n")
	same := loadText(t, "version: 1\n")
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for i := range 200 {
				want := fmt.Sprintf("p%d", i%50)
				if got := s.For(owner(attribution.Process{PID: i, Path: "/usr/bin/" + want})); got.ProfileName != want {
					t.Errorf("profile %q, want %q", got.ProfileName, want)
				}
			}
		})
	}
	for i := range 50 {
		cfg := same
		if i%2 == 0 {
			cfg = other
		}
		if err := s.Swap(cfg, status.State{}); err != nil {
			t.Error(err)
		}
	}
	readers.Wait()
	if n := len(c.names()); n != 50 {
		t.Errorf("%d profiles were made", n)
	}
}

// TestAutomaticAfterSwap: the policy changes between the look for a profile and the making of
// one. The new policy counts.
func TestAutomaticAfterSwap(t *testing.T) {
	c, clock := &creations{}, func() {}
	s := newStore(t, "version: 1\n", Options{Created: c.created, Clock: func() time.Time { clock(); return time.Unix(1, 0) }})
	mine := loadText(t, "version: 1\nprofiles: [{name: mine, match: [{path: /usr/bin/curl}]}]\n")
	clock = func() {
		clock = func() {}
		if err := s.Swap(mine, status.State{}); err != nil {
			t.Error(err)
		}
	}
	if got := s.For(owner(attribution.Process{Path: "/usr/bin/curl"})); got.ProfileName != "mine" || got.Revision != 2 || len(c.names()) != 0 {
		t.Errorf("profile %q of revision %d, made %q", got.ProfileName, got.Revision, c.names())
	}
}
