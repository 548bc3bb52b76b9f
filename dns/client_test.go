package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// TestPortsAndIDs shows promise 14: a new random port and id per query.
func TestPortsAndIDs(t *testing.T) {
	const n = 2000
	var (
		mu    sync.Mutex
		ids   = map[uint16]int{}
		ports = map[uint16]int{}
		steps = map[int]int{}
		last  = -1
	)
	up := newUpstream(t, func(q *mdns.Msg, _ []byte, from netip.AddrPort, send func([]byte)) {
		mu.Lock()
		ids[q.Id]++
		ports[from.Port()]++
		if last >= 0 {
			steps[(int(q.Id)-last)&0xffff]++
		}
		last = int(q.Id)
		mu.Unlock()
		send(packed(t, respond(t, q, mdns.RcodeSuccess, q.Question[0].Name+" 60 IN A 198.51.100.1")))
	}, nil)
	r := newRig(t, nil, up.resolver())
	for i := range n {
		if reply := r.query(t, ask(fmt.Sprintf("n%d.example", i), mdns.TypeA)); len(reply.Answer) != 1 {
			t.Fatalf("got %v", reply)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	t.Logf("%d queries: %d source ports, %d ids", n, len(ports), len(ids))
	if up.queries.Load() != n || len(ports) < 1900 || len(ids) < 1900 {
		t.Fatalf("%d queries sent, %d ports, %d ids; want %d, >= 1900, >= 1900", up.queries.Load(), len(ports), len(ids), n)
	}
	for step, count := range steps {
		if count > 5 { // 2 000 steps over 65 536 values
			t.Errorf("the id grew by %d %d times", step, count)
		}
	}
}

// TestBogusReplies sends 50 of each kind of forged reply before the true one.
func TestBogusReplies(t *testing.T) {
	const poison = "203.0.113.66"
	forge := func(q *mdns.Msg, change func(*mdns.Msg)) []byte {
		m := respond(t, q, mdns.RcodeSuccess, q.Question[0].Name+" 3600 IN A "+poison)
		change(m)
		return packed(t, m)
	}
	kinds := map[string]func(q *mdns.Msg, i int) []byte{
		"wrong id": func(q *mdns.Msg, i int) []byte { return forge(q, func(m *mdns.Msg) { m.Id ^= uint16(i + 1) }) },
		"other name": func(q *mdns.Msg, _ int) []byte {
			return forge(q, func(m *mdns.Msg) { m.Question[0].Name = "other.example."; m.Answer[0].Header().Name = "other.example." })
		},
		"other name in the question only": func(q *mdns.Msg, _ int) []byte {
			return forge(q, func(m *mdns.Msg) { m.Question[0].Name = "other.example." })
		},
		"other type": func(q *mdns.Msg, _ int) []byte {
			return forge(q, func(m *mdns.Msg) { m.Question[0].Qtype = mdns.TypeAAAA })
		},
		"other class": func(q *mdns.Msg, _ int) []byte {
			return forge(q, func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS })
		},
		"QR=0":        func(q *mdns.Msg, _ int) []byte { return forge(q, func(m *mdns.Msg) { m.Response = false }) },
		"opcode":      func(q *mdns.Msg, _ int) []byte { return forge(q, func(m *mdns.Msg) { m.Opcode = mdns.OpcodeNotify }) },
		"no question": func(q *mdns.Msg, _ int) []byte { return forge(q, func(m *mdns.Msg) { m.Question = nil }) },
		"two questions": func(q *mdns.Msg, _ int) []byte {
			return forge(q, func(m *mdns.Msg) { m.Question = append(m.Question, m.Question[0]) })
		},
		"cut": func(q *mdns.Msg, i int) []byte {
			b := forge(q, func(m *mdns.Msg) { m.Answer = append(m.Answer, record(t, q.Question[0].Name+" 3600 IN A "+poison)) })
			return b[:len(b)-1-i%(len(b)-1)]
		},
		"trailing bytes": func(q *mdns.Msg, i int) []byte { return append(forge(q, func(*mdns.Msg) {}), make([]byte, i+1)...) },
		"A without address": func(q *mdns.Msg, _ int) []byte {
			b := forge(q, func(m *mdns.Msg) { m.Answer = nil })
			binary.BigEndian.PutUint16(b[6:], 1)
			return append(b, 0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 0)
		},
		"garbage": func(q *mdns.Msg, i int) []byte {
			return append(binary.BigEndian.AppendUint16(nil, q.Id), make([]byte, i)...)
		},
	}
	for name, bogus := range kinds {
		t.Run(name, func(t *testing.T) {
			up := newUpstream(t, func(q *mdns.Msg, _ []byte, _ netip.AddrPort, send func([]byte)) {
				for i := range 50 {
					send(bogus(q, i))
				}
				send(packed(t, respond(t, q, mdns.RcodeSuccess, q.Question[0].Name+" 60 IN A 198.51.100.1")))
			}, nil)
			checkTrue(t, up, poison)
		})
	}
	t.Run("other source port", func(t *testing.T) {
		other, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		up := newUpstream(t, func(q *mdns.Msg, _ []byte, from netip.AddrPort, send func([]byte)) {
			for range 50 {
				if _, err := other.WriteToUDPAddrPort(forge(q, func(*mdns.Msg) {}), from); err != nil {
					t.Error(err)
				}
			}
			send(packed(t, respond(t, q, mdns.RcodeSuccess, q.Question[0].Name+" 60 IN A 198.51.100.1")))
		}, nil)
		checkTrue(t, up, poison)
	})
	t.Run("positive control", func(t *testing.T) {
		up := newUpstream(t, func(q *mdns.Msg, _ []byte, _ netip.AddrPort, send func([]byte)) { send(forge(q, func(*mdns.Msg) {})) }, nil)
		r := newRig(t, nil, up.resolver())
		if reply := r.query(t, ask("victim.example", mdns.TypeA)); len(reply.Answer) != 1 || reply.Answer[0].(*mdns.A).A.String() != poison {
			t.Fatalf("a reply forged with everything right must be taken, or the kinds above prove nothing: %v", reply)
		}
	})
}

func checkTrue(t *testing.T, up *upstreamSpy, poison string) {
	t.Helper()
	r := newRig(t, nil, up.resolver())
	for range 2 {
		reply := r.query(t, ask("victim.example", mdns.TypeA))
		if len(reply.Answer) != 1 || reply.Answer[0].(*mdns.A).A.String() != "198.51.100.1" {
			t.Fatalf("got %v", reply)
		}
	}
	if up.queries.Load() != 1 {
		t.Fatalf("%d upstream queries, want 1", up.queries.Load())
	}
	if e := r.memory.Display(netip.MustParseAddr(poison)); e != "" {
		t.Fatalf("the poison is remembered as %s", e)
	}
}

// TestBailiwick: foreign records in the true reply are neither returned nor cached.
func TestBailiwick(t *testing.T) {
	const bad = "203.0.113.66"
	cases := []struct {
		name              string
		answer, ns, extra []string
		want              string // the records returned, by owner and value
	}{
		{"foreign A", []string{"v.example. 60 IN A 198.51.100.1", "bank.example. 60 IN A " + bad}, nil, nil, "v.example.=198.51.100.1"},
		{"foreign A first", []string{"bank.example. 60 IN A " + bad, "v.example. 60 IN A 198.51.100.1"}, nil, nil, "v.example.=198.51.100.1"},
		{"only foreign", []string{"bank.example. 60 IN A " + bad}, nil, nil, ""},
		{"child", []string{"www.v.example. 60 IN A " + bad}, nil, nil, ""},
		{"parent", []string{"example. 60 IN A " + bad}, nil, nil, ""},
		{"suffix trick", []string{"xv.example. 60 IN A " + bad}, nil, nil, ""},
		{"other type", []string{"v.example. 60 IN AAAA 2001:db8::66"}, nil, nil, ""},
		{"authority NS and glue", []string{"v.example. 60 IN A 198.51.100.1"}, []string{"example. 60 IN NS ns.evil.example."}, []string{"ns.evil.example. 60 IN A " + bad}, "v.example.=198.51.100.1"},
		{"additional A of the name", nil, nil, []string{"v.example. 60 IN A " + bad}, ""},
		{"authority A of the name", nil, []string{"v.example. 60 IN A " + bad}, nil, ""},
		{"chain", []string{"v.example. 60 IN CNAME c.example.", "c.example. 60 IN A 198.51.100.1"}, nil, nil, "v.example.=c.example. c.example.=198.51.100.1"},
		{"chain in reverse", []string{"c.example. 60 IN A 198.51.100.1", "v.example. 60 IN CNAME c.example."}, nil, nil, "v.example.=c.example. c.example.=198.51.100.1"},
		{"two aliases", []string{"v.example. 60 IN CNAME c.example.", "v.example. 60 IN CNAME d.example.", "c.example. 60 IN A 198.51.100.1", "d.example. 60 IN A " + bad}, nil, nil, "v.example.=c.example. c.example.=198.51.100.1"},
		{"foreign alias", []string{"x.example. 60 IN CNAME c.example.", "c.example. 60 IN A " + bad}, nil, nil, ""},
		{"DNAME above", []string{"example. 60 IN DNAME other.", "v.example. 60 IN CNAME v.other.", "v.other. 60 IN A 198.51.100.1"}, nil, nil, "example.=other. v.example.=v.other. v.other.=198.51.100.1"},
		{"DNAME beside", []string{"ample. 60 IN DNAME evil.", "v.evil. 60 IN A " + bad}, nil, nil, ""},
		{"DNAME without its alias", []string{"example. 60 IN DNAME evil.", "v.evil. 60 IN A " + bad}, nil, nil, "example.=evil."},
		{"CHAOS class", []string{"v.example. 60 CH A " + bad}, nil, nil, ""},
		{"foreign SOA", nil, []string{"evil.test. 60 IN SOA a. b. 1 1 1 1 60"}, nil, ""},
		{"alias to the root", []string{"v.example. 60 IN CNAME .", ". 60 IN A 198.51.100.1"}, nil, nil, "v.example.=. .=198.51.100.1"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			up := answering(t, func(q *mdns.Msg) *mdns.Msg {
				m := respond(t, q, mdns.RcodeSuccess, c.answer...)
				for _, s := range c.ns {
					m.Ns = append(m.Ns, record(t, s))
				}
				for _, s := range c.extra {
					m.Extra = append(m.Extra, record(t, s))
				}
				return m
			})
			r := newRig(t, nil, up.resolver())
			reply := r.query(t, ask("v.example", mdns.TypeA))
			var got []string
			for _, rr := range reply.Answer {
				f := strings.Fields(rr.String())
				got = append(got, f[0]+"="+f[4])
			}
			if strings.Join(got, " ") != c.want || len(reply.Ns) != 0 || len(reply.Extra) != 0 {
				t.Fatalf("got %v\nwant %s", reply, c.want)
			}
			if name := r.memory.Display(netip.MustParseAddr(bad)); name != "" {
				t.Fatalf("poison remembered as %s", name)
			}
		})
	}
}

