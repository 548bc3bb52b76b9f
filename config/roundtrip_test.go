package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"pgregory.net/rapid"
)

// genText makes texts with all that could be mistaken when it is written and read.
func genText(t *rapid.T, label string) string {
	s := rapid.OneOf(
		rapid.StringMatching(`[a-z/ .:#'"\\{}\[\],&*!|>%@-]{1,12}`), rapid.SampledFrom([]string{"on", "off", "null", "~", "1", "1.5", "0x10", "2026-01-31", "a: b", "- a", "x #y", "\u00e4\u20ac\U0001F600", "yes", "=", "<<", "true", "a\tb"}),
		rapid.StringN(1, 10, -1),
	).Draw(t, label)
	if s = strings.ToValidUTF8(s, "x"); s == "" {
		return "x"
	}
	return s
}

func genName(t *rapid.T, label string) string {
	s := strings.Map(func(r rune) rune {
		if !validText(string(r)) {
			return 'x'
		}
		return r
	}, genText(t, label))
	if s = strings.TrimSpace(s); !validName(s) || slices.Contains(SpecialProfiles(), s) || s == "global" {
		return "x"
	}
	return s
}

func genFingerprint(t *rapid.T) Fingerprint {
	f := Fingerprint{Type: rapid.SampledFrom([]string{"path", "cmdline", "env", "tag"}).Draw(t, "type"), Op: rapid.SampledFrom([]string{"equals", "prefix"}).Draw(t, "op"), Value: genText(t, "value")}
	switch f.Type {
	case "path":
		f.Value = "/" + f.Value
	case "env":
		f.Name = genText(t, "variable")
	case "tag":
		f.Name = rapid.SampledFrom(tagNames[:len(tagNames)-1]).Draw(t, "tag")
	}
	return f
}

func genCondition(t *rapid.T) *NetworkCondition {
	n := &NetworkCondition{}
	pick := func(label string, f func()) {
		if rapid.Bool().Draw(t, label) {
			f()
		}
	}
	pick("interface", func() { n.Interface = genName(t, "name") })
	pick("ssid", func() { n.SSID = genName(t, "name") })
	pick("suffix", func() { n.DNSSuffix = "a.example" })
	pick("gateway", func() { n.Gateway = netip.MustParseAddr("fe80::1%eth0") })
	pick("mac", func() { n.GatewayMAC = "02:00:5e:10:00:01" })
	pick("address", func() { n.Address = netip.MustParsePrefix("2001:db8::/32") })
	pick("vpn", func() { on := rapid.Bool().Draw(t, "on"); n.VPN = &on })
	pick("portal", func() { on := rapid.Bool().Draw(t, "on"); n.Portal = &on })
	pick("time", func() { n.Time = "22:00-06:00" })
	return n
}

// genValue makes a value of a setting's type.
func genValue(t *rapid.T, s *Setting) any {
	switch s.Type {
	case TypeBool:
		return rapid.Bool().Draw(t, s.Key)
	case TypeGrade:
		return Grade(rapid.IntRange(0, 4).Draw(t, s.Key))
	case TypeInt:
		return rapid.Int().Draw(t, s.Key)
	case TypeDuration:
		return time.Duration(rapid.Int64Range(1, 1<<50).Draw(t, s.Key))
	case TypeStrings, TypeRules:
		list := []RuleText{}
		for range rapid.IntRange(0, 3).Draw(t, "length") {
			list = append(list, RuleText{Text: genText(t, "rule")})
		}
		return list
	default:
		if len(s.PossibleValues) > 0 {
			return rapid.SampledFrom(s.PossibleValues).Draw(t, s.Key)
		}
		return genText(t, s.Key)
	}
}

