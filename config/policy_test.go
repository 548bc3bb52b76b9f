package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestDefaultsOfWhatIsMissing: to state the default of what is not built is a warning, to change
// it an error.
func TestDefaultsOfWhatIsMissing(t *testing.T) {
	same := "version: 1\nfilter: {removeOutOfScopeDNS: on, requireEncryption: off}\ntunnel: {use: off, hops: 1, via: \"\"}\nhistory: {keep: 720h}\nprofiles: [{name: a, match: [{path: /a}], tunnel: {use: off}}]\n"
	cfg := load(t, same)
	src := Source{File: cfg.Files()[0]}
	want := []string{
		"gatun.yaml:2:35: filter/requireEncryption: has no effect in this version: it needs inspection",
		"gatun.yaml:3:10: tunnel/use: has no effect in this version: it needs tunnels",
		"gatun.yaml:3:20: tunnel/hops: has no effect in this version: it needs tunnels",
		"gatun.yaml:3:29: tunnel/via: has no effect in this version: it needs tunnels",
		"gatun.yaml:4:11: history/keep: has no effect in this version: it needs the history",
		"gatun.yaml:5:52: profiles[a]/tunnel/use: has no effect in this version: it needs tunnels",
	}
	if diff := cmp.Diff(want, texts(cfg.Warnings(), src)); diff != "" {
		t.Error(diff)
	}
	for _, change := range []string{"requireEncryption: on"} {
		if problems := problemsOf(t, "gatun.yaml", "version: 1\nfilter: {"+change+"}\n"); len(problems) != 1 || !strings.Contains(problems[0], "not available in this version: it needs") {
			t.Errorf("%s: %q", change, problems)
		}
	}
	// Every setting of the table: its default can be stated, whether it is built or not.
	for _, s := range Table() {
		if s.Outside != "" {
			continue
		}
		section, key, _ := strings.Cut(s.Key, "/")
		text, _ := json.Marshal(plain(defaultOf(&s)))
		if problems := problemsOf(t, "gatun.yaml", "version: 1\n"+section+": {"+key+": "+string(text)+"}\n"); problems != nil {
			t.Errorf("%s: its default is refused: %q", s.Key, problems)
		}
	}
	for _, st := range cfg.States() {
		if st.Key == "filter/requireEncryption" && st.Inactive != "no effect in this version: it needs inspection" {
			t.Errorf("%s looks enforced: %+v", st.Key, st)
		}
	}
}

