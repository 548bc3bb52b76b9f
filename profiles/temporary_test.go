package profiles

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gatun/attribution"
	"gatun/network/packet"
	"gatun/status"
)

// testClock is a clock that tests move.
type testClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *testClock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

const twoPrograms = `version: 1
filter: {endpoints: ["- .example"]}
profiles:
  - {name: a, match: [{path: /a}], filter: {endpoints: ["- a.example"]}}
  - {name: b, match: [{path: /b}]}
`

func clockStore(t *testing.T, text string) (*Store, *testClock) {
	t.Helper()
	clock := &testClock{now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)}
	return newStore(t, text, Options{Clock: clock.Now}), clock
}

// firstRule is the rule that decides about a name for an owner.
func firstRule(s *Settings, name string) string {
	f := linkFacts(name, "198.51.100.1", packet.TCP, 443)
	for _, l := range s.Endpoints {
		if r, m, _ := l.Rules.First(&f, nil); m == Matched {
			return l.Profile + " " + r.Ref.Text
		}
	}
	return ""
}

func add(t *testing.T, s *Store, rule Temporary) Temporary {
	t.Helper()
	added, err := s.AddTemporary(rule)
	if err != nil {
		t.Fatal(err)
	}
	return added
}

func TestTemporary(t *testing.T) {
	s, clock := clockStore(t, twoPrograms)
	a, b := owner(attribution.Process{PID: 1, Path: "/a", Started: time.Unix(1, 0)}), owner(attribution.Process{PID: 2, Path: "/b"})
	second := owner(attribution.Process{PID: 1, Path: "/a", Started: time.Unix(2, 0)}) // the number was used again
	nobody := attribution.Unidentified("x")
	expect := func(what, forA, forSecond, forB, forNobody string) {
		t.Helper()
		for range 2 {
			got := []string{firstRule(s.For(a), "a.example"), firstRule(s.For(second), "a.example"), firstRule(s.For(b), "a.example"), firstRule(s.For(nobody), "a.example")}
			if diff := cmp.Diff([]string{forA, forSecond, forB, forNobody}, got); diff != "" {
				t.Error(what, diff)
			}
		}
	}
	expect("at first", "a - a.example", "a - a.example", " - .example", " - .example")
	old := s.For(a)

	ten := add(t, s, Temporary{Profile: "a", Rule: "+ a.example", Until: clock.Now().Add(10 * time.Minute), Reason: "allow"})
	if ten.ID != "t1" || !ten.Created.Equal(clock.Now()) || s.Revision() != 2 {
		t.Errorf("%+v at revision %d", ten, s.Revision())
	}
	expect("for one profile", "temporary + a.example", "temporary + a.example", " - .example", " - .example")
	if firstRule(old, "a.example") != "a - a.example" || cmp.Diff([]string{"temporary", "a", "global"}, s.For(a).LayerNames) != "" {
		t.Errorf("a snapshot changed, or the layers are %v", s.For(a).LayerNames)
	}
	add(t, s, Temporary{PID: 1, Started: time.Unix(1, 0), Rule: "-- a.example"})
	expect("the newest first, for one process", "temporary -- a.example", "temporary + a.example", " - .example", " - .example")
	all := add(t, s, Temporary{Rule: "? *", Until: clock.Now().Add(time.Minute)})
	expect("for everybody", "temporary ? *", "temporary ? *", "temporary ? *", "temporary ? *")
	if got := s.NextExpiry(); !got.Equal(all.Until) {
		t.Errorf("next expiry %s", got)
	}

	// Time alone ends a rule: nobody calls Expire.
	revision := s.Revision()
	clock.forward(time.Minute)
	expect("after a minute", "temporary -- a.example", "temporary + a.example", " - .example", " - .example")
	if s.Revision() != revision+1 || s.For(a).Revision != revision+1 {
		t.Errorf("revision %d, want %d", s.Revision(), revision+1)
	}
	dead := map[int]bool{}
	alive := func(pid int, started time.Time) bool { return !dead[pid] && started.Equal(time.Unix(1, 0)) }
	if s.Expire(clock.Now(), alive) {
		t.Error("something expired too early")
	}
	dead[1] = true
	if !s.Expire(clock.Now(), alive) || s.Expire(clock.Now(), alive) {
		t.Error("the end of a process must count once")
	}
	expect("the process has ended", "temporary + a.example", "temporary + a.example", " - .example", " - .example")

	// The same rule again begins anew.
	again := add(t, s, Temporary{Profile: "a", Rule: "+   a.example # why not", Until: clock.Now().Add(time.Hour)})
	if got := s.Temporaries(); len(got) != 1 || got[0].ID != "t1" || again.ID != "t1" || !got[0].Until.Equal(clock.Now().Add(time.Hour)) {
		t.Errorf("%+v", got)
	}
	if s.RemoveTemporary("t9") || !s.RemoveTemporary("t1") || s.RemoveTemporary("t1") || len(s.Temporaries()) != 0 {
		t.Error("removing does not work")
	}
	expect("in the end", "a - a.example", "a - a.example", " - .example", " - .example")
	if !s.NextExpiry().IsZero() {
		t.Error("something is left that could expire")
	}
}

