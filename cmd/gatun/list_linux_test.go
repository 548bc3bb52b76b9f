package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"gatun/api"
)

// shelf is a store of filter lists of which the test says what it knows.
type shelf struct {
	all     []api.FilterList
	updates []api.ListUpdate
}

func newShelf() *shelf {
	at := time.Unix(1_800_000_000, 0)
	return &shelf{all: []api.FilterList{
		{ID: "ads", Category: "TRAC", Format: "hosts", Source: "/etc/gatun/ads.txt", Entries: 91168, Updated: &at, Checked: &at},
		{ID: "mal", Category: "MAL", Format: "domains", Source: "https://lists.example/mal.txt", Error: "404 Not Found; the last good copy is used", Next: &at},
		{ID: "odd", Category: "BAD", Format: "domains", Source: "/etc/gatun/odd.txt", Entries: 1, Invalid: 9, Updated: &at, Warning: "9 of 10 lines cannot be read"},
		{ID: "new", Category: "BAD", Format: "domains", Source: "https://lists.example/new.txt"},
	}}
}

func (s *shelf) Lists() []api.FilterList { return s.all }
func (s *shelf) DataFiles() []api.DataFile {
	return []api.DataFile{{Kind: "country", Path: "/usr/share/GeoIP/country.mmdb"}}
}

func (s *shelf) OnLists(text string) (api.ListMatches, error) {
	switch text {
	case "ads.example":
		return api.ListMatches{Matches: []api.ListMatch{
			{List: "ads", Category: "TRAC", Source: "/etc/gatun/ads.txt", Line: 3, Entry: "ads.example"},
			{List: "mal", Category: "MAL", Source: "https://lists.example/mal.txt", Entry: "example", Above: true},
		}}, nil
	case "192.0.2.1":
		return api.ListMatches{Country: "NL", Continent: "EU", ASN: 64496, ASOwner: "Example"}, nil
	case "good.example":
		return api.ListMatches{}, nil
	}
	return api.ListMatches{}, fmt.Errorf("%q is neither a name nor an address: %w", text, api.ErrUnusable)
}

func (s *shelf) Update(_ context.Context, u api.ListUpdate) error {
	s.updates = append(s.updates, u)
	for _, id := range u.IDs {
		if !slices.ContainsFunc(s.all, func(l api.FilterList) bool { return l.ID == id }) {
			return fmt.Errorf("there is no filter list %q: %w", id, api.ErrNotFound)
		}
	}
	return nil
}

func TestListStatusCommand(t *testing.T) {
	s := newStation(t)
	for _, args := range [][]string{{"list"}, {"list", "status"}} {
		out := s.want(0, "", args...)
		for _, want := range []string{"ads  TRAC", "91168", "ERROR: 404 Not Found; the last good copy", "warning: 9 of 10", "not fetched yet", "country", "https://lists.example/mal.txt", "odd: 9 lines cannot be read, 0 entries too large"} {
			if !strings.Contains(out, want) {
				t.Errorf("%v: no %q in\n%s", args, want, out)
			}
		}
		if got := s.json(args...); len(got["lists"].([]any)) != 4 || len(got["data"].([]any)) != 1 {
			t.Errorf("%v: got %v", args, got)
		}
	}
}

// Every list is tried, every failure is named, and nothing is said where nobody watches.
func TestListUpdateCommand(t *testing.T) {
	s := newStation(t)
	out, talk, code := s.run("list", "update")
	if code != 1 || out != "" || !strings.Contains(talk, "list mal: 404 Not Found") || strings.Contains(talk, "ads") || strings.Contains(talk, "\x1b") {
		t.Errorf("got %d %q %q", code, out, talk)
	}
	if len(s.lists.updates) != 4 || slices.ContainsFunc(s.lists.updates, func(u api.ListUpdate) bool { return u.Smaller || len(u.IDs) != 1 }) {
		t.Errorf("updated %+v", s.lists.updates)
	}
	s.lists.updates = nil
	if out, talk, code := s.run("list", "update", "ads"); code != 0 || out+talk != "" || !s.lists.updates[0].Smaller {
		t.Errorf("got %d %q %q, updated %+v", code, out, talk, s.lists.updates)
	}
	out, talk, code = s.run("list", "update", "none", "mal", "ads", "--json")
	if code != 1 || !strings.Contains(talk, `"none"`) || !strings.Contains(talk, "404") || !strings.Contains(out, `"failed":["none","mal"]`) || !strings.Contains(out, `"id":"ads"`) {
		t.Errorf("got %d %q %q", code, out, talk)
	}
	if got := s.json("list", "update", "ads"); len(got["lists"].([]any)) != 1 || len(got["failed"].([]any)) != 0 {
		t.Errorf("got %v", got)
	}
}

// A person sees which list is being fetched, and that all went well.
func TestListUpdateShowsProgress(t *testing.T) {
	s := newStation(t)
	s.lists.all = s.lists.all[:1]
	var talk bytes.Buffer
	u := listUpdate{client: api.NewClient(s.socket), talk: &talk, terminal: true}
	if err := u.all(t.Context(), nil); err != nil || u.result() != nil {
		t.Fatal(err, u.result())
	}
	if got := talk.String(); got != "\r\x1b[K1 of 1: ads\r\x1b[K1 filter list up to date\n" {
		t.Errorf("got %q", got)
	}
}

func TestListMatchCommand(t *testing.T) {
	s := newStation(t)
	out := s.want(0, "/etc/gatun/ads.txt:3", "list", "match", "ads.example")
	if !strings.Contains(out, "filter/includeSubdomains") || strings.Contains(out, "mal.txt:0") {
		t.Errorf("got\n%s", out)
	}
	s.want(0, "AS64496", "list", "match", "192.0.2.1")
	if out, talk, code := s.run("list", "match", "good.example"); code != 0 || out != "" || !strings.Contains(talk, "on no filter list") {
		t.Errorf("got %d %q %q", code, out, talk)
	}
	if got := s.json("list", "match", "ads.example"); len(got["matches"].([]any)) != 2 || got["query"] != "ads.example" {
		t.Errorf("got %v", got)
	}
	for name, want := range map[string]int{"ads.example": 0, "good.example": 1} {
		if out, talk, code := s.run("list", "match", "-q", name); code != want || strings.TrimSpace(out+talk) != "" {
			t.Errorf("%s: got %d %q %q", name, code, out, talk)
		}
	}
	s.want(1, "neither", "list", "match", "two words")
	s.want(2, "", "list", "match")
}
