package dns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"gatun/attribution"
	"gatun/network"
)

func TestAnswerKeepsCaseAndCountsDown(t *testing.T) {
	up := simple(t)
	now := time.Now()
	r := newRig(t, func(o *Options) { o.Clock = func() time.Time { return now } }, up.resolver())
	first := r.query(t, ask("ExAmPlE.Org", mdns.TypeA))
	if len(first.Answer) != 1 || first.Question[0].Name != "ExAmPlE.Org." || first.Answer[0].Header().Name != "ExAmPlE.Org." || first.Answer[0].Header().Ttl != 300 {
		t.Fatalf("got %v", first)
	}
	now = now.Add(100 * time.Second)
	second := r.query(t, ask("eXample.oRG", mdns.TypeA))
	if second.Question[0].Name != "eXample.oRG." || second.Answer[0].Header().Ttl != 200 {
		t.Fatalf("got %v", second)
	}
	if n := up.queries.Load(); n != 1 {
		t.Fatalf("%d upstream queries, want 1", n)
	}
	if !second.RecursionAvailable || !second.RecursionDesired || second.AuthenticatedData || second.Authoritative {
		t.Fatalf("flags %v", second.MsgHdr)
	}
	e := r.memory.Entity(owner("/usr/bin/app", 1000), netip.MustParseAddr("198.51.100.7"))
	if e.Domain != "example.org" || e.Source != network.DomainDNS {
		t.Fatalf("memory says %+v", e)
	}
	rep := r.last(t)
	if rep.Kind != "dns" || rep.Domain != "example.org" || rep.Verdict != "accept" || rep.CloseCause != "answered" || rep.Sent == 0 || rep.Received == 0 || rep.Process.PID != 7 {
		t.Fatalf("recorded %+v", rep)
	}
}

func TestDeniedBeforeIsNeverResolved(t *testing.T) {
	up := simple(t)
	rule := network.RuleRef{Text: "- .bad.example", File: "/etc/gatun/gatun.yaml", Line: 12}
	for _, c := range []struct {
		verdict network.Verdict
		style   BlockStyle
		qtype   uint16
		rcode   int
		addr    string
	}{
		{network.Block, NXDomain, mdns.TypeA, mdns.RcodeNameError, ""},
		{network.Block, Refused, mdns.TypeA, mdns.RcodeRefused, ""},
		{network.Block, Zero, mdns.TypeA, mdns.RcodeSuccess, "0.0.0.0"},
		{network.Block, Zero, mdns.TypeAAAA, mdns.RcodeSuccess, "::"},
		{network.Block, Zero, mdns.TypeMX, mdns.RcodeSuccess, ""},
		{network.PermanentBlock, NXDomain, mdns.TypeHTTPS, mdns.RcodeNameError, ""},
		{network.Drop, NXDomain, mdns.TypeA, -1, ""},
		{network.PermanentDrop, NXDomain, mdns.TypeA, -1, ""},
	} {
		t.Run(fmt.Sprint(c.verdict, c.style, c.qtype), func(t *testing.T) {
			r := newRig(t, func(o *Options) {
				o.BlockStyle = func(attribution.Owner, network.Decision) BlockStyle { return c.style }
			}, up.resolver())
			r.firewall.before = func(q *Query) network.Decision {
				if q.Name != "www.bad.example" || q.Type != c.qtype || q.Link.Comm().Entity.Domain != q.Name {
					t.Errorf("asked about %+v", q)
				}
				return network.Decision{Verdict: c.verdict, Stage: network.StageBeforeIntel, Reason: "a rule says so", Rule: rule}
			}
			m := ask("WWW.bad.example", c.qtype).SetEdns0(1232, false)
			reply := r.query(t, m)
			if up.queries.Load() != 0 {
				t.Fatal("the upstream was asked")
			}
			if rep := r.last(t); rep.Verdict != c.verdict.String() || rep.Rule.Line != 12 || rep.Stage != "before-intel" {
				t.Fatalf("recorded %+v", rep)
			}
			if c.rcode < 0 {
				if reply != nil {
					t.Fatalf("want silence, got %v", reply)
				}
				return
			}
			if reply.Rcode != c.rcode || reply.Question[0].Name != "WWW.bad.example." {
				t.Fatalf("got %v", reply)
			}
			if code, text := ede(reply); code != mdns.ExtendedErrorCodeFiltered || text != "a rule says so: - .bad.example (/etc/gatun/gatun.yaml:12)" {
				t.Fatalf("EDE %d %q", code, text)
			}
			if txt, ok := reply.Extra[0].(*mdns.TXT); !ok || txt.Hdr.Name != "info.gatun." || !strings.HasPrefix(txt.Txt[0], "a rule says so") {
				t.Fatalf("additional section %v", reply.Extra)
			}
			got := ""
			for _, rr := range reply.Answer {
				got = strings.Fields(rr.String())[4]
			}
			if got != c.addr {
				t.Fatalf("answered %q, want %q", got, c.addr)
			}
		})
	}
	positive := newRig(t, nil, up.resolver())
	if positive.query(t, ask("www.bad.example", mdns.TypeA)); up.queries.Load() != 1 {
		t.Fatal("positive control: the upstream was not asked without the rule either")
	}
}

