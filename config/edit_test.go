package config

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// try loads with an Edit and commits it.
func try(t testing.TB, src Source, change func(e *Edit)) (*Config, error) {
	t.Helper()
	src.Edit = src.Data.Edit()
	change(src.Edit)
	cfg, err := Load(src)
	if err != nil {
		return nil, err
	}
	if err := src.Edit.Commit(); err != nil {
		t.Fatal(err)
	}
	src.Edit = nil
	again, err := Load(src)
	if err != nil {
		t.Fatalf("what was committed is refused: %v", err)
	}
	if !again.Equal(cfg) {
		t.Fatal("after the commit the configuration is another one than before")
	}
	return cfg, nil
}

// TestEdit: what is set at run time holds, comes back after a start, and goes again; on disk and
// in memory.
func TestEdit(t *testing.T) {
	for _, dir := range []string{"", filepath.Join(t.TempDir(), "state")} {
		file := write(t, t.TempDir(), "gatun.yaml", "version: 1\npreset: server\nfilter: {ping: rules}\nprofiles: [{name: mine, match: [{path: /m}]}]\n")
		src := Source{File: file, Data: OpenData(dir)}
		change := func(f func(e *Edit)) *Config {
			t.Helper()
			cfg, err := try(t, src, f)
			if err != nil {
				t.Fatal(err)
			}
			return cfg
		}
		cfg := change(func(e *Edit) {
			e.Set("filter/blockLAN", true)
			e.Set("filter/blockInbound", "danger")
			e.Set("filter/askTimeout", "90s")
			e.Set("core/mark", float64(77))
			e.Set("filter/endpoints", []any{"- RU", "+ *"})
			e.Set("network/ratingRules", []any{map[string]any{"rating": "danger", "interface": "wlan0", "vpn": false}})
			e.PrependRule("", "filter/endpoints", "- LAN")
			e.PutProfile(NewProfile("curl", []Fingerprint{{Type: "path", Op: "equals", Value: "/usr/bin/curl"}}, Automatic, map[string]string{"path": "/usr/bin/curl"}))
		})
		if cfg.Grade("filter/blockLAN") != On || cfg.Grade("filter/blockInbound") != Danger || cfg.Duration("filter/askTimeout").Seconds() != 90 || cfg.Int("core/mark") != 77 {
			t.Error("a value is wrong")
		}
		if got := strings.Join(cfg.Strings("filter/endpoints"), "|"); got != "- LAN|- RU|+ *" {
			t.Errorf("endpoints %s", got)
		}
		if r := cfg.RatingRules(); len(r) != 1 || r[0].Rating != "danger" || r[0].When.Interface != "wlan0" || r[0].When.VPN == nil || *r[0].When.VPN {
			t.Errorf("rating rules %+v", r)
		}
		if o := cfg.Value("filter/blockInbound").Origin; o.String() != "config.json" || o.Position.Line == 0 {
			t.Errorf("origin %v", o)
		}
		if p := cfg.Profiles(); len(p) != 2 || p[0].Origin != Pinned || p[1].Origin != Automatic || p[1].Facts["path"] != "/usr/bin/curl" {
			t.Errorf("profiles %+v", p)
		}
		cfg = change(func(e *Edit) {
			e.Unset("filter/blockInbound")
			e.SetInProfile("curl", "filter/defaultAction", "block")
			e.PrependRule("curl", "filter/endpoints", "+ .example.org")
		})
		if v := cfg.Value("filter/blockInbound"); v.Origin.String() != "preset server" {
			t.Errorf("after Unset: %v from %s", v.Any(), v.Origin)
		}
		p := cfg.Profiles()[1]
		if v, ok := p.Value("filter/defaultAction"); !ok || v.Any() != "block" || p.Origin != Runtime || !strings.HasPrefix(v.Origin.String(), "profiles/curl-") {
			t.Errorf("profile %+v", p)
		}
		cfg = change(func(e *Edit) { e.DeleteProfile("curl") })
		if len(cfg.Profiles()) != 1 {
			t.Error("the profile is still there")
		}
		_, err := try(t, src, func(e *Edit) { e.Set("filter/ping", "permit") })
		if !errors.Is(err, ErrPinned) || err.Error() != file+":3:10: filter/ping: is set in "+file+":3; change it there" {
			t.Errorf("pinned: %v", err)
		}
		if dir != "" {
			text, _ := os.ReadFile(filepath.Join(dir, "config.json"))
			t.Logf("%s", text)
		}
	}
}

const pinningFile = `version: 1
filter: {ping: rules, endpoints: ["- LAN"]}
profiles: [{name: mine, match: [{path: /m}]}]
`