// genProfiles makes profiles that lie only on those before them.
func genProfiles(t *rapid.T) []ProfileSpec {
	var list []ProfileSpec
	var names []string
	for range rapid.IntRange(1, 4).Draw(t, "profiles") {
		p := NewProfile(genName(t, "profile"), nil, Runtime, nil)
		if slices.ContainsFunc(list, func(o ProfileSpec) bool { return o.Name == p.Name }) {
			continue
		}
		if rapid.IntRange(0, 4).Draw(t, "kind") == 0 {
			p.When = genCondition(t)
		} else {
			p.Match = []Fingerprint{genFingerprint(t)}
			if rapid.Bool().Draw(t, "second") {
				p.Match = append(p.Match, genFingerprint(t))
			}
			p.Origin = ProfileOrigin(rapid.IntRange(1, 2).Draw(t, "origin"))
			p.Facts = map[string]string{"path": genText(t, "fact"), "args": genText(t, "fact")}
			p.Created = time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "created"), 7).UTC()
			for _, name := range names {
				if rapid.Bool().Draw(t, "layer") {
					p.Layers = append(p.Layers, name)
				}
			}
			names = append(names, p.Name)
		}
		for _, s := range Table() {
			if s.PerApp && s.MissingPerApp == "" && s.Missing == "" && s.Check == nil && rapid.IntRange(0, 3).Draw(t, "set") == 0 {
				p.values[s.Key] = Value{v: genValue(t, &s)}
			}
		}
		list = append(list, p)
	}
	return list
}

// TestExportImport: export, import elsewhere, and export again give the same bytes, for one
// profile and for all, and the copy says what the original says.
func TestExportImport(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		put := func(list []ProfileSpec) *Config {
			src := Source{Data: OpenData("")}
			src.Edit = src.Data.Edit()
			for _, p := range list {
				src.Edit.PutProfile(p)
			}
			cfg, err := Load(src)
			if err != nil {
				t.Fatal(err)
			}
			if err := src.Edit.Commit(); err != nil {
				t.Fatal(err)
			}
			return cfg
		}
		export := func(c *Config, names ...string) []byte {
			b, err := c.ExportProfiles(names...)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		list := genProfiles(t)
		original := put(list)
		text := export(original)
		imported, err := ParseProfiles("import", text)
		if err != nil {
			t.Fatalf("%s\n%v", text, err)
		}
		imported = rapid.Permutation(imported).Draw(t, "order")
		copied := put(imported)
		if again := export(copied); !bytes.Equal(text, again) {
			t.Fatalf("first\n%s\nthen\n%s", text, again)
		}
		for i := range list {
			p, q := &list[i], &copied.profiles[copied.byName[list[i].Name]]
			if what := differ(p, q); what != "" {
				t.Fatalf("%s: %s\n%s", p.Name, what, text)
			}
			one := export(original, p.Name)
			if p.Layers == nil { // else it needs the others
				specs, err := ParseProfiles("import", one)
				if err != nil || !bytes.Equal(export(put(specs)), one) {
					t.Fatalf("%s alone: %v\n%s", p.Name, err, one)
				}
			}
		}
	})
}

// differ compares what two profiles say.
func differ(p, q *ProfileSpec) string {
	fingerprints := func(list []Fingerprint) string {
		var b strings.Builder
		for _, f := range list {
			fmt.Fprintf(&b, "%q %q %q %q\n", f.Type, f.Name, f.Op, f.Value)
		}
		return b.String()
	}
	switch {
	case fingerprints(p.Match) != fingerprints(q.Match):
		return fmt.Sprintf("match %q, %q", p.Match, q.Match)
	case !slices.Equal(p.Layers, q.Layers) || p.Origin != q.Origin || !p.Created.Equal(q.Created):
		return "layers, origin or time"
	case fmt.Sprint(p.Facts) != fmt.Sprint(q.Facts):
		return fmt.Sprintf("facts %q, %q", p.Facts, q.Facts)
	case (p.When == nil) != (q.When == nil) || p.When != nil && p.When.flow() != q.When.flow():
		return "when"
	case len(p.values) != len(q.values):
		return "number of values"
	}
	for key, v := range p.values {
		if fmt.Sprintf("%q", plain(v.v)) != fmt.Sprintf("%q", plain(q.values[key].v)) {
			return fmt.Sprintf("%s: %q, %q", key, plain(v.v), plain(q.values[key].v))
		}
	}
	return ""
}

