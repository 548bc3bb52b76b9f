package stack

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// quickHandler deals at once with connections whose port is even.
type quickHandler struct {
	*handler
	mu     sync.Mutex
	groups []int
	here   atomic.Pointer[func(*TCPFlow)]
}

func (h *quickHandler) QuickTCP(flows []*TCPFlow, later func(*TCPFlow)) {
	h.mu.Lock()
	h.groups = append(h.groups, len(flows))
	h.mu.Unlock()
	for _, f := range flows {
		if f.Flow().Local.Port()%2 != 0 {
			f.Keep("found")
			later(f)
			continue
		}
		(*h.here.Load())(f)
	}
}

func (h *quickHandler) count() (groups, flows int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range h.groups {
		flows += n
	}
	return len(h.groups), flows
}

func newQuickLab(t *testing.T, h *quickHandler) *lab {
	refuse := func(f *TCPFlow) { f.Reject() }
	h.here.Store(&refuse)
	return newLabWith(t, h.handler, Limits{}, 1500, func(s *Stack) { s.handler, s.quick = h, h })
}

// TestQuick: connections that come together are given to the handler together; those that it leaves are
// handled one by one, with what it has found, and each is answered once.
func TestQuick(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		var handled atomic.Int32
		h := &quickHandler{handler: &handler{tcp: func(c *TCPFlow) {
			if c.Kept() != "found" {
				t.Errorf("%s kept %v", c.Flow(), c.Kept())
			}
			handled.Add(1)
			c.Reject()
		}}}
		l := newQuickLab(t, h)
		written, waiting := make(chan struct{}), make(chan struct{})
		first := func(c *TCPFlow) { // the reader waits, and finds all of the others together
			if c.Flow().Local.Port() == 3998 {
				close(waiting)
				<-written
			}
			c.Reject()
		}
		h.here.Store(&first)
		l.send(synOf(f, 3998, 100))
		<-waiting
		var burst [][]byte
		const many = 10
		for i := range many {
			burst = append(burst, synOf(f, uint16(4000+i), 100))
		}
		if _, err := l.prog.Write(burst); err != nil {
			t.Fatal(err)
		}
		close(written)
		for range many + 1 {
			if b := l.recv(10 * time.Second); b == nil {
				t.Fatal("a connection was not refused")
			}
		}
		eventually(t, "nothing is held", func() bool { return l.s.Counters().HeldTCP == 0 })
		groups, flows := h.count()
		if flows != many+1 || groups != 2 || handled.Load() != many/2 {
			t.Errorf("%d connections in %d groups, %d handled later", flows, groups, handled.Load())
		}
	})
}

// TestQuickEnds: a flow that nobody has decided is dropped, its context ends whether somebody has asked
// for it or not, and a panic costs only the connections that came with it.
func TestQuickEnds(t *testing.T) {
	h := &quickHandler{handler: &handler{}}
	l := newQuickLab(t, h)
	f := families[0]
	contexts := make(chan context.Context, 2)
	forgets := func(c *TCPFlow) { contexts <- c.Context() }
	h.here.Store(&forgets)
	l.send(synOf(f, 4000, 100))
	ctx := <-contexts
	<-ctx.Done()
	if !errors.Is(context.Cause(ctx), ErrDecided) && !errors.Is(context.Cause(ctx), net.ErrClosed) {
		t.Errorf("it ended by %v", context.Cause(ctx))
	}
	eventually(t, "it is counted", func() bool { return l.s.Counters().Undecided == 1 })
	panics := func(*TCPFlow) { panic("on purpose") }
	h.here.Store(&panics)
	l.send(synOf(f, 4002, 100))
	eventually(t, "the panic is counted", func() bool { return l.s.Counters().Panics == 1 })
	refuse := func(c *TCPFlow) { c.Reject() }
	h.here.Store(&refuse)
	l.send(synOf(f, 4004, 100))
	if l.recv(10*time.Second) == nil {
		t.Error("the next connection was not refused")
	}
	eventually(t, "nothing is held", func() bool { return l.s.Counters().HeldTCP == 0 })
}

// TestQuickAside: while something is carried here, the packet path does not wait for the handler.
func TestQuickAside(t *testing.T) {
	h := &quickHandler{handler: &handler{udp: func(u *UDPFlow) { u.Drop() }, tcp: func(c *TCPFlow) { c.Reject() }}}
	l := newQuickLab(t, h)
	f := families[0]
	l.send(udpPacket(at(f.prog, 5000), at(f.peer, 7), []byte("x")))
	eventually(t, "a flow is carried", func() bool { return l.s.Counters().UDPFlows == 1 })
	release, waiting := make(chan struct{}), make(chan struct{})
	waits := func(c *TCPFlow) { close(waiting); <-release; c.Reject() }
	h.here.Store(&waits)
	l.send(synOf(f, 4000, 100))
	<-waiting
	l.send(udpPacket(at(f.prog, 5001), at(f.peer, 7), []byte("x")))
	eventually(t, "packets go on", func() bool { return l.s.Counters().UDPFlows == 2 })
	close(release)
	if l.recv(10*time.Second) == nil {
		t.Error("the connection was not refused")
	}
	if _, err := l.prog.Write([][]byte{synOf(f, 4001, 100), synOf(f, 4003, 100), synOf(f, 4005, 100)}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if l.recv(10*time.Second) == nil {
			t.Error("a connection that was left for later was not refused")
		}
	}
	eventually(t, "nothing is held", func() bool { return l.s.Counters().HeldTCP == 0 })
}

var _ Quick = (*quickHandler)(nil)