func TestChainLimits(t *testing.T) {
	chainOf := func(n int) func(q *mdns.Msg) *mdns.Msg {
		return func(q *mdns.Msg) *mdns.Msg {
			var list []string
			for i := range n {
				list = append(list, fmt.Sprintf("n%d.example. 60 IN CNAME n%d.example.", i, i+1))
			}
			return respond(t, q, mdns.RcodeSuccess, append(list, fmt.Sprintf("n%d.example. 60 IN A 198.51.100.1", n))...)
		}
	}
	for _, c := range []struct {
		name  string
		f     func(q *mdns.Msg) *mdns.Msg
		rcode int
	}{
		{"16 aliases", chainOf(16), mdns.RcodeSuccess},
		{"17 aliases", chainOf(17), mdns.RcodeServerFailure},
		{"loop", func(q *mdns.Msg) *mdns.Msg {
			return respond(t, q, mdns.RcodeSuccess, "n0.example. 60 IN CNAME n1.example.", "n1.example. 60 IN CNAME n0.example.")
		}, mdns.RcodeServerFailure},
		{"loop to itself", func(q *mdns.Msg) *mdns.Msg {
			return respond(t, q, mdns.RcodeSuccess, "n0.example. 60 IN CNAME n0.example.")
		}, mdns.RcodeServerFailure},
		{"1001 records", func(q *mdns.Msg) *mdns.Msg {
			m := respond(t, q, mdns.RcodeSuccess)
			for i := range 1001 {
				m.Answer = append(m.Answer, &mdns.A{Hdr: mdns.RR_Header{Name: "n0.example.", Rrtype: mdns.TypeA, Class: 1, Ttl: 60}, A: net.IPv4(10, 0, byte(i>>8), byte(i))})
			}
			m.Compress = true
			return m
		}, mdns.RcodeServerFailure},
	} {
		t.Run(c.name, func(t *testing.T) {
			up := newUpstream(t, func(q *mdns.Msg, _ []byte, _ netip.AddrPort, send func([]byte)) {
				m := respond(t, q, mdns.RcodeSuccess)
				m.Truncated = true
				send(packed(t, m))
			}, c.f)
			r := newRig(t, nil, up.resolver())
			if reply := r.query(t, ask("n0.example", mdns.TypeA)); reply.Rcode != c.rcode {
				t.Fatalf("got %v", reply)
			}
			if up.streams.Load() == 0 {
				t.Fatal("a reply with TC was not asked again over TCP")
			}
		})
	}
}

