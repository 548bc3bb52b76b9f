package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gatun/config"
	"gatun/network"
	"gatun/profiles"
)

// policy is a Control over real configuration and its data on disk; what is beside that is as
// simple as it can be.
type policy struct {
	source config.Source
	cfg    *config.Config

	temporary []profiles.Temporary
	running   []Running
	paused    time.Time
	prompts   []Prompt
	answers   []Answer
	table     *network.Table
}

const humansFile = `version: 1
filter:
  blockLAN: untrusted
profiles:
  - name: pinned
    match: [{path: /usr/bin/pinned}]
    filter: {endpoints: ["- *"]}
  - name: free
    match: [{path: /usr/bin/free}]
    filter: {defaultAction: block}
`

func newPolicy(t *testing.T, table *network.Table) *policy {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "gatun.yaml")
	if err := os.WriteFile(file, []byte(humansFile), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &policy{table: table, source: config.Source{File: file, CheckRule: profiles.CheckRule, Data: config.OpenData(filepath.Join(dir, "state"))}}
	cfg, err := config.Load(p.source)
	if err != nil {
		t.Fatal(err)
	}
	p.cfg = cfg
	return p
}

func (p *policy) Config() *config.Config { return p.cfg }

func (p *policy) Change(f func(*config.Edit) error) error {
	source := p.source
	source.Edit = source.Data.Edit()
	if err := f(source.Edit); err != nil {
		return err
	}
	cfg, err := config.Load(source)
	if err != nil {
		return err
	}
	if err := source.Edit.Commit(); err != nil {
		return err
	}
	p.cfg = cfg
	p.table.PublishState()
	return nil
}

func (p *policy) Profiles() []profiles.Info {
	var list []profiles.Info
	for _, s := range p.cfg.Profiles() {
		list = append(list, profiles.Info{Name: s.Name, Origin: s.Origin.String(), Match: []string{}, Layers: []profiles.LayerInfo{}})
	}
	return append(list, profiles.Info{Name: "unidentified", Origin: builtIn, Match: []string{}, Layers: []profiles.LayerInfo{}})
}

func (p *policy) Match(path string) profiles.MatchReport {
	for _, s := range p.cfg.Profiles() {
		if slices.ContainsFunc(s.Match, func(f config.Fingerprint) bool { return f.Value == path }) {
			return profiles.MatchReport{Profile: s.Name, Fingerprint: "path equals " + path, Ties: []string{}, Layers: []profiles.LayerInfo{}}
		}
	}
	return profiles.MatchReport{Profile: "global", Ties: []string{}, Layers: []profiles.LayerInfo{}}
}

func (p *policy) Temporaries() []profiles.Temporary { return p.temporary }

func (p *policy) AddTemporary(t profiles.Temporary) (profiles.Temporary, error) {
	t.ID = fmt.Sprint(len(p.temporary) + 1)
	p.temporary = append(p.temporary, t)
	return t, nil
}

func (p *policy) RemoveTemporary(id string) bool {
	n := len(p.temporary)
	p.temporary = slices.DeleteFunc(p.temporary, func(t profiles.Temporary) bool { return t.ID == id })
	return len(p.temporary) < n
}

func (p *policy) Running(string, string) []Running { return p.running }
func (p *policy) Pause(until time.Time)            { p.paused = until }
func (p *policy) Paused() time.Time                { return p.paused }
func (p *policy) Prompts() []Prompt                { return p.prompts }

func (p *policy) Answer(id string, a Answer) error {
	if !slices.ContainsFunc(p.prompts, func(q Prompt) bool { return q.ID == id }) {
		return fmt.Errorf("no such prompt: %w", ErrNotFound)
	}
	p.answers = append(p.answers, a)
	return nil
}

func (p *policy) database(d *daemon) *network.Database {
	return network.NewDatabase(map[string]network.Source{
		"flows": d.table.Flows(), "communications": d.table.Communications(), "settings": settingSource{p},
	})
}

type settingSource struct{ p *policy }

func (s settingSource) Get(key string) (any, bool) { return FindSetting(s.p.cfg.States(), key) }

func (s settingSource) Query(prefix string) []network.Record {
	var list []network.Record
	for _, st := range s.p.cfg.States() {
		if strings.HasPrefix(st.Key, prefix) {
			list = append(list, network.Record{Key: st.Key, Value: st})
		}
	}
	return list
}

