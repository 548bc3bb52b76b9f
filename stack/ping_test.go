package stack

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"gatun/network/packet"
)

type echoes chan Echo

func (c echoes) Echo(_ *PingFlow, e Echo) {
	e.Payload = bytes.Clone(e.Payload)
	c <- e
}

func TestPing(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		flows, sink := make(chan *PingFlow, 1), make(echoes, 9)
		l := newLab(t, &handler{ping: func(p *PingFlow) { p.Accept(sink); flows <- p }}, Limits{})
		first := echoPacket(f.prog, f.peer, 4242, 1, []byte("hello"))
		second := echoPacket(f.prog, f.peer, 4242, 2, []byte("hello"))
		l.send(first)
		p := <-flows
		if e := <-sink; p.ID() != 4242 || e.Seq != 1 || string(e.Payload) != "hello" || e.TTL != 61 || e.TOS != 0x28 {
			t.Errorf("id %d, %+v", p.ID(), e)
		}
		if got := l.recv(30 * time.Millisecond); got != nil {
			t.Fatal("the stack answers a ping by itself")
		}
		l.send(second)
		<-sink
		if err := p.Reply(1, []byte("hello"), 55); err != nil {
			t.Fatal(err)
		}
		b := l.recv(time.Second)
		h, err := packet.Parse(b)
		if err != nil || !h.HeaderChecksumOK(b) || !h.TransportChecksumOK(b) || h.TTL != 55 {
			t.Fatalf("reply %+v, %v", h, err)
		}
		if h.Flow.Local.Addr() != f.peer || h.Flow.Remote.Addr() != f.prog {
			t.Errorf("reply on %v", h.Flow)
		}
		if want := append([]byte{4242 >> 8, 4242 & 255, 0, 1}, "hello"...); !bytes.Equal(b[h.NetworkLen+4:], want) {
			t.Errorf("reply says %q, want %q", b[h.NetworkLen+4:], want)
		}
		// The last request was 2, the error is about 1: the quote is that of 1, checksum included.
		p.Error(1, packet.TimeExceeded(f.router))
		checkError(t, l.recv(time.Second), *packet.TimeExceeded(f.router), f.prog, first)
	})
}

func TestPingReject(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		l := newLab(t, &handler{ping: func(p *PingFlow) { p.Reject(packet.AdminProhibited(netip.Addr{})) }}, Limits{})
		req := echoPacket(f.prog, f.peer, 1, 1, make([]byte, 56))
		l.send(req)
		checkError(t, l.recv(time.Second), *packet.AdminProhibited(f.peer), f.prog, req)
	})
}

func TestOther(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		l := newLab(t, &handler{other: func(o *OtherFlow) {
			if o.Flow().Proto != 132 {
				t.Errorf("flow %v", o.Flow())
			}
			o.Reject(packet.ProtocolUnreachable(netip.Addr{}))
		}}, Limits{})
		p := ipPacket(f, 132, f.prog, f.peer, []byte("sctp init ack cookie"))
		for range 2 { // each packet after a verdict is a new flow
			l.send(p)
			checkError(t, l.recv(time.Second), *packet.ProtocolUnreachable(f.peer), f.prog, p)
		}
	})
}

// TestOtherHeld: who carries the flow elsewhere gets the whole packet, padding apart, and what is held is bounded.
func TestOtherHeld(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		held, release := make(chan []byte, 3), make(chan struct{})
		l := newLab(t, &handler{other: func(o *OtherFlow) {
			held <- o.Held()
			<-release
			o.Drop()
		}}, Limits{HeldBytes: 2000})
		p := ipPacket(f, 253, f.prog, f.peer, bytes.Repeat([]byte("x"), 1200))
		l.send(append(bytes.Clone(p), "padding"...))
		if got := <-held; !bytes.Equal(got, p) {
			t.Errorf("held %d bytes, want the %d of the packet", len(got), len(p))
		}
		l.send(ipPacket(f, 254, f.prog, f.peer, bytes.Repeat([]byte("x"), 1200)))
		eventually(t, "the second is too much", func() bool { return l.s.Counters().OtherLimit == 1 })
		close(release)
		eventually(t, "nothing is held", func() bool { return l.s.held.Load() == 0 && l.s.Counters().Others == 0 })
		l.send(ipPacket(f, 254, f.prog, f.peer, bytes.Repeat([]byte("x"), 1200)))
		if got := <-held; len(got) < 1200 {
			t.Errorf("held %d bytes", len(got))
		}
	})
}