func TestErrorReplies(t *testing.T) {
	// A server that knows no EDNS answers FORMERR and is asked again without.
	old := answering(t, func(q *mdns.Msg) *mdns.Msg {
		if q.IsEdns0() != nil {
			return respond(t, q, mdns.RcodeFormatError)
		}
		return respond(t, q, mdns.RcodeSuccess, "a.example. 60 IN A 198.51.100.1")
	})
	r := newRig(t, nil, old.resolver())
	if reply := r.query(t, ask("a.example", mdns.TypeA)); len(reply.Answer) != 1 || old.queries.Load() != 2 {
		t.Fatalf("got %v after %d queries", reply, old.queries.Load())
	}
	// An error goes to the next server at once, and is passed on if nobody does better.
	refusing := answering(t, func(q *mdns.Msg) *mdns.Msg { return respond(t, q, mdns.RcodeRefused) })
	atOnce(t, func() {
		r = newRig(t, nil, refusing.resolver(), old.resolver())
		if reply := r.query(t, ask("a.example", mdns.TypeA)); len(reply.Answer) != 1 {
			t.Fatalf("got %v", reply)
		}
	})
	now := time.Now()
	r = newRig(t, func(o *Options) { o.Clock = func() time.Time { return now } }, refusing.resolver())
	for i, want := range []int64{2, 2, 3} { // the error is remembered for 10 s
		if reply := r.query(t, ask("b.example", mdns.TypeA)); reply.Rcode != mdns.RcodeRefused || refusing.queries.Load() != want {
			t.Fatalf("%d: got %v after %d queries, want %d", i, reply, refusing.queries.Load(), want)
		}
		now = now.Add(6 * time.Second)
	}
}

