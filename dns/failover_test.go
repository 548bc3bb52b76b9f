package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// silentTCP accepts connections, or lets them wait in the backlog, and says nothing.
func silentTCP(t testing.TB) netip.AddrPort {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func silentUDP(t testing.TB) netip.AddrPort {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// closedPort refuses, over TCP and over UDP.
func closedPort(t testing.TB) netip.AddrPort {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// TestDeadFirst: the first of two resolvers is dead in every way that its scheme knows: little
// more than the delay before the second is asked is added, for the cold start and after it.
func TestDeadFirst(t *testing.T) {
	a := newAuthority(t)
	mute := newPeer(t)
	mute.answer = func(*mdns.Msg) *mdns.Msg { return nil }
	cases := []struct {
		name string
		dead Resolver
	}{
		{"UDP silent", Resolver{Scheme: SchemeDNS, Addr: silentUDP(t)}},
		{"UDP refused", Resolver{Scheme: SchemeDNS, Addr: closedPort(t)}},
		{"TCP reset", Resolver{Scheme: SchemeTCP, Addr: closedPort(t)}},
		{"TCP silent", Resolver{Scheme: SchemeTCP, Addr: silentTCP(t)}},
		{"DoT reset", Resolver{Scheme: SchemeDoT, Addr: closedPort(t), Verify: serverName}},
		{"DoT handshake hangs", Resolver{Scheme: SchemeDoT, Addr: silentTCP(t), Verify: serverName}},
		{"DoT mute", mute.serve(SchemeDoT, a, nil).resolver(SchemeDoT)},
		{"DoH handshake hangs", Resolver{Scheme: SchemeHTTPS, Addr: silentTCP(t), Verify: serverName, Path: defaultPath}},
		{"DoH wrong certificate", newPeer(t).serve(SchemeHTTPS, newAuthority(t), nil).resolver(SchemeHTTPS)},
		{"DoQ silent", Resolver{Scheme: SchemeDoQ, Addr: silentUDP(t), Verify: serverName}},
		{"DoQ refused", Resolver{Scheme: SchemeDoQ, Addr: closedPort(t), Verify: serverName}},
		{"h3 silent", Resolver{Scheme: SchemeH3, Addr: silentUDP(t), Verify: serverName, Path: defaultPath}},
	}
	for i, c := range cases {
		scheme := kept()[i%len(kept())]
		t.Run(c.name+", then "+string(scheme), func(t *testing.T) {
			good := newPeer(t).serve(scheme, a, nil).resolver(scheme)
			alone, both := secureClient(t, a), secureClient(t, a)
			mustAsk(t, alone, good, "warm.example")
			worst := time.Duration(0)
			for i := range 4 {
				q := inquiry{name: fmt.Sprintf("n%d.example", i), qtype: mdns.TypeA}
				start := time.Now()
				if _, _, err := alone.ask(context.Background(), q, [][]Resolver{{good}}); err != nil {
					t.Fatal(err)
				}
				direct := time.Since(start)
				start = time.Now()
				_, from, err := both.ask(context.Background(), q, [][]Resolver{{c.dead, good}})
				if err != nil || from != good {
					t.Fatalf("%v from %v", err, from)
				}
				worst = max(worst, time.Since(start)-direct)
			}
			t.Logf("at most %v added, want 250 ms on a machine with nothing else to do", worst)
			if worst > 10*hedgeDelay {
				t.Errorf("%v added", worst)
			}
		})
	}
}

// spyDialer counts what goes where, in the clear and not.
type spyDialer struct {
	mu    sync.Mutex
	dials map[string]int
}

func (d *spyDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	d.mu.Lock()
	d.dials[network+" "+address]++
	d.mu.Unlock()
	return new(net.Dialer).DialContext(ctx, network, address)
}

func (d *spyDialer) count(a netip.AddrPort) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dials["udp "+a.String()] + d.dials["tcp "+a.String()]
}

// TestStrict: who configured only encrypted resolvers, or forbids others, gets an error rather
// than a query in the clear, whatever the encrypted ones do. Every case has its control.
func TestStrict(t *testing.T) {
	a := newAuthority(t)
	dead := map[string]Resolver{
		"refused":           {Scheme: SchemeDoT, Addr: closedPort(t), Verify: serverName},
		"wrong certificate": newPeer(t).serve(SchemeHTTPS, newAuthority(t), nil).resolver(SchemeHTTPS),
		"refused QUIC":      {Scheme: SchemeDoQ, Addr: closedPort(t), Verify: serverName},
	}
	for name, d := range dead {
		for _, c := range []struct {
			name     string
			config   func(plain Resolver) Config
			system   bool // the plain resolver is the system's
			wantSent bool
		}{
			{"only encrypted ones", func(Resolver) Config { return Config{Nameservers: []Resolver{d}} }, true, false},
			{"insecure forbidden", func(p Resolver) Config { return Config{Nameservers: []Resolver{d, p}, NoInsecure: true} }, true, false},
			{"insecure forbidden, none of mine", func(p Resolver) Config { return Config{NoInsecure: true} }, true, false},
			{"control: a plain one beside", func(p Resolver) Config { return Config{Nameservers: []Resolver{d, p}} }, false, true},
			{"control: the system's only", func(p Resolver) Config { return Config{} }, true, true},
		} {
			t.Run(name+", "+c.name, func(t *testing.T) {
				plain := simple(t)
				spy := &spyDialer{dials: map[string]int{}}
				r := newRig(t, func(o *Options) {
					o.Dialer, o.Config = spy, c.config(plain.resolver())
					if c.system {
						o.System = func() []Resolver { return []Resolver{plain.resolver()} }
					}
				})
				r.resolver.client.roots = a.roots()
				for i := range 8 {
					reply := r.query(t, ask(fmt.Sprintf("n%d.example", i), mdns.TypeA))
					if got := reply.Rcode == mdns.RcodeSuccess; got != c.wantSent {
						t.Fatalf("got %v", reply)
					}
				}
				sent := spy.count(plain.addr)
				if (sent > 0) != c.wantSent || (plain.queries.Load() > 0) != c.wantSent {
					t.Fatalf("%d sockets and %d queries in the clear", sent, plain.queries.Load())
				}
			})
		}
	}
}

// TestProbes: a failing resolver is probed in the background, and asked first again as soon as it
// answers; no program's query is needed for that. The log says both once.
func TestProbes(t *testing.T) {
	var alive atomic.Bool
	var probes atomic.Int64
	a := newAuthority(t)
	p := newPeer(t)
	p.answer = func(q *mdns.Msg) *mdns.Msg {
		if q.Question[0] == (mdns.Question{Name: ".", Qtype: mdns.TypeNS, Qclass: mdns.ClassINET}) {
			probes.Add(1)
		}
		if !alive.Load() {
			p.hangUp()
			return nil
		}
		return respond(t, q, mdns.RcodeSuccess)
	}
	p.serve(SchemeDoT, a, nil)
	core, logs := observer.New(zapcore.InfoLevel)
	c := newClient(&netDialer{}, time.Now, zap.New(core), nil)
	c.roots = a.roots()
	c.renew(30 * time.Millisecond)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { c.run(ctx); close(done) }()
	defer func() { cancel(); <-done }()

	r := p.resolver(SchemeDoT)
	u := c.server(r, time.Now())
	for i := range failuresKept {
		if c.failing(r, time.Now()) {
			t.Fatalf("failing after %d failures", i)
		}
		c.failed(u, errSilent)
	}
	if h := c.health(r, time.Now()); h.failures != failuresKept || !errors.Is(h.err, errSilent) {
		t.Fatalf("health %+v", h)
	}
	eventually(t, "the failing resolver is not probed", func() bool { return probes.Load() > 0 })
	alive.Store(true)
	eventually(t, "it answers and still counts as failing", func() bool { return !c.failing(r, time.Now()) })
	if h := c.health(r, time.Now()); h.failing || h.failures != 0 || h.err != nil || h.latency <= 0 {
		t.Fatalf("health %+v", h)
	}
	if logs.FilterMessageSnippet("is failing").Len() != 1 || logs.FilterMessageSnippet("answers again").Len() != 1 {
		t.Fatalf("%v", logs.All())
	}
	n := probes.Load()
	c.failed(u, errSilent) // one failure is no reason to probe
	c.renew(time.Millisecond)
	if probes.Load() != n {
		t.Fatalf("%d probes of a server that is not failing", probes.Load()-n)
	}
}

// TestForgotten: who is not configured any more is not asked in the background either.
func TestForgotten(t *testing.T) {
	now := time.Now()
	c := newClient(&netDialer{}, func() time.Time { return now }, zap.NewNop(), nil)
	defer c.close()
	r := Resolver{Scheme: SchemeDNS, Addr: closedPort(t)}
	for range failuresKept {
		c.failed(c.server(r, now), errSilent)
	}
	now = now.Add(standardRetryRate)
	if _, due := c.agenda(); len(due) != 1 {
		t.Fatalf("%d to probe, want 1: without it this proves nothing", len(due))
	}
	now = now.Add(standardRetryRate)
	c.renew(0)
	if _, due := c.agenda(); len(due) != 0 || c.failing(r, now) {
		t.Fatalf("%d to probe", len(due))
	}
	for i := range 3 * maxKnown { // and the memory of them is bounded
		c.server(Resolver{Scheme: SchemeDNS, Addr: r.Addr, Name: fmt.Sprint(i)}, now)
	}
	if len(c.known) > maxKnown {
		t.Fatalf("%d resolvers are remembered", len(c.known))
	}
}

// TestBlockedUpstream: what each form takes for a block, and that nobody else is asked then.
func TestBlockedUpstream(t *testing.T) {
	soa := "example. 60 IN SOA ns.example. mail.example. 1 2 3 4 60"
	answers := map[string]func(q *mdns.Msg) *mdns.Msg{
		"zero A":    func(q *mdns.Msg) *mdns.Msg { return respond(t, q, mdns.RcodeSuccess, "n.example. 60 IN A 0.0.0.0") },
		"zero AAAA": func(q *mdns.Msg) *mdns.Msg { return respond(t, q, mdns.RcodeSuccess, "n.example. 60 IN AAAA ::") },
		"zero, aliased": func(q *mdns.Msg) *mdns.Msg {
			return respond(t, q, mdns.RcodeSuccess, "n.example. 60 IN CNAME b.example.", "b.example. 60 IN A 0.0.0.0")
		},
		"zero and other": func(q *mdns.Msg) *mdns.Msg {
			return respond(t, q, mdns.RcodeSuccess, "n.example. 60 IN A 0.0.0.0", "n.example. 60 IN A 198.51.100.1")
		},
		"loopback": func(q *mdns.Msg) *mdns.Msg { return respond(t, q, mdns.RcodeSuccess, "n.example. 60 IN A 127.0.0.1") },
		"no data":  func(q *mdns.Msg) *mdns.Msg { return respond(t, q, mdns.RcodeSuccess) },
		"no name":  func(q *mdns.Msg) *mdns.Msg { return respond(t, q, mdns.RcodeNameError) },
		"no data, SOA": func(q *mdns.Msg) *mdns.Msg {
			m := respond(t, q, mdns.RcodeSuccess)
			m.Ns = append(m.Ns, record(t, soa))
			return m
		},
		"no name, SOA": func(q *mdns.Msg) *mdns.Msg {
			m := respond(t, q, mdns.RcodeNameError)
			m.Ns = append(m.Ns, record(t, soa))
			return m
		},
		"refused": func(q *mdns.Msg) *mdns.Msg { return respond(t, q, mdns.RcodeRefused) },
		"failed":  func(q *mdns.Msg) *mdns.Msg { return respond(t, q, mdns.RcodeServerFailure) },
		"answer": func(q *mdns.Msg) *mdns.Msg {
			return respond(t, q, mdns.RcodeSuccess, "n.example. 60 IN A 198.51.100.1")
		},
	}
	blocked := map[BlockForm][]string{
		BlockZeroIP:   {"zero A", "zero AAAA", "zero, aliased"},
		BlockEmpty:    {"no data", "no name"},
		BlockRefused:  {"refused"},
		BlockDisabled: nil,
	}
	for name, answer := range answers {
		up := answering(t, answer)
		for form, names := range blocked {
			second := simple(t)
			r := up.resolver()
			r.BlockedIf, r.Name = form, "Guard"
			m, from, err := testClient(t).ask(context.Background(), inquiry{name: "n.example", qtype: mdns.TypeA}, [][]Resolver{{r, second.resolver()}})
			var b *BlockedUpstreamError
			if want := slices.Contains(names, name); errors.As(err, &b) != want {
				t.Errorf("%s, %s: %v from %v, %v", form, name, m, from, err)
			} else if want && (b.Resolver != r || from != r || second.queries.Load() != 0 || !strings.HasSuffix(err.Error(), "blocked by the resolver Guard")) {
				t.Errorf("%s, %s: %v, %d others asked", form, name, err, second.queries.Load())
			}
		}
	}
}