// TestEditProblems holds every refused change against its message; nothing of it is written.
func TestEditProblems(t *testing.T) {
	src := Source{
		File: write(t, t.TempDir(), "gatun.yaml", pinningFile), CheckRule: refuseBad, Env: []string{"GATUN_FILTER__BLOCKLAN=on"},
		Flags: map[string]string{"core/logLevel": "debug"}, Data: OpenData(stateDir(t, "profiles/curl.yaml", curlFile)),
	}
	path := func(name, value string) ProfileSpec {
		return NewProfile(name, []Fingerprint{{Type: "path", Op: "equals", Value: value}}, Runtime, nil)
	}
	imported := func(text string) func(e *Edit) {
		return func(e *Edit) {
			specs, err := ParseProfiles("import.yaml", []byte("version: 1\nprofiles:\n"+text))
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range specs {
				e.PutProfile(p)
			}
		}
	}
	table := []struct {
		name   string
		change func(e *Edit)
		want   []string
		cause  error
	}{
		{"unknown key", func(e *Edit) { e.Set("filter/blokLAN", "on") }, []string{`filter/blokLAN: unknown setting (did you mean "filter/blockLAN"?)`}, ErrUnknown},
		{"unknown key, unset", func(e *Edit) { e.Unset("filter/x") }, []string{"filter/x: unknown setting"}, ErrUnknown},
		{"wrong type", func(e *Edit) { e.Set("filter/blockP2P", float64(3)) }, []string{`filter/blockP2P: want off, trusted, untrusted, danger or on, got "3"`}, nil},
		{"nothing", func(e *Edit) { e.Set("core/mark", nil) }, []string{"core/mark: want a number, got nothing"}, nil},
		{"a list", func(e *Edit) { e.Set("core/mark", []any{}) }, []string{"core/mark: want a number, got a list"}, nil},
		{"no list", func(e *Edit) { e.Set("filter/serviceEndpoints", true) }, []string{"filter/serviceEndpoints: want a list, got the switch true"}, nil},
		{"numbers in a list", func(e *Edit) { e.Set("filter/serviceEndpoints", []any{"- *", 1.5}) }, []string{"filter/serviceEndpoints[1]: want text in quotes, got the number 1.5"}, nil},
		{"checked", func(e *Edit) { e.Set("filter/askTimeout", "2h") }, []string{"filter/askTimeout: want 1s to 1h, got 2h0m0s"}, nil},
		{"not UTF-8", func(e *Edit) { e.Set("filter/serviceEndpoints", "+ \xff") }, []string{"filter/serviceEndpoints: want UTF-8 text"}, nil},
		{"not UTF-8 in a list", func(e *Edit) { e.Set("filter/serviceEndpoints", []any{"+ \xff"}) }, []string{"filter/serviceEndpoints[0]: want UTF-8 text"}, nil},
		{"missing", func(e *Edit) { e.Set("tunnel/use", "on") }, []string{"tunnel/use: not available in this version: it needs tunnels"}, nil},
		{"outside", func(e *Edit) { e.Set("core/socket", "/x") }, []string{"core/socket: cannot be set in a file, because the client commands need it too; use --socket or GATUN_SOCKET"}, nil},
		{"bad rule", func(e *Edit) { e.PrependRule("", "filter/serviceEndpoints", "+ a bad one") }, []string{`filter/serviceEndpoints[0]: character 5 of "+ a bad one": is bad (did you mean "good"?)`}, nil},
		{"rule for no list", func(e *Edit) { e.PrependRule("", "filter/lists", "+ a") }, []string{"filter/lists: is no list of rules"}, nil},
		{"rating rules", func(e *Edit) {
			e.Set("network/ratingRules", `[{rating: dangr}, {vpn: on}, {rating: danger, gatway: x}]`)
		}, []string{
			`network/ratingRules[0]/rating: want trusted, untrusted or danger, got "dangr" (did you mean "danger"?)`,
			"network/ratingRules[1]: want rating: trusted, untrusted or danger",
			`network/ratingRules[2]/gatway: unknown key (did you mean "gateway"?)`,
		}, nil},
		{"pinned by the file", func(e *Edit) { e.Set("filter/ping", "permit") }, []string{"gatun.yaml:2:10: filter/ping: is set in gatun.yaml:2; change it there"}, ErrPinned},
		{"pinned by the file, prepend", func(e *Edit) { e.PrependRule("", "filter/endpoints", "+ a") }, []string{"gatun.yaml:2:23: filter/endpoints: is set in gatun.yaml:2; change it there"}, ErrPinned},
		{"pinned by the file, unset", func(e *Edit) { e.Unset("filter/ping") }, []string{"gatun.yaml:2:10: filter/ping: is set in gatun.yaml:2; change it there"}, ErrPinned},
		{"pinned by the environment", func(e *Edit) { e.Set("filter/blockLAN", "off") }, []string{"GATUN_FILTER__BLOCKLAN: filter/blockLAN: is set in the environment GATUN_FILTER__BLOCKLAN; change it there"}, ErrPinned},
		{"pinned by a flag", func(e *Edit) { e.Set("core/logLevel", "info") }, []string{"flag core/logLevel: core/logLevel: is set in the flag core/logLevel; change it there"}, ErrPinned},
		{"pinned profile", func(e *Edit) { e.SetInProfile("mine", "filter/ping", "x") }, []string{"gatun.yaml:3:12: profiles[mine]: is set in gatun.yaml:3; change it there"}, ErrPinned},
		{"pinned profile, put", func(e *Edit) { e.PutProfile(path("mine", "/x")) }, []string{"gatun.yaml:3:12: profiles[mine]: is set in gatun.yaml:3; change it there"}, ErrPinned},
		{"pinned profile, delete", func(e *Edit) { e.DeleteProfile("mine") }, []string{"gatun.yaml:3:12: profiles[mine]: is set in gatun.yaml:3; change it there"}, ErrPinned},
		{"pinned profile, rule", func(e *Edit) { e.PrependRule("mine", "filter/endpoints", "+ a") }, []string{"gatun.yaml:3:12: profiles[mine]: is set in gatun.yaml:3; change it there"}, ErrPinned},
		{"unknown profile", func(e *Edit) { e.SetInProfile("crul", "filter/blockLAN", "on") }, []string{`profiles[crul]: there is no profile of that name (did you mean "curl"?)`}, ErrUnknown},
		{"unknown profile, delete", func(e *Edit) { e.DeleteProfile("x") }, []string{"profiles[x]: there is no profile of that name"}, ErrUnknown},
		{"not per app", func(e *Edit) { e.SetInProfile("curl", "core/mark", 1.0) }, []string{"profiles[curl]/core/mark: cannot be set per app; set it at the top of the file"}, nil},
		{"in a profile", func(e *Edit) {
			e.SetInProfile("curl", "filter/blockLAN", "maybe")
			e.SetInProfile("curl", "filter/x", "on")
			e.UnsetInProfile("curl", "filter/y")
			e.PrependRule("curl", "filter/endpoints", "bad")
		}, []string{
			`profiles[curl]/filter/blockLAN: want off, trusted, untrusted, danger or on, got "maybe"`, "profiles[curl]/filter/x: unknown setting",
			"profiles[curl]/filter/y: unknown setting", `profiles[curl]/filter/endpoints[0]: is bad (did you mean "good"?)`,
		}, ErrUnknown},
		{"names", func(e *Edit) { e.PutProfile(path("", "/x")); e.PutProfile(path("a\nb", "/x")) }, []string{
			`profiles[]/name: want 1 to 64 printable characters without spaces around them, got ""`,
			"profiles[a\nb]/name: want 1 to 64 printable characters without spaces around them, got \"a\\nb\"",
		}, nil},
		{"fingerprints", func(e *Edit) {
			e.PutProfile(path("a", "\xff"))
			e.PutProfile(path("b", "curl"))
			e.PutProfile(NewProfile("c", []Fingerprint{{Type: "tag", Name: "x", Op: "equals", Value: "y"}}, Runtime, nil))
			e.PutProfile(NewProfile("d", nil, Automatic, nil))
		}, []string{
			`profiles[a]/match[0]: "\xff" is not UTF-8: files cannot say it`, `profiles[b]/match[0]: want an absolute path, got "curl"`,
			`profiles[c]/match[0]: unknown tag "x"; want systemd-unit, container, cgroup, flatpak, snap, appimage, script, user or special`,
			"profiles/d-18ac3e73.yaml:3:5: profiles[d]: want match: a profile of origin automatic is for one program",
		}, nil},
		{"import of a bad rule", imported("  - name: a\n    match: [{path: /a}]\n    filter:\n      endpoints: [\"+ a\", \"- bad\"]\n"), []string{
			`import.yaml:6:29: profiles[a]/filter/endpoints[1]: is bad (did you mean "good"?)`,
		}, nil},
		{"layers", imported("  - {name: a, match: [{path: /a}], layers: [curl, browsrs]}\n  - {name: browsers, layers: [web]}\n  - {name: web, layers: [browsers]}\n"), []string{
			`profiles/a-ca978112.yaml:7:20: profiles[a]/layers[1]: there is no profile "browsrs" (did you mean "browsers"?)`,
			"profiles/web-4b5e57f6.yaml:5:14: profiles[web]/layers[0]: the layers go round in a circle: browsers > web > browsers",
		}, nil},
	}
	for _, c := range table {
		t.Run(c.name, func(t *testing.T) {
			src := src
			src.Edit = src.Data.Edit()
			c.change(src.Edit)
			if diff := cmp.Diff(c.want, complaints(t, src)); diff != "" {
				t.Error(diff)
			}
			_, err := Load(src)
			if c.cause != nil != (errors.Is(err, ErrPinned) || errors.Is(err, ErrUnknown)) || c.cause != nil && !errors.Is(err, c.cause) {
				t.Errorf("cause of %v", err)
			}
			if src.Edit.Commit() == nil {
				t.Error("what was refused is written")
			}
		})
	}
	if files, err := filepath.Glob(src.Data.path("*/*")); err != nil || len(files) != 1 {
		t.Errorf("written: %q %v", files, err)
	}
}

