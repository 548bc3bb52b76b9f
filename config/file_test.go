package config

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const minimal = "version: 1\n"

// TestUnsafeFiles: what somebody else could have written is refused, with what to do.
func TestUnsafeFiles(t *testing.T) {
	if os.PathSeparator != '/' {
		t.Skip("owner and mode bits are checked on unix only")
	}
	dir := t.TempDir()
	problem := func(src Source) string {
		_, err := Load(src)
		if err == nil {
			return ""
		}
		return strings.ReplaceAll(err.Error(), dir+"/", "")
	}
	expect := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	file := write(t, dir, "gatun.yaml", minimal)
	expect("safe", problem(Source{File: file}), "")
	for mode, want := range map[os.FileMode]string{0o666: "0666", 0o664: "0664", 0o602: "0602"} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		message := "gatun.yaml: has mode " + want + ": others may write it; run: chmod go-w gatun.yaml"
		if mode == 0o664 && os.Geteuid() != 0 {
			message = "" // an ordinary user's own group
		}
		expect("mode "+want, problem(Source{File: file}), message)
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link.yaml")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	expect("link", problem(Source{File: link}), "link.yaml: is a symbolic link to gatun.yaml, and links are not followed: whoever can change one chooses what is read; put the file itself here")
	expect("missing", problem(Source{File: dir + "/none.yaml"}), "none.yaml: no such file or directory")
	expect("missing, optional", problem(Source{File: dir + "/none.yaml", Optional: true}), "")
	expect("directory", problem(Source{File: filepath.Dir(write(t, dir, "d.yaml/x", ""))}), "d.yaml: is not a regular file but a directory")
	if os.Geteuid() == 0 {
		foreignFiles(t, dir, file, problem, expect)
	}
	if err := os.Symlink("/nowhere", dir+"/conf.d"); err != nil {
		t.Fatal(err)
	}
	expect("linked conf.d", problem(Source{File: file, Dir: true}), "conf.d: is a symbolic link to /nowhere, and links are not followed: whoever can change one chooses what is read; put the file itself here")
	if err := os.Remove(dir + "/conf.d"); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "conf.d/a.yaml", minimal)
	if err := os.Chmod(dir+"/conf.d", 0o777); err != nil {
		t.Fatal(err)
	}
	expect("writable conf.d", problem(Source{File: file, Dir: true}), "conf.d: has mode 0777: others may write it; run: chmod go-w conf.d")
	big := write(t, dir, "big.yaml", "")
	if err := os.Truncate(big, maxFile+1); err != nil {
		t.Fatal(err)
	}
	expect("too large", problem(Source{File: big}), "big.yaml: larger than 32 MiB")
}

// foreignFiles needs root to give files away.
func foreignFiles(t *testing.T, dir, file string, problem func(Source) string, expect func(what, got, want string)) {
	foreign := write(t, dir, "foreign.yaml", minimal)
	if err := os.Chown(foreign, 4321, -1); err != nil {
		t.Fatal(err)
	}
	expect("foreign", problem(Source{File: foreign}), "foreign.yaml: belongs to uid 4321: only root or uid 0 may own it; run: chown 0 foreign.yaml")
	expect("safe beside it", problem(Source{File: file}), "")
}

// TestPrefixes: no beginning of a file, as a torn write leaves it, panics or gives a Config
// that has something else than the lines that are whole.
func TestPrefixes(t *testing.T) {
	text := "version: 1\npreset: server\nfilter:\n  defaultAction: block\n  endpoints:\n    - \"+ .example.org TCP/443\"\n    - \"- *\"\nprofiles:\n  - name: curl\n    match: [{path: /usr/bin/curl}]\n    filter: {defaultAction: permit}\n"
	dir := t.TempDir()
	refused := 0
	for n := range len(text) {
		cfg, err := Load(Source{File: write(t, dir, "gatun.yaml", text[:n])})
		if (cfg == nil) == (err == nil) {
			t.Fatalf("first %d bytes: Config %v and error %v", n, cfg != nil, err)
		}
		if err != nil {
			refused++
		} else if !strings.HasPrefix(text[:n], minimal[:len(minimal)-1]) {
			t.Errorf("first %d bytes are accepted: %q", n, text[:n])
		}
	}
	if refused < len(text)/3 {
		t.Errorf("only %d of %d beginnings were refused", refused, len(text))
	}
}