func TestConditionProblems(t *testing.T) {
	got := problemsOf(t, "gatun.yaml", `version: 1
profiles:
  - name: a
    when: {interface: [x], gateway: here, gatewayMAC: 02-xx, address: 10.0.0.1/33, vpn: yes, portal: {}, time: "22:00", ssid: 5, dns: x}
  - {name: b, when: on}
  - {name: c, when: {vpn: on}, match: [{path: /c}]}
  - {name: d, when: {vpn: on}, layers: [c]}
  - {name: e, match: [{path: /e}], layers: [d, c, c, "", 5]}
  - {name: f, match: [{path: /f}], layers: c}
  - {name: g, match: [{path: /g}], layers: [g]}
network:
  ratingRules:
    - danger
    - {rating: [danger], vpn: on}
    - {rating: danger, time: "06:00-06:00"}
`)
	want := []string{
		"gatun.yaml:4:23: profiles[a]/when/interface: want text in quotes, got a list",
		`gatun.yaml:4:37: profiles[a]/when/gateway: want an address such as 192.0.2.1, got "here"`,
		`gatun.yaml:4:55: profiles[a]/when/gatewayMAC: want a hardware address such as 02:00:5e:10:00:01, got "02-xx"`,
		`gatun.yaml:4:71: profiles[a]/when/address: want a network such as 192.0.2.0/24, got "10.0.0.1/33"`,
		`gatun.yaml:4:89: profiles[a]/when/vpn: want on or off, got "yes" (did you mean "on"?)`,
		"gatun.yaml:4:102: profiles[a]/when/portal: want on or off, got a section",
		`gatun.yaml:4:112: profiles[a]/when/time: want a time of day such as 22:00-06:00, got "22:00"`,
		"gatun.yaml:4:127: profiles[a]/when/ssid: want text in quotes, got the number 5",
		"gatun.yaml:4:130: profiles[a]/when/dns: unknown key",
		`gatun.yaml:5:21: profiles[b]/when: want a condition such as {interface: wlan0}, got "on"`,
		"gatun.yaml:6:5: profiles[c]: has match and when: a profile with when is for all programs while the condition holds; want one of them",
		"gatun.yaml:7:5: profiles[d]: has layers and when: a profile with when lies under all others and has no layers of its own",
		"gatun.yaml:7:41: profiles[d]/layers[0]: \"c\" has when: it lies under all profiles while its condition holds, and under none by name",
		"gatun.yaml:8:45: profiles[e]/layers[0]: \"d\" has when: it lies under all profiles while its condition holds, and under none by name",
		"gatun.yaml:8:48: profiles[e]/layers[1]: \"c\" has when: it lies under all profiles while its condition holds, and under none by name",
		`gatun.yaml:8:51: profiles[e]/layers[2]: "c" is named twice`,
		`gatun.yaml:8:54: profiles[e]/layers[3]: want the name of a profile in quotes, got ""`,
		"gatun.yaml:8:58: profiles[e]/layers[4]: want the name of a profile in quotes, got the number 5",
		`gatun.yaml:9:44: profiles[f]/layers: want a list of names of profiles, got "c"`,
		"gatun.yaml:10:45: profiles[g]/layers[0]: the layers go round in a circle: g > g",
		"gatun.yaml:13:7: network/ratingRules[0]: want a rating and conditions as in [{rating: danger, interface: wlan0}], got \"danger\"",
		"gatun.yaml:14:16: network/ratingRules[1]/rating: want trusted, untrusted or danger, got a list",
		`gatun.yaml:15:30: network/ratingRules[2]/time: want a time of day such as 22:00-06:00, got "06:00-06:00"`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestConditions: what is given, in its canonical form; lists of objects add up over drop-ins.
func TestConditions(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir, "gatun.yaml", `version: 1
profiles:
  - name: away
    when: {interface: wlan0, ssid: cafe, dnsSuffix: Cafe.Example., gateway: "::ffff:192.0.2.1", gatewayMAC: 02-00-5E-10-00-01, address: 10.1.2.3/8, vpn: off, portal: on, time: "22:00-06:00"}
  - {name: lone}
network: {ratingRules: [{rating: untrusted, address: 2001:db8::1}]}
`)
	write(t, dir, "conf.d/a.yaml", "network: {ratingRules: [{rating: danger}]}\n")
	src := Source{File: file, Dir: true, Data: OpenData(stateDir(t, "config.json", `{"version": 1, "network": {"ratingRules": [{"rating": "trusted"}]}}`))}
	cfg, err := Load(src)
	if err != nil {
		t.Fatal(err)
	}
	want := `{interface: wlan0, ssid: cafe, dnsSuffix: cafe.example, gateway: "192.0.2.1", gatewayMAC: "02:00:5e:10:00:01", address: "10.0.0.0/8", vpn: off, portal: on, time: "22:00-06:00"}`
	when := cfg.Profiles()[0].When
	if got := when.flow(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if from, to, ok := when.Window(); from != 22*60 || to != 6*60 || !ok {
		t.Errorf("Window: %d %d %v", from, to, ok)
	}
	if got := FormatValue(cfg.Value("network/ratingRules").Any()); got != "[{rating: untrusted, address: 2001:db8::1/128}, {rating: danger}]" {
		t.Errorf("rating rules %s", got)
	}
	if r := cfg.RatingRules(); len(r) != 2 || r[1].File != filepath.Join(dir, "conf.d/a.yaml") || r[0].Line != 6 {
		t.Errorf("positions %+v", r)
	}
	wantWarnings := []string{
		"gatun.yaml:4:30: profiles[away]/when/ssid: never holds in this version: it needs the names of wireless networks",
		"gatun.yaml:5:5: profiles[lone]: never applies: it has no match and no when, and no profile names it in layers",
	}
	if diff := cmp.Diff(wantWarnings, texts(cfg.Warnings(), src)); diff != "" {
		t.Error(diff)
	}
	for text, ok := range map[string]bool{"00:00-24:00": true, "23:59-00:00": true, "24:00-01:00": false, "00:00-24:01": false, "1:00-02:00": false, "": false, "12:60-13:00": false, "aa:bb-cc:dd": false, "12:00-13:00 ": false} {
		if _, _, got := parseWindow(text); got != ok {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// TestDNSSuffix: how it is spelled does not matter, and what is no domain is refused.
func TestDNSSuffix(t *testing.T) {
	for text, want := range map[string]string{`corp.example`: "corp.example", `Corp.Example.`: "corp.example", `.corp`: "corp", `"."`: "", `"a b"`: "", `""`: ""} {
		got := problemsOf(t, "gatun.yaml", "version: 1\nnetwork: {ratingRules: [{rating: danger, dnsSuffix: "+text+"}]}\n")
		if (len(got) == 0) != (want != "") {
			t.Errorf("%s: %v", text, got)
		}
		if want == "" {
			continue
		}
		cfg, err := Load(Source{File: write(t, t.TempDir(), "gatun.yaml", "version: 1\nnetwork: {ratingRules: [{rating: danger, dnsSuffix: "+text+"}]}\n")})
		if err != nil || cfg.RatingRules()[0].When.DNSSuffix != want || len(cfg.Warnings()) != 0 {
			t.Errorf("%s: %+v, %v, warnings %v", text, cfg.RatingRules(), err, cfg.Warnings())
		}
	}
}

// TestOnlineCheck: the page by which it is found out whether one is online.
func TestOnlineCheck(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "off": "", "no": "want the address", "http://check.example/": "", "http://check.example/nm.txt#NetworkManager is online": "want the address",
		"http://check.example/nm.txt#NetworkManager": "", "http://192.0.2.80:8080/x?y": "", "http://[2001:db8::1]/": "",
		"https://check.example/": "plain HTTP", "ftp://check.example/": "plain HTTP", "check.example": "want the address", "http:///x": "want the address",
		"http://a:b@check.example/": "user name", "http://check.example:0/": "a port", "http://check.example:70000/": "a port", "http://%zz/": "want the address",
	} {
		got := problemsOf(t, "gatun.yaml", "version: 1\nnetwork: {onlineCheck: "+strconv.Quote(text)+"}\n")
		if want == "" && len(got) != 0 || want != "" && (len(got) != 1 || !strings.Contains(got[0], want)) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	if m, meant := checkOnlineCheck("https://check.example/"); m == "" || meant != "http://check.example/" {
		t.Errorf("%q, meant %q", m, meant)
	}
}

func TestPresets(t *testing.T) {
	for name, want := range map[string]struct {
		inbound  Grade
		profiles bool
		warnings int
	}{"desktop": {On, true, 0}, "server": {Off, false, 0}, "gateway": {Off, true, 1}} {
		cfg := load(t, "version: 1\npreset: "+name+"\n")
		if cfg.Grade("filter/blockInbound") != want.inbound || cfg.Bool("core/autoProfiles") != want.profiles || len(cfg.Warnings()) != want.warnings {
			t.Errorf("%s: %v %v %v", name, cfg.Grade("filter/blockInbound"), cfg.Bool("core/autoProfiles"), cfg.Warnings())
		}
		if values, _ := preset(name); len(values) > 0 && cfg.Value("filter/blockInbound").Origin.String() != "preset "+name {
			t.Errorf("%s: origin %s", name, cfg.Value("filter/blockInbound").Origin)
		}
	}
}

// TestPrecedence: flag > environment > file > config.json > preset > default, one taken away
// after the other.
func TestPrecedence(t *testing.T) {
	src := Source{
		File:  write(t, t.TempDir(), "gatun.yaml", "version: 1\npreset: server\nfilter: {blockInbound: untrusted}\n"),
		Env:   []string{"GATUN_FILTER__BLOCKINBOUND=trusted"},
		Flags: map[string]string{"filter/blockInbound": "danger"},
		Data:  OpenData(stateDir(t, "config.json", `{"version": 1, "filter": {"blockInbound": "on"}}`)),
	}
	expect := func(value Grade, origin string, pinned bool) {
		t.Helper()
		cfg, err := Load(src)
		if err != nil {
			t.Fatal(err)
		}
		v := cfg.Value("filter/blockInbound")
		i := slices.IndexFunc(cfg.States(), func(st SettingState) bool { return st.Key == "filter/blockInbound" })
		st := cfg.States()[i]
		if v.Any() != value || v.Origin.String() != origin || st.Pinned != pinned || st.Origin != origin || st.Value != value.String() || st.Default != "on" {
			t.Errorf("%v from %s, want %v from %s; state %+v", v.Any(), v.Origin, value, origin, st)
		}
	}
	expect(Danger, "flag filter/blockInbound", true)
	src.Flags = nil
	expect(Trusted, "environment GATUN_FILTER__BLOCKINBOUND", true)
	src.Env = nil
	expect(Untrusted, src.File+":3", true)
	write(t, filepath.Dir(src.File), "gatun.yaml", "version: 1\npreset: server\n")
	expect(On, "config.json", false)
	src.Data = OpenData("")
	expect(Off, "preset server", false)
	src.File = ""
	expect(On, "default", false)
}

// TestReleaseGate: a stored value above the level is kept and comes back, also when level and
// value are changed at run time; in a profile as well.
func TestReleaseGate(t *testing.T) {
	src := Source{Data: OpenData("")}
	must := func(change func(e *Edit)) *Config {
		t.Helper()
		cfg, err := try(t, src, change)
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	stateOf := func(states []SettingState) SettingState {
		return states[slices.IndexFunc(states, func(st SettingState) bool { return st.Key == "filter/autoPermitRelated" })]
	}
	cfg := must(func(e *Edit) {
		e.Set("filter/autoPermitRelated", "on")
		e.PutProfile(NewProfile("a", []Fingerprint{{Type: "path", Op: "equals", Value: "/a"}}, Runtime, nil))
		e.SetInProfile("a", "filter/autoPermitRelated", "on")
	})
	const why = "inactive because core/releaseLevel is stable and this setting is beta"
	of, _ := cfg.ProfileStates("a")
	for _, st := range []SettingState{stateOf(cfg.States()), stateOf(of)} {
		if st.Value != false || st.Stored != true || st.Inactive != why || st.Release != "beta" {
			t.Errorf("%+v", st)
		}
	}
	if !stateOf(of).Set || cfg.Bool("filter/autoPermitRelated") {
		t.Error("a beta setting is used at level stable")
	}
	if p := cfg.Profiles()[0]; func() bool { _, ok := p.Value("filter/autoPermitRelated"); return ok }() {
		t.Error("a beta setting of a profile is used at level stable")
	}
	export, err := cfg.ExportProfiles("a")
	if err != nil || !strings.Contains(string(export), "autoPermitRelated: on") {
		t.Errorf("the export lost what is inactive: %s", export)
	}
	cfg = must(func(e *Edit) { e.Set("core/releaseLevel", "beta") })
	of, _ = cfg.ProfileStates("a")
	for _, st := range []SettingState{stateOf(cfg.States()), stateOf(of)} {
		if st.Value != true || st.Inactive != "" || st.Stored != nil {
			t.Errorf("the stored value did not come back: %+v", st)
		}
	}
}

// TestProfileStates: what holds for a program, over layers, with lists that add up.
func TestProfileStates(t *testing.T) {
	cfg := load(t, `version: 1
filter: {endpoints: ["- *"], blockLAN: danger}
profiles:
  - {name: app, match: [{path: /a}], layers: [near, far], filter: {endpoints: ["+ a"], blockP2P: on}}
  - {name: near, layers: [deep], filter: {endpoints: ["+ near"]}}
  - {name: deep, filter: {blockInternet: on, endpoints: ["+ deep"]}}
  - {name: far, layers: [deep], filter: {blockInternet: off, defaultAction: block}}
  - {name: away, when: {vpn: on}, filter: {blockLAN: off}}
`)
	if got := cfg.LayersOf("app"); !slices.Equal(got, []string{"near", "deep", "far"}) {
		t.Errorf("layers %q", got)
	}
	states, ok := cfg.ProfileStates("app")
	if _, unknown := cfg.ProfileStates("apps"); !ok || unknown {
		t.Error("known and unknown names")
	}
	got := map[string]string{}
	for _, st := range states {
		set := ""
		if st.Set {
			set = "*"
		}
		got[st.Key] = FormatValue(st.Value) + set + " " + strings.TrimPrefix(st.Origin, cfg.Files()[0])
	}
	for key, want := range map[string]string{
		"filter/endpoints": "[+ a, + near, + deep, - *]* :4", "filter/blockP2P": "on* :4", "filter/blockInternet": "on :6",
		"filter/defaultAction": "block :7", "filter/blockLAN": "danger :2", "filter/removeBlockedDNS": "on default",
	} {
		if got[key] != want {
			t.Errorf("%s: %q, want %q", key, got[key], want)
		}
	}
	if _, ok := got["core/mark"]; ok {
		t.Error("a setting that is not per app")
	}
}

// TestStatesJSON: the names that the API and `--json` have, and nothing of what is secret.
func TestStatesJSON(t *testing.T) {
	b, err := json.Marshal(load(t, "version: 1\n").States()[0])
	if err != nil {
		t.Fatal(err)
	}
	want := `{"key":"filter/defaultAction","name":"Default action","description":"What happens to an outgoing connection that no rule mentions.","type":"string","value":"permit","default":"permit","origin":"default","pinned":false,"expertise":"user","release":"stable","per_app":true,"stacked":false,"restart_required":false,"sensitive":false,"possible_values":["permit","block","ask"]}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	keys := &Setting{Type: TypeStrings, Sensitive: true}
	for want, v := range map[string]any{"(set)": []RuleText{{Text: "geheim"}}, "(not set)": []RuleText{}} {
		if st := state(keys, Value{v: v, stored: v, Inactive: "x"}); st.Value != want || st.Stored != want || st.Default != "(not set)" {
			t.Errorf("%+v", st)
		}
	}
	for _, st := range load(t, "version: 1\n").States() { // JSON and back reads the same
		var back any
		b, err := json.Marshal(st.Value)
		if err == nil {
			err = json.Unmarshal(b, &back)
		}
		if err != nil || FormatValue(back) != FormatValue(st.Value) {
			t.Errorf("%s: %v, %v after JSON (%v)", st.Key, st.Value, back, err)
		}
	}
}

// TestWatchData: a hand edit of the data directory is noticed, and what gatun wrote itself is
// the same configuration.
func TestWatchData(t *testing.T) {
	dir := stateDir(t)
	data := OpenData(dir)
	if got := (Source{Data: data}).Paths(); !slices.Equal(got, []string{dir + "/config.json", dir + "/profiles"}) || OpenData("").Paths() != nil {
		t.Errorf("Paths %q", got)
	}
	changes, done := make(chan struct{}, 100), make(chan error, 1)
	go func() { done <- Watch(t.Context(), Source{Data: data}.Paths(), func() { changes <- struct{}{} }) }()
	waitForWatch(t, write(t, dir, "profiles/x.yaml", ""), changes)
	if err := os.Remove(dir + "/profiles/x.yaml"); err != nil {
		t.Fatal(err)
	}
	await := func() {
		t.Helper()
		select {
		case <-changes:
		case <-time.After(30 * time.Second):
			t.Fatal("a change was not noticed")
		}
	}
	await()
	for _, change := range []func(e *Edit){
		func(e *Edit) { e.Set("filter/blockLAN", "on") },
		func(e *Edit) {
			e.PutProfile(NewProfile("a", []Fingerprint{{Type: "path", Op: "equals", Value: "/a"}}, Runtime, nil))
		},
	} {
		before, err := try(t, Source{Data: data}, change)
		if err != nil {
			t.Fatal(err)
		}
		await()
		if after, err := Load(Source{Data: data}); err != nil || !after.Equal(before) {
			t.Errorf("gatun's own write looks like a change: %v", err)
		}
	}
	select {
	case err := <-done:
		t.Error(err)
	default:
	}
}
