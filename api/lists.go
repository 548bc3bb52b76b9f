package api

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"gatun/network"
)

// Lists are the filter lists and data files of a running program.
type Lists interface {
	Lists() []FilterList // in the order of the policy
	DataFiles() []DataFile
	// OnLists tells what is known of a name or an address, as a person writes it. ErrUnusable: it is
	// neither.
	OnLists(text string) (ListMatches, error)
	// Update reads or fetches lists now and returns when that is done; why one could not be used is
	// in its status. ErrNotFound: no list has one of the ids.
	Update(context.Context, ListUpdate) error
}

// FilterList is one list of the policy and what it is worth.
type FilterList struct {
	ID         string     `json:"id"`
	Category   string     `json:"category"`
	Format     string     `json:"format"`
	Source     string     `json:"source"`   // file or URL, without a password or query
	Position   string     `json:"position"` // file:line of the policy
	Entries    int        `json:"entries"`
	Exceptions int        `json:"exceptions"` // names that the list takes back
	Skipped    int        `json:"skipped"`    // rules that say nothing of a name or an address as such
	Refused    int        `json:"refused"`    // names and networks that are too large for a list
	Invalid    int        `json:"invalid"`    // lines that cannot be read
	Updated    *time.Time `json:"updated"`    // null: never
	Checked    *time.Time `json:"checked"`    // when its source was last asked with success
	Next       *time.Time `json:"next"`       // null: not by itself
	Error      string     `json:"error"`      // why the source is not used, or its last good copy instead
	Warning    string     `json:"warning"`
}

// DataFile is one file of countries or networks.
type DataFile struct {
	Kind  string     `json:"kind"` // country, asn
	Path  string     `json:"path"`
	Type  string     `json:"type"` // as the file names itself
	Built *time.Time `json:"built"`
	Error string     `json:"error"` // why the file is not used, or its last good copy instead
}

// FilterLists is the answer to GET /v1/lists.
type FilterLists struct {
	Schema string       `json:"schema"`
	Lists  []FilterList `json:"lists"`
	Data   []DataFile   `json:"data"`
}

// ListMatches is the answer to GET /v1/lists/match.
type ListMatches struct {
	Schema    string      `json:"schema"`
	Query     string      `json:"query"`
	Matches   []ListMatch `json:"matches"`
	Country   string      `json:"country"` // of an address
	Continent string      `json:"continent"`
	ASN       uint32      `json:"asn"`
	ASOwner   string      `json:"as_owner"`
}

// ListMatch is one list that a name or an address is on, with the place where it says so.
type ListMatch struct {
	List     string `json:"list"`
	Category string `json:"category"`
	Source   string `json:"source"`
	Line     int    `json:"line"`  // 0: not known
	Entry    string `json:"entry"` // what the list has: the name, one above it, or a prefix
	Above    bool   `json:"above"` // the list has a name above only: filter/includeSubdomains says whether that counts
}

// ListUpdate is the body of POST /v1/lists/update.
type ListUpdate struct {
	IDs []string `json:"ids"` // none: all
	// Smaller takes a list also where it lost so much that it may have been cut off.
	Smaller bool `json:"smaller,omitempty"`
}

// ListsUpdated is the answer to POST /v1/lists/update.
type ListsUpdated struct {
	Schema string       `json:"schema"`
	Lists  []FilterList `json:"lists"`  // those that were updated, as they are now
	Failed []string     `json:"failed"` // ids of those of them that have an error
}

func (s *Server) listRoutes() []route {
	return []route{
		{method: get, path: "/v1/lists", summary: "The filter lists and data files, and what they are worth", answer: FilterLists{}, handle: s.lists},
		{method: get, path: "/v1/lists/match", summary: "The filter lists that a name or an address is on", query: map[string]string{"q": "name or address"}, answer: ListMatches{}, codes: []int{400}, handle: s.matchLists},
		{method: post, path: "/v1/lists/update", summary: "Read or fetch filter lists now; answers when that is done", body: ListUpdate{}, answer: ListsUpdated{}, codes: []int{400, 404, 413, 415}, changes: true, handle: s.updateLists},
	}
}

func (s *Server) lists(w http.ResponseWriter, _ *http.Request) {
	reply(w, FilterLists{Schema: network.Schema, Lists: notNil(s.Lists.Lists()), Data: notNil(s.Lists.DataFiles())})
}

func (s *Server) matchLists(w http.ResponseWriter, r *http.Request) {
	text := strings.TrimSpace(r.URL.Query().Get("q"))
	if text == "" || len(text) > 4*maxDNSName { // a name may be written with other letters than it is looked up with
		fail(w, http.StatusBadRequest, fmt.Sprintf("q: want a name or an address, got %q", shortened(text)))
		return
	}
	m, err := s.Lists.OnLists(text)
	if err != nil {
		fail(w, http.StatusBadRequest, says(err, ErrUnusable))
		return
	}
	m.Schema, m.Query, m.Matches = network.Schema, text, notNil(m.Matches)
	reply(w, m)
}

func (s *Server) updateLists(w http.ResponseWriter, r *http.Request) {
	var u ListUpdate
	if !decode(w, r, &u) {
		return
	}
	if err := s.Lists.Update(r.Context(), u); err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return
	}
	done := ListsUpdated{Schema: network.Schema, Lists: []FilterList{}, Failed: []string{}}
	for _, l := range s.Lists.Lists() {
		if len(u.IDs) > 0 && !oneOf(l.ID, u.IDs) {
			continue
		}
		done.Lists = append(done.Lists, l)
		if l.Error != "" {
			done.Failed = append(done.Failed, l.ID)
		}
	}
	reply(w, done)
}
