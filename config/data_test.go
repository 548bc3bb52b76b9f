package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

func sortedTexts(list []string) []string {
	slices.Sort(list)
	return list
}

// stateDir makes a data directory with those files, name and text in turn.
func stateDir(t testing.TB, files ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.MkdirAll(filepath.Join(dir, profilesDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(files); i += 2 {
		if err := os.WriteFile(filepath.Join(dir, files[i]), []byte(files[i+1]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// complaints loads and returns the problems without the directories.
func complaints(t testing.TB, src Source) []string {
	t.Helper()
	cfg, err := Load(src)
	var problems Problems
	if (cfg == nil) != (err != nil) || err != nil && !errors.As(err, &problems) {
		t.Fatalf("Config %v, error %T", cfg != nil, err)
	}
	return texts(problems, src)
}

func texts(problems Problems, src Source) []string {
	var lines []string
	for _, p := range problems {
		text := p.Error()
		if src.Data != nil {
			text = strings.ReplaceAll(text, src.Data.dir+"/", "")
		}
		if src.File != "" {
			text = strings.ReplaceAll(text, filepath.Dir(src.File)+"/", "")
		}
		lines = append(lines, text)
	}
	return lines
}

const curlFile = "version: 1\nprofiles:\n  - name: curl\n    match: [{path: /usr/bin/curl}]\n    filter: {defaultAction: block}\n...\n"

// TestStored holds wrong files of the data directory against every message.
func TestStored(t *testing.T) {
	table := []struct {
		name  string
		files []string
		want  []string
	}{
		{"right", []string{"config.json", `{"version": 1, "filter": {"blockLAN": "on"}}`, "profiles/a.yaml", curlFile, "temporary.json", "not for Load", "journal", "not ours", "profiles/.x", "", "profiles/a.yaml.v0", ""}, nil},
		{"nothing", nil, nil},
		{"empty", []string{"config.json", "", "profiles/a.yaml", ""}, []string{
			"config.json:1:1: JSON: unexpected end of JSON input; mend the file, or remove it with all that it holds",
			"profiles/a.yaml:1: the file is cut off: want ... on a line of its own at the end, as gatun writes it",
			"profiles/a.yaml:1:1: version: missing; want version: 1 at the top of the file",
		}},
		{"cut off", []string{"config.json", `{"version": 1, "filter": {"blockLAN"`, "profiles/a.yaml", strings.TrimSuffix(curlFile, "    filter: {defaultAction: block}\n...\n")}, []string{
			"config.json:1:36: JSON: unexpected end of JSON input; mend the file, or remove it with all that it holds",
			"profiles/a.yaml:4: the file is cut off: want ... on a line of its own at the end, as gatun writes it",
		}},
		{"with a good copy", []string{"config.json", "\x00\x00", "config.json.good", `{"version": 1}`}, []string{
			`config.json:1:1: JSON: invalid character '\x00' looking for beginning of value; mend the file, or restore what gatun wrote last: cp config.json.good config.json`,
		}},
		{"newer", []string{"config.json", `{"version": 2}`, "profiles/a.yaml", "version: 3\nprofiles: [{name: a, match: [{path: /a}]}]\n...\n"}, []string{
			"config.json:1:13: version: version 2 is newer than this program, which knows 1: update gatun",
			"profiles/a.yaml:1:10: version: version 3 is newer than this program, which knows 1: update gatun",
		}},
		{"older", []string{"config.json", `{"version": 0}`}, []string{"config.json:1:13: version: want 1, got the number 0"}},
		{"not a mapping", []string{"config.json", `[]`, "profiles/a.yaml", "- a\n...\n"}, []string{
			"config.json:1:1: want keys such as version and filter, got a list",
			"profiles/a.yaml:1:1: want keys such as version and filter, got a list",
		}},
		{"keys", []string{"config.json", "{\"version\": 1,\n \"preset\": \"server\",\n \"profiles\": [],\n \"filter\": {\"blockLAM\": \"on\", \"ping\": 3, \"lists\": [\"TRAC\"]}, \"core\": {\"state\": \"/x\"}}", "profiles/a.yaml", "version: 1\nfilter: {}\nprofile: []\n...\n"}, []string{
			`config.json:2:2: preset: unknown key`,
			`config.json:3:2: profiles: unknown key`,
			`config.json:4:13: filter/blockLAM: unknown key (did you mean "blockLAN"?)`,
			"config.json:4:39: filter/ping: want text, got the number 3",
			"config.json:4:71: core/state: cannot be set in a file, because the client commands need it too; use --state or GATUN_STATE",
			"profiles/a.yaml:1:1: profiles: missing; want profiles: with a list of profiles",
			"profiles/a.yaml:2:1: filter: unknown key; this file has version and profiles only",
			`profiles/a.yaml:3:1: profile: unknown key; this file has version and profiles only (did you mean "profiles"?)`,
		}},
		{"rules", []string{"config.json", `{"version": 1, "filter": {"endpoints": ["+ bad"]}}`, "profiles/a.yaml", strings.Replace(curlFile, "defaultAction: block", `endpoints: ["- bad"]`, 1)}, []string{
			`config.json:1:44: filter/endpoints[0]: is bad (did you mean "good"?)`,
			`profiles/a.yaml:5:29: profiles[curl]/filter/endpoints[0]: is bad (did you mean "good"?)`,
		}},
		{"numbers of profiles", []string{"profiles/a.yaml", "version: 1\nprofiles: []\n...\n", "profiles/b.yaml", "version: 1\nprofiles: [{name: a, match: [{path: /a}]}, {name: b, match: [{path: /b}]}]\n...\n"}, []string{
			"profiles/a.yaml:1:1: profiles: want one profile in each file here, got 0",
			"profiles/b.yaml:1:1: profiles: want one profile in each file here, got 2",
		}},
		{"the same name", []string{"profiles/a.yaml", curlFile, "profiles/b.yaml", curlFile}, []string{
			"profiles/b.yaml:3:5: profiles[curl]: there is already a profile of that name at profiles/a.yaml:3",
		}},
		{"what gatun writes", []string{"profiles/a.yaml", "version: 1\nprofiles:\n  - name: a\n    match: [{path: /a}]\n    origin: pinned\n    created: yesterday\n    facts: {Path: /a, uid: 7}\n...\n", "profiles/b.yaml", "version: 1\nprofiles: [{name: b, origin: automatic}]\n...\n"}, []string{
			`profiles/a.yaml:5:13: profiles[a]/origin: want runtime or automatic, got "pinned"`,
			`profiles/a.yaml:6:14: profiles[a]/created: want a time such as 2026-01-31T12:00:00Z, got "yesterday"`,
			"profiles/a.yaml:7:13: profiles[a]/facts/Path: want lower-case letters, digits and - as name",
			"profiles/a.yaml:7:28: profiles[a]/facts/uid: want text in quotes, got the number 7",
			"profiles/b.yaml:2:12: profiles[b]: want match: a profile of origin automatic is for one program",
		}},
	}
	for _, c := range table {
		t.Run(c.name, func(t *testing.T) {
			src := Source{Data: OpenData(stateDir(t, c.files...)), CheckRule: refuseBad}
			if diff := cmp.Diff(c.want, complaints(t, src)); diff != "" {
				t.Error(diff)
			}
			// What runs in memory is as strict.
			memory := OpenData("")
			for i := 0; i < len(c.files); i += 2 {
				if strings.HasSuffix(c.files[i], ".yaml") || c.files[i] == "config.json" {
					memory.memory[c.files[i]] = []byte(c.files[i+1])
				}
			}
			if got := complaints(t, Source{Data: memory, CheckRule: refuseBad}); len(got) != len(c.want) {
				t.Errorf("in memory: %q", got)
			}
		})
	}
}

func refuseBad(text string) (int, string, string) {
	if i := strings.Index(text, "bad"); i >= 0 {
		return i + 1, "is bad", "good"
	}
	return 0, "", ""
}

// TestUnsafeData: what somebody else could have written in the data directory is refused.
func TestUnsafeData(t *testing.T) {
	if os.PathSeparator != '/' {
		t.Skip("owner and mode bits are checked on unix only")
	}
	const link = "is a symbolic link to /nowhere, and links are not followed: whoever can change one chooses what is read; put the file itself here"
	others := func(mode, name string) string {
		return fmt.Sprintf("has mode %s: others may write it; run: chmod go-w %s", mode, name)
	}
	for name, what := range map[string]string{"config.json": `{"version": 1}`, "profiles/a.yaml": curlFile, "profiles": ""} {
		spoil := func(f func(path string) error, want string) {
			t.Helper()
			dir := stateDir(t)
			path := filepath.Join(dir, name)
			if what != "" {
				if err := os.WriteFile(path, []byte(what), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := f(path); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{name + ": " + want}, complaints(t, Source{Data: OpenData(dir)})); diff != "" {
				t.Error(diff)
			}
		}
		spoil(func(path string) error { return os.Chmod(path, 0o666) }, others("0666", name))
		spoil(func(path string) error { return os.Chmod(path, 0o722) }, others("0722", name))
		spoil(func(path string) error { return errors.Join(os.RemoveAll(path), os.Symlink("/nowhere", path)) }, link)
		if what != "" {
			spoil(func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, "is not a regular file but a directory")
		} else {
			spoil(func(path string) error { return errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)) }, "is not a directory")
		}
		if os.Geteuid() == 0 {
			spoil(func(path string) error { return os.Chown(path, 4321, -1) }, "belongs to uid 4321: only root or uid 0 may own it; run: chown 0 "+name)
		}
	}
	dir := stateDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{dir + ": " + others("0777", dir)}, complaints(t, Source{Data: OpenData(dir)})); diff != "" {
		t.Error(diff)
	}
	e := OpenData(dir).Edit()
	e.Set("filter/blockLAN", "on")
	if _, err := Load(Source{Edit: e}); err == nil || e.Commit() == nil {
		t.Error("a directory that others can write to is written to")
	}
}

// TestEveryPrefix: no beginning of a file that gatun writes is taken for the whole.
func TestEveryPrefix(t *testing.T) {
	data := OpenData(filepath.Join(t.TempDir(), "state"))
	if _, err := try(t, Source{Data: data}, func(e *Edit) {
		e.Set("filter/blockLAN", "on")
		e.Set("filter/endpoints", []any{"- *"})
		p := NewProfile("curl", []Fingerprint{{Type: "path", Op: "equals", Value: "/usr/bin/curl"}}, Runtime, nil)
		e.PutProfile(p)
		e.SetInProfile("curl", "filter/endpoints", []any{"+ a", "- *"})
	}); err != nil {
		t.Fatal(err)
	}
	whole, err := Load(Source{Data: data})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{data.path(runtimeFile), data.profilePath("curl")} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for n := range text {
			if err := os.WriteFile(path, text[:n], 0o600); err != nil {
				t.Fatal(err)
			}
			cfg, err := Load(Source{Data: data})
			if err == nil && n < len(text)-1 { // all but the last line break is whole
				t.Errorf("%s: the first %d of %d bytes are accepted", path, n, len(text))
			} else if err == nil && !cfg.Equal(whole) {
				t.Errorf("%s: without the last line break it says something else", path)
			}
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNamesakes: a person's profile in the file counts, one that gatun made gives way, and two
// that people made are refused.
func TestNamesakes(t *testing.T) {
	file := write(t, t.TempDir(), "gatun.yaml", "version: 1\nfilter: {blockLAN: off}\nprofiles: [{name: curl, match: [{path: /opt/curl}]}]\n")
	automatic := strings.Replace(curlFile, "    match", "    origin: automatic\n    match", 1)
	src := Source{File: file, Data: OpenData(stateDir(t, "profiles/curl.yaml", automatic, "config.json", `{"version": 1, "filter": {"blockLAN": "on"}}`))}
	cfg, err := Load(src)
	if err != nil {
		t.Fatal(err)
	}
	if p := cfg.Profiles(); len(p) != 1 || p[0].Origin != Pinned || cfg.Grade("filter/blockLAN") != Off {
		t.Errorf("what the file says does not count: %+v", p)
	}
	want := []string{"profiles/curl.yaml:3:5: profiles[curl]: not used: the profile of that name at gatun.yaml:3 counts"}
	if diff := cmp.Diff(want, texts(cfg.Warnings(), src)); diff != "" {
		t.Error(diff)
	}
	src.Data = OpenData(stateDir(t, "profiles/curl.yaml", curlFile))
	want = []string{"profiles/curl.yaml:3:5: profiles[curl]: there is already a profile of that name at gatun.yaml:3"}
	if diff := cmp.Diff(want, complaints(t, src)); diff != "" {
		t.Error(diff)
	}
}

// TestMigration: an older file is read by its migration; the next change writes it anew and
// keeps a copy. The human's file is read, and never written.
func TestMigration(t *testing.T) {
	rename := func(root *yaml.Node) { // version 0 said "deny" instead of "block"
		var walk func(n *yaml.Node)
		walk = func(n *yaml.Node) {
			if n.Value == "deny" {
				n.Value = "block"
			}
			for _, c := range n.Content {
				walk(c)
			}
		}
		walk(root)
	}
	oldConfig, oldProfile := `{"version": 0, "filter": {"defaultAction": "deny"}}`, strings.NewReplacer("version: 1", "version: 0", "block", "deny").Replace(curlFile)
	oldFile := "version: 0\nfilter: {blockLAN: off}\nprofiles: [{name: x, match: [{path: /x}], filter: {defaultAction: deny}}]\n"
	dir := stateDir(t, "config.json", oldConfig, "profiles/curl.yaml", oldProfile)
	src := Source{File: write(t, t.TempDir(), "gatun.yaml", oldFile), Data: OpenData(dir), migrations: map[int]migration{0: rename}}
	check := func(cfg *Config, err error) *Config {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range cfg.Profiles() {
			if v, _ := p.Value("filter/defaultAction"); v.Any() != "block" {
				t.Errorf("%s: %v", p.Name, v)
			}
		}
		if cfg.String("filter/defaultAction") != "block" || len(cfg.Profiles()) != 2 {
			t.Error("config.json is not migrated")
		}
		return cfg
	}
	want := []string{
		"config.json: version: version 0 is read as 1; the next change writes it anew and keeps a copy",
		"gatun.yaml: version: version 0 is old and is read as 1; bring the file up to date, gatun does not write it",
		"profiles/curl.yaml: version: version 0 is read as 1; the next change writes it anew and keeps a copy",
	}
	got := texts(check(Load(src)).Warnings(), src)
	if diff := cmp.Diff(want, sortedTexts(got)); diff != "" {
		t.Error(diff)
	}
	text := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	if text(dir+"/config.json") != oldConfig {
		t.Error("reading wrote")
	}
	check(try(t, src, func(e *Edit) {})) // a change of nothing is enough
	if text(dir+"/config.json.v0") != oldConfig || text(dir+"/profiles/curl.yaml.v0") != oldProfile || text(src.File) != oldFile {
		t.Error("a copy is missing, or the human's file was written")
	}
	src.migrations, src.File = nil, ""
	cfg, err := Load(src) // by a program that knows version 1 only
	if err != nil || cfg.String("filter/defaultAction") != "block" || len(cfg.Profiles()) != 1 || len(cfg.Warnings()) != 0 {
		t.Errorf("what was written anew is refused: %v", err)
	}
	if info, err := os.Stat(dir + "/config.json.v0"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("copy: %v %v", info.Mode(), err)
	}
}

// TestTemporary: what was kept comes back, on disk after a start.
func TestTemporary(t *testing.T) {
	for _, dir := range []string{"", filepath.Join(t.TempDir(), "state")} {
		d := OpenData(dir)
		if b, err := d.ReadTemporary(); b != nil || err != nil {
			t.Errorf("there is something: %q %v", b, err)
		}
		for _, text := range []string{"[1]", "[2]"} {
			if err := d.WriteTemporary([]byte(text)); err != nil {
				t.Fatal(err)
			}
			if dir != "" {
				d = OpenData(dir)
			}
			if b, err := d.ReadTemporary(); string(b) != text || err != nil {
				t.Errorf("got %q %v, want %q", b, err, text)
			}
		}
		if _, err := Load(Source{Data: d}); err != nil {
			t.Error(err)
		}
	}
	dir := stateDir(t, "temporary.json", "[]")
	if err := os.Chmod(dir+"/temporary.json", 0o666); err != nil {
		t.Fatal(err)
	}
	if b, err := OpenData(dir).ReadTemporary(); b != nil || err == nil {
		t.Errorf("a file that others can write is read: %q", b)
	}
}