// answer is one answer of the server.
type response struct {
	code int
	kind string
	body string
}

// json decodes the body as a client that knows nothing of our types does.
func (r response) json(t *testing.T) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(r.body), &m); err != nil {
		t.Fatalf("%v in %q", err, r.body)
	}
	return m
}

// send makes a request over the socket. A body that begins with { is JSON, any other YAML.
func (d *daemon) send(t *testing.T, method, path, body string) response {
	t.Helper()
	kind := ""
	switch {
	case strings.HasPrefix(body, "{"):
		kind = typeJSON
	case body != "":
		kind = typeYAML
	}
	return d.sendAs(t, method, path, kind, []byte(body))
}

func (d *daemon) sendAs(t *testing.T, method, path, kind string, body []byte) response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://gatun"+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	res, err := d.client.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response{code: res.StatusCode, kind: res.Header.Get("Content-Type"), body: string(b)}
}

// want sends a request and checks the code and what the answer says.
func (d *daemon) want(t *testing.T, code int, says, method, path, body string) response {
	t.Helper()
	r := d.send(t, method, path, body)
	if r.code != code || !strings.Contains(r.body, says) {
		t.Errorf("%s %s %s: got %d %s, want %d with %q", method, path, body, r.code, r.body, code, says)
	}
	return r
}

func TestSettings(t *testing.T) {
	d := start(t)
	list := d.want(t, 200, "", "GET", "/v1/settings", "").json(t)
	if list["level"] != "user" || list["expertise_level"] != "user" || list["release_level"] != "stable" || list["schema"] != "gatun/v1" {
		t.Errorf("got %v", list)
	}
	keys := func(level string) map[string]bool {
		m := map[string]bool{}
		for _, s := range d.want(t, 200, "", "GET", "/v1/settings?level="+level, "").json(t)["settings"].([]any) {
			m[s.(map[string]any)["key"].(string)] = true
		}
		return m
	}
	user, expert, developer := keys("user"), keys("expert"), keys("developer")
	if !user["filter/blockLAN"] || user["filter/blockLocal"] || !expert["filter/blockLocal"] || expert["core/releaseLevel"] || !developer["core/releaseLevel"] {
		t.Errorf("%d, %d, %d settings", len(user), len(expert), len(developer))
	}
	if len(developer) != len(config.Table()) {
		t.Errorf("a developer sees %d of %d settings", len(developer), len(config.Table()))
	}
	d.want(t, 400, "level", "GET", "/v1/settings?level=guru", "")

	d.want(t, 200, `"value":"off"`, "GET", "/v1/settings/filter/blockInternet", "")
	set := d.want(t, 200, "", "PUT", "/v1/settings/filter/blockInternet", `{"value":"danger"}`).json(t)
	if set["key"] != "filter/blockInternet" || set["value"] != "danger" || set["origin"] != "config.json" || set["pinned"] != false {
		t.Errorf("got %v", set)
	}
	d.want(t, 200, `"value":"danger"`, "GET", "/v1/settings/filter/blockInternet", "")
	d.want(t, 200, `"origin":"default"`, "DELETE", "/v1/settings/filter/blockInternet", "")
	d.want(t, 200, `"value":true`, "PUT", "/v1/settings/filter/removeBlockedDNS", `{"value":true}`)
	d.want(t, 200, `["- RU","+ *"]`, "PUT", "/v1/settings/filter/endpoints", `{"value":["- RU","+ *"]}`)
}

