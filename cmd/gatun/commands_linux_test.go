package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gatun/api"
	"gatun/attribution"
	"gatun/config"
	"gatun/firewall"
	"gatun/network"
	"gatun/network/packet"
	"gatun/profiles"
	"gatun/status"
)

// owner is the engine of a test: the policy is real, and nobody carries traffic.
type owner struct {
	mu     sync.Mutex
	source config.Source
	cfg    *config.Config
	store  *profiles.Store
	table  *network.Table
	again  int // how often the live flows were decided again
}

func (o *owner) config() *config.Config {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.cfg
}

func (o *owner) change(f func(*config.Edit) error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	source := o.source
	source.Edit = source.Data.Edit()
	if err := f(source.Edit); err != nil {
		return err
	}
	cfg, err := config.Load(source)
	if err == nil {
		err = o.store.Swap(cfg, status.State{})
	}
	if err == nil {
		err = source.Edit.Commit()
	}
	if err != nil {
		return err
	}
	o.cfg = cfg
	o.table.PublishState()
	return nil
}

func (o *owner) policyChanged() int {
	o.again++
	o.table.PublishState()
	return 0
}

// station is a running program as its clients see it.
type station struct {
	*testing.T
	owner   *owner
	control *control
	names   *resolving
	lists   *shelf
	confirm *confirmation
	dir     string
	socket  string
}

const stationFile = `version: 1
filter:
  blockLAN: untrusted
  dnsQueryInterception: off
profiles:
  - name: pinned
    match: [{path: /usr/bin/pinned}]
    filter: {endpoints: ["- *"]}
`

// Status, Reload and Stop implement api.Daemon.
func (s *station) Status() api.Status {
	st := api.Status{Schema: network.Schema, State: "on", Mode: "up", Rating: s.owner.config().String("network/rating"), RatingOrigin: s.owner.config().Value("network/rating").Origin.String()}
	s.control.status(&st)
	if c, note := s.confirm.status(time.Now()); c != nil {
		st.Confirm, st.Notes = c, append(st.Notes, note)
	}
	return st
}
func (s *station) Reload(context.Context) error {
	_, err := config.Load(s.owner.source)
	return err
}
func (s *station) Confirm() error { return s.confirm.confirm(time.Now()) }
func (s *station) Stop()          {}

func (s *station) WhyLink(*network.Link) api.Why            { return api.Why{} }
func (s *station) WhyDry(api.DryRun) (w api.Why, err error) { return w, err }

