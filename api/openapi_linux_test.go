package api

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gatun/network"
)

var update = flag.Bool("update", false, "write openapi.json anew")

// The document that is kept for people is the one that the program serves.
func TestOpenAPIFile(t *testing.T) {
	d := start(t)
	want := d.server.document()
	if *update {
		if err := os.WriteFile("openapi.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile("openapi.json")
	if err != nil || !bytes.Equal(have, want) {
		t.Errorf("openapi.json is not what the routes say (%v): run go test ./api -run OpenAPIFile -update", err)
	}
	if served := d.want(t, 200, "", "GET", "/v1/openapi.json", ""); served.body != string(want) || served.kind != typeJSON {
		t.Errorf("served is another one: %s", served.kind)
	}
}

type document struct {
	OpenAPI    string                                  `json:"openapi"`
	Paths      map[string]map[string]documentOperation `json:"paths"`
	Components struct {
		Schemas map[string]any `json:"schemas"`
	} `json:"components"`
}

type documentOperation struct {
	Summary     string
	Parameters  []struct{ Name, In string }
	RequestBody *struct{ Content map[string]any }
	Responses   map[string]struct {
		Content map[string]struct{ Schema any }
	}
}

func readDocument(t *testing.T) document {
	t.Helper()
	b, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc document
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// Every path of the document is served by a handler of its own, and every handler is described:
// the mux itself says which pattern a request meets.
func TestOpenAPIMatchesTheMux(t *testing.T) {
	d, doc := start(t), readDocument(t)
	mux := d.server.mux()
	served := map[string]bool{}
	for _, r := range d.server.routes() {
		served[r.method+" "+strings.ReplaceAll(r.path, "...}", "}")] = false
	}
	parameter := regexp.MustCompile(`\{(\w+)\}`)
	for path, methods := range doc.Paths {
		for method, op := range methods {
			id := strings.ToUpper(method) + " " + path
			_, pattern := mux.Handler(httptest.NewRequest(strings.ToUpper(method), parameter.ReplaceAllString(path, "x"), nil))
			if strings.ReplaceAll(pattern, "...}", "}") != id {
				t.Errorf("%s is described, and the mux has %q for it", id, pattern)
			}
			if _, ok := served[id]; !ok {
				t.Errorf("%s is no route", id)
			}
			served[id] = true
			for _, name := range parameter.FindAllStringSubmatch(path, -1) {
				if !slices.ContainsFunc(op.Parameters, func(p struct{ Name, In string }) bool { return p.Name == name[1] && p.In == "path" }) {
					t.Errorf("%s does not describe %s", id, name[1])
				}
			}
			if op.Summary == "" || op.Responses["200"].Content == nil || (method == "put") != (method == "put" && op.RequestBody != nil) {
				t.Errorf("%s is described in part only", id)
			}
		}
	}
	for id, described := range served {
		if !described {
			t.Errorf("%s is not described", id)
		}
	}
	if len(served) < 30 || !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Errorf("%d routes, OpenAPI %s", len(served), doc.OpenAPI)
	}
}

// What is really sent is what the document promises: codes, types, and every field.
func TestAnswersAreAsDescribed(t *testing.T) {
	d, doc := start(t), readDocument(t)
	l := d.link(1, network.Accept)
	l.OnKill(func(string) {})
	d.policy.prompts = []Prompt{{ID: "1", Names: []string{"a.example"}, Remotes: []string{}}}
	for _, tt := range []struct {
		code                int
		method, route, path string
		body                string
	}{
		{200, "get", "/v1/status", "", ""},
		{200, "get", "/v1/flows", "", ""},
		{200, "get", "/v1/flows/{id}", "/v1/flows/1", ""},
		{404, "get", "/v1/flows/{id}", "/v1/flows/9", ""},
		{200, "get", "/v1/why", "/v1/why?id=1", ""},
		{400, "get", "/v1/why", "/v1/why?to=wrong", ""},
		{400, "get", "/v1/events", "/v1/events?since=x", ""},
		{200, "delete", "/v1/flows/{id}", "/v1/flows/1", ""},
		{200, "get", "/v1/settings", "/v1/settings?level=developer", ""},
		{400, "get", "/v1/settings", "/v1/settings?level=x", ""},
		{200, "get", "/v1/settings/{key}", "/v1/settings/filter/lists", ""},
		{200, "put", "/v1/settings/{key}", "/v1/settings/filter/blockInternet", `{"value":"on"}`},
		{409, "put", "/v1/settings/{key}", "/v1/settings/filter/blockLAN", `{"value":"on"}`},
		{400, "put", "/v1/settings/{key}", "/v1/settings/filter/blockInternet", `{"value":"x"}`},
		{415, "put", "/v1/settings/{key}", "/v1/settings/filter/blockInternet", `x`},
		{200, "delete", "/v1/settings/{key}", "/v1/settings/filter/blockInternet", ""},
		{200, "get", "/v1/schema", "", ""},
		{200, "get", "/v1/rating", "", ""},
		{200, "put", "/v1/rating", "", `{"rating":"danger"}`},
		{200, "delete", "/v1/rating", "", ""},
		{200, "get", "/v1/profiles", "", ""},
		{200, "put", "/v1/profiles/{name}", "/v1/profiles/made", madeProfile},
		{200, "get", "/v1/profiles/{name}", "/v1/profiles/made", ""},
		{404, "get", "/v1/profiles/{name}", "/v1/profiles/x", ""},
		{200, "put", "/v1/profiles/{name}/settings/{key}", "/v1/profiles/made/settings/filter/blockLAN", `{"value":"on"}`},
		{200, "delete", "/v1/profiles/{name}/settings/{key}", "/v1/profiles/made/settings/filter/blockLAN", ""},
		{200, "get", "/v1/profiles/{name}/settings/{key}", "/v1/profiles/made/settings/filter/blockLAN", ""},
		{200, "get", "/v1/match", "/v1/match?program=/usr/bin/made", ""},
		{400, "get", "/v1/match", "", ""},
		{200, "get", "/v1/profiles/export", "", ""},
		{200, "post", "/v1/profiles/import", "", madeProfile},
		{200, "delete", "/v1/profiles/{name}", "/v1/profiles/made", ""},
		{200, "get", "/v1/prompts", "", ""},
		{200, "post", "/v1/prompts/{id}", "/v1/prompts/1", `{"action":"allow"}`},
		{404, "post", "/v1/prompts/{id}", "/v1/prompts/2", `{"action":"allow"}`},
		{200, "post", "/v1/rules", "", `{"program":"free","entity":"LAN","action":"allow","for":"1m"}`},
		{200, "get", "/v1/rules", "", ""},
		{200, "delete", "/v1/rules/{id}", "/v1/rules/1", ""},
		{200, "put", "/v1/pause", "", `{"for":"1m"}`},
		{200, "get", "/v1/pause", "", ""},
		{200, "delete", "/v1/pause", "", ""},
		{200, "get", "/v1/db/{path}", "/v1/db/flows", ""},
		{200, "get", "/v1/db/{path}", "/v1/db/settings/filter/blockLAN", ""},
		{404, "get", "/v1/db/{path}", "/v1/db/none", ""},
		{200, "get", "/v1/dns", "", ""},
		{200, "get", "/v1/dns/query", "/v1/dns/query?name=www.example.org&type=TXT&program=/usr/bin/curl&user=7", ""},
		{200, "get", "/v1/dns/query", "/v1/dns/query?name=blocked.example", ""},
		{400, "get", "/v1/dns/query", "", ""},
		{200, "get", "/v1/dns/cache", "", ""},
		{400, "get", "/v1/dns/cache", "/v1/dns/cache?limit=x", ""},
		{200, "delete", "/v1/dns/cache", "/v1/dns/cache?name=example.org", ""},
		{400, "delete", "/v1/dns/cache", "/v1/dns/cache?name=", ""},
		{200, "get", "/v1/lists", "", ""},
		{200, "get", "/v1/lists/match", "/v1/lists/match?q=ads.example", ""},
		{400, "get", "/v1/lists/match", "", ""},
		{200, "post", "/v1/lists/update", "", `{"ids":["ads","mal"]}`},
		{404, "post", "/v1/lists/update", "", `{"ids":["none"]}`},
		{400, "post", "/v1/lists/update", "", `{"all":true}`},
		{200, "get", "/metrics", "", ""},
		{200, "post", "/v1/reload", "", ""},
		{200, "post", "/v1/confirm", "", ""},
		{200, "post", "/v1/down", "", ""},
	} {
		path := tt.path
		if path == "" {
			path = tt.route
		}
		r := d.want(t, tt.code, "", strings.ToUpper(tt.method), path, tt.body)
		described, ok := doc.Paths[tt.route][tt.method].Responses[strconv.Itoa(tt.code)]
		kind, _, _ := strings.Cut(r.kind, ";")
		if content, typed := described.Content[kind]; !ok || !typed {
			t.Errorf("%s %s: %d %s is not described", tt.method, path, tt.code, r.kind)
		} else if kind == typeJSON {
			for _, fault := range doc.faults("", content.Schema, r.json(t)) {
				t.Errorf("%s %s: %s", tt.method, path, fault)
			}
		}
	}
}

// faults compares a value with a schema, as far as our schemas go.
func (doc document) faults(at string, schema, v any) (list []string) {
	s := schema.(map[string]any)
	if ref, ok := s["$ref"].(string); ok {
		return doc.faults(at, doc.Components.Schemas[strings.TrimPrefix(ref, "#/components/schemas/")], v)
	}
	if options, ok := s["anyOf"].([]any); ok {
		for _, o := range options {
			found := doc.faults(at, o, v)
			if len(found) == 0 {
				return nil
			}
			list = append(list, found...)
		}
		return list
	}
	if s["type"] == nil {
		return nil
	}
	switch v := v.(type) {
	case map[string]any:
		properties, closed := s["properties"].(map[string]any)
		for name, item := range v {
			p, ok := properties[name]
			if !closed {
				p, ok = s["additionalProperties"], true
			}
			if !ok {
				list = append(list, at+"."+name+" is not described")
				continue
			}
			list = append(list, doc.faults(at+"."+name, p, item)...)
		}
		required, _ := s["required"].([]any)
		for _, name := range required {
			if _, ok := v[name.(string)]; !ok {
				list = append(list, fmt.Sprintf("%s.%s is missing", at, name))
			}
		}
		return append(list, doc.typed(at, s, "object")...)
	case []any:
		for i, item := range v {
			list = append(list, doc.faults(fmt.Sprintf("%s[%d]", at, i), s["items"], item)...)
		}
		return append(list, doc.typed(at, s, "array")...)
	case string:
		return doc.typed(at, s, "string")
	case bool:
		return doc.typed(at, s, "boolean")
	case float64:
		if v == float64(int64(v)) && s["type"] == "integer" {
			return nil
		}
		return doc.typed(at, s, "number")
	default:
		return doc.typed(at, s, "null")
	}
}

func (doc document) typed(at string, s map[string]any, is string) []string {
	if s["type"] != is {
		return []string{fmt.Sprintf("%s is of type %s, described as %v", at, is, s["type"])}
	}
	return nil
}

// The check of the answers has to find what is wrong.
func TestFaultsAreFound(t *testing.T) {
	doc := readDocument(t)
	ref := map[string]any{"$ref": "#/components/schemas/Pause"}
	for body, want := range map[string]int{
		`{"schema":"s","paused":true,"paused_until":null}`:          0,
		`{"schema":"s","paused":true}`:                              1,
		`{"schema":"s","paused":"yes","paused_until":null}`:         1,
		`{"schema":"s","paused":true,"paused_until":null,"more":1}`: 1,
		`{"schema":"s","paused":true,"paused_until":7}`:             2,
		`{"schema":"s","paused":1.5,"paused_until":null}`:           1,
	} {
		var v any
		_ = json.Unmarshal([]byte(body), &v)
		if got := doc.faults("", ref, v); len(got) != want {
			t.Errorf("%s: got %v", body, got)
		}
	}
}
