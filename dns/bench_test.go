package dns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"gatun/network"
)

func benchServer(b *testing.B, servers ...Resolver) *Server {
	return New(Options{
		Firewall: &fakeFirewall{}, Dialer: &netDialer{}, Memory: NewMemory(MemoryOptions{}), Recorder: network.NewTable(time.Now),
		Config: Config{Nameservers: servers},
	})
}

// BenchmarkServeCached is one query answered from the cache, with the record, both decisions (of a
// firewall that costs nothing) and the memory. Budget: p50 < 20 µs.
func BenchmarkServeCached(b *testing.B) {
	s := benchServer(b, simple(b).resolver())
	query, err := ask("www.example.org", mdns.TypeA).SetEdns0(1232, false).Pack()
	if err != nil {
		b.Fatal(err)
	}
	o := owner("/usr/bin/app", 0)
	s.ServeUDP(context.Background(), clientFlow, o, query)
	took := make([]time.Duration, 0, 1<<16)
	b.ReportAllocs()
	for b.Loop() {
		start := time.Now()
		s.ServeUDP(context.Background(), clientFlow, o, query)
		if len(took) < cap(took) {
			took = append(took, time.Since(start))
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
	if len(took) > 1000 && took[len(took)/2] > 20*time.Microsecond {
		b.Errorf("p50 %v, budget 20 µs", took[len(took)/2])
	}
}

// BenchmarkServeMiss compares a query through us, each with a new name, with the bare exchange on a
// new socket: the difference is what we add.
func BenchmarkServeMiss(b *testing.B) {
	up := simple(b)
	s := benchServer(b, up.resolver())
	o := owner("/usr/bin/app", 0)
	bare := testClient(b).server(up.resolver(), time.Now())
	var direct, ours []time.Duration
	i := 0
	for b.Loop() {
		i++
		name := fmt.Sprintf("n%d.example", i)
		start := time.Now()
		if _, err := bare.exchange(context.Background(), inquiry{name: name, qtype: mdns.TypeA}); err != nil {
			b.Fatal(err)
		}
		direct = append(direct, time.Since(start))
		query, _ := ask(name, mdns.TypeA).Pack()
		start = time.Now()
		s.ServeUDP(context.Background(), clientFlow, o, query)
		ours = append(ours, time.Since(start))
	}
	slices.Sort(direct)
	slices.Sort(ours)
	for _, p := range []int{50, 99} {
		b.ReportMetric(float64((ours[len(ours)*p/100] - direct[len(direct)*p/100]).Microseconds()), fmt.Sprintf("p%d-added-µs", p))
	}
	b.ReportMetric(float64(ours[len(ours)/2].Microseconds()), "p50-µs")
}

// BenchmarkServeMissLoad is many queries at a time, each with a new name: what a query costs in
// processor time, beside the bare exchange with the same upstream, which spends its share too.
func BenchmarkServeMissLoad(b *testing.B) {
	up := simple(b)
	names := func() func() string {
		var i atomic.Int64
		return func() string { return fmt.Sprintf("n%d.example", i.Add(1)) }
	}
	b.Run("direct", func(b *testing.B) {
		bare := testClient(b).server(up.resolver(), time.Now())
		next := names()
		b.SetParallelism(16)
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if _, err := bare.exchange(context.Background(), inquiry{name: next(), qtype: mdns.TypeA}); err != nil {
					b.Error(err)
				}
			}
		})
	})
	b.Run("ours", func(b *testing.B) {
		s := benchServer(b, up.resolver())
		o := owner("/usr/bin/app", 0)
		next := names()
		b.ReportAllocs()
		b.SetParallelism(16)
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				query, err := ask(next(), mdns.TypeA).Pack()
				if err != nil {
					b.Error(err)
				}
				if s.ServeUDP(context.Background(), clientFlow, o, query) == nil {
					b.Error("no reply")
				}
			}
		})
	})
}

// BenchmarkTransport is one exchange with a resolver on the same machine over a connection that
// is there already; for UDP over a new socket. The work of the server is in it.
func BenchmarkTransport(b *testing.B) {
	a := newAuthority(b)
	for _, scheme := range append([]Scheme{SchemeDNS}, kept()...) {
		b.Run(string(scheme), func(b *testing.B) {
			c := secureClient(b, a)
			var r Resolver
			if scheme == SchemeDNS {
				r = simple(b).resolver()
			} else {
				r = newPeer(b).serve(scheme, a, nil).resolver(scheme)
			}
			u := c.server(r, time.Now())
			q := inquiry{name: "www.example.org", qtype: mdns.TypeA}
			if _, err := u.exchange(context.Background(), q); err != nil {
				b.Fatal(err)
			}
			var took []time.Duration
			b.ReportAllocs()
			for b.Loop() {
				start := time.Now()
				if _, err := u.exchange(context.Background(), q); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}

// BenchmarkCold is the first query to an encrypted resolver: with the connection, the handshake
// and the check of the certificate.
func BenchmarkCold(b *testing.B) {
	a := newAuthority(b)
	for _, scheme := range encrypted() {
		b.Run(string(scheme), func(b *testing.B) {
			r := newPeer(b).serve(scheme, a, nil).resolver(scheme)
			q := inquiry{name: "www.example.org", qtype: mdns.TypeA}
			for b.Loop() {
				c := secureClient(b, a)
				if _, err := c.server(r, time.Now()).exchange(context.Background(), q); err != nil {
					b.Fatal(err)
				}
				c.close()
			}
		})
	}
}

// BenchmarkEntity is the look-up at the set-up of a flow.
func BenchmarkEntity(b *testing.B) {
	m := NewMemory(MemoryOptions{})
	o := owner("/usr/bin/app", 0)
	for i := range memoryEntries {
		m.Remember(o, Resolved{Name: "n.example", Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}, TTL: time.Hour})
	}
	x := netip.AddrFrom4([4]byte{10, 0, 7, 7})
	b.ReportAllocs()
	for b.Loop() {
		if m.Entity(o, x).Domain == "" {
			b.Fatal("forgotten")
		}
	}
}