// deadAddr is an address whose port nobody listens on: the kernel answers with ICMP.
func deadAddr(t *testing.T) Resolver {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return Resolver{Scheme: SchemeDNS, Addr: c.LocalAddr().(*net.UDPAddr).AddrPort()}
}

// atOnce runs f, again if it took so long that it may have waited for a timer: on a busy machine
// anything takes long now and then.
func atOnce(t *testing.T, f func()) {
	t.Helper()
	for range 50 {
		start := time.Now()
		if f(); time.Since(start) < hedgeDelay {
			return
		}
	}
	t.Fatalf("never within %v", hedgeDelay)
}

func TestDeadServers(t *testing.T) {
	good := simple(t)
	silent := newUpstream(t, func(*mdns.Msg, []byte, netip.AddrPort, func([]byte)) {}, nil)
	t.Run("refused: the next at once", func(t *testing.T) {
		atOnce(t, func() {
			r := newRig(t, nil, deadAddr(t), good.resolver())
			if reply := r.query(t, ask("a.example", mdns.TypeA)); len(reply.Answer) != 1 {
				t.Fatalf("got %v", reply)
			}
		})
	})
	t.Run("only refused: a failure at once", func(t *testing.T) {
		atOnce(t, func() {
			r := newRig(t, nil, deadAddr(t))
			if reply := r.query(t, ask("a.example", mdns.TypeA)); reply.Rcode != mdns.RcodeServerFailure {
				t.Fatalf("got %v", reply)
			}
			if cause := r.last(t).CloseCause; !strings.Contains(cause, "refused") {
				t.Fatalf("the record says %q", cause)
			}
		})
	})
	t.Run("silent: hedged, then last in order", func(t *testing.T) {
		now := time.Now()
		r := newRig(t, func(o *Options) { o.Clock = func() time.Time { return now } }, silent.resolver(), good.resolver())
		now = now.Add(time.Minute)
		var worst time.Duration
		names := 0
		query := func() time.Duration {
			start := time.Now()
			names++
			if reply := r.query(t, ask(fmt.Sprintf("s%d.example", names), mdns.TypeA)); len(reply.Answer) != 1 {
				t.Fatalf("got %v", reply)
			}
			return time.Since(start)
		}
		for i := range 7 {
			d := query()
			worst = max(worst, d)
			if d < hedgeDelay {
				t.Errorf("query %d took %v", i, d)
			}
			now = now.Add(silentFor + time.Second)
		}
		atOnce(t, func() { query() })
		t.Logf("first of two dead: at most %v added", worst)
		if worst > 10*hedgeDelay { // without it the answer comes after 4.5 s, or never
			t.Fatalf("%v added", worst)
		}
		if list := r.Nameservers(); len(list) != 2 || !list[0].Failing || list[1].Failing || list[0].Resolver != silent.resolver() {
			t.Errorf("nameservers %v", list)
		}
		now = now.Add(2*standardRetryRate + askDeadline) // nobody probed it: it is tried first again
		before := silent.queries.Load()
		if r.query(t, ask("again.example", mdns.TypeA)); silent.queries.Load() == before {
			t.Error("a server that failed long ago is never tried again")
		}
	})
	t.Run("one lost packet", func(t *testing.T) {
		lost := false
		up := newUpstream(t, func(q *mdns.Msg, _ []byte, _ netip.AddrPort, send func([]byte)) {
			if !lost {
				lost = true
				return
			}
			send(packed(t, respond(t, q, mdns.RcodeSuccess, "a.example. 60 IN A 198.51.100.1")))
		}, nil)
		r := newRig(t, nil, up.resolver())
		if reply := r.query(t, ask("a.example", mdns.TypeA)); len(reply.Answer) != 1 {
			t.Fatalf("got %v", reply)
		}
	})
	t.Run("all silent", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil, silent.resolver())
		start := time.Now()
		reply := r.query(t, ask("t.example", mdns.TypeA).SetEdns0(1232, false))
		if d := time.Since(start); reply.Rcode != mdns.RcodeServerFailure || d > 2*patience || d < 4*time.Second {
			t.Fatalf("got %v after %v", reply, d)
		}
		if _, text := ede(reply); !strings.Contains(text, "no answer within") {
			t.Fatalf("EDE %q", text)
		}
	})
}

