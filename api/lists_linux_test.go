package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// lists is a store of which the test says what it knows.
type lists struct {
	all     []FilterList
	updates []ListUpdate
}

func newLists() *lists {
	at := time.Unix(1_800_000_000, 0).UTC()
	return &lists{all: []FilterList{
		{ID: "ads", Category: "TRAC", Format: "hosts", Source: "/etc/gatun/ads.txt", Entries: 7, Updated: &at, Checked: &at},
		{ID: "mal", Category: "MAL", Format: "domains", Source: "https://lists.example/mal.txt", Error: "404 Not Found", Next: &at},
	}}
}

func (l *lists) Lists() []FilterList   { return l.all }
func (l *lists) DataFiles() []DataFile { return nil }

func (l *lists) OnLists(text string) (ListMatches, error) {
	if strings.Contains(text, " ") {
		return ListMatches{}, fmt.Errorf("%q is neither a name nor an address: %w", text, ErrUnusable)
	}
	m := ListMatches{Country: "NL", ASN: 64496}
	if text == "ads.example" {
		m.Matches = []ListMatch{{List: "ads", Category: "TRAC", Source: "/etc/gatun/ads.txt", Line: 3, Entry: text}}
	}
	return m, nil
}

func (l *lists) Update(_ context.Context, u ListUpdate) error {
	if slices.Contains(u.IDs, "none") {
		return fmt.Errorf("there is no filter list %q: %w", "none", ErrNotFound)
	}
	l.updates = append(l.updates, u)
	return nil
}

func TestLists(t *testing.T) {
	d := start(t)
	all := d.want(t, 200, "", "GET", "/v1/lists", "").json(t)
	list := all["lists"].([]any)
	if all["schema"] != "gatun/v1" || len(list) != 2 || len(all["data"].([]any)) != 0 {
		t.Fatalf("got %v", all)
	}
	if ads := list[0].(map[string]any); ads["entries"] != 7.0 || ads["next"] != nil || ads["updated"] != "2027-01-15T08:00:00Z" {
		t.Errorf("got %v", ads)
	}
}

func TestListMatch(t *testing.T) {
	d := start(t)
	m := d.want(t, 200, `"line":3`, "GET", "/v1/lists/match?q=ads.example", "").json(t)
	if m["query"] != "ads.example" || m["country"] != "NL" || m["asn"] != 64496.0 {
		t.Errorf("got %v", m)
	}
	d.want(t, 200, `"matches":[]`, "GET", "/v1/lists/match?q=good.example", "")
	d.want(t, 400, "neither", "GET", "/v1/lists/match?q=two+words", "")
	d.want(t, 400, "q:", "GET", "/v1/lists/match?q=+", "")
	if r := d.want(t, 400, "q:", "GET", "/v1/lists/match?q="+strings.Repeat("a", 2000), ""); len(r.body) > 300 {
		t.Errorf("repeats all that it was sent: %d bytes", len(r.body))
	}
}

func TestListUpdate(t *testing.T) {
	d := start(t)
	for body, want := range map[string]string{
		`{}`:                             `"failed":["mal"]`,
		`{"ids":["ads"]}`:                `"failed":[]`,
		`{"ids":["mal"],"smaller":true}`: `"failed":["mal"]`,
	} {
		d.want(t, 200, want, "POST", "/v1/lists/update", body)
	}
	if one := d.want(t, 200, "", "POST", "/v1/lists/update", `{"ids":["ads"]}`).json(t)["lists"].([]any); len(one) != 1 {
		t.Errorf("got %v", one)
	}
	if len(d.lists.updates) != 4 || !slices.ContainsFunc(d.lists.updates, func(u ListUpdate) bool { return u.Smaller && u.IDs[0] == "mal" }) {
		t.Errorf("updated %+v", d.lists.updates)
	}
	d.want(t, 404, `no filter list \"none\""`, "POST", "/v1/lists/update", `{"ids":["ads","none"]}`)
	d.want(t, 400, "unknown field", "POST", "/v1/lists/update", `{"id":"ads"}`)
	d.want(t, 415, "", "POST", "/v1/lists/update", "")
}