// TestRepair: what is wrong in the data directory can be taken out with the same commands that
// put it there.
func TestRepair(t *testing.T) {
	src := Source{Data: OpenData(stateDir(t, "config.json", `{"version": 1, "filter": {"blockLAM": "on", "ping": "x", "blockLAN": "on"}, "ponies": {"n": 1}, "core": null}`,
		"profiles/curl.yaml", strings.Replace(curlFile, "block}", "blok}", 1), OpenData("").profilePath("torn"), "version: 1\nprofi"))}
	if got := complaints(t, src); len(got) != 5 {
		t.Fatalf("%d complaints: %q", len(got), got)
	}
	cfg, err := try(t, src, func(e *Edit) {
		e.Unset("filter/blockLAM")
		e.Unset("ponies/n")
		e.Set("filter/ping", "rules")
		e.DeleteProfile("curl")
		e.PutProfile(NewProfile("torn", []Fingerprint{{Type: "path", Op: "equals", Value: "/t"}}, Runtime, nil))
	})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Grade("filter/blockLAN") != On || cfg.String("filter/ping") != "rules" || len(cfg.Profiles()) != 1 || cfg.Profiles()[0].Name != "torn" {
		t.Error("not repaired, or something else was lost")
	}
	if err := os.WriteFile(src.Data.profilePath("torn"), []byte("\xff"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := try(t, src, func(e *Edit) { e.DeleteProfile("torn") }); err != nil {
		t.Errorf("what cannot be read cannot be removed: %v", err)
	}
}

// TestKilledInSave kills a program that saves all the time. Whatever is left can be read, and is
// one of the states that it saved.
func TestKilledInSave(t *testing.T) {
	const generations = 40
	if dir := os.Getenv("CONFIG_TEST_SAVE"); dir != "" {
		for i := 0; ; i++ {
			src := Source{Data: OpenData(dir)}
			if _, err := try(t, src, func(e *Edit) {
				rules := make([]any, 1+i%50)
				for j := range rules {
					rules[j] = fmt.Sprintf("+ host%d.example # %d", j, i)
				}
				e.Set("filter/endpoints", rules)
				p := NewProfile("p", []Fingerprint{{Type: "path", Op: "equals", Value: "/p"}}, Runtime, nil)
				e.PutProfile(p)
				e.SetInProfile("p", "filter/endpoints", rules)
			}); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				fmt.Println("saved")
			}
		}
	}
	dir := filepath.Join(t.TempDir(), "state")
	saved := 0
	for n := range generations {
		if n > 8 && testing.Short() {
			break
		}
		c := exec.Command(os.Args[0], "-test.run=^TestKilledInSave$", "-test.timeout=60s")
		c.Env = append(os.Environ(), "CONFIG_TEST_SAVE="+dir)
		out, err := c.StdoutPipe()
		if err == nil {
			err = c.Start()
		}
		if err == nil {
			_, err = out.Read(make([]byte, 1))
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond)
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait()
		cfg, err := Load(Source{Data: OpenData(dir)})
		if err != nil {
			t.Fatalf("after %d kills: %v", n, err)
		}
		rules := cfg.Strings("filter/endpoints")
		for j, text := range rules {
			if _, of, _ := strings.Cut(rules[0], "#"); !strings.HasSuffix(text, "#"+of) || len(rules) != 1+mustInt(t, of)%50 {
				t.Fatalf("rule %d of %d is %q", j, len(rules), text)
			}
			saved++
		}
	}
	if saved == 0 {
		t.Error("nothing was ever saved: nothing was tested")
	}
}

func mustInt(t *testing.T, s string) int {
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
