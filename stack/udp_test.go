package stack

import (
	"bytes"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatun/network/packet"
)

// recorder is a UDPSink that remembers, and checks that calls do not overlap.
type recorder struct {
	mu   sync.Mutex
	busy atomic.Bool
	got  []string
	last Train

	trains []int // how many came at once
}

func (r *recorder) Datagrams(_ *UDPFlow, t Train) {
	if !r.busy.CompareAndSwap(false, true) {
		panic("two calls at a time")
	}
	defer r.busy.Store(false)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range t.Payloads {
		r.got = append(r.got, string(b))
	}
	r.trains = append(r.trains, len(t.Payloads))
	r.last = t
	r.last.Payloads = nil
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.got...)
}

func numbered(f family, from, to int) (pkts [][]byte, payloads []string) {
	for i := from; i < to; i++ {
		payloads = append(payloads, fmt.Sprint("datagram ", i))
		pkts = append(pkts, udpPacket(at(f.prog, 5000), at(f.peer, 53), []byte(payloads[i-from])))
	}
	return pkts, payloads
}

func TestUDPHoldKeepsOrder(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		release, sink := make(chan struct{}), &recorder{}
		l := newLab(t, &handler{udp: func(u *UDPFlow) {
			<-release
			first := u.First()
			if string(first.Payload) != "datagram 0" || first.TTL != 61 || first.TOS != 0x28 {
				t.Errorf("first: %+v", first)
			}
			u.Accept(sink)
		}}, Limits{HeldDatagrams: 4096})
		held, want := numbered(f, 0, 5)
		l.send(held...)
		eventually(t, "5 datagrams read", func() bool { return l.s.Counters().PacketsIn == 5 })
		if n := len(sink.all()); n != 0 {
			t.Fatalf("%d datagrams passed before the verdict", n)
		}
		close(release)
		rest, more := numbered(f, 5, 2000)
		want = append(want, more...)
		for _, p := range rest {
			l.send(p)
		}
		eventually(t, "all datagrams delivered", func() bool { return len(sink.all()) == len(want) })
		for i, g := range sink.all() {
			if g != want[i] {
				t.Fatalf("datagram %d is %q, want %q", i, g, want[i])
			}
		}
		if sink.last.TTL != 61 || sink.last.TOS != 0x28 || sink.last.DontFragment != f.prog.Is6() {
			t.Errorf("header fields: %+v", sink.last)
		}
	})
}

// slowSink makes the flush slow, so that packets arrive in the middle of it.
type slowSink struct{ recorder }

func (s *slowSink) Datagrams(f *UDPFlow, t Train) {
	time.Sleep(time.Millisecond)
	s.recorder.Datagrams(f, t)
}

func TestUDPFlushRace(t *testing.T) {
	f := families[0]
	sink, release := &slowSink{}, make(chan struct{})
	l := newLab(t, &handler{udp: func(u *UDPFlow) { <-release; u.Accept(sink) }}, Limits{})
	pkts, want := numbered(f, 0, 150)
	l.send(pkts[:40]...)
	eventually(t, "40 datagrams read", func() bool { return l.s.Counters().PacketsIn == 40 })
	close(release)
	for _, p := range pkts[40:] {
		l.send(p)
		time.Sleep(200 * time.Microsecond)
	}
	eventually(t, "all delivered or counted", func() bool {
		return len(sink.all())+int(l.s.Counters().HoldOverflow) == len(want)
	})
	got := sink.all()
	for i := 1; i < len(got); i++ {
		var a, b int
		fmt.Sscanf(got[i-1], "datagram %d", &a)
		fmt.Sscanf(got[i], "datagram %d", &b)
		if a >= b {
			t.Fatalf("%q comes before %q", got[i-1], got[i])
		}
	}
}

