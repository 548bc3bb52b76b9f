package stack

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"gatun/network/packet"
)

// hand is one connection of a program that the test plays by hand.
type hand struct {
	t         *testing.T
	l         *lab
	f         family
	port      uint16
	seq, ackd uint32 // next byte to send; next byte expected
}

func (h *hand) segment(flags uint8, payload string) []byte {
	b := segment(h.f, at(h.f.prog, h.port), at(h.f.peer, 80), flags, h.seq, h.ackd, []byte(payload))
	h.seq += uint32(len(payload))
	if flags&(packet.TCPSyn|packet.TCPFin) != 0 {
		h.seq++
	}
	return b
}

// want receives until a packet has these flags; what is not a plain ACK before it is an error.
func (h *hand) want(flags uint8, what string) {
	h.t.Helper()
	for {
		b := h.l.recv(800 * time.Millisecond) // less than the first retransmission of a SYN
		if b == nil {
			h.t.Fatalf("%s: no answer", what)
		}
		p, got := tcpFlags(b)
		got &^= packet.TCPPsh
		if got == flags {
			h.ackd = p.TCPSeq + uint32(p.TotalLen-p.HeaderLen)
			if flags&(packet.TCPSyn|packet.TCPFin) != 0 {
				h.ackd++
			}
			return
		}
		if got == packet.TCPAck && p.TotalLen == p.HeaderLen {
			continue
		}
		if got == packet.TCPFin|packet.TCPAck && p.TCPSeq+1 == h.ackd {
			continue // sent again: on a busy machine our answer came late
		}
		if got&packet.TCPSyn == 0 && p.TCPSeq != 0 && flags == packet.TCPSyn|packet.TCPAck {
			continue // RST or FIN of the old connection: no kernel takes it for an answer to a SYN
		}
		h.t.Fatalf("%s: flags %#x, want %#x", what, got, flags)
	}
}

// open does the handshake of a new connection on the same port.
func (h *hand) open(seq uint32) {
	h.t.Helper()
	h.seq, h.ackd = seq, 0
	h.l.send(h.segment(packet.TCPSyn, ""))
	h.want(packet.TCPSyn|packet.TCPAck, "SYN")
	h.l.send(h.segment(packet.TCPAck, ""))
}

// closeAfterServer answers the server's FIN; with the ACK of this the program's port is free.
func (h *hand) closeAfterServer(last string) {
	h.t.Helper()
	h.want(packet.TCPFin|packet.TCPAck, "server's FIN")
	h.l.send(h.segment(packet.TCPFin|packet.TCPAck, last))
	h.want(packet.TCPAck, "ACK of the program's FIN")
}

// A program's kernel reuses a port as soon as the server, which closed first, has acknowledged
// its FIN. Netstack is in TIME_WAIT for 10 ms then.
func TestPortReusedAtOnce(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		l := newLab(t, &handler{tcp: func(fl *TCPFlow) { accept(t, fl).Close() }}, Limits{})
		h := &hand{t: t, l: l, f: f, port: 4000}
		for i := range 60 {
			seq := uint32(i+1) * 50_000_003 // goes round: the next number may be lower
			h.open(seq)
			h.closeAfterServer("")
			// Some wait until about the end of TIME_WAIT, where the SYN was refused.
			time.Sleep(time.Duration(i%12) * time.Millisecond)
		}
		if n := l.s.Counters().ReusedTuples; n < 20 {
			t.Errorf("%d SYNs met a connection in TIME_WAIT: this test tests nothing", n)
		}
		eventually(t, "no endpoint is left", func() bool { return len(l.s.nets.current.Load().net.RegisteredEndpoints()) == 0 })
	})
}