func TestBlockedWithoutOPT(t *testing.T) {
	r := newRig(t, nil)
	r.firewall.before = func(*Query) network.Decision {
		return network.Decision{Verdict: network.Block, Stage: network.StageBeforeIntel, Reason: strings.Repeat("é\\", 300)}
	}
	reply := r.query(t, ask("x.example", mdns.TypeA))
	if reply.IsEdns0() != nil {
		t.Fatal("OPT to a client that sent none")
	}
	if txt := reply.Extra[0].(*mdns.TXT); len(txt.Txt) != 1 || reply.Rcode != mdns.RcodeNameError {
		t.Fatalf("got %v", reply)
	}
}

func TestDeniedAfterNeverReachesTheProgram(t *testing.T) {
	up := answering(t, func(q *mdns.Msg) *mdns.Msg {
		return respond(t, q, mdns.RcodeSuccess, "a.example. 300 IN CNAME tracker.example.", "tracker.example. 300 IN A 198.51.100.9")
	})
	for _, c := range []struct {
		name string
		d    network.Decision
		want string
	}{
		{"block", network.Decision{Verdict: network.Block, Stage: network.StageAfterIntel, Reason: "cloaked"}, "block"},
		{"zero value", network.Decision{}, "block"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil, up.resolver())
			r.firewall.after = func(q *Query, a *Answer) network.Decision {
				if !slices.Equal(a.CNAMEs, []string{"tracker.example"}) || !slices.Equal(a.Addrs, []netip.Addr{netip.MustParseAddr("198.51.100.9")}) {
					t.Errorf("asked with %+v", a)
				}
				return c.d
			}
			reply := r.query(t, ask("a.example", mdns.TypeA))
			if reply.Rcode != mdns.RcodeNameError || len(reply.Answer) != 0 {
				t.Fatalf("got %v", reply)
			}
			if r.last(t).Verdict != c.want || r.last(t).Reason == "" {
				t.Fatalf("recorded %+v", r.last(t))
			}
			if e := r.memory.Entity(owner("/usr/bin/app", 1000), netip.MustParseAddr("198.51.100.9")); e.Domain != "" {
				t.Fatalf("remembered %+v", e)
			}
		})
	}
}

func TestRemoveAddresses(t *testing.T) {
	up := answering(t, func(q *mdns.Msg) *mdns.Msg {
		n := q.Question[0].Name
		if q.Question[0].Qtype == mdns.TypeHTTPS {
			return respond(t, q, mdns.RcodeSuccess, n+` 300 IN HTTPS 1 . alpn="h2" ipv4hint="10.0.0.1,198.51.100.1" ipv6hint="fd00::1"`)
		}
		return respond(t, q, mdns.RcodeSuccess, n+" 300 IN A 198.51.100.1", n+" 300 IN A 10.0.0.1")
	})
	r := newRig(t, nil, up.resolver())
	r.firewall.after = func(_ *Query, a *Answer) network.Decision {
		for _, addr := range a.Addrs {
			if addr.IsPrivate() {
				a.Remove = append(a.Remove, addr)
			}
		}
		return accepted
	}
	for range 2 { // from the upstream, then from the cache
		reply := r.query(t, ask("mixed.example", mdns.TypeA).SetEdns0(1232, false))
		if len(reply.Answer) != 1 || reply.Answer[0].(*mdns.A).A.String() != "198.51.100.1" {
			t.Fatalf("got %v", reply)
		}
		if code, _ := ede(reply); code != mdns.ExtendedErrorCodeFiltered {
			t.Fatalf("EDE %d", code)
		}
		https := r.query(t, ask("mixed.example", mdns.TypeHTTPS))
		if s := https.Answer[0].String(); strings.Contains(s, "10.0.0.1") || strings.Contains(s, "ipv6hint") || !strings.Contains(s, `ipv4hint="198.51.100.1"`) || !strings.Contains(s, "h2") {
			t.Fatalf("got %s", s)
		}
	}
	if e := r.memory.Entity(owner("/usr/bin/app", 1000), netip.MustParseAddr("10.0.0.1")); e.Domain != "" {
		t.Fatalf("a removed address is remembered: %+v", e)
	}
	r.firewall.after = nil
	if reply := r.query(t, ask("mixed.example", mdns.TypeA)); len(reply.Answer) != 2 {
		t.Fatalf("positive control, and the cached answer must be untouched: %v", reply)
	}
}