func TestWatch(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir, "etc/gatun.yaml", minimal)
	ctx, cancel := context.WithCancel(t.Context())
	changes, done := make(chan struct{}, 100), make(chan error, 1)
	go func() {
		done <- Watch(ctx, Source{File: file, Dir: true}.Paths(), func() { changes <- struct{}{} })
	}()
	expect := func(what string, change func()) {
		t.Helper()
		change()
		select {
		case <-changes:
		case <-time.After(30 * time.Second):
			t.Fatalf("%s was not noticed", what)
		}
		// A busy machine may pause between two steps of a change; each write has two.
		for again := 1; ; again++ {
			select {
			case <-changes:
				if again > 10 {
					t.Fatalf("%s was reported %d times", what, again)
				}
				continue
			case <-time.After(10 * settle):
			}
			break
		}
	}
	waitForWatch(t, file, changes)
	expect("writing", func() { write(t, dir, "etc/gatun.yaml", "version: 1 \n") })
	expect("many writes", func() {
		for i := range 20 {
			write(t, dir, "etc/gatun.yaml", fmt.Sprintf("version: 1 #%d\n", i))
		}
	})
	expect("replacing by rename", func() {
		if err := os.Rename(write(t, dir, "etc/gatun.yaml.new", minimal), file); err != nil {
			t.Fatal(err)
		}
	})
	expect("writing the replaced file", func() { write(t, dir, "etc/gatun.yaml", "version: 1  \n") })
	expect("a new conf.d with a file", func() { write(t, dir, "etc/conf.d/a.yaml", "") })
	expect("a change in conf.d", func() { write(t, dir, "etc/conf.d/a.yaml", minimal) })
	expect("removing", func() {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	})
	write(t, dir, "etc/other.yaml", minimal)
	select {
	case <-changes:
		t.Error("a file beside it was reported")
	case <-time.After(10 * settle):
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// waitForWatch touches the file until Watch, which runs in another goroutine, reports it.
func waitForWatch(t *testing.T, file string, changes chan struct{}) {
	t.Helper()
	for range 50 {
		if err := os.Chtimes(file, time.Now(), time.Now()); err != nil {
			t.Fatal(err)
		}
		select {
		case <-changes:
			return
		case <-time.After(10 * settle):
		}
	}
	t.Fatal("Watch never reported anything")
}

// FuzzLoad: no file makes Load panic or return half a Config; what is accepted is accepted
// again and equal; every problem has a place in the file and can be shown.
func FuzzLoad(f *testing.F) {
	f.Add("version: 1\nfilter: {blockLAN: on, endpoints: [\"- *\"]}\n", uint8(0))
	f.Add("version: 1\nprofiles:\n  - name: a\n    match: [{path: /a}, {tag: user, regex: ^x}]\n    filter: {defaultAction: block}\n", uint8(0))
	f.Add("version: 1\nfilter: &f {ping: rules}\ndns: *f\n", uint8(0))
	f.Add("version: 1\ncore: {mark: 0x10, logLevel: warn}\npreset: server\n", uint8(0))
	f.Add("{\"version\": 1, \"filter\": {\"ping\": \"rules\"}}", uint8(1))
	f.Add("version = 1\n[filter]\nping = \"rules\"\n[[profiles]]\nname=\"a\"\n", uint8(2))
	f.Fuzz(func(t *testing.T, text string, format uint8) {
		name := []string{"x.yaml", "x.json", "x.toml"}[format%3]
		w := newWalker()
		w.lines[name] = strings.Split(text, "\n")
		m := newMerger(w)
		m.file(file{path: name, data: []byte(text)})
		c := m.config(nil)
		last := 2 // YAML has more line breaks than \n
		for _, r := range text {
			if strings.ContainsRune("\n\r\u0085\u2028\u2029", r) {
				last++
			}
		}
		for _, p := range append(w.problems, c.warnings...) {
			if p.File != name || p.Line < 1 || p.Line > last || p.Message == "" {
				t.Fatalf("%q: problem %#v", text, p)
			}
			if !strings.Contains(p.Render(), p.Message) {
				t.Fatalf("%q: rendered as %q", text, p.Render())
			}
		}
		if len(w.problems) > 0 {
			return
		}
		again := newMerger(newWalker())
		again.file(file{path: name, data: []byte(text)})
		d := again.config(nil)
		c.fingerprint()
		d.fingerprint()
		if len(again.w.problems) > 0 || !c.Equal(d) {
			t.Fatalf("%q: loaded twice, two results", text)
		}
	})
}

func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Table() {
		if seen[s.Key] || strings.Count(s.Key, "/") != 1 || s.Name == "" || s.Description == "" {
			t.Errorf("%s: twice, not section/key, or without name and description", s.Key)
		}
		seen[s.Key] = true
		v := defaultOf(&s)
		ok := false
		switch s.Type {
		case TypeBool:
			_, ok = v.(bool)
		case TypeInt:
			_, ok = v.(int)
		case TypeString:
			_, ok = v.(string)
		case TypeDuration:
			_, ok = v.(time.Duration)
		case TypeGrade:
			_, ok = v.(Grade)
		case TypeStrings, TypeRules:
			_, ok = v.([]RuleText)
		case TypeObjects:
			ok = v == nil
		}
		if !ok {
			t.Errorf("%s: default %#v is not of type %s", s.Key, v, s.Type)
		}
		if text, isText := v.(string); isText && len(s.PossibleValues) > 0 {
			if _, message, _ := s.parse(text, "!!str"); message != "" {
				t.Errorf("%s: its own default: %s", s.Key, message)
			}
		}
	}
}

