package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"gatun/api"
	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
)

// resolving is a nameserver of which the test says what it knows.
type resolving struct {
	asked []api.DNSQuestion
	cache []api.CachedAnswer
}

func newResolving() *resolving {
	r := &resolving{}
	for i, name := range []string{"example.org", "www.example.org", "other.example"} {
		r.cache = append(r.cache, api.CachedAnswer{
			Name: name, Type: "A", Rcode: "NOERROR", Records: []string{fmt.Sprintf("%s.\t60\tIN\tA\t192.0.2.%d", name, i+1)}, Expires: time.Now().Add(time.Minute), Scope: "global",
		})
	}
	return r
}

func (r *resolving) Nameserver() api.NameserverStatus {
	return api.NameserverStatus{
		Resolvers: []api.ResolverStatus{
			{URL: "dot://192.0.2.53?verify=dns.example", Source: "configured", LatencyMS: 12.34},
			{URL: "dns://192.0.2.1", Source: "system", Failing: true, Failures: 6, Error: "timeout"},
			{URL: "dns://192.0.2.2", Source: "profile", Failures: 1, Error: "refused"},
		},
		Cache: api.CacheSize{Entries: len(r.cache), Bytes: 4000}, Counters: map[string]uint64{"hits": 7, "misses": 3},
	}
}

func (r *resolving) Query(_ context.Context, q api.DNSQuestion) (api.DNSAnswer, error) {
	r.asked = append(r.asked, q)
	a := api.DNSAnswer{Name: q.Name, Type: q.Type, Program: q.Program, User: q.User, Outcome: api.DNSAnswered, Verdict: "accept", Reason: "the default action", DurationMS: 1.5}
	switch q.Name {
	case "blocked.example":
		a.Outcome, a.Verdict, a.Reason, a.Setting = api.DNSBlocked, "block", "a rule", "filter/endpoints"
		a.Rule = &network.RuleRef{Text: "- .example", File: "gatun.yaml", Line: 5}
		a.Rcode, a.EDE = "NXDOMAIN", "15 (Blocked): a rule"
	case "dead.example":
		a.Outcome, a.Rcode, a.EDE = api.DNSFailed, "SERVFAIL", "22 (No Reachable Authority): no nameserver answered"
	case "bad.example":
		return a, fmt.Errorf("type: there is no %q: %w", q.Type, api.ErrUnusable)
	default:
		a.Rcode, a.TTL, a.Cached, a.Resolver = "NOERROR", 60, true, "dns://192.0.2.53"
		a.Records = []string{q.Name + ".\t60\tIN\tTXT\t\"\x1b[31mred\""}
	}
	return a, nil
}

func (r *resolving) below(name string, have bool) (list []api.CachedAnswer) {
	for _, c := range r.cache {
		if (name == "" || c.Name == name || strings.HasSuffix(c.Name, "."+name)) == have {
			list = append(list, c)
		}
	}
	return list
}

func (r *resolving) Cached(name string) []api.CachedAnswer { return r.below(name, true) }

func (r *resolving) Forget(name string) int {
	n := len(r.cache)
	r.cache = r.below(name, false)
	return n - len(r.cache)
}

