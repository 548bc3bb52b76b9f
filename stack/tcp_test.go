package stack

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"gatun/network/packet"
)

func short(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func accept(t testing.TB, f *TCPFlow) *TCPConn {
	c, err := f.Accept()
	if err != nil {
		t.Errorf("Accept: %v", err)
	}
	return c
}

func TestTCPEcho(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		l := newLab(t, &handler{tcp: func(fl *TCPFlow) {
			want := packet.Flow{Proto: packet.TCP, Local: at(f.prog, fl.Flow().Local.Port()), Remote: at(f.peer, 443)}
			if fl.Flow() != want || fl.TTL() != 64 {
				t.Errorf("flow %v ttl %d, want %v 64", fl.Flow(), fl.TTL(), want)
			}
			c := accept(t, fl)
			defer c.Close()
			io.Copy(c, c)
			c.CloseWrite()
		}}, Limits{})
		p := newProgram(t, l)
		c, err := p.dial(short(t), at(f.peer, 443))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		sent := make([]byte, 3<<20)
		rand.Read(sent)
		go func() {
			c.Write(sent)
			c.(interface{ CloseWrite() error }).CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("echo of %d bytes: got %d, equal %v, %v", len(sent), len(got), bytes.Equal(got, sent), err)
		}
		if n := l.s.Counters(); n.Checksum+n.Malformed+n.Spoofed+n.WriteErrors+n.StraySegments != 0 {
			t.Errorf("honest traffic was dropped: %+v", n)
		}
	})
}

func TestTCPVerdicts(t *testing.T) {
	tests := []struct {
		name   string
		decide func(*TCPFlow, family)
		want   string // in the program's error
	}{
		{"reject", func(fl *TCPFlow, _ family) { fl.Reject() }, "refused"},
		{"unreachable", func(fl *TCPFlow, f family) { fl.Unreachable(packet.NetUnreachable(f.router)) }, "network is unreachable"},
		{"undecided", func(*TCPFlow, family) {}, "deadline"},
		{"drop", func(fl *TCPFlow, _ family) { fl.Drop() }, "deadline"},
		{"panic", func(*TCPFlow, family) { panic("no") }, "deadline"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, f family) {
				var calls atomic.Int32
				l := newLab(t, &handler{tcp: func(fl *TCPFlow) { calls.Add(1); tt.decide(fl, f) }}, Limits{})
				p := newProgram(t, l)
				wait := 30 * time.Second
				if tt.want == "deadline" {
					wait = 1500 * time.Millisecond
				}
				ctx, cancel := context.WithTimeout(context.Background(), wait)
				defer cancel()
				_, err := p.dial(ctx, at(f.peer, 443))
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("program sees %v, want %q", err, tt.want)
				}
				if silent := tt.want == "deadline"; silent && calls.Load() < 2 {
					t.Errorf("%d calls: each retransmission of a dropped SYN is a new flow", calls.Load())
				} else if !silent && calls.Load() != 1 {
					t.Errorf("%d calls for one SYN", calls.Load())
				}
				eventually(t, "nothing is held", func() bool { return l.s.Counters().HeldTCP == 0 })
			})
		})
	}
}

func TestTCPHoldAbsorbsRetransmissions(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		var calls atomic.Int32
		l := newLab(t, &handler{tcp: func(fl *TCPFlow) {
			calls.Add(1)
			time.Sleep(2500 * time.Millisecond) // SYNs at 0, 1 and 3 s
			c := accept(t, fl)
			c.Write([]byte("late"))
			c.Close()
		}}, Limits{})
		c, err := newProgram(t, l).dial(short(t), at(f.peer, 80))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got, err := io.ReadAll(c); string(got) != "late" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		if calls.Load() != 1 {
			t.Errorf("%d calls for one connection", calls.Load())
		}
	})
}