func TestSettingsRefused(t *testing.T) {
	d := start(t)
	pinned := d.want(t, 409, "gatun.yaml:3", "PUT", "/v1/settings/filter/blockLAN", `{"value":"on"}`).json(t)
	problems, _ := pinned["problems"].([]any)
	if len(problems) != 1 || problems[0].(map[string]any)["line"] != 3.0 || problems[0].(map[string]any)["key"] != "filter/blockLAN" {
		t.Errorf("got %v", pinned)
	}
	wrong := d.want(t, 400, "yes", "PUT", "/v1/settings/filter/blockInternet", `{"value":"yes"}`).json(t)
	problems, _ = wrong["problems"].([]any)
	if len(problems) != 1 || problems[0].(map[string]any)["suggestion"] == "" {
		t.Errorf("got %v", wrong)
	}
	for _, tt := range []struct {
		code               int
		says, method, path string
		body               string
	}{
		{404, "filter/blockLAN", "GET", "/v1/settings/filter/blocklan", ""},
		{404, "filter/blockLAN", "PUT", "/v1/settings/blockLAN", `{"value":"on"}`},
		{404, "unknown setting", "DELETE", "/v1/settings/filter/nonsense", ""},
		{400, "endpoints", "PUT", "/v1/settings/filter/endpoints", `{"value":["+ us"]}`},
		{400, "want", "PUT", "/v1/settings/filter/blockInternet", `{"value":7}`},
		{400, "want", "PUT", "/v1/settings/filter/blockInternet", `{"value":{"a":1}}`},
		{400, "value", "PUT", "/v1/settings/filter/blockInternet", `{}`},
		{400, "value", "PUT", "/v1/settings/filter/blockInternet", `{"value":null}`},
		{400, "vlaue", "PUT", "/v1/settings/filter/blockInternet", `{"vlaue":"on"}`},
		{400, "more than one", "PUT", "/v1/settings/filter/blockInternet", `{"value":"on"}{"value":"on"}`},
		{400, "cannot be read", "PUT", "/v1/settings/filter/blockInternet", `{"value":`},
		{415, "Content-Type", "PUT", "/v1/settings/filter/blockInternet", `value=on`},
		{413, "MiB", "PUT", "/v1/settings/filter/blockInternet", `{"value":"` + strings.Repeat("x", maxBody) + `"}`},
	} {
		d.want(t, tt.code, tt.says, tt.method, tt.path, tt.body)
	}
	if r := d.sendAs(t, "PUT", "/v1/settings/filter/blockInternet", "application/x-www-form-urlencoded", []byte(`{"value":"on"}`)); r.code != 415 {
		t.Errorf("what a form can send: got %d", r.code)
	}
	d.want(t, 200, `"origin":"default"`, "GET", "/v1/settings/filter/blockInternet", "")
}

func TestRating(t *testing.T) {
	d := start(t)
	d.want(t, 200, `"rating":"untrusted"`, "PUT", "/v1/rating", `{"rating":"untrusted"}`)
	if got := d.want(t, 200, "", "GET", "/v1/rating", "").json(t); got["rating"] != "untrusted" || got["origin"] != "config.json" {
		t.Errorf("got %v", got)
	}
	d.want(t, 200, `"rating":"trusted"`, "PUT", "/v1/rating", `{"rating":"auto"}`)
	d.want(t, 200, `"rating":"danger"`, "PUT", "/v1/rating", `{"rating":"danger"}`)
	d.want(t, 200, `"origin":"default"`, "DELETE", "/v1/rating", "")
	d.want(t, 400, "danger", "PUT", "/v1/rating", `{"rating":"purple"}`)
	d.want(t, 400, "rating", "PUT", "/v1/rating", `{}`)
}

func TestSchema(t *testing.T) {
	d := start(t)
	r := d.want(t, 200, "filter", "GET", "/v1/schema", "")
	if r.json(t)["$schema"] == nil || r.kind != "application/schema+json" {
		t.Errorf("got %s %.80s", r.kind, r.body)
	}
}

const madeProfile = `version: 1
profiles:
  - name: made
    match: [{path: /usr/bin/made}]
    filter: {defaultAction: block, endpoints: ["+ .example.org TCP/443"]}
`

