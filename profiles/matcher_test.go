package profiles

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gatun/attribution"
	"gatun/config"
	"gatun/status"
)

// TestScore is policy.md section 2, written out.
func TestScore(t *testing.T) {
	for _, c := range []struct {
		f    config.Fingerprint
		want int
	}{
		{config.Fingerprint{Type: "path", Op: "equals", Value: "/a"}, 13_002},
		{config.Fingerprint{Type: "path", Op: "prefix", Value: "/opt/"}, 12_005},
		{config.Fingerprint{Type: "path", Op: "regex", Value: "x"}, 11_001},
		{config.Fingerprint{Type: "env", Name: "A", Op: "equals", Value: "abc"}, 33_003},
		{config.Fingerprint{Type: "cmdline", Op: "prefix", Value: "python3 "}, 42_008},
		{config.Fingerprint{Type: "tag", Name: "user", Op: "regex", Value: "^ü$"}, 51_003},
		{config.Fingerprint{Type: "tag", Name: "user", Op: "equals", Value: strings.Repeat("a", 600)}, 53_499},
	} {
		f, err := newFingerprint(c.f, nil)
		if err != nil || f.score != c.want {
			t.Errorf("%s: score %d, %v; want %d", &f, f.score, err, c.want)
		}
	}
}

// TestTags: each tag is its own fact, and nothing but a program has one.
func TestTags(t *testing.T) {
	p := attribution.Process{Kind: attribution.KindProgram, UID: 1000, User: "u", Unit: "a.service", Container: "web", CGroup: "/system.slice/a.service",
		Flatpak: "org.example.App", Snap: "firefox", AppImage: "/home/u/E.AppImage", Script: "/opt/x.py"}
	want := map[string]string{"user": "u", "systemd-unit": "a.service", "container": "web", "cgroup": "/system.slice/a.service", "flatpak": "org.example.App",
		"snap": "firefox", "appimage": "/home/u/E.AppImage", "script": "/opt/x.py", "special": "", "other": ""}
	for name, value := range want {
		if got := tagOf(&p, name); got != value {
			t.Errorf("tag %s: %q, want %q", name, got, value)
		}
		for _, kind := range []attribution.Kind{attribution.KindUnidentified, attribution.KindSelf, attribution.KindUnsolicited, attribution.KindSystem} {
			other := p
			other.Kind = kind
			if got := tagOf(&other, name); got != "" && name != "special" {
				t.Errorf("tag %s of kind %d: %q", name, kind, got)
			}
		}
	}
	if got := tagOf(&attribution.Process{Kind: attribution.KindProgram, UID: 4711}, "user"); got != "4711" {
		t.Errorf("user without a name: %q", got)
	}
	for path, want := range map[string]string{"/usr/sbin/unbound": "system-resolver", "/usr/lib/systemd/systemd-resolved": "system-resolver",
		"/home/u/unbound": "", "/usr/sbin/unbound (deleted)": "", "/usr/sbin/unbound (other mount namespace)": ""} {
		if got := specialOf(&attribution.Process{Kind: attribution.KindProgram, Path: path}); got != want {
			t.Errorf("%s is special %q, want %q", path, got, want)
		}
	}
}

func TestRequired(t *testing.T) {
	for expression, want := range map[string]string{
		"^/opt/app": "/opt/app", "/home/[^/]+/bin/tool$": "/bin/tool", "(/usr/lib/x)+y?": "/usr/lib/x", "(?:abcd){2,}": "abcd",
		"(?i)/opt": "", "a|b": "", ".*": "", "x*": "", "(": "", `\x{FFFD}abc`: "", "a(?i:bcdef)": "a", "(?:abc|abd)": "ab",
	} {
		if got := required(expression); got != want {
			t.Errorf("%q: %q, want %q", expression, got, want)
		}
	}
}

// naiveFind tries every fingerprint: the definition that matcher.find is held against.
func naiveFind(list []fingerprint, p *attribution.Process, environ []string) (best *fingerprint, tied []int) {
	fits := func(f *fingerprint) bool {
		if f.Type == "tag" {
			text := tagOf(p, f.Name)
			return text != "" && f.matchText(text)
		}
		if p.Kind != attribution.KindProgram {
			return false
		}
		switch f.Type {
		case "cmdline":
			return len(p.Args) > 0 && f.matchText(strings.Join(p.Args, " "))
		case "env":
			return slices.ContainsFunc(environ, func(e string) bool {
				value, found := strings.CutPrefix(e, f.Name+"=")
				return found && f.matchText(value)
			})
		default:
			return p.Path != "" && f.matchText(p.Path)
		}
	}
	key := func(f *fingerprint) []int { return []int{-f.score, int(f.origin), f.profile} }
	for i := range list {
		if f := &list[i]; fits(f) && (best == nil || slices.Compare(key(f), key(best)) < 0) {
			best = f
		}
	}
	for i := range list {
		f := &list[i]
		if best != nil && fits(f) && f.score == best.score && f.origin == best.origin && f.profile != best.profile && !slices.Contains(tied, f.profile) {
			tied = append(tied, f.profile)
		}
	}
	slices.Sort(tied)
	return best, tied
}

