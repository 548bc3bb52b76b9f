package interception

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"gatun/network/packet"
)

func divertedFlow(port string) packet.Flow {
	return packet.Flow{Proto: packet.TCP, Local: netip.MustParseAddrPort("10.0.0.2:" + port), Remote: netip.MustParseAddrPort("192.0.2.1:443")}
}

// TestStrays: segments of a diverted connection are swallowed while the rules may come back; then the
// connection is lost, which is said once. All others were never diverted.
func TestStrays(t *testing.T) {
	var d diverted
	f, began := divertedFlow("1000"), time.Unix(1000, 0)
	relay := &tcpRelay{}
	if lives, _ := d.stray(f, began); lives {
		t.Error("a connection of nobody lives")
	}
	d.add(f, &diversion{syn: 7})
	d.carried(f, relay)
	for _, s := range []struct {
		after time.Duration
		lives bool
		lost  *tcpRelay
	}{{0, true, nil}, {time.Second, true, nil}, {strayWithin, false, relay}, {strayWithin, false, nil}} {
		if lives, lost := d.stray(f, began.Add(s.after)); lives != s.lives || lost != s.lost {
			t.Errorf("after %v: lives %v, lost %v", s.after, lives, lost)
		}
	}
	if lives, _ := d.stray(f, began.Add(2*time.Minute)); !lives {
		t.Error("what happened long ago counts")
	}
}

// TestDivertedNames: a connection has its name until it has ended, and its SYN is known when it comes
// once more; another SYN is another connection's.
func TestDivertedNames(t *testing.T) {
	var d diverted
	f := divertedFlow("1000")
	if !d.add(f, &diversion{syn: 7}) || d.add(f, &diversion{syn: 8}) {
		t.Error("two connections of one name")
	}
	if !d.begunBy(f, 7) || d.begunBy(f, 8) || d.begunBy(divertedFlow("1001"), 7) {
		t.Error("SYNs are mixed up")
	}
	if !d.carried(f, &tcpRelay{}) || d.carried(f, &tcpRelay{}) {
		t.Error("what carries it now took the name of one that has not ended yet")
	}
	if d.remove(f) == nil || d.remove(f) != nil || d.begunBy(f, 7) {
		t.Error("it is still there after its end")
	}
}

// socket is an end that is a socket of the kernel.
type socket struct {
	*fakeUp
	reads []int // bytes that Fill brings
	wrote int
}

func (s *socket) SyscallConn() (syscall.RawConn, error) { return nil, errors.ErrUnsupported }
func (s *socket) Write(b []byte) (int, error)           { s.wrote += len(b); return len(b), nil }
func (s *socket) Fill(get func() []byte, _ func([]byte)) ([]byte, int, error) {
	if len(s.reads) == 0 {
		return nil, 0, io.EOF
	}
	n := s.reads[0]
	s.reads = s.reads[1:]
	return get(), n, nil
}

// moving is a pipe that notes what went through it.
type moving struct {
	steps  []int // bytes that Fill brings
	fails  error // of Drain
	closed bool
}

func (p *moving) Fill(syscall.Conn) (int, error) {
	if len(p.steps) == 0 {
		return 0, io.EOF
	}
	n := p.steps[0]
	p.steps = p.steps[1:]
	return n, nil
}
func (p *moving) Drain(syscall.Conn) (int, error) { return 5, p.fails }
func (p *moving) Close()                          { p.closed = true }

// TestBulkTakesAPipe: what fills a small buffer goes on through a pipe, in either direction, until there
// is less; without a pipe it goes through buffers. A pipe that was not emptied is not used again.
func TestBulkTakesAPipe(t *testing.T) {
	for name, c := range map[string]struct {
		pipe *moving
		sent uint64
	}{
		"bulk":        {&moving{steps: []int{smallBuffer, 5}}, smallBuffer + 2*5 + 0},
		"no pipe":     {nil, smallBuffer},
		"not emptied": {&moving{steps: []int{smallBuffer}, fails: syscall.EPIPE}, smallBuffer + 5},
	} {
		t.Run(name, func(t *testing.T) {
			r, h := newRig(t), newHeldSYN()
			r.Pipe = func() (Pipe, error) {
				if c.pipe == nil {
					return nil, syscall.EMFILE
				}
				return c.pipe, nil
			}
			up, prog := &socket{fakeUp: &fakeUp{}}, &socket{fakeUp: &fakeUp{}, reads: []int{smallBuffer}}
			r.up.tcp = func(context.Context, netip.Addr, netip.AddrPort, uint8) (Upstream, error) { return up, nil }
			l := r.link(h.flow, 1)
			r.relayTCP(context.Background(), h, l, func() (program, error) { return prog, nil })
			sent, _ := l.Bytes()
			if sent != c.sent {
				t.Errorf("%d bytes sent, want %d", sent, c.sent)
			}
			if c.pipe != nil && c.pipe.closed != (c.pipe.fails != nil) {
				t.Errorf("pipe closed %v", c.pipe.closed)
			}
			r.pipes.rest()
			if c.pipe != nil && !c.pipe.closed {
				t.Error("an idle pipe stays open")
			}
		})
	}
}

// TestPipesAreBounded: what is lent has a limit, and what comes back makes room.
func TestPipesAreBounded(t *testing.T) {
	var p pipes
	for range 2 * pipesInUse {
		if p.get(func() (Pipe, error) { return nil, syscall.EMFILE }) != nil {
			t.Error("a pipe that could not be opened")
		}
	}
	open := func() (Pipe, error) { return &moving{}, nil }
	var lent []Pipe
	for range pipesInUse {
		lent = append(lent, p.get(open))
	}
	if lent[pipesInUse-1] == nil || p.get(open) != nil {
		t.Error("not as many as the limit, or more")
	}
	p.put(lent[0], true)
	if got := p.get(open); got != lent[0] {
		t.Error("the one that came back is not lent again")
	}
}

// TestSpareFiles: flows that get a second file take none from others: as many flows find one as before,
// of whoever holds the most up to the soft limit, and some of all others beyond.
func TestSpareFiles(t *testing.T) {
	const limit = 20_000
	b := NewFileBudget(limit)
	spare := 0
	for b.AcquireSpare() {
		spare++
	}
	most, other := OwnerKey{PID: 1}, OwnerKey{PID: 2}
	n := 0
	for b.Acquire(most) == nil {
		n++
	}
	if spare == 0 || n != limit*9/10 || b.Acquire(other) != nil {
		t.Errorf("%d spare files, %d flows of one program, another one %v", spare, n, b.Acquire(other))
	}
	for b.Acquire(other) == nil {
	}
	if all, _ := b.Used(most); all+spare > limit-reservedFiles {
		t.Errorf("%d files of flows and %d spare ones: the reserve is gone", all, spare)
	}
	for range spare {
		b.ReleaseSpare()
	}
	if !b.AcquireSpare() {
		t.Error("spare files are not given back")
	}
}