// TestDefaults are the values of policy.md's table that this version uses.
func TestDefaults(t *testing.T) {
	cfg, err := Load(Source{})
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"filter/defaultAction": "permit", "filter/blockInternet": Off, "filter/blockLAN": Off, "filter/blockLocal": Off, "filter/blockP2P": Off,
		"filter/blockInbound": On, "filter/removeOutOfScopeDNS": true, "filter/removeBlockedDNS": true, "filter/permanentVerdicts": true,
		"filter/dnsQueryInterception": true, "filter/reevaluate": true, "filter/ping": "permit", "dns/blockStyle": "nxdomain",
		"network/rating": "trusted", "core/failOpen": false, "core/state": "/var/lib/gatun", "core/releaseLevel": "stable", "core/logLevel": "info",
	} {
		if v := cfg.Value(key); v.Any() != want || v.Origin.String() != "default" {
			t.Errorf("%s = %v (%s), want %v", key, v.Any(), v.Origin, want)
		}
	}
	if len(cfg.Rules("filter/endpoints"))+len(cfg.Strings("dns/nameservers"))+len(cfg.Profiles())+len(cfg.Files()) != 0 {
		t.Error("something is set that nobody set")
	}
}

// TestDuration: days are understood beside Go's units.
func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{"90s": 90 * time.Second, "30d": 720 * time.Hour, "1.5h": 90 * time.Minute} {
		if v, message := parseDuration(text); message != "" || v != want {
			t.Errorf("%s: %v %s", text, v, message)
		}
	}
	for _, text := range []string{"", "5", "-1s", "-1d", "d", "week"} {
		if _, message := parseDuration(text); message == "" {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestRenderLongLine(t *testing.T) {
	p := Problem{Position: Position{File: "f", Line: 1, Col: 151}, Message: "m", Excerpt: strings.Repeat("\tä", 75) + "X" + strings.Repeat("b", 80)}
	lines := strings.Split(p.Render(), "\n")
	if len([]rune(lines[1])) > 120 {
		t.Errorf("line of %d characters", len([]rune(lines[1])))
	}
	if at := strings.IndexRune(lines[2], '^'); len([]rune(lines[2][:at])) != len([]rune(lines[1][:strings.IndexRune(lines[1], 'X')])) {
		t.Errorf("the caret is not under X:\n%s", p.Render())
	}
}

// TestProblemsAs: callers tell a wrong configuration from other failures.
func TestProblemsAs(t *testing.T) {
	_, err := Load(Source{File: filepath.Join(t.TempDir(), "none.yaml")})
	var p Problems
	if !errors.As(err, &p) || len(p) != 1 {
		t.Errorf("error is %T", err)
	}
}

// FuzzData: no config.json and no profile of the data directory makes Load panic or return half
// a Config; what is accepted survives a change of something else.
func FuzzData(f *testing.F) {
	f.Add(`{"version": 1, "filter": {"blockLAN": "on", "endpoints": ["- *"]}, "network": {"ratingRules": [{"rating": "danger", "vpn": true}]}}`, curlFile)
	f.Add(`{"version": 1, "core": {"mark": 1e3}}`, "version: 1\nprofiles: [{name: \"on\", when: {time: 22:00-06:00}}]\n...\n")
	f.Add(`{"version": 1, "filter": null}`, "version: 1\nprofiles:\n  - {name: a, match: [{env: A, regex: ^x}], origin: automatic, created: 2026-01-31T12:00:00Z, facts: {path: /a}, layers: []}\n...\n")
	f.Add("", "...")
	f.Fuzz(func(t *testing.T, settings, profile string) {
		src := Source{Data: OpenData("")}
		src.Data.memory[runtimeFile], src.Data.memory["profiles/x.yaml"] = []byte(settings), []byte(profile)
		cfg, err := Load(src)
		if (cfg == nil) == (err == nil) {
			t.Fatal("half a Config")
		}
		var problems Problems
		if err != nil {
			if !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("error is %T", err)
			}
			for _, p := range problems {
				if p.File == "" || p.Line < 1 || p.Message == "" || !strings.Contains(p.Render(), p.Message) {
					t.Fatalf("problem %#v", p)
				}
			}
			return
		}
		text, err := cfg.ExportProfiles()
		if err != nil {
			t.Fatal(err)
		}
		changed, err := try(t, src, func(e *Edit) {
			e.Set("core/mark", 7.0)
			e.SetInProfile(cfg.Profiles()[0].Name, "filter/blockP2P", "danger")
			e.UnsetInProfile(cfg.Profiles()[0].Name, "filter/blockP2P")
		})
		if err != nil {
			t.Fatalf("a change of something else is refused: %v", err)
		}
		for _, st := range cfg.States() {
			for _, now := range changed.States() {
				if now.Key == st.Key && st.Key != "core/mark" && FormatValue(now.Value) != FormatValue(st.Value) {
					t.Fatalf("%s was %v and is %v", st.Key, st.Value, now.Value)
				}
			}
		}
		again, err := changed.ExportProfiles()
		p := cfg.Profiles()[0]
		if _, had := p.Value("filter/blockP2P"); err != nil || !had && p.Origin == Runtime && string(text) != string(again) {
			t.Fatalf("%v\n%s\nbecame\n%s", err, text, again)
		}
	})
}

// FuzzProfiles: what can be imported is exported as bytes that say the same and stay the same.
func FuzzProfiles(f *testing.F) {
	f.Add(curlFile)
	f.Add("version: 1\nprofiles:\n  - {name: a, match: [{path: {regex: \"^/a\"}}, {tag: user, equals: x}], filter: {endpoints: [\"+ \\u0001\"], blockLAN: untrusted}}\n  - {name: b, layers: [a]}\n  - {name: c, when: {gateway: 192.0.2.1, address: 10.1.1.1/8}}\n")
	f.Fuzz(func(t *testing.T, text string) {
		specs, err := ParseProfiles("x.yaml", []byte(text))
		if err != nil {
			return
		}
		render := func(specs []ProfileSpec) []byte {
			c := &Config{profiles: specs}
			b, err := c.ExportProfiles()
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		first := render(specs)
		again, err := ParseProfiles("y.yaml", first)
		if err != nil {
			t.Fatalf("%q\nbecame\n%s\n%v", text, first, err)
		}
		if second := render(again); string(first) != string(second) || len(again) != len(specs) {
			t.Fatalf("%s\nbecame\n%s", first, second)
		}
	})
}

// FuzzEdit: no key and no value panics, and what is accepted holds and is read again.
func FuzzEdit(f *testing.F) {
	f.Add("filter/endpoints", `["- *"]`)
	f.Add("network/ratingRules", "[{rating: danger, interface: \"\\u00e4\"}]")
	f.Add("core/mark", "0x10")
	f.Add("filter/askTimeout", "1.5m")
	f.Fuzz(func(t *testing.T, key, value string) {
		for _, in := range []string{"", "a"} {
			src := Source{Data: OpenData("")}
			_, _ = try(t, src, func(e *Edit) {
				e.PutProfile(NewProfile("a", []Fingerprint{{Type: "path", Op: "equals", Value: "/a"}}, Automatic, map[string]string{"args": value}))
				if in == "" {
					e.Set(key, value)
				} else {
					e.SetInProfile(in, key, value)
					e.PrependRule(in, "filter/endpoints", value)
				}
			})
		}
	})
}
