package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"gatun/network"
)

// ErrUnusable is what the interfaces of this package return, wrapped, for a question that
// nobody can answer because of what it says (400).
var ErrUnusable = errors.New("unusable")

const (
	maxDNSName  = 253   // RFC 1035, without the final dot
	cachedShown = 1_000 // entries of the cache in one answer, unless more are asked for
)

// Names is the built-in nameserver of a running program.
type Names interface {
	// Nameserver tells whom it asks and what it did.
	Nameserver() NameserverStatus
	// Query takes a question through every stage that a query of that program passes. It leaves no
	// trace by which a flow of that program could be judged. ErrUnusable: no such type or user.
	Query(context.Context, DNSQuestion) (DNSAnswer, error)
	// Cached lists what is cached for a name and the names below it, by name; "" is everything.
	Cached(name string) []CachedAnswer
	// Forget drops what is cached for a name and the names below it; "" is everything.
	Forget(name string) int
}

// NameserverStatus is the answer to GET /v1/dns.
type NameserverStatus struct {
	Schema    string            `json:"schema"`
	Resolvers []ResolverStatus  `json:"resolvers"` // in the order in which they are asked
	Cache     CacheSize         `json:"cache"`
	Counters  map[string]uint64 `json:"counters"` // since the start
}

// ResolverStatus is one nameserver that is asked for names.
type ResolverStatus struct {
	URL       string  `json:"url"`
	Source    string  `json:"source"` // configured, system, profile
	Failing   bool    `json:"failing"`
	Failures  int     `json:"failures"`   // that still count
	LatencyMS float64 `json:"latency_ms"` // of its answers; 0: not known
	Error     string  `json:"error"`      // of its last failure since it last answered
}

// CacheSize is what the cache holds.
type CacheSize struct {
	Entries int `json:"entries"`
	Bytes   int `json:"bytes"`
}

// DNSQuestion is a name that is to be resolved as a program would.
type DNSQuestion struct {
	Name    string
	Type    string // "" is A
	Program string // path of the binary; "": nobody known
	User    string // number or name; with Program only
}

// Values encodes q for a request's query.
func (q DNSQuestion) Values() url.Values {
	v := url.Values{}
	for k, s := range map[string]string{"name": q.Name, "type": q.Type, "program": q.Program, "user": q.User} {
		if s != "" {
			v.Set(k, s)
		}
	}
	return v
}

// The outcomes of a query.
const (
	DNSAnswered = "answered" // also where the answer is that there is no such name or record
	DNSBlocked  = "blocked"
	DNSFailed   = "failed" // permitted, and no nameserver gave an answer
)

// DNSAnswer is the answer to GET /v1/dns/query.
type DNSAnswer struct {
	Schema     string           `json:"schema"`
	Name       string           `json:"name"`
	Type       string           `json:"type"`
	Program    string           `json:"program"`
	User       string           `json:"user"`
	Outcome    string           `json:"outcome"` // answered, blocked, failed
	Verdict    string           `json:"verdict"`
	Stage      string           `json:"stage"`
	Reason     string           `json:"reason"`
	ReasonCode string           `json:"reason_code"`
	Setting    string           `json:"setting"`
	Profile    string           `json:"profile"` // whose layer decided; "" is the global one
	Rule       *network.RuleRef `json:"rule"`
	List       string           `json:"list"` // filter list that decided
	Rcode      string           `json:"rcode"`
	Records    []string         `json:"records"` // as in a zone file
	TTL        int              `json:"ttl"`     // seconds
	Cached     bool             `json:"cached"`
	Stale      bool             `json:"stale"`
	Resolver   string           `json:"resolver"` // who answered; "": nobody was asked
	EDE        string           `json:"ede"`      // extended error of the reply
	DurationMS float64          `json:"duration_ms"`
}

// CachedAnswer is one entry of the cache.
type CachedAnswer struct {
	Name     string    `json:"name"`
	Type     string    `json:"type"`
	Rcode    string    `json:"rcode"`
	Records  []string  `json:"records"` // as in a zone file
	Expires  time.Time `json:"expires"`
	Stale    bool      `json:"stale"`    // it has expired, and is served until there is a fresh one
	Resolver string    `json:"resolver"` // who answered
	Scope    string    `json:"scope"`    // why that one was asked: configured, network, …; "profile, …": only programs with its nameservers get it
}