func TestProfiles(t *testing.T) {
	d := start(t)
	d.want(t, 200, `"name":"pinned"`, "GET", "/v1/profiles", "")
	d.want(t, 200, `"name":"unidentified"`, "GET", "/v1/profiles/unidentified", "")
	d.want(t, 404, "profile list", "GET", "/v1/profiles/nobody", "")
	d.want(t, 404, "profile list", "DELETE", "/v1/profiles/nobody", "")

	made := d.want(t, 200, `"origin":"runtime"`, "PUT", "/v1/profiles/made", madeProfile).json(t)
	if made["name"] != "made" || !strings.Contains(made["yaml"].(string), ".example.org") || len(made["settings"].([]any)) == 0 {
		t.Errorf("got %v", made)
	}
	d.want(t, 200, `"value":"ask"`, "PUT", "/v1/profiles/made/settings/filter/defaultAction", `{"value":"ask"}`)
	got := d.want(t, 200, `"profile":"made"`, "DELETE", "/v1/profiles/made/settings/filter/defaultAction", "").json(t)
	if got["value"] != "permit" || got["key"] != "filter/defaultAction" {
		t.Errorf("got %v", got)
	}
	d.want(t, 200, `"profile":"made"`, "GET", "/v1/profiles/made/settings/filter/blockLAN", "")
	d.want(t, 404, "nobody", "GET", "/v1/profiles/nobody/settings/filter/blockLAN", "")
	d.want(t, 404, "core/logLevel", "GET", "/v1/profiles/made/settings/core/logLevel", "")
	if m := d.want(t, 200, "", "GET", "/v1/match?program=/usr/bin/made", "").json(t); m["profile"] != "made" || m["fingerprint"] != "path equals /usr/bin/made" {
		t.Errorf("got %v", m)
	}
	d.want(t, 200, `"fingerprint":""`, "GET", "/v1/match?program=/usr/bin/other", "")
	d.want(t, 400, "absolute", "GET", "/v1/match?program=made", "")
	d.want(t, 404, "filter/blockLAN", "PUT", "/v1/profiles/made/settings/filter/blocklan", `{"value":"on"}`)
	d.want(t, 404, "nobody", "PUT", "/v1/profiles/nobody/settings/filter/blockLAN", `{"value":"on"}`)
	d.want(t, 400, "core/logLevel", "PUT", "/v1/profiles/made/settings/core/logLevel", `{"value":"debug"}`)
	d.want(t, 400, "exactly one", "PUT", "/v1/profiles/other", madeProfile)
	d.want(t, 400, "", "PUT", "/v1/profiles/made", "version: 1\nprofiles:\n  - name: made\n    mtch: []\n")
	d.want(t, 415, "yaml", "PUT", "/v1/profiles/made", `{"name":"made"}`)
	d.want(t, 409, "gatun.yaml", "PUT", "/v1/profiles/free", strings.ReplaceAll(madeProfile, "made", "free"))
	d.want(t, 409, "gatun.yaml", "DELETE", "/v1/profiles/pinned", "")
	d.want(t, 409, "gatun.yaml", "PUT", "/v1/profiles/free/settings/filter/defaultAction", `{"value":"permit"}`)
	d.want(t, 200, `"deleted":"made"`, "DELETE", "/v1/profiles/made", "")
	d.want(t, 404, "", "GET", "/v1/profiles/made", "")
}

// What is exported, imported and exported again is the same to the byte, and an import does all
// or nothing.
func TestExportImport(t *testing.T) {
	d := start(t)
	d.want(t, 200, "", "PUT", "/v1/profiles/made", madeProfile)
	first := d.want(t, 200, "made", "GET", "/v1/profiles/export?name=made", "")
	if first.kind != typeYAML {
		t.Errorf("type %s", first.kind)
	}
	d.want(t, 200, "", "DELETE", "/v1/profiles/made", "")
	if got := d.want(t, 200, "", "POST", "/v1/profiles/import", first.body).json(t); fmt.Sprint(got["imported"]) != "[made]" {
		t.Errorf("got %v", got)
	}
	if again := d.want(t, 200, "", "GET", "/v1/profiles/export?name=made", ""); again.body != first.body {
		t.Errorf("was\n%sis\n%s", first.body, again.body)
	}
	d.want(t, 404, "nobody", "GET", "/v1/profiles/export?name=nobody", "")
	all := d.want(t, 200, "pinned", "GET", "/v1/profiles/export", "")
	if !strings.Contains(all.body, "made") {
		t.Errorf("not all: %s", all.body)
	}
	two := strings.ReplaceAll(madeProfile, "made", "new") + "  - name: pinned\n    match: [{path: /usr/bin/x}]\n"
	d.want(t, 409, "pinned", "POST", "/v1/profiles/import", two)
	d.want(t, 404, "", "GET", "/v1/profiles/new", "")
	d.want(t, 400, "", "POST", "/v1/profiles/import", "version: 1\nprofiles: []\n")
}