func TestDNSStatusCommand(t *testing.T) {
	s := newStation(t)
	out := s.want(0, "", "dns")
	for _, want := range []string{"dot://192.0.2.53?verify=dns.example", "configured", "12.34ms", "FAILING: timeout", "1 failure: refused", "3 entries, 4 KiB", "misses"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if got := s.json("dns"); len(got["resolvers"].([]any)) != 3 || got["counters"].(map[string]any)["hits"] != 7.0 {
		t.Errorf("got %v", got)
	}
	s.want(2, "unknown command", "dns", "frobnicate")
}

func TestDNSQueryCommand(t *testing.T) {
	s := newStation(t)
	out := s.want(0, "", "dns", "query", "www.example.org", "txt", "--exe", "/no/such/program", "--user", "7")
	if got := s.names.asked[0]; got != (api.DNSQuestion{Name: "www.example.org", Type: "TXT", Program: "/no/such/program", User: "7"}) {
		t.Errorf("asked %+v", got)
	}
	for _, want := range []string{"ACCEPT: the default action", "NOERROR, 1 record, for 1m0s, from the cache", "dns://192.0.2.53", "1.5ms", `www.example.org. 60 IN TXT "?[31mred"`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	s.want(0, "", "dns", "query", "www.example.org")
	if got := s.names.asked[1]; got.Program != "" || got.Type != "A" {
		t.Errorf("nobody asks for an address: %+v", got)
	}
	s.want(10, `"- .example" gatun.yaml:5`, "dns", "query", "blocked.example")
	s.want(1, "not resolved: 22 (No Reachable Authority): no nameserver answered", "dns", "query", "dead.example")
	s.want(1, `there is no "NONSENSE"`, "dns", "query", "bad.example", "nonsense")
	s.want(2, "--exe", "dns", "query", "a.example", "--user", "7")
	s.want(2, "", "dns", "query")
	s.want(2, "", "dns", "query", "a.example", "A", "more")
	if got := s.json("dns", "query", "www.example.org"); got["outcome"] != "answered" || got["ttl"] != 60.0 || got["duration_ms"] != 1.5 {
		t.Errorf("got %v", got)
	}
	blocked, talk, code := s.run("dns", "query", "blocked.example", "--json")
	if code != 10 || talk != "\n" && talk != "" || !strings.Contains(blocked, `"reason":"a rule"`) {
		t.Errorf("got %d %q %q", code, blocked, talk)
	}
}

func TestDNSCacheCommands(t *testing.T) {
	s := newStation(t)
	out := s.want(0, "", "dns", "cache")
	if strings.Count(out, "\n") != 4 || !strings.Contains(out, "192.0.2.3") || strings.Contains(out, "IN") {
		t.Errorf("got\n%s", out)
	}
	if out := s.want(0, "", "dns", "cache", "example.org"); strings.Contains(out, "other.example") || !strings.Contains(out, "www.example.org") {
		t.Errorf("got\n%s", out)
	}
	out, talk, _ := s.run("dns", "cache", "--limit", "1")
	if strings.Count(out, "\n") != 2 || !strings.Contains(talk, "1 of 3 entries") {
		t.Errorf("got %q %q", out, talk)
	}
	if got := s.json("dns", "cache", "other.example"); got["total"] != 1.0 {
		t.Errorf("got %v", got)
	}
	s.want(1, "name:", "dns", "flush", "")
	if len(s.names.cache) != 3 {
		t.Fatal("a name that is empty emptied the cache")
	}
	if out, talk, code := s.run("dns", "flush", "example.org"); out != "" || code != 0 || talk != "2 answers forgotten\n" {
		t.Errorf("got %d %q %q", code, out, talk)
	}
	if got := s.json("dns", "flush"); got["flushed"] != 1.0 || len(s.names.cache) != 0 {
		t.Errorf("got %v", got)
	}
}

// query is a query of a program that was answered, as the nameserver records it.
func (s *station) query(name, program string, v network.Verdict) {
	s.Helper()
	l := s.owner.table.NewQuery(packet.Flow{Proto: packet.UDP, Remote: netip.MustParseAddrPort("192.0.2.53:53")})
	p := &attribution.Process{PID: 7, Path: "/usr/bin/" + program, Name: program, Kind: attribution.KindProgram}
	l.SetComm(&network.Communication{Owner: attribution.Owner{Process: p, Confidence: attribution.Exact}, Entity: network.Entity{Domain: name, Source: network.DomainDNS}})
	l.SetAnswered(&network.Answered{Type: "HTTPS", Rcode: "NXDOMAIN", Resolver: "dns://192.0.2.1"})
	s.owner.table.Decide(l, network.Decision{Verdict: v, Stage: network.StageAfterIntel, Reason: "a reason"})
	s.owner.table.End(l, "answered")
}

func TestDNSLogCommand(t *testing.T) {
	s := newStation(t)
	s.flow(8, "/usr/bin/other") // a link is no query
	s.query("a.example", "curl", network.Accept)
	s.query("b.example", "wget", network.Block)
	s.query("c.example", "wget", network.Accept)
	for args, want := range map[string]string{
		"": "a b c", "--program wget": "b c", "--program /usr/bin/curl": "a", "--verdict block": "b", "--last 1": "c", "--last 1 --program curl": "a", "--domain b.": "b",
	} {
		out := s.want(0, "", append([]string{"dns", "log"}, strings.Fields(args)...)...)
		var got []string
		for line := range strings.Lines(out) {
			fields := strings.Fields(line)
			got = append(got, strings.TrimSuffix(fields[2], ".example"))
			if fields[3] != "HTTPS" || fields[5] != "NXDOMAIN" || fields[7] != "dns://192.0.2.1" || !strings.HasSuffix(line, "a reason\n") {
				t.Errorf("got %q", line)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: got %v, want %s", args, got, want)
		}
	}
	out := s.want(0, "", "dns", "log", "--json", "--last", "1")
	var q loggedQuery
	if err := json.Unmarshal([]byte(out), &q); err != nil || q.Schema != "gatun/v1" || q.Flow.QueryType != "HTTPS" || q.Flow.Kind != "dns" {
		t.Errorf("%v %s", err, out)
	}
}

// TestDNSLogWatch: what is kept comes first, then what comes, and nothing but the queries that
// were asked for.
func TestDNSLogWatch(t *testing.T) {
	s := newStation(t)
	s.query("a.example", "curl", network.Accept)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, w := io.Pipe()
	root := newRoot(w, io.Discard)
	root.SetArgs([]string{"dns", "log", "--watch", "--json", "--program", "curl", "--socket", s.socket})
	done := make(chan error, 1)
	go func() {
		done <- root.ExecuteContext(ctx)
		_ = w.Close()
	}()
	lines := json.NewDecoder(r)
	next := func() string {
		var q loggedQuery
		if err := lines.Decode(&q); err != nil {
			return err.Error()
		}
		return q.Flow.Domain
	}
	if got := next(); got != "a.example" {
		t.Fatalf("got %s first", got)
	}
	got := make(chan string, 1)
	go func() { got <- next() }()
	for more := true; more; { // until the watch is there
		s.flow(9, "/usr/bin/curl")
		s.query("b.example", "wget", network.Accept)
		s.query("c.example", "curl", network.Accept)
		select {
		case name := <-got:
			if name != "c.example" {
				t.Errorf("got %s", name)
			}
			more = false
		case <-time.After(20 * time.Millisecond):
		}
	}
	cancel()
	_, _ = io.Copy(io.Discard, r)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDNSCompletion(t *testing.T) {
	s := newStation(t)
	for args, want := range map[string]string{
		"dns query a.example ": "HTTPS", "dns cache w": "www.example.org", "dns flush ": "other.example", "dns ": "query",
		"list update ": "ads", "list update ads ": "mal", "list ": "match",
	} {
		out, _, code := execute(t, append([]string{"__complete", "--socket", s.socket}, strings.Split(args, " ")...)...)
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("%q: got %d\n%s", args, code, out)
		}
		if args == "dns cache w" && strings.Contains(out, "other.example") || args == "list update ads " && strings.Contains(out, "ads\t") {
			t.Errorf("%s: got\n%s", args, out)
		}
	}
}

// TestNamesAndListsInTheDatabase: both are branches of the virtual database.
func TestNamesAndListsInTheDatabase(t *testing.T) {
	s := newStation(t)
	cl := api.NewClient(s.socket)
	for path, want := range map[string]string{
		"dns/cache/www.example.org/A": `"192.0.2.2`, "dns/resolvers/2": `"failing":true`, "lists/ads": `"entries":91168`,
	} {
		b, err := cl.Raw(t.Context(), "/v1/db/"+path, nil)
		if err != nil || !strings.Contains(string(b), strings.Trim(want, `"`)) {
			t.Errorf("%s: %v %s", path, err, b)
		}
	}
	for path, want := range map[string]int{"dns/cache/": 3, "dns/cache/other": 1, "dns/resolvers/": 3, "lists/": 4, "lists/?q=category=MAL": 1} {
		path, query, _ := strings.Cut(path, "?")
		q, _ := url.ParseQuery(query)
		var list struct{ Records []network.Record }
		if err := cl.Get(t.Context(), "/v1/db/"+path, q, &list); err != nil || len(list.Records) != want {
			t.Errorf("%s: %v %v, want %d", path, err, list.Records, want)
		}
	}
}