func TestAssignedServersStandIn(t *testing.T) {
	system := simple(t)
	r := newRig(t, func(o *Options) { o.System = func() []Resolver { return []Resolver{system.resolver()} } }, deadAddr(t))
	if reply := r.query(t, ask("a.example", mdns.TypeA)); len(reply.Answer) != 1 {
		t.Fatalf("got %v", reply)
	}
	r.Configure(Config{Nameservers: []Resolver{deadAddr(t)}, NoAssigned: true})
	before := system.queries.Load()
	if reply := r.query(t, ask("a.example", mdns.TypeA)); reply.Rcode != mdns.RcodeServerFailure || system.queries.Load() != before {
		t.Fatalf("noAssignedNameservers: got %v", reply)
	}
	slow := newUpstream(t, func(q *mdns.Msg, _ []byte, _ netip.AddrPort, send func([]byte)) {
		b := packed(t, respond(t, q, mdns.RcodeSuccess, "a.example. 60 IN A 198.51.100.1"))
		time.Sleep(2 * hedgeDelay)
		send(b)
	}, nil)
	r.Configure(Config{Nameservers: []Resolver{slow.resolver()}})
	before = system.queries.Load()
	if reply := r.query(t, ask("a.example", mdns.TypeA)); reply.Answer[0].(*mdns.A).A.String() != "198.51.100.1" || system.queries.Load() != before {
		t.Fatalf("the assigned server was asked beside a configured one that is only slow: %v", reply)
	}
}

