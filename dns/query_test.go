package dns

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"gatun/attribution"
	"gatun/network"
)

// TestQuery: a person sees what the program would be answered, and leaves no trace.
func TestQuery(t *testing.T) {
	up := answering(t, func(q *mdns.Msg) *mdns.Msg {
		name := q.Question[0].Name
		switch {
		case strings.HasPrefix(name, "no."):
			return respond(t, q, mdns.RcodeNameError)
		case strings.HasPrefix(name, "mixed."):
			return respond(t, q, mdns.RcodeSuccess, name+" 300 IN CNAME c.example.", "c.example. 200 IN A 10.0.0.1", "c.example. 200 IN A 198.51.100.7")
		case q.Question[0].Qtype == mdns.TypeMX:
			return respond(t, q, mdns.RcodeSuccess, name+" 300 IN MX 10 m.example.")
		}
		return respond(t, q, mdns.RcodeSuccess, name+" 300 IN A 198.51.100.7")
	})
	now := time.Now()
	r := newRig(t, func(o *Options) { o.Clock = func() time.Time { return now } }, up.resolver())
	r.firewall.before = func(q *Query) network.Decision {
		switch {
		case q.Name == "blocked.example" && q.Owner.Process.Path == "/bin/a":
			return network.Decision{Verdict: network.Block, Stage: network.StageBeforeIntel, Code: "rule", Reason: "told so"}
		case q.Name == "dropped.example":
			return network.Decision{Verdict: network.Drop, Stage: network.StageBeforeIntel, Code: "rule", Reason: "told so"}
		}
		return network.Decision{}
	}
	r.firewall.after = func(_ *Query, a *Answer) network.Decision {
		for _, addr := range a.Addrs {
			if addr.IsPrivate() {
				a.Remove = append(a.Remove, addr)
			}
		}
		return accepted
	}
	server := up.resolver().String()
	for _, c := range []struct {
		path, name, qtype string
		want              Result // Records joined in EDE's place below
		records           string
	}{
		{"/bin/a", "www.example", "", Result{Name: "www.example", Type: "A", Rcode: "NOERROR", TTL: 300 * time.Second, Resolver: server}, "www.example. 300 IN A 198.51.100.7"},
		{"/bin/a", "WWW.example.", "a", Result{Name: "www.example", Type: "A", Rcode: "NOERROR", TTL: 300 * time.Second, Resolver: server, Cached: true}, "www.example. 300 IN A 198.51.100.7"},
		{"/bin/a", "www.example", "MX", Result{Name: "www.example", Type: "MX", Rcode: "NOERROR", TTL: 300 * time.Second, Resolver: server}, "www.example. 300 IN MX 10 m.example."},
		{"/bin/a", "www.example", "type15", Result{Name: "www.example", Type: "MX", Rcode: "NOERROR", TTL: 300 * time.Second, Resolver: server, Cached: true}, "www.example. 300 IN MX 10 m.example."},
		{"/bin/a", "no.example", "1", Result{Name: "no.example", Type: "A", Rcode: "NXDOMAIN", Resolver: server}, ""},
		{"/bin/a", "Bücher.example", "", Result{Name: "xn--bcher-kva.example", Type: "A", Rcode: "NOERROR", TTL: 300 * time.Second, Resolver: server}, "xn--bcher-kva.example. 300 IN A 198.51.100.7"},
		{"/bin/a", "blocked.example", "", Result{Name: "blocked.example", Type: "A", Rcode: "NXDOMAIN", EDE: "15 (Blocked): told so"}, ""},
		{"/bin/b", "blocked.example", "", Result{Name: "blocked.example", Type: "A", Rcode: "NOERROR", TTL: 300 * time.Second, Resolver: server}, "blocked.example. 300 IN A 198.51.100.7"},
		{"/bin/a", "dropped.example", "", Result{Name: "dropped.example", Type: "A"}, ""},
		{"/bin/a", "mixed.example", "", Result{Name: "mixed.example", Type: "A", Rcode: "NOERROR", TTL: 200 * time.Second, Resolver: server, EDE: "17 (Filtered): addresses were removed by the firewall"}, "mixed.example. 200 IN CNAME c.example.|c.example. 200 IN A 198.51.100.7"},
		{"/bin/a", "localhost", "AAAA", Result{Name: "localhost", Type: "AAAA", Rcode: "NOERROR"}, "localhost. 0 IN AAAA ::1"},
	} {
		got, err := r.Query(context.Background(), owner(c.path, 0), c.name, c.qtype)
		records := strings.Join(got.Records, "|")
		verdict := got.Decision.Verdict
		got.Records, got.Decision, got.Duration = nil, network.Decision{}, 0
		if err != nil || records != c.records || got.Name != c.want.Name || !sameResult(got, c.want) {
			t.Errorf("%s %s as %s: got %+v %q, %v\nwant %+v %q", c.name, c.qtype, c.path, got, records, err, c.want, c.records)
		}
		if denied := strings.Contains(c.want.EDE, "Blocked") || c.want.Rcode == ""; denied == verdict.Permits() {
			t.Errorf("%s: verdict %v", c.name, verdict)
		}
	}
	if n := len(r.table.All()); n != 0 || r.memory.Len() != 0 || r.Counters().Blocked != 0 {
		t.Errorf("%d queries are listed, %d addresses remembered, %d counted as blocked", n, r.memory.Len(), r.Counters().Blocked)
	}
	if r.query(t, ask("www.example", mdns.TypeA)); len(r.table.All()) != 1 || r.memory.Len() != 1 {
		t.Error("positive control: a program's query leaves no trace either")
	}
	for _, bad := range [][2]string{{"", ""}, {"a..b", ""}, {strings.Repeat("a", 64) + ".example", ""}, {"www.example", "AXFR"}, {"www.example", "nonsense"}, {"www.example", "65536"}, {"www.example", "OPT"}} {
		if got, err := r.Query(context.Background(), owner("/bin/a", 0), bad[0], bad[1]); err == nil && bad[0] != "" {
			t.Errorf("%q: got %+v", bad, got)
		}
	}
}

