package api

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"gatun/network"
)

// names is a nameserver of which the test says what it knows.
type names struct {
	asked []DNSQuestion
	cache []CachedAnswer
}

func newNames() *names {
	entry := func(name, kind string, records ...string) CachedAnswer {
		return CachedAnswer{Name: name, Type: kind, Rcode: "NOERROR", Records: records, Expires: time.Unix(1_800_000_000, 0).UTC(), Scope: "configured"}
	}
	return &names{cache: []CachedAnswer{
		entry("example.org", "A", "example.org. 60 IN A 192.0.2.1"), entry("www.example.org", "A", "www.example.org. 60 IN A 192.0.2.2"),
		entry("other.example", "AAAA", "other.example. 60 IN AAAA 2001:db8::1"),
	}}
}

func (n *names) Nameserver() NameserverStatus {
	return NameserverStatus{
		Resolvers: []ResolverStatus{{URL: "dot://192.0.2.53?verify=dns.example", Source: "configured", Failures: 2, LatencyMS: 1.5}},
		Cache:     CacheSize{Entries: len(n.cache), Bytes: 1000}, Counters: map[string]uint64{"hits": 7},
	}
}

func (n *names) Query(_ context.Context, q DNSQuestion) (DNSAnswer, error) {
	n.asked = append(n.asked, q)
	switch {
	case q.Type == "NONSENSE":
		return DNSAnswer{}, fmt.Errorf("type: there is no %s: %w", q.Type, ErrUnusable)
	case q.Name == "broken.example":
		return DNSAnswer{}, errors.New("it broke")
	case q.Name == "blocked.example":
		return DNSAnswer{Name: q.Name, Type: q.Type, Outcome: DNSBlocked, Verdict: "block", Rule: &network.RuleRef{Text: "- *", File: "gatun.yaml", Line: 3}}, nil
	}
	return DNSAnswer{Name: q.Name, Type: q.Type, Program: q.Program, User: q.User, Outcome: DNSAnswered, Records: []string{"x"}, DurationMS: 0.25}, nil
}

func (n *names) fits(name string) func(CachedAnswer) bool {
	return func(c CachedAnswer) bool { return name == "" || c.Name == name || strings.HasSuffix(c.Name, "."+name) }
}

func (n *names) Cached(name string) []CachedAnswer {
	var list []CachedAnswer
	for _, c := range n.cache {
		if n.fits(name)(c) {
			list = append(list, c)
		}
	}
	return list
}

func (n *names) Forget(name string) int {
	var left []CachedAnswer
	for _, c := range n.cache {
		if !n.fits(name)(c) {
			left = append(left, c)
		}
	}
	gone := len(n.cache) - len(left)
	n.cache = left
	return gone
}

func TestDNSStatus(t *testing.T) {
	d := start(t)
	st := d.want(t, 200, "", "GET", "/v1/dns", "").json(t)
	resolvers := st["resolvers"].([]any)
	if st["schema"] != "gatun/v1" || len(resolvers) != 1 || resolvers[0].(map[string]any)["latency_ms"] != 1.5 || st["cache"].(map[string]any)["entries"] != 3.0 {
		t.Errorf("got %v", st)
	}
}

func TestDNSQuery(t *testing.T) {
	d := start(t)
	q := DNSQuestion{Name: "www.example.org", Program: "/usr/bin/curl", User: "7"}
	var a DNSAnswer
	if err := d.client.Get(t.Context(), "/v1/dns/query", q.Values(), &a); err != nil || a.Outcome != DNSAnswered || a.DurationMS != 0.25 || a.Schema != "gatun/v1" {
		t.Fatalf("%v %+v", err, a)
	}
	q.Type = "A"
	if len(d.names.asked) != 1 || d.names.asked[0] != q {
		t.Errorf("asked %+v", d.names.asked)
	}
	blocked := d.want(t, 200, `"outcome":"blocked"`, "GET", "/v1/dns/query?name=blocked.example", "").json(t)
	if records, ok := blocked["records"].([]any); !ok || len(records) != 0 || blocked["rule"].(map[string]any)["line"] != 3.0 {
		t.Errorf("got %v", blocked)
	}
	asked := len(d.names.asked)
	for path, says := range map[string]string{
		"": "name:", "?name=": "name:", "?name=" + strings.Repeat("a", 255): "…", "?name=a.example&user=7": "user:",
	} {
		d.want(t, 400, says, "GET", "/v1/dns/query"+path, "")
	}
	if len(d.names.asked) != asked {
		t.Errorf("was asked what cannot be asked: %+v", d.names.asked[asked:])
	}
	r := d.want(t, 400, "there is no NONSENSE", "GET", "/v1/dns/query?name=a.example&type=NONSENSE", "")
	if strings.Contains(r.body, "unusable") {
		t.Errorf("the kind of the error is no word for people: %s", r.body)
	}
	d.want(t, 500, "it broke", "GET", "/v1/dns/query?name=broken.example", "")
}

func TestDNSCache(t *testing.T) {
	d := start(t)
	for query, want := range map[string][2]int{"": {3, 3}, "name=example.org": {2, 2}, "name=nothing.example": {0, 0}, "limit=1": {3, 1}, "limit=0": {3, 0}, "limit=9": {3, 3}} {
		v, _ := url.ParseQuery(query)
		var list CachedList
		if err := d.client.Get(t.Context(), "/v1/dns/cache", v, &list); err != nil || list.Total != want[0] || len(list.Entries) != want[1] || list.Entries == nil {
			t.Errorf("%q: %v %+v, want %v", query, err, list, want)
		}
	}
	d.want(t, 400, "limit", "GET", "/v1/dns/cache?limit=-1", "")
	d.want(t, 400, "name:", "DELETE", "/v1/dns/cache?name=", "") // a variable that is not set in a script
	var f Flushed
	if err := d.client.DeleteSome(t.Context(), "/v1/dns/cache", url.Values{"name": {"example.org"}}, &f); err != nil || f.Flushed != 2 || len(d.names.cache) != 1 {
		t.Errorf("%v %+v, left %v", err, f, d.names.cache)
	}
	if err := d.client.Delete(t.Context(), "/v1/dns/cache", &f); err != nil || f.Flushed != 1 || len(d.names.cache) != 0 {
		t.Errorf("%v %+v, left %v", err, f, d.names.cache)
	}
}