func TestTCPScheme(t *testing.T) {
	up := simple(t)
	r := newRig(t, nil, Resolver{Scheme: SchemeTCP, Addr: up.addr})
	if reply := r.query(t, ask("a.example", mdns.TypeA)); len(reply.Answer) != 1 || up.queries.Load() != 0 || up.streams.Load() != 1 {
		t.Fatalf("got %v, %d over UDP, %d over TCP", reply, up.queries.Load(), up.streams.Load())
	}
}

func TestTruncatedOverTCP(t *testing.T) {
	up := answering(t, func(q *mdns.Msg) *mdns.Msg {
		m := respond(t, q, mdns.RcodeSuccess)
		m.Truncated = true
		return m
	})
	r := newRig(t, nil, up.resolver())
	if reply := r.query(t, ask("a.example", mdns.TypeA)); reply.Rcode != mdns.RcodeServerFailure || up.streams.Load() != 1 {
		t.Fatalf("a cut answer is passed off as a whole one: %v", reply)
	}
}

type failingDialer struct{ err error }

func (d failingDialer) DialContext(context.Context, string, string) (net.Conn, error) {
	return nil, d.err
}

func TestDialError(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Dialer = failingDialer{errors.New("network is unreachable")} }, Resolver{Scheme: SchemeDNS, Addr: netip.MustParseAddrPort("192.0.2.1:53")})
	if reply := r.query(t, ask("a.example", mdns.TypeA).SetEdns0(512, false)); reply.Rcode != mdns.RcodeServerFailure || !strings.Contains(r.last(t).CloseCause, "unreachable") {
		t.Fatalf("got %v, %q", reply, r.last(t).CloseCause)
	}
	reply := r.query(t, ask("a.example", mdns.TypeA).SetEdns0(512, false))
	if code, text := ede(reply); code != mdns.ExtendedErrorCodeCachedError || text != unreachable || r.Counters().Exchanges != 1 {
		t.Fatalf("got %v after %d exchanges", reply, r.Counters().Exchanges)
	}
}