func TestTemporaryErrors(t *testing.T) {
	s, clock := clockStore(t, twoPrograms)
	for _, c := range []struct {
		rule Temporary
		want string
	}{
		{Temporary{Rule: "+ us"}, `column 3: "us" is a country`},
		{Temporary{Rule: ""}, "column 1: "},
		{Temporary{Rule: "+ *", Profile: "c"}, `there is no profile "c"`},
		{Temporary{Rule: "+ *", Profile: "global"}, `there is no profile "global"`},
		{Temporary{Rule: "+ *", PID: 1}, "needs its start"},
		{Temporary{Rule: "+ *", Until: clock.Now()}, "ended at 2026-05-01T12:00:00Z already"},
	} {
		if _, err := s.AddTemporary(c.rule); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %s", c.rule, err, c.want)
		}
	}
	if s.Revision() != 1 || len(s.Temporaries()) != 0 {
		t.Error("a refused rule left something behind")
	}
	for _, profile := range []string{"", "a", "unidentified", "system-resolver"} {
		add(t, s, Temporary{Rule: "+ *", Profile: profile})
	}
	// Rules that were kept over a restart have their names.
	if got := add(t, s, Temporary{ID: "t70", Rule: "- x.example"}); got.ID != "t70" {
		t.Errorf("ID %q", got.ID)
	}
	if got := add(t, s, Temporary{ID: "t70", Rule: "- y.example"}); got.ID != "t70" || len(s.Temporaries()) != 5 {
		t.Errorf("ID %q of %d", got.ID, len(s.Temporaries()))
	}
	if got := add(t, s, Temporary{Rule: "- z.example"}); got.ID != "t71" {
		t.Errorf("ID %q", got.ID)
	}
}

// TestTemporarySurvivesSwap: a reload does not end them, and a profile that was made
// automatically can have some.
func TestTemporarySurvivesSwap(t *testing.T) {
	s, c := automaticStore(t, "version: 1\n")
	curl := owner(attribution.Process{PID: 1, Started: time.Unix(1, 0), Path: "/usr/bin/curl"})
	s.For(curl)
	if len(c.list) != 1 {
		t.Fatal("no profile was made")
	}
	add(t, s, Temporary{Profile: "curl", Rule: "- a.example"})
	add(t, s, Temporary{PID: 1, Started: time.Unix(1, 0), Rule: "- b.example"})
	for range 2 {
		if got := s.For(curl); firstRule(got, "a.example") != "temporary - a.example" || firstRule(got, "b.example") != "temporary - b.example" || got.ProfileName != "curl" {
			t.Errorf("rules %q, %q of %s", firstRule(got, "a.example"), firstRule(got, "b.example"), got.ProfileName)
		}
		other := s.For(owner(attribution.Process{PID: 2, Path: "/usr/bin/curl"}))
		if firstRule(other, "a.example") == "" || firstRule(other, "b.example") != "" {
			t.Error("the rule of one process holds for another")
		}
		if err := s.Swap(loadText(t, "version: 1\nfilter: {blockLAN: on}\n"), status.State{}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOnlyBehindTemporary(t *testing.T) {
	s := newStore(t, "version: 1\n", Options{Only: []string{"a.example"}})
	add(t, s, Temporary{Rule: "- a.example"})
	got := s.For(owner(attribution.Process{Path: "/a"}))
	if firstRule(got, "a.example") != "temporary - a.example" || got.DefaultAction != Block || !got.DefaultActionForNames {
		t.Errorf("%q, %+v", firstRule(got, "a.example"), got)
	}
}

func TestPause(t *testing.T) {
	s, clock := clockStore(t, twoPrograms)
	a, nobody := owner(attribution.Process{Path: "/a"}), attribution.Unidentified("x")
	paused := func(want bool, revision uint64) {
		t.Helper()
		if s.For(a).Paused != want || s.For(nobody).Paused != want || s.Revision() != revision || s.For(a).Revision != revision || s.Paused().IsZero() == want {
			t.Errorf("paused %v, %v until %s at revision %d; want %v at %d", s.For(a).Paused, s.For(nobody).Paused, s.Paused(), s.Revision(), want, revision)
		}
	}
	paused(false, 1)
	s.Pause(clock.Now())
	paused(false, 1)
	s.Pause(clock.Now().Add(time.Minute))
	paused(true, 2)
	s.Pause(clock.Now().Add(5 * time.Minute)) // longer: nothing changes for a flow
	paused(true, 2)
	clock.forward(4 * time.Minute)
	if s.Expire(clock.Now(), nil) {
		t.Error("the pause ended early")
	}
	if err := s.Swap(loadText(t, twoPrograms), status.State{}); err != nil { // another file
		t.Fatal(err)
	}
	paused(true, 3)
	clock.forward(time.Minute)
	paused(false, 4) // without Expire
	s.Pause(clock.Now().Add(time.Minute))
	paused(true, 5)
	s.Pause(time.Time{})
	paused(false, 6)
	s.Pause(clock.Now().Add(time.Minute))
	clock.forward(time.Minute)
	if !s.Expire(clock.Now(), nil) || s.Expire(clock.Now(), nil) {
		t.Error("Expire must end the pause once")
	}
	paused(false, 8)
}

// TestTemporaryRace: readers always see rules that belong to the revision (run with -race).
func TestTemporaryRace(t *testing.T) {
	s := newStore(t, twoPrograms, Options{})
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		readers.Go(func() {
			last, a := uint64(0), owner(attribution.Process{Path: "/a"})
			for {
				select {
				case <-stop:
					return
				default:
				}
				got := s.For(a)
				if (len(got.Endpoints) == 3) != (got.LayerNames[0] == TemporaryLayer) || got.Revision < last {
					t.Errorf("%v with %d lists at revision %d after %d", got.LayerNames, len(got.Endpoints), got.Revision, last)
					return
				}
				last = got.Revision
				s.Profiles()
				s.Match(a)
			}
		})
	}
	for range 200 {
		rule := add(t, s, Temporary{Profile: "a", Rule: "+ *", Until: time.Now().Add(time.Hour)})
		s.Pause(time.Now().Add(time.Hour))
		s.RemoveTemporary(rule.ID)
		s.Pause(time.Time{})
		s.Expire(time.Now(), nil)
	}
	close(stop)
	readers.Wait()
}