// A program that resets may reuse its port with the next packet.
func TestPortReusedWithReset(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		ends := make(chan error, 100)
		l := newLab(t, &handler{tcp: func(fl *TCPFlow) {
			c, err := fl.Accept()
			if err == nil { // else the reset was faster
				_, err = io.ReadAll(c)
				c.Close()
			}
			ends <- err
		}}, Limits{})
		h := &hand{t: t, l: l, f: f, port: 4000}
		h.open(1)
		for i := range 50 {
			reset := h.segment(packet.TCPRst|packet.TCPAck, "")
			h.seq, h.ackd = uint32(i+2)*70_000_001, 0
			if n, err := l.prog.Write([][]byte{reset, h.segment(packet.TCPSyn, "")}); n != 2 || err != nil {
				t.Fatal(n, err)
			}
			h.want(packet.TCPSyn|packet.TCPAck, "SYN after RST")
			l.send(h.segment(packet.TCPAck, ""))
			if err := <-ends; err == nil {
				t.Error("a reset connection ended in good order")
			}
		}
	})
}

func TestRetransmittedSYNHarmsNothing(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		got := make(chan string)
		l := newLab(t, &handler{tcp: func(fl *TCPFlow) {
			c := accept(t, fl)
			defer c.Close()
			b, err := io.ReadAll(c)
			if err != nil {
				t.Error(err)
			}
			got <- string(b)
		}}, Limits{})
		h := &hand{t: t, l: l, f: f, port: 4000}
		h.open(77)
		l.send(synOf(f, 4000, 77), h.segment(packet.TCPAck, "still "), synOf(f, 4000, 77), h.segment(packet.TCPAck|packet.TCPFin, "here"))
		if s := <-got; s != "still here" {
			t.Errorf("got %q", s)
		}
		if n := l.s.Counters().ReusedTuples; n != 0 {
			t.Errorf("%d connections were ended", n)
		}
	})
}

// What the program sent before it closed is not lost because it was quick to reuse the port.
func TestReuseLosesNoBytes(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		type end struct {
			read string
			err  error
		}
		first, ends, calls := make(chan struct{}), make(chan end, 2), make(chan int, 2)
		calls <- 1
		l := newLab(t, &handler{tcp: func(fl *TCPFlow) {
			c := accept(t, fl)
			defer c.Close()
			c.CloseWrite()
			if n := len(calls); n == 1 { // the first connection: read only after the second is there
				<-calls
				<-first
			}
			b, err := io.ReadAll(c)
			ends <- end{string(b), err}
		}}, Limits{})
		h := &hand{t: t, l: l, f: f, port: 4000}
		h.open(1000)
		h.closeAfterServer("the last words")
		h.open(900_000)
		close(first)
		if e := <-ends; e.read != "the last words" || e.err != nil {
			t.Errorf("first connection: read %q, %v", e.read, e.err)
		}
		h.closeAfterServer("more")
		if e := <-ends; e.read != "more" || e.err != nil {
			t.Errorf("second connection: read %q, %v", e.read, e.err)
		}
	})
}

// A program that gave up its connect and asks again from the same port is asking for something
// new: the old flow ends and the new one need not wait for a retransmission.
func TestPortReusedWhileHeld(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		flows, result := make(chan *TCPFlow, 3), make(chan error, 3)
		l := newLab(t, &handler{tcp: func(fl *TCPFlow) {
			flows <- fl
			if fl.seq != 3000 {
				<-fl.Context().Done()
			}
			_, err := fl.Accept()
			result <- errors.Join(err, context.Cause(fl.Context()))
		}}, Limits{})
		h := &hand{t: t, l: l, f: f, port: 4000}
		for _, seq := range []uint32{1000, 2000} {
			l.send(synOf(f, 4000, seq), synOf(f, 4000, seq))
			if fl := <-flows; fl.seq != seq {
				t.Fatalf("flow of the SYN %d, want %d", fl.seq, seq)
			}
		}
		h.open(3000)
		accepted := 0
		for range 3 { // in whatever order
			switch err := <-result; {
			case err == nil:
				accepted++
			case !errors.Is(err, ErrProgramGone):
				t.Errorf("an old flow: %v, want %v", err, ErrProgramGone)
			}
		}
		if accepted != 1 {
			t.Errorf("%d flows were accepted, want the new one", accepted)
		}
		eventually(t, "nothing is held", func() bool { return l.s.Counters().HeldTCP == 0 })
	})
}
