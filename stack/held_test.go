package stack

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gatun/network/packet"
)

// synOf makes the SYN of a program that this test plays by hand.
func synOf(f family, port uint16, seq uint32) []byte {
	return segment(f, at(f.prog, port), at(f.peer, 80), packet.TCPSyn, seq, 0, nil)
}

func tcpFlags(b []byte) (packet.Header, uint8) {
	h, err := packet.Parse(b)
	if err != nil || h.Flow.Proto != packet.TCP {
		return h, 0
	}
	return h, h.TCPFlags
}

func TestHeldFlowEndsWithTheProgram(t *testing.T) {
	tests := []struct {
		name string
		end  func(l *lab, f family)
		want error
	}{
		{"reset", func(l *lab, f family) {
			l.send(segment(f, at(f.prog, 4000), at(f.peer, 80), packet.TCPRst, 8, 0, nil))
		}, ErrProgramGone},
		{"no more retransmissions", func(l *lab, f family) { l.s.syns.abandon(time.Now().Add(7 * time.Second)) }, ErrProgramGone},
		{"the stack ends", func(l *lab, f family) { l.cancel() }, context.Canceled},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, f family) {
				held, result := make(chan bool), make(chan error, 1)
				l := newLab(t, &handler{tcp: func(fl *TCPFlow) {
					held <- true
					<-fl.Context().Done()
					if err := context.Cause(fl.Context()); !errors.Is(err, tt.want) {
						t.Errorf("cause: %v, want %v", err, tt.want)
					}
					_, err := fl.Accept()
					result <- err
				}}, Limits{})
				l.send(synOf(f, 4000, 7))
				<-held
				tt.end(l, f)
				if err := <-result; err == nil {
					t.Error("Accept succeeds for a program that is gone")
				}
				if got := l.recv(20 * time.Millisecond); got != nil {
					t.Errorf("answered: %x", got)
				}
				eventually(t, "nothing is held", func() bool { return l.s.Counters().HeldTCP == 0 })
			})
		})
	}
}

func TestAbandonKeepsSlowRetransmitters(t *testing.T) {
	var tab synTable
	tab.init()
	start := time.Unix(1000, 0)
	f := &TCPFlow{first: start}
	ctx := f.ctx.get(context.Background())
	f.lastSYN.Store(start.UnixNano())
	tab.m[f.id] = f
	// Linux' schedule; the connect fails 127 s after the first SYN.
	for _, s := range []int{0, 1, 3, 7, 15, 31, 63} {
		now := start.Add(time.Duration(s) * time.Second)
		if tab.abandon(now) != 0 {
			t.Fatalf("abandoned before the SYN at %d s", s)
		}
		tab.again(f.id, now)
	}
	if tab.abandon(start.Add(127*time.Second)) != 0 {
		t.Error("abandoned before the program's own time-out")
	}
	if tab.abandon(start.Add(165*time.Second)) != 1 || ctx.Err() == nil {
		t.Error("a dead program's SYN is held for ever")
	}
}

func TestAbandonedHandshake(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		result := make(chan error, 1)
		l := newLab(t, &handler{tcp: func(fl *TCPFlow) {
			_, err := fl.Accept()
			result <- err
		}}, Limits{Handshake: 100 * time.Millisecond})
		l.send(synOf(f, 4000, 7))
		if _, flags := tcpFlags(l.recv(time.Second)); flags != packet.TCPSyn|packet.TCPAck {
			t.Fatalf("flags %x, want SYN-ACK", flags)
		}
		select {
		case err := <-result:
			if err == nil {
				t.Error("Accept succeeds without the program's ACK")
			}
		case <-time.After(30 * time.Second):
			t.Fatal("the handshake's deadline does not work")
		}
		eventually(t, "the endpoint is gone", func() bool { return len(l.s.nets.current.Load().net.RegisteredEndpoints()) == 0 })
	})
}

func TestStopDuringHandshake(t *testing.T) {
	f, result := families[0], make(chan error, 1)
	l := newLab(t, &handler{tcp: func(fl *TCPFlow) { _, err := fl.Accept(); result <- err }}, Limits{})
	l.send(synOf(f, 4000, 7))
	l.recv(time.Second) // SYN-ACK
	start := time.Now()
	l.stop()
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("stopping took %v", d)
	}
	if err := <-result; err == nil {
		t.Error("Accept succeeds in a stopped stack")
	}
}

func TestStopResetsConnections(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		prog, ours, l := connected(t, f)
		go l.stop()
		if _, err := prog.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
			t.Errorf("program reads %v, want reset", err)
		}
		<-l.ended
		if _, err := ours.Read(make([]byte, 1)); err == nil {
			t.Error("read in a stopped stack succeeds")
		}
	})
}

func TestRejectAnswersTheSYN(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		l := newLab(t, &handler{tcp: func(fl *TCPFlow) {
			if fl.TTL() != 61 || fl.TOS() != 0x28 {
				t.Errorf("ttl %d tos %x", fl.TTL(), fl.TOS())
			}
			fl.Reject()
			fl.Drop() // only the first verdict counts
			if _, err := fl.Accept(); !errors.Is(err, ErrDecided) {
				t.Errorf("Accept after Reject: %v", err)
			}
		}}, Limits{})
		l.send(synOf(f, 4000, 7))
		b := l.recv(time.Second)
		h, flags := tcpFlags(b)
		if flags != packet.TCPRst|packet.TCPAck || h.Flow.Local != at(f.peer, 80) || h.Flow.Remote != at(f.prog, 4000) {
			t.Errorf("answer %+v", h)
		}
		if !h.TransportChecksumOK(b) || !h.HeaderChecksumOK(b) {
			t.Error("bad checksum")
		}
	})
}