// word draws short texts out of few parts, so that they often share beginnings and insides.
func word(t *rapid.T, label string) string {
	parts := rapid.SliceOfN(rapid.SampledFrom([]string{"/opt", "/usr", "/bin", "/a", "/b", "tool", "x", "ü", "\xff"}), 1, 4).Draw(t, label)
	return strings.Join(parts, "")
}

func anyFingerprint(t *rapid.T) fingerprint {
	f := config.Fingerprint{
		Type: rapid.SampledFrom([]string{"path", "path", "cmdline", "env", "tag"}).Draw(t, "type"),
		Op:   rapid.SampledFrom([]string{"equals", "prefix", "regex"}).Draw(t, "operation"), Value: word(t, "value"),
	}
	switch f.Type {
	case "env":
		f.Name = rapid.SampledFrom([]string{"A", "B"}).Draw(t, "variable")
	case "tag":
		f.Name = rapid.SampledFrom([]string{"user", "script", "systemd-unit", "special"}).Draw(t, "tag")
	}
	if f.Op == "regex" {
		f.Value = rapid.SampledFrom([]string{"", "^", "(?i)", "x*", ".*/"}).Draw(t, "before") + regexp.QuoteMeta(strings.ToValidUTF8(f.Value, "\uFFFD")) +
			rapid.SampledFrom([]string{"", "$", ".", "+", "|zz"}).Draw(t, "after")
	}
	c, err := newFingerprint(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.profile, c.origin = rapid.IntRange(0, 5).Draw(t, "profile"), config.ProfileOrigin(rapid.IntRange(0, 2).Draw(t, "origin"))
	return c
}

// TestMatcherIsComplete: the indexes change nothing.
func TestMatcherIsComplete(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(rapid.Custom(anyFingerprint), 0, 40).Draw(t, "fingerprints")
		for i := range list {
			list[i].origin = config.ProfileOrigin(list[i].profile % 3) // one profile has one origin
		}
		var environ []string
		for range rapid.IntRange(0, 3).Draw(t, "variables") {
			environ = append(environ, rapid.SampledFrom([]string{"A=", "B=", "C="}).Draw(t, "name")+word(t, "text"))
		}
		m := newMatcher(func(*attribution.Process) []string { return environ })
		for _, f := range list {
			m.add(f)
		}
		for range 10 {
			p := attribution.Process{Kind: attribution.KindProgram, Path: word(t, "path"), User: word(t, "user")}
			if rapid.Bool().Draw(t, "more") {
				p.Args, p.Script, p.Unit = []string{word(t, "arg"), word(t, "arg")}, word(t, "script"), word(t, "unit")
			}
			if rapid.IntRange(0, 9).Draw(t, "kind") == 0 {
				p.Kind = attribution.KindSystem
			}
			got := m.find(&p)
			best, tied := naiveFind(list, &p, environ)
			if (got.best == nil) != (best == nil) || best != nil && (got.best.score != best.score || got.best.profile != best.profile) {
				t.Fatalf("%+v: found %v, want %v", p, got.best, best)
			}
			if diff := cmp.Diff(tied, got.tied); diff != "" && len(tied)+len(got.tied) > 0 {
				t.Fatalf("%+v: ties %s", p, diff)
			}
		}
	})
}

// crowdOf makes n profiles of all kinds: paths, prefixes, regular expressions that begin
// anywhere, command lines and tags.
func crowdOf(n int) string {
	var b strings.Builder
	b.WriteString("version: 1\nprofiles:\n")
	for i := range n {
		var match string
		switch i % 8 {
		case 0, 1:
			match = fmt.Sprintf("path: /usr/bin/p%d", i)
		case 2:
			match = fmt.Sprintf("path: {prefix: /opt/vendor%d/}", i)
		case 3:
			match = fmt.Sprintf(`path: {regex: "^/home/[^/]+/[.]local/share/app%d/"}`, i)
		case 4:
			match = fmt.Sprintf(`path: {regex: "tool%d-[0-9]+$"}`, i)
		case 5:
			match = fmt.Sprintf(`cmdline: {prefix: "python3 /srv/job%d.py"}`, i)
		case 6:
			match = fmt.Sprintf("tag: systemd-unit, equals: unit%d.service", i)
		default:
			match = fmt.Sprintf(`cmdline: {regex: "java .*-jar /srv/app%d[.]jar"}`, i)
		}
		fmt.Fprintf(&b, "  - {name: p%d, match: [{%s}], filter: {blockLAN: on, endpoints: [\"+ host%d.example\"]}}\n", i, match, i)
	}
	return b.String()
}

