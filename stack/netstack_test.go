package stack

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// echoLab is a running Stack that echoes, and a program. Its netstack is replaced after the given
// number of connections, when one in ebb is left.
func echoLab(t *testing.T, many, ebb uint64, every time.Duration) (*lab, *program) {
	l := newLabWith(t, &handler{tcp: func(f *TCPFlow) {
		c, err := f.Accept()
		if err != nil {
			return // the program gave up, or the end of the test
		}
		defer c.Close()
		_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	}}, Limits{}, 1500, func(s *Stack) { s.nets.many, s.nets.ebb, s.nets.every = many, ebb, every })
	return l, newProgram(t, l)
}

// echo says something and waits for the answer.
func echo(c net.Conn, text string) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, text); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if string(b) != text {
		return fmt.Errorf("another text came back")
	}
	return nil
}

// closed ends a connection after all was said, and waits for the other side.
func closed(c net.Conn) error {
	defer c.Close()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c)
	return err
}

// TestNewNetstackAfterFlood opens many connections and closes all but one: that one stays in the
// old netstack, new ones live in another, and the old one ends with its last connection.
func TestNewNetstackAfterFlood(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		l, p := echoLab(t, 20, ebbOf, time.Millisecond)
		first := l.s.waitNetstack(t)
		var conns []net.Conn
		for range 40 {
			c, err := p.dial(short(t), at(f.peer, 80))
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		stays := conns[0]
		for _, c := range conns[1:] {
			if err := closed(c); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "another netstack", func() bool {
			if err := echo(stays, "still here"); err != nil {
				t.Fatal(err)
			}
			return l.s.nets.current.Load() != first
		})
		if l.s.nets.draining.Load() != first {
			t.Fatal("the first netstack does not drain")
		}
		second, err := p.dial(short(t), at(f.peer, 80))
		if err != nil {
			t.Fatal(err)
		}
		for range 100 { // both at the same time, for many looks
			for _, c := range []net.Conn{stays, second} {
				if err := echo(c, "hello"); err != nil {
					t.Fatal(err)
				}
			}
		}
		eventually(t, "one connection in each netstack, those that were closed are over", func() bool {
			return first.conns() == 1 && l.s.nets.current.Load().conns() == 1
		})
		if err := closed(stays); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the old netstack has ended", func() bool {
			if err := echo(second, "hello"); err != nil {
				t.Fatal(err)
			}
			return l.s.nets.draining.Load() == nil
		})
		if err := closed(second); err != nil {
			t.Fatal(err)
		}
	})
}

// waitNetstack waits until Run has made the first netstack.
func (s *Stack) waitNetstack(t *testing.T) *netstack {
	t.Helper()
	eventually(t, "a netstack", func() bool { return s.nets.current.Load() != nil })
	return s.nets.current.Load()
}

// TestNetstacksUnderLoad replaces the netstack all the time while connections of many kinds come
// and go: none may fail, and no byte may be lost.
func TestNetstacksUnderLoad(t *testing.T) {
	l, p := echoLab(t, 1, 1, 100*time.Microsecond) // as soon as the one before has ended
	seen := map[*netstack]bool{l.s.waitNetstack(t): true}
	var stop atomic.Bool
	var conns atomic.Int64
	var wg sync.WaitGroup
	for w := range 8 {
		f := families[w%2]
		wg.Go(func() {
			for n := 0; !stop.Load(); n++ {
				if err := oneConn(p, f, w, n); err != nil {
					t.Errorf("connection %d of worker %d: %v", n, w, err)
					return
				}
				conns.Add(1)
				if n%16 == 0 {
					time.Sleep(time.Duration(w) * time.Millisecond) // ebbs of different depth
				}
			}
		})
	}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Microsecond) {
		seen[l.s.nets.current.Load()] = true
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d connections in %d netstacks", conns.Load(), len(seen))
	if len(seen) < 3 || conns.Load() < 20 {
		t.Errorf("%d connections in %d netstacks: too few to show anything", conns.Load(), len(seen))
	}
}

// oneConn opens a connection, says something, and ends it in one of several ways.
func oneConn(p *program, f family, w, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := p.dial(ctx, at(f.peer, uint16(80+w)))
	if err != nil {
		return err
	}
	defer c.Close()
	size := []int{1, 100, 60000}[n%3]
	if err := echo(c, string(bytes.Repeat([]byte{byte(n)}, size))); err != nil {
		return err
	}
	if n%5 == 0 {
		return nil // closes with nothing left to read
	}
	return closed(c)
}

// TestHeldSYNKeepsNetstack holds a SYN over a change of the netstack; the one that takes its
// place, and its retransmission, find the flow.
func TestHeldSYNKeepsNetstack(t *testing.T) {
	release := make(chan struct{})
	var flows atomic.Int64
	l := newLabWith(t, &handler{tcp: func(f *TCPFlow) {
		flows.Add(1)
		select {
		case <-release:
		case <-f.Context().Done():
			return
		}
		if c, err := f.Accept(); err == nil {
			defer c.Close()
			_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
		}
	}}, Limits{}, 1500, func(s *Stack) { s.nets.every = time.Hour })
	first := l.s.waitNetstack(t)
	f := families[0]
	src, dst := at(f.prog, 4000), at(f.peer, 80)
	l.send(segment(f, src, dst, 0x02, 100, 0, nil))
	eventually(t, "held", func() bool { return flows.Load() == 1 })
	if err := l.s.renew(); err != nil { // the reader has nothing to read meanwhile
		t.Fatal(err)
	}
	if first.idle() {
		t.Fatal("a netstack with a held SYN is called idle")
	}
	l.send(segment(f, src, dst, 0x02, 100, 0, nil)) // again
	l.send(segment(f, src, dst, 0x02, 777, 0, nil)) // another connection takes its place
	eventually(t, "the one that takes its place", func() bool { return flows.Load() == 2 })
	eventually(t, "the first netstack is idle", first.idle)
	if n := l.s.nets.current.Load().flows.Load(); n != 1 {
		t.Errorf("%d flows in the new netstack, want the second one", n)
	}
	close(release)
	for b := l.recv(5 * time.Second); ; b = l.recv(5 * time.Second) {
		if b == nil {
			t.Fatal("no SYN-ACK")
		}
		if b[33] == 0x12 {
			break
		}
	}
}