func TestUnreachableQuotesTheSYN(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		l := newLab(t, &handler{tcp: func(fl *TCPFlow) { fl.Unreachable(packet.TimeExceeded(f.router)) }}, Limits{})
		syn := synOf(f, 4000, 7)
		l.send(syn)
		checkError(t, l.recv(time.Second), *packet.TimeExceeded(f.router), f.prog, syn)
	})
}

func TestStraySegmentIsReset(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		l := newLab(t, &handler{}, Limits{})
		l.send(segment(f, at(f.prog, 4000), at(f.peer, 80), packet.TCPAck, 7, 42, []byte("mid-flow")))
		h, flags := tcpFlags(l.recv(time.Second))
		if flags != packet.TCPRst || h.TCPSeq != 42 {
			t.Errorf("answer %+v", h)
		}
		l.send(segment(f, at(f.prog, 4000), at(f.peer, 80), packet.TCPRst, 7, 0, nil))
		eventually(t, "read", func() bool { return l.s.Counters().PacketsIn == 2 })
		if c := l.s.Counters(); c.StraySegments != 1 || l.recv(10*time.Millisecond) != nil {
			t.Errorf("a stray RST is answered or counted: %+v", c)
		}
	})
}

func TestHeldTCPLimit(t *testing.T) {
	f, release := families[0], make(chan struct{})
	var calls atomic.Int32
	l := newLab(t, &handler{tcp: func(fl *TCPFlow) { calls.Add(1); <-release; fl.Reject() }}, Limits{HeldTCP: 20})
	for port := range uint16(25) {
		l.send(synOf(f, 4000+port, 7))
		l.send(synOf(f, 4000+port, 7)) // a retransmission
	}
	eventually(t, "read", func() bool { return l.s.Counters().PacketsIn == 50 && calls.Load() == 20 })
	if c := l.s.Counters(); c.HeldTCP != 20 || c.HeldTCPLimit != 10 {
		t.Errorf("held %d, refused %d SYNs", c.HeldTCP, c.HeldTCPLimit)
	}
	close(release)
	eventually(t, "nothing is held", func() bool { return l.s.Counters().HeldTCP == 0 })
}

// TestPortReuse opens the same 4-tuple again and again, closed first by us: netstack must not
// keep it in TIME_WAIT.
func TestPortReuse(t *testing.T) {
	var served atomic.Int32
	l := newLab(t, &handler{tcp: func(fl *TCPFlow) {
		c, err := fl.Accept()
		if err != nil {
			t.Errorf("Accept: %v", err)
			return
		}
		served.Add(1)
		c.Close()
	}}, Limits{})
	p := newProgram(t, l)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				c, err := p.dial(short(t), at(families[0].peer, 80))
				if err != nil {
					t.Errorf("dial: %v", err)
					return
				}
				c.Read(make([]byte, 1))
				c.Close()
			}
		})
	}
	wg.Wait()
	if served.Load() != 400 {
		t.Errorf("served %d of 400", served.Load())
	}
	eventually(t, "no endpoint is left", func() bool { return len(l.s.nets.current.Load().net.RegisteredEndpoints()) == 0 })
}

func TestTranslate(t *testing.T) {
	prog, ours, _ := connected(t, families[0])
	defer prog.Close()
	ours.Close()
	for name, err := range map[string]error{
		"Read":          second(ours.Read(nil)),
		"Write":         second(ours.Write([]byte("x"))),
		"Close":         ours.Close(),
		"CloseWrite":    ours.CloseWrite(),
		"SetDeadline":   ours.SetDeadline(time.Now()),
		"WaitReadable":  ours.WaitReadable(context.Background()),
		"SetRDeadline":  ours.SetReadDeadline(time.Now()),
		"SetWDeadline":  ours.SetWriteDeadline(time.Now()),
		"CloseRead":     ours.CloseRead(),
		"Read one byte": second(ours.Read(make([]byte, 1))),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	if err := translate(nil); err != nil || errors.Is(err, syscall.Errno(0)) {
		t.Errorf("no error becomes %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestNewRefuses(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("no device, no error")
	}
	l := newLab(t, &handler{}, Limits{})
	o := Options{Device: smallDevice{l.s.dev}, Handler: &handler{}, Local: l.s.local}
	if _, err := New(o); err == nil || !strings.Contains(err.Error(), "1280") {
		t.Errorf("MTU 576: %v", err)
	}
	o.Device = l.s.dev
	o.Handler = nil
	if _, err := New(o); err == nil {
		t.Error("no handler, no error")
	}
	o.Handler, o.Local = &handler{}, nil
	if _, err := New(o); err == nil {
		t.Error("no Local, no error")
	}
}

type smallDevice struct{ Device }

func (smallDevice) MTU() int { return 576 }

func TestHandlerThatIgnoresTheEnd(t *testing.T) {
	release := make(chan struct{})
	l := newLab(t, &handler{udp: func(*UDPFlow) { <-release }}, Limits{Drain: 50 * time.Millisecond})
	l.send(udpPacket(at(families[0].prog, 1), at(families[0].peer, 2), nil))
	eventually(t, "handler runs", func() bool { return l.s.Counters().UDPFlows == 1 })
	l.cancel()
	<-l.ended
	if l.err == nil {
		t.Error("Run hides a handler that still runs")
	}
	l.err = nil
	close(release)
}
