package route

import (
	"context"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gatun/network/packet"
)

// watched runs d's Watch and returns when sockets can be attached.
func watched(t *testing.T, d *Dialer) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Watch(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != context.Canceled {
			t.Errorf("Watch ended with %v", err)
		}
		goleak.VerifyNone(t, before)
	})
	for deadline := time.Now().Add(10 * time.Second); d.pollers.Load() == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody watches")
		}
	}
}

// echoServer is a server on loopback that sends back what it gets, until the test ends.
func echoServer(t *testing.T) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addrport("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func ignoreReports(netip.AddrPort, *packet.ICMPError) {}

func attached(t *testing.T, d *Dialer, datagram func([]byte, netip.AddrPort, uint8), report func(netip.AddrPort, *packet.ICMPError)) *UDPSocket {
	t.Helper()
	s, err := d.ListenUDP(addr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if !s.Attach(datagram, report) {
		t.Fatal("cannot be attached")
	}
	return s
}

func TestAttachWantsWatch(t *testing.T) {
	d := &Dialer{}
	s, err := d.ListenUDP(addr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Attach(func([]byte, netip.AddrPort, uint8) {}, ignoreReports) {
		t.Error("attached, and nobody watches")
	}
}

// Many sockets have a poller; each gets its own datagrams, all of them, and errors about its own.
func TestAttachedSockets(t *testing.T) {
	d := &Dialer{}
	watched(t, d)
	server := echoServer(t)
	const sockets, each = 40, 20
	var wg sync.WaitGroup
	for i := range sockets {
		wg.Go(func() {
			got := make(chan string, each)
			s := attached(t, d, func(b []byte, from netip.AddrPort, _ uint8) { got <- string(b) + from.String() }, ignoreReports)
			for k := range each {
				b := []byte{byte(i), byte(k)}
				if err := sendOne(s, b, server, 64, 0, k%2 == 0); err != nil {
					t.Error(err)
				}
				select {
				case g := <-got:
					if g != string(b)+server.String() {
						t.Errorf("socket %d got %q", i, g)
					}
				case <-time.After(20 * time.Second):
					t.Errorf("socket %d has no answer", i)
					return
				}
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if err := sendOne(s, nil, server, 64, 0, false); err != os.ErrClosed || s.Close() != os.ErrClosed || s.LocalPort() != 0 {
				t.Errorf("a closed socket: %v", err)
			}
		})
	}
	wg.Wait()
	for _, p := range *d.pollers.Load() {
		if p.count != 0 || p.socks != nil {
			t.Errorf("%d sockets are still there", p.count)
		}
	}
}

func TestAttachedReports(t *testing.T) {
	d := &Dialer{}
	watched(t, d)
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addrport("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	nobody := c.LocalAddr().(*net.UDPAddr).AddrPort()
	c.Close()
	reports := make(chan netip.AddrPort, 8)
	got := make(chan string, 8)
	s := attached(t, d, func(b []byte, _ netip.AddrPort, _ uint8) { got <- string(b) }, func(peer netip.AddrPort, e *packet.ICMPError) {
		if e.Type == packet.ICMP4Unreachable {
			reports <- peer
		}
	})
	server := echoServer(t)
	for range 3 { // each error is an edge of its own
		if err := sendOne(s, []byte("x"), nobody, 64, 0, false); err != nil {
			t.Fatal(err)
		}
		if peer := within(t, reports, "report"); peer != nobody {
			t.Errorf("about %v", peer)
		}
		if err := sendOne(s, []byte("y"), server, 64, 0, false); err != nil {
			t.Fatal(err)
		}
		if b := within(t, got, "answer"); b != "y" {
			t.Errorf("%q", b)
		}
	}
}

// One socket that has a lot to read must not keep another one waiting, nor lose what it left for later.
func TestPollerTurns(t *testing.T) {
	const many = turnBatches*batchSize*3/2 + 1 // more than a turn, less than a receive buffer
	d := &Dialer{}
	p, err := newUDPPoller()
	if err != nil {
		t.Fatal(err)
	}
	sender, err := (&Dialer{}).ListenUDP(addr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	var order []int // only the poller's goroutine writes
	var seen atomic.Int32
	var socks [2]*UDPSocket
	for i := range socks {
		if socks[i], err = d.ListenUDP(addr("127.0.0.1")); err != nil {
			t.Fatal(err)
		}
		defer socks[i].Close()
		err := socks[i].attach(p, udpCalls{func([]byte, netip.AddrPort, uint8) {
			order = append(order, i)
			seen.Add(1)
		}, ignoreReports})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range [...]int{many, 1} {
		to := netip.AddrPortFrom(addr("127.0.0.1"), socks[i].LocalPort())
		for range n {
			if err := sendOne(sender, []byte("x"), to, 64, 0, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	done := make(chan error, 1)
	go func() { done <- p.run() }()
	for deadline := time.Now().Add(20 * time.Second); seen.Load() < many+1 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	p.f.Close()
	<-done
	if len(order) != many+1 {
		t.Fatalf("%d of %d datagrams", len(order), many+1)
	}
	at := 0
	for order[at] == 0 {
		at++
	}
	if at > turnBatches*batchSize {
		t.Errorf("the other socket had to wait for %d datagrams", at)
	}
}

// Sockets are closed while they are read from and sent with, and their descriptors are given to others:
// for the race detector.
func TestAttachedCloseRaces(t *testing.T) {
	d := &Dialer{}
	watched(t, d)
	server := echoServer(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				s := attached(t, d, func([]byte, netip.AddrPort, uint8) {}, ignoreReports)
				var users sync.WaitGroup
				for range 2 {
					users.Go(func() {
						for range 5 {
							if err := sendOne(s, []byte("x"), server, 64, 0, false); err != nil && err != os.ErrClosed {
								t.Error(err)
							}
						}
					})
				}
				s.Close()
				users.Wait()
				if s.refs.Load() != 0 {
					t.Error("the descriptor is still open")
				}
			}
		})
	}
	wg.Wait()
}
