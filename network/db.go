package network

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// Source is one branch of the virtual database. Keys are relative to it and may contain
// slashes. Both methods may be called from any goroutine; the values are copies that encode as
// JSON.
type Source interface {
	Get(key string) (value any, ok bool)
	Query(prefix string) []Record
}

// Record is one entry of the virtual database.
type Record struct {
	Key   string `json:"key"`
	Value any    `json:"value"`
}

// Database is the state of the program as a tree of records: the first part of a key names the
// Source, the rest is the Source's own. It keeps nothing itself, so what it answers is the state
// of that moment. It is immutable.
type Database struct {
	sources map[string]Source
}

// NewDatabase returns a database of these sources, by the name of their branch.
func NewDatabase(sources map[string]Source) *Database {
	return &Database{sources: maps.Clone(sources)}
}

// Branches returns the names of the sources, sorted.
func (d *Database) Branches() []string { return slices.Sorted(maps.Keys(d.sources)) }

// Get returns one record.
func (d *Database) Get(key string) (value any, ok bool) {
	branch, rest, _ := strings.Cut(key, "/")
	s := d.sources[branch]
	if s == nil || rest == "" {
		return nil, false
	}
	return s.Get(rest)
}

// Query returns the records whose keys begin with the prefix, in the order of their sources;
// known is false if no source can have such keys. "" asks for everything.
func (d *Database) Query(prefix string) (list []Record, known bool) {
	branch, rest, below := strings.Cut(prefix, "/")
	for _, name := range d.Branches() {
		if below && name != branch || !strings.HasPrefix(name, branch) {
			continue
		}
		known = true
		for _, r := range d.sources[name].Query(rest) {
			list = append(list, Record{Key: name + "/" + r.Key, Value: r.Value})
		}
	}
	return list, known
}

// Flows is the branch of flows: the links that are live or still kept, by ID.
func (t *Table) Flows() Source { return flowSource{t} }

type flowSource struct{ table *Table }

// Get implements Source.
func (s flowSource) Get(id string) (any, bool) {
	l := s.table.Get(id)
	if l == nil {
		return nil, false
	}
	return l.Report(), true
}

// Query implements Source.
func (s flowSource) Query(prefix string) []Record {
	var list []Record
	for _, l := range s.table.All() {
		if id := l.ID(); strings.HasPrefix(id, prefix) {
			list = append(list, Record{Key: id, Value: l.Report()})
		}
	}
	return list
}

// Communications is the branch of programs and what they talk to, as far as links of them are
// live: PID/PROGRAM/DIRECTION/NAME, where NAME is the domain or the address. What nobody could
// be found for has the link's ID as a fifth part: each such link is an identity of its own.
func (t *Table) Communications() Source { return communicationSource{t} }

// CommunicationReport is one Communication as JSON. Its counters are those of its live links.
type CommunicationReport struct {
	ID           string         `json:"id"`
	Direction    string         `json:"direction"`
	Domain       string         `json:"domain"`
	DomainSource string         `json:"domain_source"`
	Address      string         `json:"address"`
	Scope        string         `json:"scope"`
	Process      *ReportProcess `json:"process"`
	Confidence   string         `json:"owner_confidence"`
	Cause        string         `json:"owner_cause"`
	Profile      string         `json:"profile"`
	Verdict      string         `json:"verdict"` // of its newest link
	Reason       string         `json:"reason"`
	Links        []string       `json:"links"`
	Sent         uint64         `json:"bytes_sent"`
	Received     uint64         `json:"bytes_received"`
}

type communicationSource struct{ table *Table }

// Get implements Source.
func (s communicationSource) Get(key string) (any, bool) {
	for _, r := range s.Query(key) {
		if r.Key == key {
			return r.Value, true
		}
	}
	return nil, false
}

// Query implements Source.
func (s communicationSource) Query(prefix string) []Record {
	reports := map[*Communication]*CommunicationReport{}
	var order []*CommunicationReport
	for _, l := range s.table.Live() {
		c := l.Comm()
		if c == nil || l.unlisted {
			continue
		}
		r := reports[c]
		if r == nil {
			r = c.newReport(l)
			reports[c] = r
			order = append(order, r)
		}
		r.add(l)
	}
	var list []Record
	for _, r := range order {
		if strings.HasPrefix(r.ID, prefix) {
			list = append(list, Record{Key: r.ID, Value: *r})
		}
	}
	return list
}

func (c *Communication) newReport(l *Link) *CommunicationReport {
	var flow Report
	c.report(&flow)
	r := &CommunicationReport{
		Direction: flow.Direction, Domain: flow.Domain, DomainSource: flow.DomainSource, Scope: c.Entity.Scope().String(),
		Process: flow.Process, Confidence: flow.Confidence, Cause: flow.Cause, Profile: flow.Profile, Links: []string{},
	}
	if c.Entity.Addr.IsValid() {
		r.Address = c.Entity.Addr.String()
	}
	name := r.Domain
	if name == "" {
		name = r.Address
	}
	r.ID = fmt.Sprintf("%d/%s/%s/%s", r.Process.PID, url.PathEscape(r.Process.Name), r.Direction, name)
	if !l.has(flagBound) {
		r.ID += "/" + l.ID()
	}
	return r
}

func (r *CommunicationReport) add(l *Link) {
	d := l.Decision()
	r.Verdict, r.Reason = d.Verdict.String(), d.Reason
	r.Links = append(r.Links, l.ID())
	sent, received := l.Bytes()
	r.Sent += sent
	r.Received += received
}