func TestRules(t *testing.T) {
	d := start(t)
	made := d.want(t, 200, "", "POST", "/v1/rules", `{"program":"/usr/bin/free","entity":"example.org TCP/443","action":"allow","for":"10m"}`).json(t)
	if made["profile"] != "free" || made["rule"] != "+ example.org TCP/443" || made["created"] != false || made["for"] != "10m" || len(made["temporary"].([]any)) != 1 {
		t.Errorf("got %v", made)
	}
	list := d.want(t, 200, `"id":"1"`, "GET", "/v1/rules", "").json(t)["rules"].([]any)
	until, err := time.Parse(time.RFC3339, list[0].(map[string]any)["until"].(string))
	if left := time.Until(until); err != nil || left > 10*time.Minute || left < 9*time.Minute {
		t.Errorf("until %v, %v", until, err)
	}
	d.want(t, 200, `"deleted":"1"`, "DELETE", "/v1/rules/1", "")
	d.want(t, 404, "", "DELETE", "/v1/rules/1", "")
	d.want(t, 200, `"rules":[]`, "GET", "/v1/rules", "")

	// Always: the first of the program's own rules, in a profile that is made where there is none.
	got := d.want(t, 200, `"created":true`, "POST", "/v1/rules", `{"program":"/usr/bin/new","entity":"LAN","action":"block"}`).json(t)
	if got["profile"] != "new" || got["rule"] != "- LAN" || got["for"] != "always" || fmt.Sprint(got["temporary"]) != "[]" {
		t.Errorf("got %v", got)
	}
	d.want(t, 200, `"created":false`, "POST", "/v1/rules", `{"program":"new","entity":"192.0.2.1","action":"allow","for":"always"}`)
	d.want(t, 200, `["+ 192.0.2.1","- LAN"]`, "GET", "/v1/profiles/new", "")
	// Another binary of that name gets a profile of its own, and the name is a question then.
	d.want(t, 200, `"profile":"new (2)"`, "POST", "/v1/rules", `{"program":"/opt/new","entity":"LAN","action":"block"}`)
	// What stands in for no program keeps no rules, but has temporary ones.
	d.want(t, 409, "--for", "POST", "/v1/rules", `{"program":"unidentified","entity":"LAN","action":"allow"}`)
	d.want(t, 200, `"profile":"unidentified"`, "POST", "/v1/rules", `{"program":"unidentified","entity":"LAN","action":"allow","for":"1m"}`)
	// Everybody.
	d.want(t, 200, `"profile":""`, "POST", "/v1/rules", `{"program":"*","entity":"RU","action":"block"}`)
	d.want(t, 200, `["- RU"]`, "GET", "/v1/settings/filter/endpoints", "")
}

func TestRulesUntilExit(t *testing.T) {
	d := start(t)
	d.want(t, 409, "no running process", "POST", "/v1/rules", `{"program":"free","entity":"LAN","action":"allow","for":"exit"}`)
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	d.policy.running = []Running{{7, began}, {8, began}}
	made := d.want(t, 200, "", "POST", "/v1/rules", `{"program":"free","entity":"LAN","action":"allow","for":"exit"}`).json(t)
	list := made["temporary"].([]any)
	if len(list) != 2 || list[0].(map[string]any)["pid"] != 7.0 || list[1].(map[string]any)["started"] != "2026-01-02T03:04:05Z" {
		t.Errorf("got %v", made)
	}
}

func TestRulesRefused(t *testing.T) {
	d := start(t)
	for body, want := range map[string]struct {
		code int
		says string
	}{
		`{"program":"pinned","entity":"LAN","action":"allow"}`:               {409, "--for"},
		`{"program":"nobody","entity":"LAN","action":"allow"}`:               {404, "absolute path"},
		`{"entity":"LAN","action":"allow"}`:                                  {400, "program"},
		`{"program":"free","entity":"us","action":"allow"}`:                  {400, "US"},
		`{"program":"free","entity":"","action":"allow"}`:                    {400, ""},
		`{"program":"free","entity":"+ LAN","action":"allow"}`:               {400, ""},
		`{"program":"free","entity":"LAN","action":"ask"}`:                   {400, "allow or block"},
		`{"program":"free","entity":"LAN","action":"allow","for":"forever"}`: {400, "10m"},
		`{"program":"free","entity":"LAN","action":"allow","for":"-5m"}`:     {400, "10m"},
		`{"program":"free","entity":"LAN","action":"allow","for":"1ms"}`:     {400, "1s"},
		`{"program":"free","entity":"LAN","action":"allow","for":"31d"}`:     {400, "30d"},
		`{"program":"free","entity":"LAN","action":"allow","pid":"1"}`:       {400, "pid"},
	} {
		d.want(t, want.code, want.says, "POST", "/v1/rules", body)
	}
	pinned := d.send(t, "POST", "/v1/rules", `{"program":"pinned","entity":"LAN","action":"allow"}`)
	if !strings.Contains(pinned.body, "gatun.yaml:7") {
		t.Errorf("does not say where: %s", pinned.body)
	}
	if len(d.policy.temporary) != 0 {
		t.Errorf("refused rules are there: %v", d.policy.temporary)
	}
	d.want(t, 200, `"profile":"pinned"`, "POST", "/v1/rules", `{"program":"pinned","entity":"LAN","action":"allow","for":"1h"}`)
}