func TestUDPReply(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		flows := make(chan *UDPFlow, 1)
		l := newLab(t, &handler{udp: func(u *UDPFlow) { u.Accept(&recorder{}); flows <- u }}, Limits{})
		l.send(udpPacket(at(f.prog, 5000), at(f.peer, 53), []byte("q")))
		u := <-flows
		want := packet.Flow{Proto: packet.UDP, Local: at(f.peer, 53), Remote: at(f.prog, 5000)}
		for _, n := range []int{0, 1, 1200, 1452, 1472, 1473, 9000, maxDatagram(u.Flow())} {
			payload := bytes.Repeat([]byte{byte(n)}, n)
			if err := u.Reply(payload, 0x10); err != nil {
				t.Fatal(err)
			}
			b, pieces := l.reassemble()
			h, err := packet.Parse(b)
			if err != nil || h.Flow != want || h.TOS != 0x10 || !bytes.Equal(b[h.HeaderLen:h.TotalLen], payload) {
				t.Fatalf("reply of %d: %+v, %v", n, h, err)
			}
			if !h.HeaderChecksumOK(b) || !h.TransportChecksumOK(b) {
				t.Errorf("reply of %d: bad checksum", n)
			}
			if whole := len(b) <= 1500; whole != (pieces == 1) {
				t.Errorf("reply of %d came in %d pieces", n, pieces)
			}
		}
		if err := u.Reply(make([]byte, 65536), 0); err == nil {
			t.Error("a payload that no packet carries is taken")
		}
	})
}

// reassemble reads one packet for the program, in pieces if need be.
func (l *lab) reassemble() ([]byte, int) {
	l.t.Helper()
	var r reassembler
	r.init(1 << 20)
	for n := 1; ; n++ {
		b := l.recv(2 * time.Second)
		h, err := packet.Parse(b)
		if err != nil {
			l.t.Fatalf("piece %d: %v", n, err)
		}
		if !h.Fragment {
			return b, n
		}
		if len(b) > 1500 || !h.HeaderChecksumOK(b) {
			l.t.Fatalf("piece %d has %d bytes", n, len(b))
		}
		if whole, _ := r.add(&h, b, time.Now()); whole != nil {
			return whole, n
		}
	}
}

// checkError checks an ICMP error for the program.
func checkError(t *testing.T, b []byte, want packet.ICMPError, dst netip.Addr, original []byte) {
	t.Helper()
	h, err := packet.Parse(b)
	if err != nil {
		t.Fatalf("no ICMP error: %v", err)
	}
	if !h.HeaderChecksumOK(b) || !h.TransportChecksumOK(b) {
		t.Error("ICMP error with a bad checksum")
	}
	got := packet.ICMPError{From: h.Flow.Local.Addr(), Type: h.ICMPType, Code: h.ICMPCode, MTU: want.MTU}
	if got != want || h.Flow.Remote.Addr() != dst {
		t.Errorf("got %+v to %v, want %+v to %v", got, h.Flow.Remote, want, dst)
	}
	if quote := b[h.HeaderLen:h.TotalLen]; len(quote) < 28 || !bytes.HasPrefix(original, quote) {
		t.Errorf("quotes %d bytes that are not those of the original", len(quote))
	}
}

func TestUDPReject(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		release := make(chan struct{})
		l := newLab(t, &handler{udp: func(u *UDPFlow) { <-release; u.Reject(packet.PortUnreachable(netip.Addr{})) }}, Limits{})
		want := *packet.PortUnreachable(f.peer) // nobody else is named: the address that was asked
		a := udpPacket(at(f.prog, 5000), at(f.peer, 53), []byte("a"))
		b := udpPacket(at(f.prog, 5000), at(f.peer, 53), bytes.Repeat([]byte("b"), 1400))
		l.send(a)
		if got := l.recv(30 * time.Millisecond); got != nil {
			t.Fatal("an answer before the verdict")
		}
		close(release)
		checkError(t, l.recv(time.Second), want, f.prog, a)
		l.send(b)
		got := l.recv(time.Second)
		checkError(t, got, want, f.prog, b)
		if limit := map[bool]int{true: 576, false: 1280}[f.prog.Is4()]; len(got) != limit {
			t.Errorf("ICMP error of %d bytes, want %d", len(got), limit)
		}
	})
}

