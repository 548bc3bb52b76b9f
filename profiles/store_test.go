package profiles

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"gatun/attribution"
	"gatun/config"
	"gatun/netenv"
	"gatun/network"
	"gatun/network/packet"
	"gatun/status"
)

func loadText(t testing.TB, text string) *config.Config {
	t.Helper()
	return loadFile(t, filepath.Join(t.TempDir(), "gatun.yaml"), text)
}

func loadFile(t testing.TB, file, text string) *config.Config {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(config.Source{File: file})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func newStore(t testing.TB, text string, o Options) *Store {
	t.Helper()
	cfg := loadText(t, text)
	s, err := NewStore(cfg, status.Judge(cfg, netenv.Snapshot{}, time.Now()), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func owner(p attribution.Process) attribution.Owner {
	p.Kind = attribution.KindProgram
	if p.PID == 0 {
		p.PID = 4711
	}
	return attribution.Owner{Process: &p, Confidence: attribution.Exact}
}

// profileOf names the profile of each identity: policy.md section 2.
const manyProfiles = `version: 1
profiles:
  - name: curl
    match: [{path: /usr/bin/curl}]
  - name: usr
    match: [{path: {prefix: /usr/}}]
  - name: any-curl
    match: [{path: {regex: curl}}]
  - name: updates
    match: [{tag: systemd-unit, equals: apt-daily.service}]
  - name: units
    match: [{tag: systemd-unit, prefix: apt}]
  - name: script
    match: [{cmdline: {prefix: "python3 /opt/x.py"}}]
  - name: web
    match: [{tag: user, equals: www}, {tag: container, equals: web}]
  - name: token
    match: [{env: PROFILE, equals: token}]
  - name: nobody-knows
    match: [{tag: special, equals: unidentified}]
    filter: {defaultAction: block}
`

func TestProfileOf(t *testing.T) {
	environ := func(p *attribution.Process) []string {
		if p.PID == 7 {
			return []string{"HOME=/", "PROFILE=token"}
		}
		return nil // cannot be read
	}
	s := newStore(t, manyProfiles, Options{Environ: environ})
	curl := attribution.Process{Path: "/usr/bin/curl"}
	table := []struct {
		name string
		o    attribution.Owner
		want string
	}{
		{"equals beats prefix", owner(curl), "curl"},
		{"prefix beats regex", owner(attribution.Process{Path: "/usr/local/bin/curl"}), "usr"},
		{"regex alone", owner(attribution.Process{Path: "/opt/curl"}), "any-curl"},
		{"nothing", owner(attribution.Process{Path: "/opt/wget"}), "global"},
		{"no path", owner(attribution.Process{}), "global"},
		{"tag beats path", owner(attribution.Process{Path: "/usr/bin/curl", Unit: "apt-daily.service"}), "updates"},
		{"tag prefix", owner(attribution.Process{Path: "/usr/bin/curl", Unit: "apt-daily.timer"}), "units"},
		{"cmdline beats path", owner(attribution.Process{Path: "/usr/bin/python3.11", Args: []string{"python3", "/opt/x.py", "-v"}}), "script"},
		{"second fingerprint", owner(attribution.Process{Path: "/bin/x", Container: "web"}), "web"},
		{"env", owner(attribution.Process{PID: 7, Path: "/usr/bin/curl"}), "token"},
		{"env that cannot be read", owner(attribution.Process{PID: 8, Path: "/usr/bin/curl"}), "curl"},
		{"unidentified", attribution.Unidentified("x"), "nobody-knows"},
		{"ambiguous is unidentified", attribution.Owner{Process: owner(curl).Process, Confidence: attribution.Ambiguous}, "nobody-knows"},
		{"none is unidentified", attribution.Owner{Process: owner(curl).Process}, "nobody-knows"},
		{"inherited counts", attribution.Owner{Process: owner(curl).Process, Confidence: attribution.Inherited}, "curl"},
		// A path that some identity carries never gives it that program's rules.
		{"system", attribution.Owner{Process: &attribution.Process{Kind: attribution.KindSystem, Path: "/usr/bin/curl"}, Confidence: attribution.Exact}, "system"},
		{"self", attribution.Owner{Process: &attribution.Process{Kind: attribution.KindSelf, Unit: "apt-daily.service"}, Confidence: attribution.Exact}, "self"},
		{"unsolicited", attribution.Owner{Process: &attribution.Process{Kind: attribution.KindUnsolicited}}, "unsolicited"},
		{"kind of another version", attribution.Owner{Process: &attribution.Process{Kind: 99}}, "nobody-knows"},
	}
	for _, c := range table {
		for range 2 { // looked up, then remembered
			if got := s.For(c.o).ProfileName; got != c.want {
				t.Errorf("%s: profile %q, want %q", c.name, got, c.want)
			}
		}
	}
	if s.For(attribution.Unidentified("x")).DefaultAction != Block || s.For(owner(curl)).DefaultAction != Allow {
		t.Error("settings of a special profile leak")
	}
}

// TestLayers: a profile's values over the global ones, its rules before theirs.
func TestLayers(t *testing.T) {
	s := newStore(t, `version: 1
preset: server
network: {rating: untrusted}
core: {releaseLevel: experimental}
dns: {blockStyle: refused}
filter:
  blockInternet: danger
  blockLAN: untrusted
  blockP2P: on
  ping: rules
  dnsQueryInterception: off
  endpoints: ["- .a.example", "+ *"]
  serviceEndpoints: ["- *"]
profiles:
  - name: a
    match: [{path: /a}]
    filter: {defaultAction: block, blockLAN: off, blockInbound: on, removeBlockedDNS: off, endpoints: ["+ www.a.example"], serviceEndpoints: ["+ LAN TCP/22"]}
`, Options{})
	global, a := s.For(owner(attribution.Process{Path: "/x"})), s.For(owner(attribution.Process{Path: "/a"}))
	file := string(global.BlockLAN.Origin)
	file = strings.TrimSuffix(file, ":8")
	want := func(what string, got, want any) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(what, diff)
		}
	}
	want("blockInternet", global.BlockInternet, Switch{Origin: Origin(file + ":7")})
	want("blockLAN", global.BlockLAN, Switch{Active: true, Origin: Origin(file + ":8")})
	want("blockP2P", a.BlockP2P, Switch{Active: true, Origin: Origin(file + ":9")})
	want("blockLocal", global.BlockLocal, Switch{Origin: "default"})
	want("blockInbound", global.BlockInbound, Switch{Origin: "preset server"})
	want("app blockInbound", a.BlockInbound, Switch{Active: true, Origin: Origin("profile a (" + file + ":17)"), Profile: "a"})
	want("app blockLAN", a.BlockLAN, Switch{Origin: Origin("profile a (" + file + ":17)"), Profile: "a"})
	want("default action", global.DefaultAction, Allow)
	want("app default action", a.DefaultAction, Block)
	want("its profile", a.DefaultActionProfile, "a")
	want("its origin", a.DefaultActionOrigin, Origin("profile a ("+file+":17)"))
	want("flags", []bool{a.PermanentVerdicts, a.DNSQueryInterception, a.Reevaluate, a.RemoveOutOfScopeDNS, a.RemoveBlockedDNS, global.RemoveBlockedDNS, a.DefaultActionForNames},
		[]bool{true, false, true, true, false, true, false})
	want("ping and style", []any{a.Ping, a.BlockStyle}, []any{PingRules, Refused})
	layers := func(list []Layer) (out []string) {
		for _, l := range list {
			for _, r := range l.Rules.Rules() {
				out = append(out, fmt.Sprintf("%s| %s @%d:%d", l.Profile, r.Ref.Text, r.Ref.Line, r.Ref.Col))
			}
		}
		return out
	}
	want("global rules", layers(global.Endpoints), []string{"| - .a.example @12:16", "| + * @12:32"})
	want("app rules", layers(a.Endpoints), []string{"a| + www.a.example @17:105", "| - .a.example @12:16", "| + * @12:32"})
	want("app service rules", layers(a.ServiceEndpoints), []string{"a| + LAN TCP/22 @17:144", "| - * @13:23"})
}

// TestOnly: the rules of --only come first, and everything else is blocked, names too.
func TestOnly(t *testing.T) {
	text := "version: 1\nfilter: {endpoints: [\"- *\"]}\nprofiles: [{name: a, match: [{path: /a}], filter: {defaultAction: permit, endpoints: [\"- .a.example\"]}}]\n"
	s := newStore(t, text, Options{Only: []string{"www.a.example TCP/443", "192.0.2.0/24"}})
	for _, path := range []string{"/a", "/x"} {
		got := s.For(owner(attribution.Process{Path: path}))
		if got.DefaultAction != Block || !got.DefaultActionForNames || got.DefaultActionOrigin != "flag only" {
			t.Errorf("%s: default action %v for names %v from %s", path, got.DefaultAction, got.DefaultActionForNames, got.DefaultActionOrigin)
		}
		f := linkFacts("www.a.example", "198.51.100.1", packet.TCP, 443)
		r, m, _ := got.Endpoints[0].Rules.First(&f, nil)
		if m != Matched || r.Ref != (network.RuleRef{Text: "+ www.a.example TCP/443"}) {
			t.Errorf("%s: first layer gives %v %v", path, r, m)
		}
	}
	if n := len(s.For(owner(attribution.Process{Path: "/a"})).Endpoints); n != 3 {
		t.Errorf("%d layers, want only, app, global", n)
	}
	_, err := NewStore(loadText(t, text), status.State{}, Options{Only: []string{"us", "- x", "example.org"}})
	want := "--only: us: column 1: \"us\" is a country if it is in upper case, and a zone with a dot before it (did you mean \"US\"?)\n" +
		"--only: - x: column 1: \"-\" is not a domain name: a label begins or ends with -"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// TestBadRules: all problems at once, each at its character; the policy in force stays.
func TestBadRules(t *testing.T) {
	good := "version: 1\nfilter: {defaultAction: block}\n"
	s := newStore(t, good, Options{})
	before := s.For(owner(attribution.Process{Path: "/a"}))
	bad := loadText(t, "version: 1\nfilter:\n  endpoints:\n    - \"+ us\"\n    - \"? *\"\n    - + * TCP/9-1\nprofiles:\n  - name: a\n    match: [{env: A, equals: b}]\n    filter: {serviceEndpoints: [\"x\"]}\n")
	err := s.Swap(bad, status.State{})
	var problems config.Problems
	if !errors.As(err, &problems) {
		t.Fatalf("error is %T", err)
	}
	var got []string
	for _, p := range problems {
		got = append(got, strings.TrimPrefix(p.Error(), bad.Files()[0]+":"))
	}
	want := []string{
		`4:10: filter/endpoints[0]: "us" is a country if it is in upper case, and a zone with a dot before it (did you mean "US"?)`,
		`6:15: filter/endpoints[2]: the range 9-1 is empty (did you mean "1-9"?)`,
		`10:34: profiles[a]/filter/serviceEndpoints[0]: want + (allow), - (block), -- (drop) or ? (ask) first, got "x" (did you mean "- x"?)`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(problems[0].Render(), "     4 |     - \"+ us\"\n       |          ^\n") {
		t.Errorf("rendered %q", problems[0].Render())
	}
	if s.Revision() != 1 || s.For(owner(attribution.Process{Path: "/a"})) != before {
		t.Error("a bad configuration touched the policy in force")
	}
	if n, err := NewStore(bad, status.State{}, Options{}); n != nil || err == nil {
		t.Error("a store was made of a bad configuration")
	}
}

func TestSwap(t *testing.T) {
	s := newStore(t, "version: 1\n", Options{})
	o := owner(attribution.Process{Path: "/a"})
	old := s.For(o)
	if err := s.Swap(loadText(t, "version: 1\nprofiles: [{name: a, match: [{path: /a}], filter: {defaultAction: block}}]\n"), status.State{}); err != nil {
		t.Fatal(err)
	}
	now := s.For(o)
	if s.Revision() != 2 || now.Revision != 2 || old.Revision != 1 || now.ProfileName != "a" || now.DefaultAction != Block {
		t.Errorf("after the swap: revision %d, %+v", s.Revision(), now)
	}
	if old.DefaultAction != Allow || old.ProfileName != "global" {
		t.Error("a snapshot that was handed out changed")
	}
}

func TestWarnings(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	s := newStore(t, `version: 1
filter: {endpoints: ["- * app=quic"]}
profiles:
  - {name: a, match: [{path: {prefix: /opt/}}, {path: /x}]}
  - {name: b, match: [{path: /x}, {path: {regex: abcde}}]}
  - {name: c, match: [{path: {regex: ^/abc}}]}
`, Options{Logger: zap.New(core)})
	var got []string
	for _, p := range s.Warnings() {
		got = append(got, fmt.Sprintf("%d:%d %s: %s", p.Line, p.Col, p.Key, strings.NewReplacer(p.File, "FILE").Replace(p.Message)))
	}
	want := []string{
		"2:23 filter/endpoints[0]: never matches in this version: app= needs inspection",
		"5:23 profiles[b]/match: the profile a at FILE:4 has the same fingerprint; the first one counts",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := s.For(owner(attribution.Process{Path: "/x"})).ProfileName; got != "a" {
		t.Errorf("of two equal profiles %q won", got)
	}
	before := logs.Len()
	if got := s.For(owner(attribution.Process{Path: "/abcde"})).ProfileName; got != "b" {
		t.Errorf("of two equal scores %q won", got)
	}
	if logs.Len() != before+1 {
		t.Errorf("%d log lines for a tie", logs.Len()-before)
	}
}

// TestForRace: readers see a whole policy while it is swapped (run with -race).
func TestForRace(t *testing.T) {
	block := loadText(t, "version: 1\nfilter: {defaultAction: block, blockLAN: on}\n")
	permit := loadText(t, "version: 1\n")
	s, err := NewStore(permit, status.State{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		readers.Go(func() {
			last := uint64(0)
			for {
				select {
				case <-stop:
					return
				default:
				}
				got := s.For(owner(attribution.Process{Path: "/a"}))
				if (got.DefaultAction == Block) != got.BlockLAN.Active {
					t.Error("half a policy")
					return
				}
				if got.Revision < last {
					t.Error("the revision went back")
					return
				}
				last = got.Revision
			}
		})
	}
	for i := range 200 {
		cfg := block
		if i%2 == 0 {
			cfg = permit
		}
		if err := s.Swap(cfg, status.State{}); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	readers.Wait()
}

// manyPrograms makes a store of n profiles by path, and a few of other kinds.
func manyPrograms(t testing.TB, n int) *Store {
	var b strings.Builder
	b.WriteString("version: 1\nprofiles:\n  - {name: unit, match: [{tag: systemd-unit, prefix: x}]}\n  - {name: opt, match: [{path: {prefix: /opt/}}]}\n")
	for i := range n {
		fmt.Fprintf(&b, "  - {name: p%d, match: [{path: /usr/bin/p%d}]}\n", i, i)
	}
	return newStore(t, b.String(), Options{})
}

// TestForDoesNotAllocate guards the path of every flow.
func TestForDoesNotAllocate(t *testing.T) {
	s := manyPrograms(t, 100)
	known, special := owner(attribution.Process{Path: "/usr/bin/p50"}), attribution.Unidentified("x")
	if n := testing.AllocsPerRun(100, func() { s.For(known); s.For(special) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestCacheIsBounded: processes come and go; what is remembered of them does not grow.
func TestCacheIsBounded(t *testing.T) {
	s := manyPrograms(t, 1)
	for range maxCached + 10 {
		s.For(owner(attribution.Process{Path: "/usr/bin/p0"}))
	}
	kept := 0
	s.current.Load().processes.Range(func(_, _ any) bool { kept++; return true })
	if kept > maxCached || kept == 0 {
		t.Errorf("%d processes are kept", kept)
	}
}

func BenchmarkFor(b *testing.B) {
	for _, n := range []int{10, 500, 5000} {
		s := manyPrograms(b, n)
		b.Run(fmt.Sprintf("cached/%d", n), func(b *testing.B) {
			o := owner(attribution.Process{Path: "/usr/bin/p5"})
			b.ReportAllocs()
			for b.Loop() {
				s.For(o)
			}
		})
		b.Run(fmt.Sprintf("first-sight/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.For(owner(attribution.Process{Path: "/usr/bin/p5"}))
			}
		})
	}
}

// BenchmarkLoad is a reload with 100 000 rules, from the bytes to the policy in force.
func BenchmarkLoad(b *testing.B) {
	var text strings.Builder
	text.WriteString("version: 1\nfilter:\n  endpoints:\n")
	for i := range 100_000 {
		fmt.Fprintf(&text, "    - \"- host%d.example TCP/443\"\n", i)
	}
	file := filepath.Join(b.TempDir(), "gatun.yaml")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		cfg, err := config.Load(config.Source{File: file, CheckRule: CheckRule})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := NewStore(cfg, status.State{}, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

// Compact forgets only what can be found again.
func TestCompact(t *testing.T) {
	s := newStore(t, "version: 1\nprofiles: [{name: a, match: [{path: /a}], filter: {defaultAction: block}}]\n", Options{})
	o := owner(attribution.Process{PID: 7, Path: "/a"})
	before := s.For(o)
	if s.current.Load().cached.Load() != 1 {
		t.Fatal("nothing was kept")
	}
	s.Compact()
	c := s.current.Load()
	c.processes.Range(func(k, _ any) bool {
		t.Errorf("%v is kept", k)
		return true
	})
	if c.cached.Load() != 0 || s.For(o) != before || before.ProfileName != "a" {
		t.Errorf("%+v", s.For(o))
	}
}

// TestOnMove: whoever keeps decisions beside the revision is told of every change of what is in force, before
// it and after it.
func TestOnMove(t *testing.T) {
	s := newStore(t, "version: 1\n", Options{})
	var at []uint64
	s.OnMove(func() { at = append(at, s.current.Load().revision) })
	changes := []func(){
		func() {
			if err := s.Swap(loadText(t, "version: 1\nfilter: {defaultAction: block}\n"), status.State{}); err != nil {
				t.Error(err)
			}
		},
		s.Renew,
		func() {
			if _, err := s.AddTemporary(Temporary{Rule: "- example.com", Until: time.Now().Add(time.Hour)}); err != nil {
				t.Error(err)
			}
		},
		func() { s.RemoveTemporary("t1") },
		func() { s.Pause(time.Now().Add(time.Hour)) },
		func() { s.Expire(time.Now().Add(2*time.Hour), nil) },
	}
	for i, change := range changes {
		at = nil
		before := s.current.Load().revision
		change()
		if len(at) != 2 || at[0] != before || at[1] != before+1 {
			t.Errorf("change %d of revision %d: told at %v", i, before, at)
		}
	}
}
