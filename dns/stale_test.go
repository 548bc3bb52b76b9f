package dns

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"gatun/network"
)

// clockRig is a server whose clock stands still until it is moved, with Run running.
type clockRig struct {
	*rig
	mu  sync.Mutex
	now time.Time
}

func newClockRig(t *testing.T, change func(*Options), servers ...Resolver) *clockRig {
	c := &clockRig{now: time.Now()}
	c.rig = newRig(t, func(o *Options) {
		o.Clock = func() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
		if change != nil {
			change(o)
		}
	}, servers...)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { c.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return c
}

func (c *clockRig) later(d time.Duration) { c.mu.Lock(); c.now = c.now.Add(d); c.mu.Unlock() }

// TestStale: an expired answer is served at once, with a short TTL and the reason, while one
// renewal runs; after a day it is gone.
func TestStale(t *testing.T) {
	var mode atomic.Int32 // 0: answers, 1: fails, 2: another address
	up := answering(t, func(q *mdns.Msg) *mdns.Msg {
		name := q.Question[0].Name
		switch {
		case strings.HasPrefix(name, "no."):
			m := respond(t, q, mdns.RcodeNameError)
			m.Ns = append(m.Ns, record(t, "example. 100 IN SOA a. b. 1 2 3 4 100"))
			return m
		case mode.Load() == 1:
			return respond(t, q, mdns.RcodeServerFailure)
		case mode.Load() == 2:
			return respond(t, q, mdns.RcodeSuccess, name+" 100 IN A 198.51.100.2")
		}
		return respond(t, q, mdns.RcodeSuccess, name+" 100 IN A 198.51.100.1")
	})
	r := newClockRig(t, func(o *Options) { o.Config.UseStale = true }, up.resolver())
	get := func(name string) (value string, ttl uint32, code uint16) {
		m := r.query(t, ask(name, mdns.TypeA).SetEdns0(1232, false))
		code, _ = ede(m)
		if len(m.Answer) > 0 {
			ttl = m.Answer[0].Header().Ttl
		}
		if m.Rcode != mdns.RcodeSuccess {
			return rcodeName(m.Rcode), ttl, code
		}
		return values(m), ttl, code
	}
	check := func(value string, ttl uint32, code uint16) {
		t.Helper()
		if v, l, c := get("v.example"); v != value || l != ttl || c != code {
			t.Fatalf("got %s, TTL %d, EDE %d; want %s, %d, %d", v, l, c, value, ttl, code)
		}
	}
	renewed := func(what string) { // who asks while it is under way joins it, and begins none
		t.Helper()
		eventually(t, what+" has ended", func() bool {
			r.resolver.mu.Lock()
			defer r.resolver.mu.Unlock()
			return len(r.resolver.flights) == 0
		})
	}
	check("198.51.100.1", 100, 0)
	mode.Store(1)
	r.later(101 * time.Second)
	check("198.51.100.1", 30, mdns.ExtendedErrorCodeStaleAnswer)
	eventually(t, "one renewal", func() bool { return up.queries.Load() == 2 })
	for range 5 { // the renewal fails, and is tried again in a while only
		check("198.51.100.1", 30, mdns.ExtendedErrorCodeStaleAnswer)
	}
	renewed("one renewal")
	r.later(renewAgain)
	check("198.51.100.1", 30, mdns.ExtendedErrorCodeStaleAnswer)
	eventually(t, "another renewal", func() bool { return up.queries.Load() == 3 })
	renewed("another renewal")
	if c := r.Counters(); c.Stale != 7 {
		t.Errorf("%d stale answers counted, want 7", c.Stale)
	}
	mode.Store(2)
	r.later(renewAgain)
	check("198.51.100.1", 30, mdns.ExtendedErrorCodeStaleAnswer)
	eventually(t, "the fresh answer", func() bool { v, _, _ := get("v.example"); return v == "198.51.100.2" })
	check("198.51.100.2", 100, 0)

	mode.Store(1)
	r.later(100*time.Second + maxStale - time.Second)
	check("198.51.100.2", 30, mdns.ExtendedErrorCodeStaleAnswer)
	r.later(2 * time.Second)
	check("SERVFAIL", 0, 0)

	// That a name does not exist is not served stale: it may have come into being.
	get("no.example")
	before := up.queries.Load()
	r.later(101 * time.Second)
	if v, _, code := get("no.example"); v != "NXDOMAIN" || code != 0 || up.queries.Load() != before+1 {
		t.Errorf("got %s, EDE %d, %d queries", v, code, up.queries.Load()-before)
	}

	// Off: nothing stale is served, also of what was cached before.
	mode.Store(0)
	r.later(time.Minute)
	check("198.51.100.1", 100, 0)
	r.Configure(Config{Nameservers: []Resolver{up.resolver()}})
	check("198.51.100.1", 100, 0)
	mode.Store(2)
	r.later(101 * time.Second)
	check("198.51.100.2", 100, 0)
}

// TestStaleIsFiltered: what is served stale passes the same decisions.
func TestStaleIsFiltered(t *testing.T) {
	up := simple(t)
	r := newClockRig(t, func(o *Options) { o.Config.UseStale = true }, up.resolver())
	if m := r.query(t, ask("v.example", mdns.TypeA)); len(m.Answer) != 1 {
		t.Fatalf("got %v", m)
	}
	r.later(time.Hour)
	r.firewall.after = func(_ *Query, a *Answer) network.Decision {
		if len(a.Addrs) != 1 {
			t.Errorf("decided without the address: %+v", a)
		}
		return network.Decision{Verdict: network.Block, Stage: network.StageAfterIntel, Reason: "no"}
	}
	if m := r.query(t, ask("v.example", mdns.TypeA)); m.Rcode != mdns.RcodeNameError || len(m.Answer) != 0 {
		t.Fatalf("got %v", m)
	}
}
