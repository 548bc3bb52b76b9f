package dns

import (
	"testing"

	mdns "github.com/miekg/dns"

	"gatun/network"
)

// TestRecordSaysWhatWasAskedAndWhoAnswered: each query is recorded with its type, whatever became
// of it.
func TestRecordSaysWhatWasAskedAndWhoAnswered(t *testing.T) {
	up := simple(t)
	r := newRig(t, nil, up.resolver())
	r.firewall.before = func(q *Query) network.Decision {
		if q.Name == "blocked.example" {
			return network.Decision{Verdict: network.Block, Stage: network.StageBeforeIntel}
		}
		return network.Decision{}
	}
	from := up.resolver().String()
	for _, c := range []struct {
		name                  string
		qtype                 uint16
		kind, rcode, resolver string
	}{
		{"a.example", mdns.TypeA, "A", "NOERROR", from},
		{"a.example", mdns.TypeA, "A", "NOERROR", from}, // from the cache
		{"a.example", mdns.TypeAAAA, "AAAA", "NOERROR", from},
		{"a.example", 65280, "TYPE65280", "NOERROR", from},
		{"blocked.example", mdns.TypeHTTPS, "HTTPS", "NXDOMAIN", ""},
		{"localhost", mdns.TypeA, "A", "NOERROR", ""},
	} {
		r.query(t, ask(c.name, c.qtype))
		if got := r.last(t); got.QueryType != c.kind || got.Rcode != c.rcode || got.Resolver != c.resolver {
			t.Errorf("%s %s: got %q %q by %q, want %q by %q", c.name, c.kind, got.QueryType, got.Rcode, got.Resolver, c.rcode, c.resolver)
		}
	}
}

func TestFlushName(t *testing.T) {
	r := newRig(t, nil, simple(t).resolver())
	for _, name := range []string{"example.org", "www.example.org", "notexample.org", "org", "other.example"} {
		r.query(t, ask(name, mdns.TypeAAAA))
	}
	r.query(t, ask("example.org", mdns.TypeA))
	before := len(r.Cached(""))
	if n := r.FlushName("Example.ORG."); n != 3 || len(r.Cached("")) != before-3 || len(r.Cached("notexample.org")) != 1 {
		t.Errorf("flushed %d of %d, left %+v", n, before, r.Cached(""))
	}
	if n := r.FlushName("nothing.example"); n != 0 {
		t.Errorf("flushed %d", n)
	}
	if n := r.Flush(); n != before-3 || len(r.Cached("")) != 0 {
		t.Errorf("flushed %d of %d", n, before-3)
	}
}