// TestExportOfPinned: what the human's file says can be copied to another machine, where it
// counts as made at run time and is exported as the same bytes.
func TestExportOfPinned(t *testing.T) {
	cfg := load(t, "version: 1\nprofiles:\n  - name: b\n    match: [{path: {equals: /b}}, {tag: user, prefix: \"on\"}]\n    layers: [a]\n    filter: {blockLAN: true, endpoints: ['+ x']}\n  - {name: a, filter: {removeBlockedDNS: false}}\n")
	want := `version: 1
profiles:
  - name: a
    filter:
      removeBlockedDNS: off
  - name: b
    match:
      - {path: /b}
      - {tag: user, prefix: "on"}
    layers: [a]
    filter:
      blockLAN: on
      endpoints:
        - "+ x"
...
`
	text, err := cfg.ExportProfiles()
	if err != nil || string(text) != want {
		t.Errorf("%v\n%s", err, text)
	}
	specs, err := ParseProfiles("x", text)
	if err != nil {
		t.Fatal(err)
	}
	copied, err := try(t, Source{Data: OpenData("")}, func(e *Edit) {
		for _, p := range specs {
			e.PutProfile(p)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := copied.ExportProfiles("b", "a", "b"); err != nil || string(again) != want {
		t.Errorf("%v\n%s", err, again)
	}
	if p := copied.Profiles()[0]; p.Origin != Runtime {
		t.Errorf("origin %s", p.Origin)
	}
	if _, err := copied.ExportProfiles("bb"); err == nil || err.Error() != `profiles[bb]: there is no profile of that name (did you mean "b"?)` {
		t.Errorf("unknown name: %v", err)
	}
}

// TestCommitOrder: after each single write of a commit, as a crash leaves them, the whole can be
// read.
func TestCommitOrder(t *testing.T) {
	group := func(name string, layers ...string) ProfileSpec {
		p := NewProfile(name, []Fingerprint{{Type: "path", Op: "equals", Value: "/" + name}}, Runtime, nil)
		p.Layers = layers
		return p
	}
	data := OpenData(filepath.Join(t.TempDir(), "state"))
	if _, err := try(t, Source{Data: data}, func(e *Edit) {
		e.PutProfile(group("a", "b"))
		e.PutProfile(group("b", "c"))
		e.PutProfile(group("c"))
		e.PutProfile(group("d", "c"))
		e.Set("filter/blockLAN", "on")
	}); err != nil {
		t.Fatal(err)
	}
	e := data.Edit() // the layers turn round, d leaves c, c goes, a new one comes
	e.PutProfile(group("a"))
	e.PutProfile(group("b", "a", "z"))
	e.PutProfile(group("d", "b"))
	e.DeleteProfile("c")
	e.PutProfile(group("z", "a"))
	e.Unset("filter/blockLAN")
	if _, err := Load(Source{Edit: e}); err != nil {
		t.Fatal(err)
	}
	for i := range e.plan.writes {
		w := &e.plan.writes[i]
		if err := w.prepare(); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(Source{Data: data}); err != nil {
			t.Errorf("before %s: %v", w.path, err)
		}
		if err := w.finish(); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(Source{Data: data}); err != nil {
			t.Errorf("after %s: %v", w.path, err)
		}
	}
	if len(e.plan.writes) != 6 {
		t.Errorf("%d writes", len(e.plan.writes))
	}
}

// TestCommitFails: if it cannot write, everything is as it was; if somebody else wrote, so it
// stays; files are never readable by others.
func TestCommitFails(t *testing.T) {
	dir := stateDir(t, "profiles/curl.yaml", curlFile, "config.json", `{"version": 1}`)
	data := OpenData(dir)
	begin := func() *Edit {
		e := data.Edit()
		e.Set("filter/blockLAN", "on")
		e.DeleteProfile("curl")
		if _, err := Load(Source{Edit: e}); err != nil {
			t.Fatal(err)
		}
		return e
	}
	list := func() string {
		var b strings.Builder
		for _, pattern := range []string{"*", ".*", "profiles/*", "profiles/.*"} {
			names, _ := filepath.Glob(filepath.Join(dir, pattern))
			for _, name := range names {
				text, _ := os.ReadFile(name)
				fmt.Fprintf(&b, "%s %s\n", name, text)
			}
		}
		return b.String()
	}
	before := list()
	e := begin()
	write(t, dir, "config.json", `{"version": 1 }`)
	if err := e.Commit(); err == nil || err.Error() != dir+"/config.json was changed by somebody else meanwhile: try again" {
		t.Errorf("changed by somebody else: %v", err)
	}
	write(t, dir, "config.json", `{"version": 1}`)
	e = begin()
	e.Set("filter/blockLAN", "off")
	if e.Commit() == nil {
		t.Error("what was not checked is written")
	}
	e = begin()
	if err := os.Mkdir(dir+"/.config.json.new", 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, ".config.json.new/x", "")
	if err := e.Commit(); err == nil || !strings.HasPrefix(err.Error(), "nothing was changed: ") {
		t.Errorf("no place for the new file: %v", err)
	}
	if err := os.RemoveAll(dir + "/.config.json.new"); err != nil {
		t.Fatal(err)
	}
	if after := list(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	write(t, dir, ".config.json.new", "left by a crash")
	if err := begin().Commit(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"config.json", "config.json.good"} {
		info, err := os.Stat(filepath.Join(dir, name))
		text, _ := os.ReadFile(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 || !strings.Contains(string(text), "blockLAN") {
			t.Errorf("%s: %v %s", name, err, text)
		}
	}
	if names, _ := filepath.Glob(dir + "/.*"); len(names) != 0 {
		t.Errorf("left over: %q", names)
	}
}

// TestJSON: every text that JSON can say is read as encoding/json reads it, also with the escapes
// that some programs write.
func TestJSON(t *testing.T) {
	read := func(text string) string {
		t.Helper()
		var want string
		if err := json.Unmarshal([]byte(text), &want); err != nil {
			t.Fatal(err)
		}
		root, p := decode("x.json", []byte("{\t\"a\":\t"+text+"\t}"))
		if p != nil {
			t.Fatalf("%s: %v", text, p)
		}
		if got := child(root, "a").Value; got != want {
			t.Fatalf("%s is read as %q, want %q", text, got, want)
		}
		return want
	}
	for text, want := range map[string]string{
		`"\/a\\/"`: "/a\\/", `"\ud83d\ude00"`: "\U0001F600", `"\ud83d"`: "\uFFFD", `"\ud83d\u0041"`: "\uFFFDA", `"\ude00\ud83d x"`: "\uFFFD\uFFFD x", `"\\ud83d"`: `\ud83d`, `"\u0000\b\f\"\n"`: "\x00\b\f\"\n",
	} {
		if got := read(text); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		s := genText(r, "text")
		for _, text := range []string{quote(s), strconv.QuoteToASCII(s)} {
			if json.Valid([]byte(text)) && json.Valid([]byte("["+text+"]")) {
				read(text)
			}
		}
		var ascii strings.Builder
		for _, u := range utf16.Encode([]rune(s)) {
			fmt.Fprintf(&ascii, "\\u%04X", u)
		}
		if got := read(`"` + ascii.String() + `"`); got != s {
			r.Fatalf("%q is read as %q", s, got)
		}
	})
}