// crowdMember is a process of profile i, its kind of fingerprint the weakest.
func crowdMember(i int) (attribution.Process, string) {
	p := attribution.Process{Kind: attribution.KindProgram, Started: time.Unix(1, 0), Path: "/usr/lib/jvm/java-21-openjdk-amd64/bin/java", User: "u", Unit: "session-2.scope",
		Args: []string{"java", "-Xmx2g", "-Djava.io.tmpdir=/var/tmp", "-cp", "/srv/lib/a.jar:/srv/lib/b.jar", "Main", "--config", "/etc/main/config.yaml"}}
	switch i % 8 {
	case 0, 1:
		p.Path = fmt.Sprintf("/usr/bin/p%d", i)
	case 2:
		p.Path = fmt.Sprintf("/opt/vendor%d/lib/x/y", i)
	case 3:
		p.Path = fmt.Sprintf("/home/u/.local/share/app%d/bin/app", i)
	case 4:
		p.Path = fmt.Sprintf("/srv/tool%d-17", i)
	case 5:
		p.Args = []string{"python3", fmt.Sprintf("/srv/job%d.py", i), "-v"}
	case 6:
		p.Unit = fmt.Sprintf("unit%d.service", i)
	default:
		p.Args = []string{"java", "-Xmx2g", "-jar", fmt.Sprintf("/srv/app%d.jar", i)}
	}
	return p, fmt.Sprintf("p%d", i)
}

func TestCrowd(t *testing.T) {
	s := newStore(t, crowdOf(400), Options{})
	for i := range 400 {
		p, want := crowdMember(i)
		if got := s.For(owner(p)); got.ProfileName != want && !strings.HasPrefix(want, got.ProfileName) {
			t.Errorf("%d: profile %q, want %q", i, got.ProfileName, want)
		}
	}
}

// TestMatchBudget: with 5 000 profiles of all kinds the profile of a process that was not seen
// before is found in at most 50 us. The best of many short runs counts: the test is about the
// program and not about what else the machine does.
func TestMatchBudget(t *testing.T) {
	const budget, runs, each = 50 * time.Microsecond, 40, 20
	policy := newStore(t, crowdOf(5000), Options{}).current.Load().policy
	for i := 4800; i < 4808; i++ {
		p, want := crowdMember(i)
		best := time.Hour
		for range runs {
			start := time.Now()
			for range each {
				policy.profileOf(&p)
			}
			best = min(best, time.Since(start)/each)
		}
		if j, _ := policy.profileOf(&p); policy.profiles[j].name != want || best > budget {
			t.Errorf("%s in %s: %s, want %s in %s", policy.profiles[j].name, best, p.Path, want, budget)
		}
		t.Logf("%s: %s", want, best)
	}
}

// BenchmarkMatch is the search for the profile of a process that was not seen before.
func BenchmarkMatch(b *testing.B) {
	s := newStore(b, crowdOf(5000), Options{})
	kinds := []string{"path-equals", "", "path-prefix", "path-regex-anchored", "path-regex", "cmdline-prefix", "tag", "cmdline-regex", "none"}
	for i, kind := range kinds {
		if kind == "" {
			continue
		}
		p, _ := crowdMember(4800 + i)
		if kind == "none" {
			p, _ = crowdMember(0)
			p.Path = "/usr/local/games/nobody-knows-me"
		}
		b.Run(kind, func(b *testing.B) {
			b.ReportAllocs()
			policy := s.current.Load().policy
			for b.Loop() {
				policy.profileOf(&p)
			}
		})
	}
	b.Run("first-sight", func(b *testing.B) {
		b.ReportAllocs()
		n := 0
		for b.Loop() {
			p, _ := crowdMember(n % 5000)
			s.For(owner(p))
			n++
		}
	})
}

// BenchmarkSwap is a reload with 5 000 profiles: of the same configuration, of one in which one
// rule differs, and the first.
func BenchmarkSwap(b *testing.B) {
	text := crowdOf(5000)
	file := filepath.Join(b.TempDir(), "gatun.yaml")
	one, two := loadFile(b, file, text), loadFile(b, file, strings.Replace(text, "+ host17.example", "- host17.example", 1))
	var state status.State
	s, err := NewStore(one, state, Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("identical", func(b *testing.B) {
		for b.Loop() {
			if err := s.Swap(one, state); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("rating", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if err := s.Swap(one, status.State{Rating: status.Rating(i % 2)}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("one-rule", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if err := s.Swap([]*config.Config{one, two}[i%2], state); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			if _, err := NewStore(one, state, Options{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("temporary-rule", func(b *testing.B) {
		for b.Loop() {
			t, err := s.AddTemporary(Temporary{Rule: "+ a.example"})
			if err != nil || !s.RemoveTemporary(t.ID) {
				b.Fatal(err)
			}
		}
	})
}