func TestRememberedBeforeTheReply(t *testing.T) {
	up := simple(t)
	r := newRig(t, nil, up.resolver())
	r.firewall.after = func(*Query, *Answer) network.Decision {
		if r.memory.Len() != 0 {
			t.Error("remembered before it was allowed")
		}
		return accepted
	}
	r.query(t, ask("a.example", mdns.TypeA))
	if r.memory.Len() != 1 {
		t.Fatal("the reply is out and the memory empty")
	}
}

func TestOwnQueryIsRefused(t *testing.T) {
	up := simple(t)
	r := newRig(t, nil, up.resolver())
	r.firewall.before = func(*Query) network.Decision { t.Error("asked"); return accepted }
	self := attribution.Owner{Process: &attribution.Process{Kind: attribution.KindSelf}, Confidence: attribution.Exact}
	reply := r.queryAs(t, self, ask("a.example", mdns.TypeA))
	if reply.Rcode != mdns.RcodeRefused || up.queries.Load() != 0 || r.last(t).ReasonCode != "own-traffic" {
		t.Fatalf("got %v, %d upstream queries", reply, up.queries.Load())
	}
}

func TestNoNameserver(t *testing.T) {
	r := newRig(t, nil)
	reply := r.query(t, ask("a.example", mdns.TypeA).SetEdns0(1232, false))
	if code, text := ede(reply); reply.Rcode != mdns.RcodeServerFailure || code != mdns.ExtendedErrorCodeNoReachableAuthority || !strings.Contains(text, "no nameserver configured") {
		t.Fatalf("got %v", reply)
	}
	if n, _ := r.resolver.cache.len(); n != 0 {
		t.Fatal("cached")
	}
}

func TestSpecialNames(t *testing.T) {
	configured, system := simple(t), simple(t)
	r := newRig(t, func(o *Options) {
		o.System = func() []Resolver { return []Resolver{system.resolver()} }
	}, configured.resolver())
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		want  string // address, "" none; who was asked
		from  string
	}{
		{"localhost", mdns.TypeA, 0, "127.0.0.1", ""},
		{"LOCALHOST", mdns.TypeAAAA, 0, "::1", ""},
		{"a.b.localhost", mdns.TypeA, 0, "127.0.0.1", ""},
		{"localhost", mdns.TypeMX, 0, "", ""},
		{"x.invalid", mdns.TypeA, mdns.RcodeNameError, "", ""},
		{"abc.onion", mdns.TypeA, mdns.RcodeNameError, "", ""},
		{"abc.alt", mdns.TypeA, mdns.RcodeNameError, "", ""},
		{"_dns.resolver.arpa", mdns.TypeSVCB, 0, "", ""},
		{"gatun", mdns.TypeA, 0, "", ""},
		{"x.gatun", mdns.TypeA, mdns.RcodeNameError, "", ""},
		{"printer.local", mdns.TypeA, 0, "198.51.100.7", "system"},
		{"nas.home.arpa", mdns.TypeA, 0, "198.51.100.7", "system"},
		{"1.0.0.127.in-addr.arpa", mdns.TypePTR, 0, "localhost.", ""},
		{"1" + strings.Repeat(".0", 31) + ".ip6.arpa", mdns.TypePTR, 0, "localhost.", ""},
		{"1.0.0.127.in-addr.arpa", mdns.TypeA, 0, "", ""},
		{"2.0.0.127.in-addr.arpa", mdns.TypePTR, 0, "", "system"},
		{"1.0.0.10.in-addr.arpa", mdns.TypePTR, 0, "", "system"},
		{"1.0.16.172.in-addr.arpa", mdns.TypePTR, 0, "", "system"},
		{"1.0.15.172.in-addr.arpa", mdns.TypePTR, 0, "", "configured"},
		{"1.0.64.100.in-addr.arpa", mdns.TypePTR, 0, "", "system"},
		{"1.8.d.f.ip6.arpa", mdns.TypePTR, 0, "", "system"},
		{"notlocal", mdns.TypeA, 0, "198.51.100.7", "configured"},
		{"xresolver.arpa", mdns.TypeA, 0, "198.51.100.7", "configured"},
	} {
		t.Run(c.name, func(t *testing.T) {
			configured.queries.Store(0)
			system.queries.Store(0)
			reply := r.query(t, ask(c.name, c.qtype))
			got := ""
			for _, rr := range reply.Answer {
				got = strings.Fields(rr.String())[4]
			}
			from := ""
			if configured.queries.Load() > 0 {
				from = "configured"
			}
			if system.queries.Load() > 0 {
				from += "system"
			}
			if reply.Rcode != c.rcode || got != c.want || from != c.from {
				t.Fatalf("rcode %d answer %q from %q", reply.Rcode, got, from)
			}
		})
	}
	if txt := r.query(t, ask("info.gatun", mdns.TypeTXT)); len(txt.Answer) != 1 {
		t.Fatalf("got %v", txt)
	}
	r.Configure(Config{Nameservers: []Resolver{configured.resolver()}, ResolveSpecial: true})
	configured.queries.Store(0)
	if r.query(t, ask("abc.onion", mdns.TypeA)); configured.queries.Load() != 1 {
		t.Fatal("with the setting off, special names must be asked like others")
	}
}