// CachedList is the answer to GET /v1/dns/cache.
type CachedList struct {
	Schema  string         `json:"schema"`
	Total   int            `json:"total"` // that fit; entries may have fewer
	Entries []CachedAnswer `json:"entries"`
}

// Flushed is the answer to DELETE /v1/dns/cache.
type Flushed struct {
	Schema  string `json:"schema"`
	Flushed int    `json:"flushed"`
}

func (s *Server) dnsRoutes() []route {
	question := map[string]string{
		"name": "that is resolved", "type": "of the records: A, AAAA, HTTPS, …; default A",
		"program": "path of the binary as which it is asked; without it nobody known asks", "user": "number or name, with program; default root",
	}
	below := "only this name and the names below it"
	return []route{
		{method: get, path: "/v1/dns", summary: "Whom the nameserver asks, and what it did", answer: NameserverStatus{}, handle: s.nameserver},
		{method: get, path: "/v1/dns/query", summary: "Resolve a name as a program would, with the decision about it", query: question, answer: DNSAnswer{}, codes: []int{400}, changes: true, handle: s.queryName},
		{method: get, path: "/v1/dns/cache", summary: "The answers in the cache, by name", answer: CachedList{}, codes: []int{400}, handle: s.cachedNames,
			query: map[string]string{"name": below, "limit": "at most that many; default " + itoa(cachedShown)}},
		{method: remove, path: "/v1/dns/cache", summary: "Forget answers in the cache", answer: Flushed{}, codes: []int{400}, changes: true, handle: s.flushNames,
			query: map[string]string{"name": below}},
	}
}

func (s *Server) nameserver(w http.ResponseWriter, _ *http.Request) {
	st := s.Names.Nameserver()
	st.Schema, st.Resolvers = network.Schema, notNil(st.Resolvers)
	reply(w, st)
}

// queryName is a change although it is a GET: who may only read must not send names out under the
// name of a program that may.
func (s *Server) queryName(w http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	q := DNSQuestion{Name: v.Get("name"), Type: firstOf(v.Get("type"), "A"), Program: v.Get("program"), User: v.Get("user")}
	err := checkName(q.Name)
	if err == nil && q.Program == "" && q.User != "" {
		err = errors.New("user: it says whose program asks: name the program as well")
	}
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	a, err := s.Names.Query(r.Context(), q)
	switch {
	case errors.Is(err, ErrUnusable):
		fail(w, http.StatusBadRequest, says(err, ErrUnusable))
	case err != nil:
		refuse(w, http.StatusInternalServerError, err)
	default:
		a.Schema, a.Records = network.Schema, notNil(a.Records)
		reply(w, a)
	}
}

// checkName refuses what the nameserver cannot even be asked for.
func checkName(name string) error {
	if name == "" || len(name) > maxDNSName+1 {
		return fmt.Errorf("name: want one with at most %d characters such as www.example.org, got %q", maxDNSName, shortened(name))
	}
	return nil
}

// shortened keeps what somebody sent from filling a whole screen.
func shortened(s string) string {
	if len(s) > 80 {
		return s[:77] + "…"
	}
	return s
}

func (s *Server) cachedNames(w http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	limit, err := cachedShown, error(nil)
	if text := v.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 0 {
			fail(w, http.StatusBadRequest, fmt.Sprintf("limit: want a number, got %q", shortened(text)))
			return
		}
	}
	entries := s.Names.Cached(v.Get("name"))
	list := CachedList{Schema: network.Schema, Total: len(entries), Entries: notNil(slices.Clip(entries[:min(limit, len(entries))]))}
	reply(w, list)
}

// flushNames empties the cache or, where a name is given, what is below it. A name that is there
// and empty is a mistake: it must not cost the whole cache.
func (s *Server) flushNames(w http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	name := v.Get("name")
	if v.Has("name") {
		if err := checkName(name); err != nil {
			fail(w, http.StatusBadRequest, err.Error())
			return
		}
	}
	reply(w, Flushed{Schema: network.Schema, Flushed: s.Names.Forget(name)})
}
