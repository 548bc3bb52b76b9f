package config

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// write makes a safe file and returns its path.
func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// problemsOf loads a text that is wrong and returns its problems without the directory.
func problemsOf(t testing.TB, name, text string) []string {
	t.Helper()
	dir := t.TempDir()
	cfg, err := Load(Source{File: write(t, dir, name, text)})
	if cfg != nil && err != nil {
		t.Fatal("a Config and an error: a half-valid one got out")
	}
	var problems Problems
	if err != nil && !errors.As(err, &problems) {
		t.Fatalf("error is %T, want Problems", err)
	}
	var lines []string
	for _, p := range problems {
		lines = append(lines, strings.TrimPrefix(p.Error(), dir+"/"))
	}
	return lines
}

func load(t testing.TB, text string) *Config {
	t.Helper()
	cfg, err := Load(Source{File: write(t, t.TempDir(), "gatun.yaml", text)})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestProblems holds wrong files against every message, with line, column and suggestion.
func TestProblems(t *testing.T) {
	table := []struct {
		name, text string
		want       []string
	}{
		{"empty", "", []string{"gatun.yaml:1:1: version: missing; want version: 1 at the top of the file"}},
		{"comments only", "# nothing\n", []string{"gatun.yaml:1:1: version: missing; want version: 1 at the top of the file"}},
		{"not a mapping", "- a\n", []string{"gatun.yaml:1:1: want keys such as version and filter, got a list"}},
		{"newer", "version: 2\n", []string{"gatun.yaml:1:10: version: version 2 is newer than this program, which knows 1: update gatun"}},
		{"version is text", "version: \"1\"\n", []string{`gatun.yaml:1:10: version: want 1, got "1"`}},
		{"unknown keys", "version: 1\nfiltre: {}\nfilter:\n  blockLan: on\n  ponies: 3\nblockInternet: on\nfilter/ping: rules\n", []string{
			`gatun.yaml:2:1: filtre: unknown key (did you mean "filter"?)`,
			`gatun.yaml:4:3: filter/blockLan: unknown key (did you mean "blockLAN"?)`,
			`gatun.yaml:5:3: filter/ponies: unknown key`,
			`gatun.yaml:6:1: blockInternet: unknown key (did you mean "filter/blockInternet"?)`,
			`gatun.yaml:7:1: filter/ping: unknown key (did you mean "filter/ping"?)`,
		}},
		{"wrong values", "version: 1\nfilter:\n  blockLAN: yes\n  blockInternet: dangr\n  defaultAction: allow\n  reevaluate: 1\n  ping: [permit]\n  endpoints: \"- *, + x\"\n  serviceEndpoints:\n    - 1\n    - [a]\n    -\ncore:\n  mark: many\n  table: 254\n  state: var/lib\n  failOpen: on\n  logLevel:\n", []string{
			`gatun.yaml:3:13: filter/blockLAN: want off, trusted, untrusted, danger or on, got "yes" (did you mean "on"?)`,
			`gatun.yaml:4:18: filter/blockInternet: want off, trusted, untrusted, danger or on, got "dangr" (did you mean "danger"?)`,
			`gatun.yaml:5:18: filter/defaultAction: want permit, block or ask, got "allow"`,
			`gatun.yaml:6:15: filter/reevaluate: want on or off, got "1" (did you mean "on"?)`,
			`gatun.yaml:7:9: filter/ping: want permit or rules, got a list`,
			`gatun.yaml:8:14: filter/endpoints: want a list, got "- *, + x" (did you mean "[\"- *, + x\"]"?)`,
			`gatun.yaml:10:7: filter/serviceEndpoints[0]: want text in quotes, got the number 1`,
			`gatun.yaml:11:7: filter/serviceEndpoints[1]: want text in quotes, got a list`,
			`gatun.yaml:12:6: filter/serviceEndpoints[2]: want text in quotes, got nothing`,
			`gatun.yaml:14:9: core/mark: want a number, got "many"`,
			`gatun.yaml:15:10: core/table: table 254 belongs to the kernel; want another number`,
			`gatun.yaml:16:3: core/state: cannot be set in a file, because the client commands need it too; use --state or GATUN_STATE`,
			`gatun.yaml:17:13: core/failOpen: on is not available in this version: it always fails closed`,
			`gatun.yaml:18:12: core/logLevel: want text, got nothing`,
		}},
		{"not there yet", "version: 1\npreset: gateway\ntunnels: []\ngateway: {}\nlists: []\ngeo: {}\nfilter:\n  lists: [TRAC]\n  askTimeout: 5s\n  defaultAction: ask\ntunnel: {use: on}\ncore: {listenAddress: \"127.0.0.1:1\"}\n", []string{
			`gatun.yaml:3:1: tunnels: not available in this version: it needs tunnels`,
			`gatun.yaml:4:1: gateway: not available in this version: it needs the gateway mode`,
			`gatun.yaml:11:10: tunnel/use: not available in this version: it needs tunnels`,
			`gatun.yaml:12:8: core/listenAddress: not available in this version: it needs the API over TCP`,
		}},
		{"duplicate keys", "version: 1\nfilter: {ping: rules, ping: permit}\nfilter: {}\n", []string{
			"gatun.yaml:2:23: filter/ping: set twice; it is already set in line 2",
			"gatun.yaml:3:1: filter: set twice; it is already set in line 2",
		}},
		{"strange keys", "version: 1\n1: x\n? [a]\n: y\nfilter: {<<: {ping: rules}}\n*x : 1\n", []string{"gatun.yaml:6: YAML: unknown anchor 'x' referenced"}},
		{"strange keys, read", "version: 1\n1: x\n? [a]\n: y\nfilter: {<<: {ping: rules}}\n", []string{
			"gatun.yaml:2:1: want a name as key, got the number 1",
			"gatun.yaml:3:3: want a name as key, got a list",
			"gatun.yaml:5:10: filter: merge keys are not supported; write the keys out",
		}},
		{"section is a scalar", "version: 1\nfilter: on\ndns:\n", []string{`gatun.yaml:2:1: filter: want a section with keys of its own, got "on"`}},
		{"cut off", "version: 1\nfilter:\n  endpoints: [\"- *\", \"+ ", []string{"gatun.yaml:3: YAML: found unexpected end of stream"}},
		{"bad indent", "version: 1\nfilter:\n  ping: rules\n blockLAN: on\n", []string{"gatun.yaml:4: YAML: did not find expected key; look here and further down in this block"}},
		{"tab", "version: 1\nfilter:\n\tping: rules\n", []string{"gatun.yaml:3: YAML: found character that cannot start any token"}},
		{"two documents", "version: 1\n---\nfilter: {ping: rules}\n", []string{"gatun.yaml:2:1: a second YAML document begins here; want one document in a file"}},
		{"not UTF-8", "version: 1\n# \xff\n", []string{"gatun.yaml:2: not UTF-8 text: the file is damaged, or has another encoding"}},
		{"nameservers", "version: 1\ndns:\n  nameservers: [192.0.2.53, \"\", \"dns://192.0.2.53 \", 5]\n", []string{
			`gatun.yaml:3:30: dns/nameservers[1]: want an address or a URL such as dns://192.0.2.53, got ""`,
			`gatun.yaml:3:34: dns/nameservers[2]: want an address or a URL such as dns://192.0.2.53, got "dns://192.0.2.53 "`,
			`gatun.yaml:3:54: dns/nameservers[3]: want text in quotes, got the number 5`,
		}},
		{"preset", "version: 1\npreset: serve\n", []string{`gatun.yaml:2:9: preset: want desktop, server or gateway, got "serve" (did you mean "server"?)`}},
	}
	for _, c := range table {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, problemsOf(t, "gatun.yaml", c.text)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestProfileProblems does the same for profiles.
func TestProfileProblems(t *testing.T) {
	table := []struct {
		name, text string
		want       []string
	}{
		{"no list", "profiles: {curl: {}}", []string{"gatun.yaml:2:11: profiles: want a list of profiles, each with name and match, got a section"}},
		{"no map", "profiles: [curl]", []string{`gatun.yaml:2:12: profiles[0]: want a profile with name and match, got "curl"`}},
		{"bare", "profiles:\n  - {}", []string{
			"gatun.yaml:3:5: profiles[0]: want a name",
		}},
		{"names", "profiles:\n  - {name: 7, match: [{path: /a}]}\n  - {name: \" a\", match: [{path: /a}]}\n  - {name: unidentified, match: [{path: /a}]}\n  - {name: a, match: [{path: /a}]}\n  - {name: a, match: [{path: /b}]}", []string{
			"gatun.yaml:3:12: profiles[0]/name: want text in quotes, got the number 7",
			`gatun.yaml:4:12: profiles[1]/name: want 1 to 64 printable characters without spaces around them, got " a"`,
			`gatun.yaml:5:12: profiles[unidentified]/name: "unidentified" is the name of a built-in profile; match it with {tag: special, equals: …} under a name of your own`,
			"gatun.yaml:7:5: profiles[a]: there is already a profile of that name at FILE:6",
		}},
		{"match", "profiles:\n  - name: a\n    match:\n      - /usr/bin/curl\n      - {}\n      - {paths: /x}\n      - {path: curl}\n      - {path: /a, cmdline: b}\n      - {path: /a, prefix: /b}\n      - {path: {prefx: /b}}\n      - {tag: systemd-unit}\n      - {tag: systemdunit, equals: x}\n      - {tag: device, equals: x}\n      - {tag: special, equals: unidentifed}\n      - {cmdline: {regex: \"a(\"}}\n      - {equals: x}\n      - {env: [A], equals: x}\n      - {path: \"\"}", []string{
			`gatun.yaml:5:9: profiles[a]/match[0]: want {path: …}, {cmdline: …}, {env: NAME, equals: …} or {tag: NAME, equals: …}, got "/usr/bin/curl"`,
			`gatun.yaml:6:9: profiles[a]/match[1]: want path, cmdline, env or tag`,
			`gatun.yaml:7:10: profiles[a]/match[2]/paths: unknown key (did you mean "path"?)`,
			`gatun.yaml:8:9: profiles[a]/match[3]: want an absolute path, got "curl"`,
			`gatun.yaml:9:20: profiles[a]/match[4]: has path and cmdline; want one of them: each item of match stands alone`,
			`gatun.yaml:10:20: profiles[a]/match[5]: has equals and prefix; want one of them (did you mean "{path: {prefix: /b}}"?)`,
			`gatun.yaml:11:17: profiles[a]/match[6]/path/prefx: unknown key (did you mean "prefix"?)`,
			`gatun.yaml:12:9: profiles[a]/match[7]: want equals, prefix or regex with a value`,
			`gatun.yaml:13:9: profiles[a]/match[8]: unknown tag "systemdunit"; want systemd-unit, container, cgroup, flatpak, snap, appimage, script, user or special (did you mean "systemd-unit"?)`,
			`gatun.yaml:14:9: profiles[a]/match[9]: tag device is not available in this version`,
			`gatun.yaml:15:9: profiles[a]/match[10]: want equals: unidentified, unsolicited, system, system-resolver or self (did you mean "unidentified"?)`,
			"gatun.yaml:16:27: profiles[a]/match[11]/cmdline/regex: not a regular expression: missing closing ): `a(`",
			`gatun.yaml:17:9: profiles[a]/match[12]: want path, cmdline, env or tag`,
			`gatun.yaml:18:15: profiles[a]/match[13]/env: want text in quotes, got a list`,
			`gatun.yaml:19:16: profiles[a]/match[14]/path: want text in quotes, got ""`,
		}},
		{"settings", "profiles:\n  - name: a\n    match: [{path: /a}]\n    core: {mark: 1}\n    dns: {nameservers: [192.0.2.1], useStaleCache: on}\n    filter: {lists: [x], blockLAN: maybe}\n    lists: []\n    nam: x", []string{
			"gatun.yaml:5:12: profiles[a]/core/mark: cannot be set per app; set it at the top of the file",
			"gatun.yaml:6:37: profiles[a]/dns/useStaleCache: cannot be set per app; set it at the top of the file",
			`gatun.yaml:7:36: profiles[a]/filter/blockLAN: want off, trusted, untrusted, danger or on, got "maybe"`,
			`gatun.yaml:8:5: profiles[a]/lists: unknown key (did you mean "filter/lists"?)`,
			`gatun.yaml:9:5: profiles[a]/nam: unknown key (did you mean "name"?)`,
		}},
		{"empty match", "profiles: [{name: a, match: []}]", []string{"gatun.yaml:2:29: profiles[a]/match: want a list such as [{path: /usr/bin/curl}], got a list"}},
	}
	for _, c := range table {
		t.Run(c.name, func(t *testing.T) {
			got := problemsOf(t, "gatun.yaml", "version: 1\n"+c.text+"\n")
			for i := range got { // a path of the test's directory inside of a message
				if at := strings.Index(got[i], "name at "); at >= 0 {
					got[i] = got[i][:at] + "name at FILE" + got[i][strings.LastIndexByte(got[i], ':'):]
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

const whole = `version: 1
preset: server
filter:
  defaultAction: block
  blockLAN: off
  blockInternet: true
  endpoints: &rules
    - "+ .example.org TCP/443"
    - '- *'
    - - a
`

func TestValues(t *testing.T) {
	text := strings.Replace(whole, "    - - a\n", "  serviceEndpoints: *rules\ncore: {mark: 0x6761, releaseLevel: experimental}\ndns: {nameservers: [192.0.2.53]}\nprofiles:\n  - name: curl\n    match: [{path: /usr/bin/curl}, {tag: user, prefix: www}, {cmdline: {regex: ^x}}, {env: A, equals: b}]\n    filter: {defaultAction: permit, endpoints: [\"- *\"]}\n", 1)
	cfg := load(t, text)
	file := cfg.Files()[0]
	if cfg.String("filter/defaultAction") != "block" || cfg.Grade("filter/blockLAN") != Off || cfg.Grade("filter/blockInternet") != On ||
		cfg.Int("core/mark") != 0x6761 || !cfg.Bool("filter/reevaluate") || cfg.Preset() != "server" || cfg.Duration("filter/askTimeout").Seconds() != 60 {
		t.Error("a value is wrong")
	}
	if got := cfg.Strings("dns/nameservers"); !slices.Equal(got, []string{"192.0.2.53"}) {
		t.Errorf("nameservers %q", got)
	}
	want := []RuleText{{"+ .example.org TCP/443", Position{file, 8, 8}}, {"- *", Position{file, 9, 8}}}
	for _, key := range []string{"filter/endpoints", "filter/serviceEndpoints"} {
		if diff := cmp.Diff(want, cfg.Rules(key)); diff != "" {
			t.Error(key, diff)
		}
	}
	for key, want := range map[string]string{
		"filter/blockInbound": "preset server", "filter/defaultAction": file + ":4", "filter/ping": "default",
	} {
		if got := cfg.Value(key).Origin.String(); got != want {
			t.Errorf("origin of %s is %q, want %q", key, got, want)
		}
	}
	if cfg.Grade("filter/blockInbound") != Off {
		t.Error("the preset has no effect")
	}
	p := cfg.Profiles()[0]
	wantMatch := []Fingerprint{
		{Position{file, 15, 13}, "path", "", "equals", "/usr/bin/curl"}, {Position{file, 15, 36}, "tag", "user", "prefix", "www"},
		{Position{file, 15, 62}, "cmdline", "", "regex", "^x"}, {Position{file, 15, 86}, "env", "A", "equals", "b"},
	}
	if diff := cmp.Diff(wantMatch, p.Match); diff != "" || p.Name != "curl" {
		t.Error(p.Name, diff)
	}
	if v, ok := p.Value("filter/defaultAction"); !ok || v.Any() != "permit" || v.Origin.String() != file+":16" {
		t.Errorf("profile's default action: %v %v", v, ok)
	}
	if _, ok := p.Value("filter/blockLAN"); ok {
		t.Error("the profile sets what it does not name")
	}
	if at := cfg.At(want[0], 3); at != (Position{file, 8, 10}) {
		t.Errorf("At gives %v", at)
	}
	defer func() {
		if recover() == nil {
			t.Error("an unknown key does not panic")
		}
	}()
	cfg.Value("filter/nothing")
}

// TestLayers: drop-ins over the file, the environment over both, flags over all.
func TestLayers(t *testing.T) {
	dir := t.TempDir()
	main := write(t, dir, "gatun.yaml", "version: 1\nfilter: {defaultAction: block, ping: rules, endpoints: [\"- *\"]}\nprofiles: [{name: a, match: [{path: /a}]}]\n")
	first := write(t, dir, "conf.d/10-a.yaml", "filter: {blockLAN: on, ping: permit}\nprofiles: [{name: b, match: [{path: /b}]}]\n")
	second := write(t, dir, "conf.d/20-b.yaml", "version: 1\nfilter: {blockLAN: danger, endpoints: [\"+ *\"]}\n")
	third := write(t, dir, "conf.d/empty.yaml", "")
	write(t, dir, "conf.d/.20-b.yaml.swp", "not for us")
	other := write(t, dir, "conf.d/30.yml", "filter: {ping: rules}\n")
	src := Source{File: main, Dir: true,
		Env:   []string{"HOME=/", "GATUN_FILTER__BLOCKINTERNET=on", "GATUN_CORE__STATE=/long", "GATUN_STATE=/short", "GATUN_CONFIG=x", "GATUN_DNS__NAMESERVERS=[192.0.2.1, 192.0.2.2]", "GATUN_FILTER__SERVICEENDPOINTS=+ a,b", "GATUN_CORE__SOCKET="},
		Flags: map[string]string{"core/logLevel": "debug", "filter/blockInternet": "off"}}
	cfg, err := Load(src)
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.Files(); !slices.Equal(got, []string{main, first, second, third}) {
		t.Errorf("read %q", got)
	}
	for key, want := range map[string]struct {
		value  any
		origin string
	}{
		"filter/defaultAction": {"block", main + ":2"}, "filter/ping": {"permit", first + ":1"}, "filter/blockLAN": {Danger, second + ":2"},
		"filter/blockInternet": {Off, "flag filter/blockInternet"}, "core/logLevel": {"debug", "flag core/logLevel"}, "core/state": {"/short", "environment GATUN_STATE"},
	} {
		if v := cfg.Value(key); v.Any() != want.value || v.Origin.String() != want.origin {
			t.Errorf("%s = %v from %s, want %v from %s", key, v.Any(), v.Origin, want.value, want.origin)
		}
	}
	if got := cfg.Strings("filter/endpoints"); !slices.Equal(got, []string{"+ *"}) {
		t.Errorf("endpoints %q", got)
	}
	if got := cfg.Strings("dns/nameservers"); !slices.Equal(got, []string{"192.0.2.1", "192.0.2.2"}) {
		t.Errorf("nameservers %q", got)
	}
	if got := cfg.Strings("filter/serviceEndpoints"); !slices.Equal(got, []string{"+ a,b"}) {
		t.Errorf("one text was split: %q", got)
	}
	if p := cfg.Profiles(); len(p) != 2 || p[0].Name != "a" || p[1].Name != "b" {
		t.Errorf("profiles %v", p)
	}
	wantWarnings := []string{second + ":2:28: filter/endpoints: replaces the list of " + main + ":2", other + ": ignored: only files named *.yaml are read here"}
	if diff := cmp.Diff(wantWarnings, strings.Split(cfg.Warnings().Error(), "\n")); diff != "" {
		t.Error(diff)
	}
	if got := src.Paths(); !slices.Equal(got, []string{main, dir + "/conf.d"}) {
		t.Errorf("Paths %q", got)
	}
}

func TestEnvironmentAndFlagProblems(t *testing.T) {
	_, err := Load(Source{
		Env:   []string{"GATUN_FILTER__BLOCKLANS=on", "GATUN_FILTER__PING=maybe", "GATUN_TUNNEL__USE=on", "GATUN_DNS__NAMESERVERS=[", "GATUN_PRESET=x", "GATUN_STATE=var/lib", "GATUN_SOCKET=/run//x"},
		Flags: map[string]string{"core/mrk": "1"},
	})
	want := []string{
		"GATUN_DNS__NAMESERVERS: dns/nameservers: YAML: did not find expected node content; look here and further down in this block",
		`GATUN_FILTER__BLOCKLANS: unknown environment variable (did you mean "GATUN_FILTER__BLOCKLAN"?)`,
		`GATUN_FILTER__PING: filter/ping: want permit or rules, got "maybe"`,
		`GATUN_PRESET: preset: want desktop, server or gateway, got "x"`,
		`GATUN_SOCKET: core/socket: want a clean path, got "/run//x" (did you mean "/run/x"?)`,
		`GATUN_STATE: core/state: want an absolute path, got "var/lib"`,
		"GATUN_TUNNEL__USE: tunnel/use: not available in this version: it needs tunnels",
		`flag core/mrk: unknown setting (did you mean "core/mark"?)`,
	}
	if err == nil {
		t.Fatal("no error")
	}
	if diff := cmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
		t.Error(diff)
	}
}

// TestReleaseLevel: what is too experimental is ignored and comes back.
func TestReleaseLevel(t *testing.T) {
	text := "version: 1\ncore: {releaseLevel: LEVEL}\nfilter: {dnsQueryInterception: off}\n"
	stable := load(t, strings.Replace(text, "LEVEL", "stable", 1))
	if !stable.Bool("filter/dnsQueryInterception") {
		t.Error("an experimental setting is used at level stable")
	}
	why := "inactive because core/releaseLevel is stable and this setting is experimental"
	if got := stable.Value("filter/dnsQueryInterception").Inactive; got != why {
		t.Errorf("Inactive is %q", got)
	}
	if w := stable.Warnings(); len(w) != 1 || w[0].Message != why || w[0].Line != 3 {
		t.Errorf("warnings %v", w)
	}
	if load(t, strings.Replace(text, "LEVEL", "experimental", 1)).Bool("filter/dnsQueryInterception") {
		t.Error("the stored value did not come back")
	}
}

func TestEqual(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir, "gatun.yaml", "version: 1\nfilter: {endpoints: [\"- *\"]}\nprofiles: [{name: a, match: [{path: /a}], filter: {ping: x}}]\n")
	write(t, dir, "gatun.yaml", "version: 1\nfilter: {endpoints: [\"- *\"]}\nprofiles: [{name: a, match: [{path: /a}], filter: {blockLAN: on}}]\n")
	read := func() *Config {
		cfg, err := Load(Source{File: file})
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	a := read()
	if !a.Equal(read()) || a.Equal(nil) {
		t.Error("the same file is not equal to itself, or equal to nothing")
	}
	for _, change := range []string{
		"version: 1\nfilter: {endpoints: [\"- LAN\"]}\nprofiles: [{name: a, match: [{path: /a}], filter: {blockLAN: on}}]\n",
		"version: 1\nfilter: {endpoints: [\"- *\"]}\nprofiles: [{name: a, match: [{path: /b}], filter: {blockLAN: on}}]\n",
		"version: 1\nfilter: {endpoints: [\"- *\"]}\nprofiles: [{name: a, match: [{path: /a}], filter: {blockLAN: off}}]\n",
		"version: 1\n\nfilter: {endpoints: [\"- *\"]}\nprofiles: [{name: a, match: [{path: /a}], filter: {blockLAN: on}}]\n",
	} {
		write(t, dir, "gatun.yaml", change)
		if a.Equal(read()) {
			t.Errorf("equal to\n%s", change)
		}
	}
}

// TestFormats: JSON and TOML say the same as YAML, and are as strict.
func TestFormats(t *testing.T) {
	dir := t.TempDir()
	json := write(t, dir, "gatun.json", "{\n\t\"version\": 1,\n\t\"filter\": {\"blockLAN\": true, \"endpoints\": [\"- *\"]},\n\t\"profiles\": [{\"name\": \"a\", \"match\": [{\"path\": \"/a\"}]}]\n}\n")
	toml := write(t, dir, "gatun.toml", "version = 1\n[filter]\nblockLAN = true\nendpoints = [\"- *\"]\n[[profiles]]\nname = \"a\"\nmatch = [{path = \"/a\"}]\n")
	for _, file := range []string{json, toml} {
		cfg, err := Load(Source{File: file})
		if err != nil {
			t.Error(err)
			continue
		}
		if cfg.Grade("filter/blockLAN") != On || len(cfg.Rules("filter/endpoints")) != 1 || len(cfg.Profiles()) != 1 || cfg.Profiles()[0].Match[0].Value != "/a" {
			t.Errorf("%s: wrong values", file)
		}
	}
	got := problemsOf(t, "x.json", "{\n\t\"version\": 1,\n\t\"filter\": {\"blockLan\": true},,\n}")
	if diff := cmp.Diff([]string{"x.json:3:31: JSON: invalid character ',' looking for beginning of object key string"}, got); diff != "" {
		t.Error(diff)
	}
	got = problemsOf(t, "x.json", "{\n\t\"version\": 1,\n\t\"filter\": {\"blockLan\": true}\n}")
	if diff := cmp.Diff([]string{`x.json:3:13: filter/blockLan: unknown key (did you mean "blockLAN"?)`}, got); diff != "" {
		t.Error(diff)
	}
	got = problemsOf(t, "x.toml", "version = 1\n[filter]\nblockLAM = true\nping = 5\n[[profiles]]\nname = \"a\"\nmatch = [{path = \"a\"}]\n")
	want := []string{`x.toml:3:1: filter/blocklam: unknown key (did you mean "blockLAN"?)`, "x.toml:4:1: filter/ping: want text, got the number 5", `x.toml:7:1: profiles[a]/match[0]: want an absolute path, got "a"`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	got = problemsOf(t, "x.toml", "version = 1\n[filter\n")
	if len(got) != 1 || !strings.HasPrefix(got[0], "x.toml:2:") {
		t.Errorf("broken TOML: %q", got)
	}
}

// TestCheckRule: wrong rules come with all other problems, at their character.
func TestCheckRule(t *testing.T) {
	file := write(t, t.TempDir(), "gatun.yaml", "version: 1\nfilter:\n  pong: 1\n  endpoints:\n    - \"+ bad\"\n    - - x\n    - \"\\u002b bad\"\n    - + bad\n")
	check := func(text string) (int, string, string) {
		if i := strings.Index(text, "bad"); i >= 0 {
			return i + 1, "is bad", "good"
		}
		return 0, "", ""
	}
	_, err := Load(Source{File: file, CheckRule: check})
	var problems Problems
	if !errors.As(err, &problems) {
		t.Fatal(err)
	}
	var got []string
	for _, p := range problems {
		got = append(got, strings.TrimPrefix(p.Error(), file+":"))
	}
	want := []string{
		`3:3: filter/pong: unknown key (did you mean "ping"?)`,
		`5:10: filter/endpoints[0]: is bad (did you mean "good"?)`,
		"6:7: filter/endpoints[1]: want text in quotes, got a list",
		`7:8: filter/endpoints[2]: is bad (did you mean "good"?)`, // written with an escape: its beginning
		`8:9: filter/endpoints[3]: is bad (did you mean "good"?)`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	wantText := file + ":5:10: filter/endpoints[0]: is bad\n     5 |     - \"+ bad\"\n       |          ^\n         did you mean \"good\"?\n"
	if diff := cmp.Diff(wantText, problems[1].Render()); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(problems.Render(), wantText) {
		t.Error("Problems.Render leaves one out")
	}
}

// TestCheckResolver: wrong resolvers come with all other problems, at their place, from a file,
// the environment and an Edit alike.
func TestCheckResolver(t *testing.T) {
	file := write(t, t.TempDir(), "gatun.yaml", "version: 1\ndns:\n  nameservers:\n    - dns://good\n    - \"dns://bad\"\n  pong: 1\n")
	check := func(text string) (string, string) {
		if strings.Contains(text, "bad") {
			return "is bad", "dns://good"
		}
		return "", ""
	}
	complaintsOf := func(src Source) (got []string) {
		src.CheckResolver = check
		_, err := Load(src)
		var problems Problems
		if err != nil && !errors.As(err, &problems) {
			t.Fatal(err)
		}
		for _, p := range problems {
			got = append(got, strings.TrimPrefix(p.Error(), file+":"))
		}
		return got
	}
	if diff := cmp.Diff([]string{`5:8: dns/nameservers[1]: is bad (did you mean "dns://good"?)`, "6:3: dns/pong: unknown key"}, complaintsOf(Source{File: file})); diff != "" {
		t.Error(diff)
	}
	got := complaintsOf(Source{Env: []string{"GATUN_DNS__NAMESERVERS=[dns://good, bad]"}})
	if len(got) != 1 || !strings.Contains(got[0], "GATUN_DNS__NAMESERVERS") || !strings.Contains(got[0], "is bad") {
		t.Errorf("environment: %q", got)
	}
}