func sameResult(a, b Result) bool {
	return a.Type == b.Type && a.Rcode == b.Rcode && a.TTL == b.TTL && a.Cached == b.Cached && a.Stale == b.Stale && a.Resolver == b.Resolver && a.EDE == b.EDE
}

// TestQueryOfUs: a query of our own process would loop, whoever asks for it.
func TestQueryOfUs(t *testing.T) {
	r := newRig(t, nil, simple(t).resolver())
	self := attribution.Owner{Process: &attribution.Process{Kind: attribution.KindSelf}, Confidence: attribution.Exact}
	if got, err := r.Query(context.Background(), self, "a.example", ""); err != nil || got.Rcode != "REFUSED" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestCachedAndFlush(t *testing.T) {
	up := answering(t, func(q *mdns.Msg) *mdns.Msg {
		name := q.Question[0].Name
		if strings.HasPrefix(name, "no.") {
			m := respond(t, q, mdns.RcodeNameError)
			m.Ns = append(m.Ns, record(t, "example. 100 IN SOA a. b. 1 2 3 4 100"))
			return m
		}
		if q.Question[0].Qtype == mdns.TypeTXT {
			return respond(t, q, mdns.RcodeSuccess, name+" 300 IN TXT hi")
		}
		return respond(t, q, mdns.RcodeSuccess, name+" 300 IN A 198.51.100.7")
	})
	now := time.Now()
	r := newRig(t, func(o *Options) { o.Clock = func() time.Time { return now } }, up.resolver())
	for _, name := range []string{"b.example", "a.example", "no.example", "a.exampleX"} {
		r.query(t, ask(name, mdns.TypeA))
	}
	r.query(t, ask("a.example", mdns.TypeTXT))
	r.query(t, ask("a.example", mdns.TypeA).SetEdns0(1232, true)) // DO: another entry
	now = now.Add(100 * time.Second / 2)
	list := r.Cached("A.exa")
	var got []string
	for _, e := range list {
		got = append(got, e.Name+" "+e.Type+" "+e.Rcode+" "+strings.Join(e.Records, "|"))
		if e.Resolver != up.resolver().String() || e.Scope != "configured" || !e.Shared || e.Stale || !e.Expires.Equal(now.Add(250*time.Second)) {
			t.Errorf("entry %+v", e)
		}
	}
	want := []string{
		"a.example A NOERROR a.example. 250 IN A 198.51.100.7", "a.example A NOERROR a.example. 250 IN A 198.51.100.7",
		"a.example TXT NOERROR a.example. 250 IN TXT \"hi\"", "a.examplex A NOERROR a.exampleX. 250 IN A 198.51.100.7",
	}
	for i := range want { // the upstream's spelling does not matter
		want[i] = lower(want[i])
		if i < len(got) {
			got[i] = lower(got[i])
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if all := r.Cached(""); len(all) != 6 || all[5].Name != "no.example" || all[5].Rcode != "NXDOMAIN" || len(all[5].Records) != 0 {
		t.Errorf("all: %+v", all)
	}
	if n := r.FlushName("A.Example."); n != 3 {
		t.Errorf("%d flushed, want 3", n)
	}
	before := up.queries.Load()
	if r.query(t, ask("a.example", mdns.TypeA)); up.queries.Load() != before+1 {
		t.Error("the flushed name is still cached")
	}
	if r.query(t, ask("b.example", mdns.TypeA)); up.queries.Load() != before+1 {
		t.Error("another name was flushed")
	}
	if n := r.Flush(); n != 4 {
		t.Errorf("%d flushed, want 4", n)
	}
	if c := r.Counters(); c.CacheEntries != 0 || c.CacheBytes != 0 || len(r.Cached("")) != 0 {
		t.Errorf("left %+v", c)
	}
}

// TestBlockedByResolver: a resolver that blocks is obeyed, and said so.
func TestBlockedByResolver(t *testing.T) {
	second := simple(t)
	up := answering(t, func(q *mdns.Msg) *mdns.Msg {
		return respond(t, q, mdns.RcodeSuccess, q.Question[0].Name+" 60 IN A 0.0.0.0")
	})
	filter := up.resolver()
	filter.Name, filter.BlockedIf = "Family", BlockZeroIP
	r := newRig(t, nil, filter, second.resolver())
	for range 2 {
		reply := r.query(t, ask("bad.example", mdns.TypeA).SetEdns0(1232, false))
		code, text := ede(reply)
		if reply.Rcode != mdns.RcodeNameError || code != mdns.ExtendedErrorCodeBlocked || text != "blocked by the resolver Family" || len(reply.Answer) != 0 {
			t.Fatalf("got %v", reply)
		}
	}
	if up.queries.Load() != 1 || second.queries.Load() != 0 {
		t.Errorf("asked %d and %d times, want once and never", up.queries.Load(), second.queries.Load())
	}
	rep := r.last(t)
	if rep.Verdict != "block" || rep.ReasonCode != "blocked-upstream" || rep.Rcode != "NXDOMAIN" || !strings.Contains(rep.Resolver, up.addr.String()) {
		t.Errorf("recorded %+v", rep)
	}
	r.firewall.after = func(*Query, *Answer) network.Decision {
		return network.Decision{Verdict: network.Block, Code: "rule", Reason: "a rule of ours", Stage: network.StageAfterIntel}
	}
	if r.query(t, ask("bad.example", mdns.TypeA)); r.last(t).ReasonCode != "rule" {
		t.Errorf("our own rule comes first: %+v", r.last(t))
	}
}

// TestStyleByDecision: how a name is answered may depend on why it is blocked.
func TestStyleByDecision(t *testing.T) {
	r := newRig(t, func(o *Options) {
		o.BlockStyle = func(_ attribution.Owner, d network.Decision) BlockStyle {
			if d.Code == "bypass-canary" {
				return NXDomain
			}
			return Refused
		}
	})
	code := ""
	r.firewall.before = func(*Query) network.Decision {
		return network.Decision{Verdict: network.Block, Stage: network.StageBeforeIntel, Code: code, Reason: "x"}
	}
	for c, want := range map[string]int{"rule": mdns.RcodeRefused, "bypass-canary": mdns.RcodeNameError} {
		code = c
		if reply := r.query(t, ask("use-application-dns.net", mdns.TypeA)); reply.Rcode != want {
			t.Errorf("%s: %v", c, reply)
		}
	}
}

// TestReported: the record says who answered and what.
func TestReported(t *testing.T) {
	up := simple(t)
	r := newRig(t, nil, up.resolver())
	for range 2 {
		r.query(t, ask("a.example", mdns.TypeA))
		if rep := r.last(t); rep.Resolver != up.resolver().String() || rep.Rcode != "NOERROR" {
			t.Errorf("recorded %+v", rep)
		}
	}
	r.query(t, ask("x.invalid", mdns.TypeA))
	if rep := r.last(t); rep.Resolver != "" || rep.Rcode != "NXDOMAIN" {
		t.Errorf("recorded %+v", rep)
	}
	r.firewall.before = func(*Query) network.Decision {
		return network.Decision{Verdict: network.Drop, Stage: network.StageBeforeIntel}
	}
	r.query(t, ask("a.example", mdns.TypeA))
	if rep := r.last(t); rep.Resolver != "" || rep.Rcode != "" {
		t.Errorf("recorded %+v", rep)
	}
}

// TestLocalIsRemembered: the firewall is told, at the query and later at the flow, that who
// answered may give addresses of this network.
func TestLocalIsRemembered(t *testing.T) {
	corp := answering(t, func(q *mdns.Msg) *mdns.Msg {
		return respond(t, q, mdns.RcodeSuccess, q.Question[0].Name+" 300 IN A 10.1.1.1")
	})
	public := answering(t, func(q *mdns.Msg) *mdns.Msg {
		return respond(t, q, mdns.RcodeSuccess, q.Question[0].Name+" 300 IN A 10.1.1.2")
	})
	search := corp.resolver()
	search.Search, search.SearchOnly = "corp.example", true
	r := newRig(t, nil, public.resolver(), search)
	got := map[string]bool{}
	r.firewall.after = func(q *Query, a *Answer) network.Decision { got[q.Name] = a.Local; return accepted }
	for name, want := range map[string]bool{"x.corp.example": true, "www.example": false} {
		for range 2 { // and from the cache
			if r.query(t, ask(name, mdns.TypeA)); got[name] != want {
				t.Errorf("%s: Answer.Local is %v", name, got[name])
			}
		}
	}
	for addr, want := range map[string]bool{"10.1.1.1": true, "10.1.1.2": false} {
		if e := r.memory.Entity(owner("/usr/bin/app", 1000), netip.MustParseAddr(addr)); e.Local != want || e.Domain == "" {
			t.Errorf("%s: remembered %+v", addr, e)
		}
	}
}