func newStation(t *testing.T) *station {
	t.Helper()
	dir, err := os.MkdirTemp("", "gtc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	file := filepath.Join(dir, "gatun.yaml")
	if err := os.WriteFile(file, []byte(stationFile), 0o600); err != nil {
		t.Fatal(err)
	}
	o := &owner{table: network.NewTable(time.Now), source: config.Source{File: file, CheckRule: profiles.CheckRule, Data: config.OpenData(filepath.Join(dir, "state"))}}
	if o.cfg, err = config.Load(o.source); err != nil {
		t.Fatal(err)
	}
	if o.store, err = profiles.NewStore(o.cfg, status.State{}, profiles.Options{}); err != nil {
		t.Fatal(err)
	}
	s := &station{T: t, owner: o, names: newResolving(), lists: newShelf(), confirm: &confirmation{}, dir: dir, socket: filepath.Join(dir, "gatun.sock")}
	s.control = &control{owner: o, store: o.store, asked: firewall.NewPrompts(time.Now), table: o.table, alive: func(pid int, _ time.Time) bool { return pid == 7 }, names: s.names, lists: s.lists}
	l, err := api.Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	server := &api.Server{Daemon: s, Flows: o.table, Why: s, Control: s.control, Names: s.names, Lists: s.lists, Database: s.control.database(s.Status)}
	go func() { done <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// run runs a command line against the station.
func (s *station) run(args ...string) (out, talk string, code int) {
	s.Helper()
	return execute(s.T, append(args, "--socket", s.socket)...)
}

// want runs a command line and checks the code and what is said, data and talk together.
func (s *station) want(code int, says string, args ...string) string {
	s.Helper()
	out, talk, got := s.run(args...)
	if got != code || !strings.Contains(out+talk, says) {
		s.Errorf("gatun %s: got %d\n%s%s\nwant %d with %q", strings.Join(args, " "), got, out, talk, code, says)
	}
	return out
}

// json decodes what a command printed.
func (s *station) json(args ...string) map[string]any {
	s.Helper()
	out := s.want(0, "", append(args, "--json")...)
	var m map[string]any
	if err := json.Unmarshal([]byte(out), &m); err != nil {
		s.Fatalf("gatun %v: %v in %q", args, err, out)
	}
	if m["schema"] != "gatun/v1" {
		s.Errorf("gatun %v: schema %v", args, m["schema"])
	}
	return m
}

func (s *station) flow(pid int, path string) *network.Link {
	l, _ := s.owner.table.Link(packet.Flow{Proto: packet.TCP, Local: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), uint16(pid)), Remote: netip.MustParseAddrPort("198.51.100.1:443")})
	p := &attribution.Process{PID: pid, Started: time.Unix(int64(pid), 0), Path: path, Name: filepath.Base(path), Kind: attribution.KindProgram}
	s.owner.table.Bind(l, &network.Communication{Owner: attribution.Owner{Process: p, Confidence: attribution.Exact}, Profile: filepath.Base(path)})
	s.owner.table.Decide(l, network.Decision{Verdict: network.Accept})
	return l
}

func TestSettingsCommands(t *testing.T) {
	s := newStation(t)
	list := s.want(0, "filter/blockLAN", "settings", "list", "--origin")
	for _, want := range []string{"KEY", "ORIGIN", "gatun.yaml:3", "untrusted", "default"} {
		if !strings.Contains(list, want) {
			t.Errorf("no %q in\n%s", want, list)
		}
	}
	if strings.Contains(list, "core/releaseLevel") || strings.Contains(s.want(0, "", "settings", "list"), "gatun.yaml") {
		t.Error("shows what it was not asked for")
	}
	s.want(0, "inactive because core/releaseLevel is stable", "settings", "list", "--origin", "--level", "developer")
	s.want(2, "guru", "settings", "list", "--level", "guru")
	if got := s.json("settings", "list", "--level", "expert"); got["level"] != "expert" || len(got["settings"].([]any)) < 10 {
		t.Errorf("got %v", got["level"])
	}
	s.want(0, "untrusted", "settings", "show", "filter/blockLAN")
	if got := s.json("settings", "show", "filter/blockLAN"); got["value"] != "untrusted" || got["pinned"] != true {
		t.Errorf("got %v", got)
	}
	s.want(3, "filter/blockLAN", "settings", "show", "filter/blocklan")

	s.want(0, "filter/blockInternet is danger (config.json)", "settings", "set", "filter/blockInternet", "danger")
	s.want(0, "danger", "settings", "show", "filter/blockInternet")
	s.want(0, "is off (default)", "settings", "unset", "filter/blockInternet")
	s.want(0, `["- RU", "+ *"]`, "settings", "set", "filter/endpoints", "- RU", "+ *")
	s.want(0, `["- .ads.example"]`, "settings", "set", "filter/endpoints", "- .ads.example")
	if got := s.json("settings", "set", "filter/removeBlockedDNS", "off"); got["value"] != false || got["key"] != "filter/removeBlockedDNS" {
		t.Errorf("got %v", got)
	}
	s.want(1, "gatun.yaml:3", "settings", "set", "filter/blockLAN", "on")
	s.want(1, "gatun.yaml:3", "settings", "unset", "filter/blockLAN")
	s.want(3, "on", "settings", "set", "filter/blockInternet", "yes")
	s.want(3, "filter/blockLAN", "settings", "set", "blockLAN", "on")
	s.want(3, "US", "settings", "set", "filter/endpoints", "- us")
	s.want(2, "", "settings", "set", "filter/blockInternet")
	s.want(2, "", "settings", "unset")
	s.want(2, "say what", "settings")
	s.want(2, "unknown command", "settings", "frob")
}

// A rule list begins with a dash: it must not be taken for a flag.
func TestRulesAreNoFlags(t *testing.T) {
	s := newStation(t)
	s.want(0, `"-- RU"`, "settings", "set", "filter/endpoints", "-- RU")
	s.want(0, `"? *"`, "settings", "set", "filter/endpoints", "? *", "+ *")
}

func TestSettingsWithoutADaemon(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "gatun.yaml")
	if err := os.WriteFile(file, []byte(stationFile), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", dir)
	want := func(code int, says string, args ...string) {
		t.Helper()
		out, talk, got := execute(t, append(args, "--state", state)...)
		if got != code || !strings.Contains(out+talk, says) {
			t.Errorf("gatun %v: got %d\n%s%s\nwant %d with %q", args, got, out, talk, code, says)
		}
	}
	want(0, "gatun.yaml:3", "settings", "list", "--origin", "-c", file)
	want(0, "untrusted", "settings", "show", "filter/blockLAN", "-c", file)
	want(0, "filter/blockLAN", "settings", "list")
	want(0, "not running: it holds from the next start on", "settings", "set", "filter/blockInternet", "on")
	want(0, "config.json", "settings", "list", "--origin")
	want(3, "want off", "settings", "set", "filter/blockInternet", "maybe")
	want(3, "US", "settings", "set", "filter/endpoints", "- us")
	want(3, "filter/blockLAN", "settings", "set", "blockLAN", "on")
	want(0, "default", "settings", "unset", "filter/blockInternet")
	want(0, `"$schema"`, "schema")
	for _, args := range [][]string{
		{"profile", "list"}, {"profile", "show", "x"}, {"profile", "set", "x", "filter/blockLAN", "on"}, {"profile", "export"}, {"profile", "edit", "x"},
		{"allow", "curl", "LAN"}, {"block", "curl", "LAN"}, {"pause"}, {"pause", "5m"}, {"pause", "--off"}, {"rating"}, {"rating", "danger"},
		{"prompt"}, {"prompt", "list"}, {"prompt", "allow", "1"}, {"status", "--watch"}, {"settings", "list", "--watch"},
	} {
		want(5, "not running", args...)
	}
}

func TestProfileCommands(t *testing.T) {
	s := newStation(t)
	s.want(0, "pinned", "profile", "list")
	if list := s.json("profile", "list")["profiles"].([]any); list[0].(map[string]any)["name"] != "pinned" {
		t.Errorf("got %v", list)
	}
	file := filepath.Join(s.dir, "made.yaml")
	if err := os.WriteFile(file, []byte("version: 1\nprofiles:\n  - name: made\n    match: [{path: /usr/bin/made}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.want(0, "imported made", "profile", "import", file)
	s.want(0, "filter/blockLAN is on", "profile", "set", "made", "filter/blockLAN", "on")
	if got := s.json("profile", "set", "made", "filter/endpoints", "+ LAN", "- *"); fmt.Sprint(got["value"]) != "[+ LAN - *]" || got["profile"] != "made" {
		t.Errorf("got %v", got)
	}
	s.want(0, "/usr/bin/made", "profile", "show", "made")
	s.want(0, "/usr/bin/made has the profile made: path equals /usr/bin/made", "profile", "show", "/usr/bin/made")
	s.want(0, "/usr/bin/other has no profile of its own", "profile", "show", "/usr/bin/other")
	shown := s.json("profile", "show", "made")
	if shown["name"] != "made" || shown["origin"] != "runtime" || !strings.Contains(shown["yaml"].(string), "+ LAN") {
		t.Errorf("got %v", shown)
	}
	exported := s.want(0, "+ LAN", "profile", "export", "made")
	s.want(0, "is untrusted", "profile", "unset", "made", "filter/blockLAN")
	if err := os.WriteFile(file, []byte(exported), 0o600); err != nil {
		t.Fatal(err)
	}
	s.want(0, "made", "profile", "import", file)
	if again := s.want(0, "", "profile", "export", "made"); again != exported {
		t.Errorf("was\n%sis\n%s", exported, again)
	}
	s.want(1, "gatun.yaml", "profile", "set", "pinned", "filter/blockInternet", "on")
	s.want(1, "no profile", "profile", "set", "nobody", "filter/blockInternet", "on")
	s.want(3, "want off", "profile", "set", "made", "filter/blockInternet", "maybe")
	s.want(3, "core/logLevel", "profile", "set", "made", "core/logLevel", "debug")
	s.want(1, "nobody", "profile", "show", "nobody")
	s.want(1, "nobody", "profile", "export", "nobody")
	if err := os.WriteFile(file, []byte("version: 1\nprofiles:\n  - name: made\n    mtch: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.want(3, file+":4", "profile", "import", file)
	s.want(1, "no such file", "profile", "import", file+".none")
	s.want(0, "", "profile", "delete", "made")
	s.want(1, "made", "profile", "show", "made")
	s.want(2, "", "profile", "show")
}

// The editor comes back with the errors until the text is right.
func TestProfileEdit(t *testing.T) {
	if _, err := exec.LookPath("sed"); err != nil {
		t.Skip("needs sed")
	}
	s := newStation(t)
	s.want(0, "", "allow", "/usr/bin/made", "LAN")
	editor := filepath.Join(s.dir, "editor")
	script := func(text string) {
		t.Helper()
		if err := os.WriteFile(editor, []byte("#!/bin/sh\necho run >>"+s.dir+"/runs\n"+text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("VISUAL", "")
	t.Setenv("EDITOR", editor)

	script("exit 0\n")
	s.want(0, "nothing was changed", "profile", "edit", "made")
	// First a mistake; the second time the errors are on top and the mistake is mended.
	script(`if grep -q '^#! .*mtch' "$1"; then sed -i s/mtch/match/ "$1"; else sed -i s/match/mtch/ "$1"; fi` + "\n" + `sed -i 's/+ LAN/- LAN/' "$1"` + "\n")
	s.want(0, "", "profile", "edit", "made")
	if got := s.want(0, "- LAN", "profile", "export", "made"); strings.Contains(got, "#!") {
		t.Errorf("the errors were kept: %s", got)
	}
	// The same mistake twice: nothing is changed, and the errors are told.
	script(`sed -i s/match/mtch/ "$1"` + "\n")
	s.want(3, "mtch", "profile", "edit", "made")
	s.want(0, "- LAN", "profile", "export", "made")
	script("exit 7\n")
	s.want(1, "nothing was changed", "profile", "edit", "made")
	s.want(1, "nobody", "profile", "edit", "nobody")
	script(`sed -i 's/- \*/+ LAN/' "$1"` + "\n")
	s.want(1, "gatun.yaml", "profile", "edit", "pinned")
	if runs, _ := os.ReadFile(s.dir + "/runs"); strings.Count(string(runs), "run") != 7 {
		t.Errorf("the editor ran %d times", strings.Count(string(runs), "run"))
	}
}

func TestAllowAndBlock(t *testing.T) {
	s := newStation(t)
	s.want(0, `"+ .example.org TCP/443" until 20`, "allow", "pinned", ".example.org", "TCP/443", "--for", "10m")
	if s.owner.again != 1 {
		t.Errorf("live flows were decided again %d times", s.owner.again)
	}
	s.want(0, `+ .example.org TCP/443`, "status")
	st := s.json("status")
	list := st["temporary"].([]any)
	if len(list) != 1 || list[0].(map[string]any)["profile"] != "pinned" {
		t.Fatalf("got %v", st["temporary"])
	}
	if got := s.owner.store.For(attribution.Owner{Process: &attribution.Process{Path: "/usr/bin/pinned", Kind: attribution.KindProgram}, Confidence: attribution.Exact}); len(got.Endpoints) != 2 {
		t.Errorf("the rule is not in force: %d layers", len(got.Endpoints))
	}
	s.want(1, "gatun.yaml:8", "allow", "pinned", "LAN")
	s.want(1, "--for", "allow", "pinned", "LAN")

	s.want(0, "(new profile)", "block", "/usr/bin/new", "LAN")
	made := s.json("allow", "new", "192.0.2.1", "UDP/53")
	if made["profile"] != "new" || made["rule"] != "+ 192.0.2.1 UDP/53" || made["for"] != "always" || made["created"] != false {
		t.Errorf("got %v", made)
	}
	s.want(0, "+ 192.0.2.1 UDP/53", "profile", "show", "new")
	sh, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	s.want(0, filepath.Base(sh), "block", "sh", "LAN") // found in $PATH, known by its binary
	s.want(0, sh, "profile", "list")

	s.want(1, "say how long", "allow", "new", "LAN", "--for", "exit")
	s.flow(7, "/usr/bin/new")
	s.flow(8, "/usr/bin/new") // has ended since
	s.want(0, "until process 7 ends", "allow", "/usr/bin/new", "LAN", "--for", "exit")

	s.want(2, "--for", "allow", "new", "LAN", "--for", "soon")
	s.want(3, "US", "allow", "new", "us")
	s.want(1, "absolute path", "allow", "no-such-program-anywhere", "LAN")
	s.want(2, "", "allow", "new")
	s.want(2, "", "allow", "a", "b", "c", "d")
}

func TestPauseCommand(t *testing.T) {
	s := newStation(t)
	s.want(0, "not paused", "pause")
	s.want(0, "PAUSED", "pause", "5m")
	s.want(0, "PAUSED", "status")
	if st := s.json("status"); st["paused_until"] == nil {
		t.Errorf("got %v", st["paused_until"])
	}
	if got := s.json("pause"); got["paused"] != true || got["paused_until"] == nil {
		t.Errorf("got %v", got)
	}
	s.want(0, "not paused", "pause", "--off")
	if s.owner.again != 2 {
		t.Errorf("live flows were decided again %d times", s.owner.again)
	}
	for _, wrong := range []string{"25h", "0", "-5m", "soon"} {
		s.want(2, "", "pause", wrong)
	}
	s.want(2, "either", "pause", "5m", "--off")
}

// An edit of the file that cannot be used is told as `check` would, by its exit code too.
func TestReloadRefused(t *testing.T) {
	s := newStation(t)
	s.want(0, "", "reload")
	file := s.owner.source.File
	if err := os.WriteFile(file, []byte("version: 1\nfilter: {blockLAN: yess}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.want(3, file+":2:20: filter/blockLAN", "reload")
}

func TestRatingCommand(t *testing.T) {
	s := newStation(t)
	s.want(0, "trusted (default)", "rating")
	s.want(0, "danger (config.json)", "rating", "danger")
	if got := s.json("rating"); got["rating"] != "danger" || got["origin"] != "config.json" {
		t.Errorf("got %v", got)
	}
	if got := s.json("status"); got["rating"] != "danger" || got["rating_origin"] != "config.json" {
		t.Errorf("got %v", got)
	}
	s.want(0, "trusted (default)", "rating", "auto")
	s.want(2, "purple", "rating", "purple")
}

// hold makes a flow wait for a person and returns what it was told in the end.
func (s *station) hold(pid int, domain string) <-chan network.Decision {
	s.Helper()
	p := &attribution.Process{PID: pid, Path: "/usr/bin/asker", Name: "asker", Kind: attribution.KindProgram}
	c := &network.Communication{Owner: attribution.Owner{Process: p, Confidence: attribution.Exact}, Entity: network.Entity{Domain: domain}, Profile: "asker"}
	w, d := s.control.asked.Hold(c, packet.Flow{Proto: packet.TCP, Remote: netip.MustParseAddrPort("198.51.100.1:443")},
		network.Decision{Stage: network.StagePrompt, Setting: "filter/defaultAction"}, &profiles.Settings{AskTimeout: time.Minute})
	if w == nil {
		s.Fatalf("not held: %+v", d)
	}
	told := make(chan network.Decision, 1)
	go func() {
		d, _ := w.Wait(nil, nil)
		w.Leave()
		told <- d
	}()
	return told
}

func TestPromptCommands(t *testing.T) {
	s := newStation(t)
	var remembered []firewall.Answer
	s.control.asked.Remember = func(_ firewall.PromptInfo, a firewall.Answer) error {
		if a.For.UntilExit {
			return config.Problems{{Message: "is set in gatun.yaml:8; change it there"}}
		}
		remembered = append(remembered, a)
		return nil
	}
	if got := s.json("prompt"); fmt.Sprint(got["prompts"]) != "[]" {
		t.Errorf("got %v", got)
	}
	first, second := s.hold(7, "www.example.org"), s.hold(7, "a.example.com")
	s.want(0, "example.org", "prompt", "list")
	s.want(0, "2 wait for an answer", "status")
	list := s.json("prompt", "list")["prompts"].([]any)
	q := list[0].(map[string]any)
	if len(list) != 2 || q["program"] != "asker" || q["domain"] != "example.org" || q["flows"] != 1.0 || q["state"] != "waiting" {
		t.Fatalf("got %v", list)
	}
	s.want(1, "gatun.yaml:8", "prompt", "allow", q["id"].(string), "--for", "exit")
	if got := s.json("prompt", "allow", q["id"].(string)); got["answered"] != q["id"] || got["for"] != "once" || got["action"] != "allow" {
		t.Errorf("got %v", got)
	}
	if d := <-first; d.Verdict != network.Accept {
		t.Errorf("got %+v", d)
	}
	s.want(1, "no such prompt", "prompt", "allow", q["id"].(string))
	s.want(0, "", "prompt", "block", list[1].(map[string]any)["id"].(string), "--for", "2d")
	if d := <-second; d.Verdict != network.Block || len(remembered) != 1 || remembered[0].For.Time != 48*time.Hour || remembered[0].By == "" {
		t.Errorf("got %+v, %+v", d, remembered)
	}
	s.want(2, "--for", "prompt", "allow", "1", "--for", "soon")
	s.want(2, "", "prompt", "allow")
	s.want(2, "unknown command", "prompt", "maybe")
}

func TestPromptsAreAskedOneAfterTheOther(t *testing.T) {
	s := newStation(t)
	first, second, third := s.hold(7, "one.example"), s.hold(7, "two.example"), s.hold(7, "three.example")
	s.control.asked.Remember = func(firewall.PromptInfo, firewall.Answer) error { return errors.New("disk full") }
	var out bytes.Buffer
	typed := "what\na soon\nb always\nb\ns\nallow once\n"
	if err := askAll(t.Context(), api.NewClient(s.socket), strings.NewReader(typed), &out, time.Now); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"asker wants one.example", "/usr/bin/asker", "198.51.100.1:443", "1 flows", "s left, then block", "2 more", `"what" is neither`, "10m", "disk full", "No question waits"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if d := <-first; d.Verdict != network.Block {
		t.Errorf("first: %+v", d)
	}
	if d := <-third; d.Verdict != network.Accept {
		t.Errorf("third: %+v", d)
	}
	select {
	case d := <-second:
		t.Errorf("skipped, and got %+v", d)
	default:
	}
	out.Reset()
	if err := askAll(t.Context(), api.NewClient(s.socket), strings.NewReader("q\n"), &out, time.Now); err != nil || strings.Contains(out.String(), "No question") {
		t.Errorf("quit: %v\n%s", err, out.String())
	}
	for _, q := range s.control.asked.List() {
		_ = s.control.asked.Answer(q.ID, firewall.Answer{})
	}
	<-second
}

// screen collects what a command prints while it runs.
type screen struct {
	mu   sync.Mutex
	text string
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text += string(b)
	return len(b), nil
}

func (s *screen) has(part string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.text, part)
}

// watch runs a command until the test ends it.
func (s *station) watch(args ...string) (shown *screen, end func()) {
	s.Helper()
	ctx, cancel := context.WithCancel(s.Context())
	shown = &screen{}
	root := newRoot(shown, new(bytes.Buffer))
	root.SetArgs(append(args, "--watch", "--socket", s.socket))
	done := make(chan error, 1)
	go func() { done <- root.ExecuteContext(ctx) }()
	return shown, func() {
		s.Helper()
		cancel()
		if err := <-done; err != nil {
			s.Errorf("gatun %v: %v", args, err)
		}
	}
}

// A watch shows what is there, follows, and ends with its context.
func TestWatch(t *testing.T) {
	s := newStation(t)
	settings, endSettings := s.watch("settings", "list", "--json")
	await(t, func() bool { return settings.has(`"key":"settings/core/apiKeys"`) })
	state, endState := s.watch("status")
	await(t, func() bool { return state.has("trusted (default)") })
	rating, endRating := s.watch("rating")
	await(t, func() bool { return rating.has(`status/rating "trusted"`) })
	prompts, endPrompts := s.watch("prompt", "list")

	s.want(0, "", "settings", "set", "filter/blockInternet", "danger")
	await(t, func() bool { return settings.has(`"value":"danger"`) })
	s.want(0, "", "rating", "danger")
	await(t, func() bool { return rating.has(`status/rating "danger"`) && state.has("danger (config.json)") })
	s.want(0, "", "pause", "5m")
	await(t, func() bool { return state.has("PAUSED") })
	told := s.hold(7, "a.example")
	s.owner.table.PublishState()
	await(t, func() bool { return prompts.has(`put prompts/1 {"id":"1"`) })
	s.want(0, "", "prompt", "block", "1")
	<-told
	await(t, func() bool { return prompts.has("delete prompts/1") })
	for _, end := range []func(){endSettings, endState, endRating, endPrompts} {
		end()
	}
}

// A filter holds for what is watched as well.
func TestWatchFlows(t *testing.T) {
	s := newStation(t)
	all, endAll := s.watch("flows")
	some, endSome := s.watch("flows", "--process", "b", "--json")
	for pid := 1; !all.has("a[") || !some.has(`"name":"b"`); pid += 2 { // until both watch
		s.flow(pid, "/usr/bin/a")
		s.flow(pid+1, "/usr/bin/b")
		if pid > 1000 {
			t.Fatal("nothing is shown")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if some.has(`"name":"a"`) {
		t.Errorf("the filter does not hold: %s", some.text)
	}
	endAll()
	endSome()
}

func await(t *testing.T, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen within 5 s")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestCompletion(t *testing.T) {
	s := newStation(t)
	complete := func(args ...string) string {
		t.Helper()
		out, _, _ := execute(t, append([]string{"__complete", "--socket", s.socket}, args...)...)
		return out
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"settings", "set", ""}, "filter/blockLAN\tBlock LAN access"},
		{[]string{"settings", "set", "filter/blockLAN", ""}, "untrusted\n"},
		{[]string{"settings", "set", "filter/removeBlockedDNS", ""}, "off\n"},
		{[]string{"settings", "set", "filter/defaultAction", ""}, "permit\n"},
		{[]string{"settings", "list", "--level", ""}, "developer\n"},
		{[]string{"profile", "show", ""}, "pinned\n"},
		{[]string{"profile", "set", "pinned", ""}, "filter/endpoints\t"},
		{[]string{"profile", "set", "pinned", "filter/blockLAN", ""}, "danger\n"},
		{[]string{"allow", ""}, "pinned\n"},
		{[]string{"rating", ""}, "auto\n"},
		{[]string{"prompt", "allow", "--for", ""}, "exit\n"},
		{[]string{""}, "completion"},
	} {
		if out := complete(tt.args...); !strings.Contains(out, tt.want) {
			t.Errorf("%q: no %q in\n%s", tt.args, tt.want, out)
		}
	}
	if out := complete("profile", "set", "pinned", ""); strings.Contains(out, "core/logLevel") {
		t.Errorf("a profile cannot set that:\n%s", out)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out, talk, code := execute(t, "completion", shell); code != 0 || !strings.Contains(out, "gatun") {
			t.Errorf("%s: %d %s", shell, code, talk)
		}
	}
	if _, _, code := execute(t, "completion", "csh"); code != 2 {
		t.Errorf("an unknown shell: %d", code)
	}
}