func TestUDPErrorFromHop(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		flows := make(chan *UDPFlow, 1)
		l := newLab(t, &handler{udp: func(u *UDPFlow) { u.Accept(&recorder{}); flows <- u }}, Limits{})
		p := udpPacket(at(f.prog, 5000), at(f.peer, 53), []byte("probe"))
		l.send(p)
		u := <-flows
		u.Error(packet.TimeExceeded(f.router))
		checkError(t, l.recv(time.Second), *packet.TimeExceeded(f.router), f.prog, p)
		u.Error(packet.TooBig(f.router, 1400))
		got := l.recv(time.Second)
		checkError(t, got, *packet.TooBig(f.router, 1400), f.prog, p)
		h, _ := packet.Parse(got)
		if mtu := got[h.NetworkLen+6 : h.NetworkLen+8]; !bytes.Equal(mtu, []byte{1400 >> 8, 1400 & 255}) {
			t.Errorf("MTU on the wire: %v", mtu)
		}
	})
}

func TestUDPDropAndForget(t *testing.T) {
	f := families[0]
	var calls atomic.Int32
	flows := make(chan *UDPFlow, 2)
	l := newLab(t, &handler{udp: func(u *UDPFlow) { calls.Add(1); u.SetUserData(calls.Load()); u.Drop(); flows <- u }}, Limits{})
	p := udpPacket(at(f.prog, 5000), at(f.peer, 53), []byte("a"))
	l.send(p)
	u := <-flows
	l.send(p, p)
	eventually(t, "3 packets read", func() bool { return l.s.Counters().PacketsIn == 3 })
	if calls.Load() != 1 || u.UserData() != int32(1) || l.s.Counters().UDPFlows != 1 {
		t.Fatalf("%d calls, user data %v, %+v", calls.Load(), u.UserData(), l.s.Counters())
	}
	u.Forget()
	if n := l.s.Counters().UDPFlows; n != 0 {
		t.Errorf("%d flows after Forget", n)
	}
	l.send(p)
	if v := <-flows; v == u {
		t.Error("the forgotten flow came back")
	}
	if got := l.recv(30 * time.Millisecond); got != nil {
		t.Error("a dropped datagram was answered")
	}
}

func TestUDPLimits(t *testing.T) {
	f := families[0]
	release := make(chan struct{})
	var calls atomic.Int32
	l := newLab(t, &handler{udp: func(u *UDPFlow) { calls.Add(1); <-release }}, Limits{UDPFlows: 10, HeldDatagrams: 3, HeldBytes: 1000})
	defer close(release)
	for port := range uint16(12) {
		l.send(udpPacket(at(f.prog, 5000+port), at(f.peer, 53), []byte("a")))
	}
	for range 4 {
		l.send(udpPacket(at(f.prog, 5000), at(f.peer, 53), []byte("b")))
	}
	l.send(udpPacket(at(f.prog, 5001), at(f.peer, 53), make([]byte, 900)))
	eventually(t, "all packets read", func() bool { return l.s.Counters().PacketsIn == 17 })
	c := l.s.Counters()
	if c.UDPLimit != 2 || c.HoldOverflow != 3 || c.UDPFlows != 10 {
		t.Errorf("flows refused %d (want 2), datagrams refused %d (want 3), flows %d", c.UDPLimit, c.HoldOverflow, c.UDPFlows)
	}
}

func TestUDPHandlerWithoutVerdict(t *testing.T) {
	for _, tt := range []struct {
		name string
		run  func()
		want Counters
	}{
		{"returns", func() {}, Counters{Undecided: 1}},
		{"panics", func() { panic("no") }, Counters{Panics: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := families[0]
			l := newLab(t, &handler{udp: func(*UDPFlow) { tt.run() }}, Limits{})
			l.send(udpPacket(at(f.prog, 5000), at(f.peer, 53), []byte("a")))
			eventually(t, "the flow is gone", func() bool {
				c := l.s.Counters()
				return c.PacketsIn == 1 && c.UDPFlows == 0 && c.Undecided == tt.want.Undecided && c.Panics == tt.want.Panics
			})
			if l.s.held.Load() != 0 {
				t.Errorf("%d bytes are still held", l.s.held.Load())
			}
		})
	}
}