func TestPause(t *testing.T) {
	d := start(t)
	if got := d.want(t, 200, "", "GET", "/v1/pause", "").json(t); got["paused"] != false || got["paused_until"] != nil {
		t.Errorf("got %v", got)
	}
	for _, wrong := range []string{"", "25h", "0s", "-1m", "1d1h", "always", "2d"} {
		d.want(t, 400, "24h", "PUT", "/v1/pause", `{"for":"`+wrong+`"}`)
	}
	got := d.want(t, 200, `"paused":true`, "PUT", "/v1/pause", `{"for":"5m"}`).json(t)
	until, err := time.Parse(time.RFC3339, got["paused_until"].(string))
	if left := time.Until(until); err != nil || left > 5*time.Minute || left < 4*time.Minute {
		t.Errorf("until %v, %v", until, err)
	}
	d.want(t, 200, `"paused":true`, "PUT", "/v1/pause", `{"for":"1d"}`)
	d.want(t, 200, `"paused":false`, "DELETE", "/v1/pause", "")
	if !d.policy.paused.IsZero() {
		t.Error("still paused")
	}
}

func TestPrompts(t *testing.T) {
	d := start(t)
	d.want(t, 200, `"prompts":[]`, "GET", "/v1/prompts", "")
	d.policy.prompts = []Prompt{{ID: "3", Program: "curl", Domain: "example.org", Names: []string{}, Remotes: []string{}}}
	d.want(t, 200, `"domain":"example.org"`, "GET", "/v1/prompts", "")
	d.want(t, 404, "no such prompt", "POST", "/v1/prompts/4", `{"action":"allow","for":"once"}`)
	d.want(t, 400, "allow or block", "POST", "/v1/prompts/3", `{"action":"maybe"}`)
	d.want(t, 400, "once", "POST", "/v1/prompts/3", `{"action":"block","for":"soon"}`)
	d.want(t, 200, `"for":"once"`, "POST", "/v1/prompts/3", `{"action":"block"}`)
	d.want(t, 200, `"for":"2d"`, "POST", "/v1/prompts/3", `{"action":"allow","for":"2d"}`)
	a := d.policy.answers
	if len(a) != 2 || !a[0].Once || a[1].Once || a[1].Lifetime.Duration != 48*time.Hour || a[0].By == "" {
		t.Errorf("got %+v", a)
	}
}

// Where there is no route the answer is a failure like every other.
func TestNoRoute(t *testing.T) {
	d := start(t)
	if got := d.want(t, 404, "openapi", "GET", "/v1/nothing", "").json(t); got["schema"] != "gatun/v1" || got["error"] == "" {
		t.Errorf("got %v", got)
	}
	d.want(t, 405, "PUT", "POST", "/v1/pause", `{"for":"5m"}`)
	d.want(t, 405, "GET", "DELETE", "/v1/status", "")
}

// Every request that changes something is refused to everybody but root and the daemon's user, by
// what the kernel says.
func TestEveryChangeNeedsPermission(t *testing.T) {
	d := start(t)
	h := d.server.handler()
	changes := 0
	for _, r := range d.server.routes() {
		if r.method == "GET" && r.path != "/v1/dns/query" { // which sends a name out
			if r.changes {
				t.Errorf("%s changes something", r.path)
			}
			continue
		}
		changes++
		for _, ctx := range []context.Context{context.Background(), context.WithValue(context.Background(), peerKey{}, os.Geteuid()+4711)} {
			if code := request(h, ctx, r.method, strings.NewReplacer("{", "", "}", "", "...", "").Replace(r.path)); code != 403 {
				t.Errorf("%s %s: got %d", r.method, r.path, code)
			}
		}
	}
	if changes < 15 {
		t.Errorf("only %d changes were tried", changes)
	}
}