// connected returns both ends of an accepted connection.
func connected(t *testing.T, f family) (prog net.Conn, ours *TCPConn, l *lab) {
	conns, done := make(chan *TCPConn, 1), make(chan struct{})
	t.Cleanup(func() { close(done) })
	l = newLab(t, &handler{tcp: func(fl *TCPFlow) {
		c, err := fl.Accept()
		if err != nil {
			t.Errorf("Accept: %v", err)
			close(conns)
			return
		}
		conns <- c
		select {
		case <-done:
		case <-fl.Context().Done():
		}
	}}, Limits{})
	prog, err := newProgram(t, l).dial(short(t), at(f.peer, 80))
	if err != nil {
		t.Fatal(err)
	}
	ours = <-conns
	deadline := time.Now().Add(20 * time.Second)
	prog.SetDeadline(deadline)
	ours.SetDeadline(deadline)
	return prog, ours, l
}

func TestTCPEnds(t *testing.T) {
	buf := make([]byte, 100)
	tests := []struct {
		name string
		run  func(t *testing.T, prog net.Conn, ours *TCPConn)
	}{
		{"program half-closes", func(t *testing.T, prog net.Conn, ours *TCPConn) {
			prog.Write([]byte("ask"))
			prog.(interface{ CloseWrite() error }).CloseWrite()
			if got, err := io.ReadAll(ours); string(got) != "ask" || err != nil {
				t.Errorf("we read %q, %v", got, err)
			}
			ours.Write([]byte("answer"))
			ours.Close()
			if got, err := io.ReadAll(prog); string(got) != "answer" || err != nil {
				t.Errorf("program reads %q, %v", got, err)
			}
		}},
		{"we half-close", func(t *testing.T, prog net.Conn, ours *TCPConn) {
			ours.Write([]byte("banner"))
			if err := ours.CloseWrite(); err != nil {
				t.Error(err)
			}
			if got, err := io.ReadAll(prog); string(got) != "banner" || err != nil {
				t.Errorf("program reads %q, %v", got, err)
			}
			if _, err := ours.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
				t.Errorf("write after CloseWrite: %v", err)
			}
			prog.Write([]byte("thanks"))
			prog.Close()
			if got, err := io.ReadAll(ours); string(got) != "thanks" || err != nil {
				t.Errorf("we read %q, %v", got, err)
			}
		}},
		{"we abort", func(t *testing.T, prog net.Conn, ours *TCPConn) {
			ours.Abort()
			if _, err := prog.Read(buf); err == nil || !strings.Contains(err.Error(), "reset") {
				t.Errorf("program reads %v, want reset", err)
			}
			if _, err := ours.Read(buf); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read after Abort: %v", err)
			}
		}},
		{"program resets", func(t *testing.T, prog net.Conn, ours *TCPConn) {
			ours.Write([]byte("unread")) // unread bytes make its Close a reset
			prog.Read(buf[:1])
			if ours.Broken() {
				t.Error("broken before the reset")
			}
			prog.Close()
			eventually(t, "broken, seen without reading", ours.Broken)
			if _, err := ours.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read: %v, want ECONNRESET", err)
			}
			if _, err := ours.Write(buf); err == nil {
				t.Error("write after a reset succeeds")
			}
		}},
		{"wait readable", func(t *testing.T, prog net.Conn, ours *TCPConn) {
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			defer cancel()
			if err := ours.WaitReadable(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("idle: %v", err)
			}
			prog.Write([]byte("x"))
			if err := ours.WaitReadable(context.Background()); err != nil {
				t.Error(err)
			}
			ours.Read(buf)
			prog.Close()
			if err := ours.WaitReadable(context.Background()); err != nil {
				t.Error(err)
			}
			if _, err := ours.Read(buf); err != io.EOF {
				t.Errorf("read: %v, want EOF", err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, f family) {
				prog, ours, _ := connected(t, f)
				defer prog.Close()
				defer ours.Close()
				tt.run(t, prog, ours)
			})
		})
	}
}

func TestNettest(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		prog, ours, l := connected(t, families[0])
		prog.SetDeadline(time.Time{})
		ours.SetDeadline(time.Time{})
		return prog, ours, func() { prog.Close(); ours.Close(); l.stop() }, nil
	})
}