func TestIntelRunsBesideTheResolver(t *testing.T) {
	// The upstream answers only after the intelligence was asked for, and the intelligence
	// comes only after the upstream was asked: sequential code would never end.
	asked, fetched := make(chan struct{}), make(chan struct{})
	up := newUpstream(t, func(q *mdns.Msg, _ []byte, _ netip.AddrPort, send func([]byte)) {
		close(asked)
		<-fetched
		send(packed(t, respond(t, q, mdns.RcodeSuccess, "a.example. 60 IN A 198.51.100.1")))
	}, nil)
	done := false
	r := newRig(t, func(o *Options) {
		o.Intel = intelFunc(func(context.Context, string) { close(fetched); <-asked; done = true })
	}, up.resolver())
	r.firewall.after = func(*Query, *Answer) network.Decision {
		if !done {
			t.Error("decided before the intelligence was there")
		}
		return accepted
	}
	if reply := r.query(t, ask("a.example", mdns.TypeA)); len(reply.Answer) != 1 {
		t.Fatalf("got %v", reply)
	}
}

type intelFunc func(context.Context, string)

func (f intelFunc) Wants(string) bool { return true }

func (f intelFunc) Fetch(ctx context.Context, name string) { f(ctx, name) }

func TestPanicCostsOneQuery(t *testing.T) {
	up := simple(t)
	r := newRig(t, nil, up.resolver())
	r.firewall.before = func(q *Query) network.Decision {
		if q.Name == "boom.example" {
			panic("boom")
		}
		return network.Decision{}
	}
	if r.query(t, ask("boom.example", mdns.TypeA)) != nil || r.Counters().Panics != 1 {
		t.Fatal("want silence and one counted panic")
	}
	if r.query(t, ask("a.example", mdns.TypeA)) == nil {
		t.Fatal("the next query is not answered")
	}
}

func TestCoalescing(t *testing.T) {
	release := make(chan struct{})
	up := newUpstream(t, func(q *mdns.Msg, _ []byte, _ netip.AddrPort, send func([]byte)) {
		b := packed(t, respond(t, q, mdns.RcodeSuccess, "a.example. 60 IN A 198.51.100.1"))
		go func() { <-release; send(b) }()
	}, nil)
	r := newRig(t, nil, up.resolver())
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if reply := r.queryAs(t, owner(fmt.Sprintf("/bin/p%d", i%3), 0), ask("a.example", mdns.TypeA)); len(reply.Answer) != 1 {
				t.Errorf("got %v", reply)
			}
		})
	}
	for deadline := time.Now().Add(5 * time.Second); r.Counters().Joined < 99 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	close(release)
	wg.Wait()
	if n := up.queries.Load(); n != 1 {
		t.Fatalf("%d upstream queries for 100 identical ones at once, want 1", n)
	}
	c := r.Counters()
	t.Logf("100 identical at once: 1 upstream query, %d joined, %d misses", c.Joined, c.Misses)
}

func TestGivenUpQueryDoesNotKillOthers(t *testing.T) {
	release := make(chan struct{})
	up := newUpstream(t, func(q *mdns.Msg, _ []byte, _ netip.AddrPort, send func([]byte)) {
		b := packed(t, respond(t, q, mdns.RcodeSuccess, "a.example. 60 IN A 198.51.100.1"))
		go func() { <-release; send(b) }()
	}, nil)
	r := newRig(t, nil, up.resolver())
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if b := r.ServeUDP(ctx, clientFlow, owner("/bin/a", 0), packed(t, ask("a.example", mdns.TypeA))); b != nil {
			t.Errorf("a query that was given up is answered")
		}
	})
	for r.Counters().Misses == 0 {
		time.Sleep(time.Millisecond)
	}
	wg.Go(func() {
		if reply := r.query(t, ask("a.example", mdns.TypeA)); len(reply.Answer) != 1 {
			t.Errorf("got %v", reply)
		}
	})
	for r.Counters().Joined == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	time.Sleep(20 * time.Millisecond)
	close(release)
	wg.Wait()
}
