package interception

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatun/network/packet"
)

// heldSYN is the stack's side of a connection without a verdict.
type heldSYN struct {
	flow   packet.Flow
	ctx    context.Context
	answer []string
}

func (h *heldSYN) Flow() packet.Flow        { return h.flow }
func (h *heldSYN) TTL() uint8               { return 64 }
func (h *heldSYN) Context() context.Context { return h.ctx }
func (h *heldSYN) Reject()                  { h.answer = append(h.answer, "reset") }
func (h *heldSYN) Drop()                    { h.answer = append(h.answer, "silence") }
func (h *heldSYN) Unreachable(e *packet.ICMPError) {
	h.answer = append(h.answer, fmt.Sprintf("icmp %v %d/%d", e.From, e.Type, e.Code))
}

// endedProgram is a program that closes at once.
type endedProgram struct {
	program
	h *heldSYN
}

func (p endedProgram) Abort() { p.h.answer = append(p.h.answer, "accept, reset") }

func newHeldSYN() *heldSYN {
	return &heldSYN{ctx: context.Background(), flow: packet.Flow{Proto: packet.TCP,
		Local: netip.MustParseAddrPort("10.0.0.2:40000"), Remote: netip.MustParseAddrPort("192.0.2.1:443")}}
}

// TestDialErrors: the program sees what it would see without us, and the cause says it.
func TestDialErrors(t *testing.T) {
	sys := func(e syscall.Errno) error { return fmt.Errorf("dial: %w", os.NewSyscallError("connect", e)) }
	hop := netip.MustParseAddr("198.51.100.1")
	for _, tc := range []struct {
		name          string
		err           error
		answer, cause string
	}{
		{"refused", sys(syscall.ECONNREFUSED), "reset", "connection refused"},
		{"refused, winsock", sys(10061), "reset", "connection refused"},
		{"timed out", sys(syscall.ETIMEDOUT), "silence", "connection timed out"},
		{"no route", sys(syscall.ENETUNREACH), "icmp invalid IP 3/0", "network unreachable"},
		{"no host", sys(syscall.EHOSTUNREACH), "icmp invalid IP 3/1", "host unreachable"},
		{"forbidden here", sys(syscall.EACCES), "icmp invalid IP 3/13", "administratively prohibited"},
		{"hop answers", fmt.Errorf("dial: %w", packet.HostUnreachable(hop)), "icmp 198.51.100.1 3/1", "198.51.100.1: host unreachable"},
		{"hop limit", packet.TimeExceeded(hop), "icmp 198.51.100.1 11/0", "198.51.100.1: time exceeded"},
		{"reset at once", sys(syscall.ECONNRESET), "accept, reset", "server reset"},
		{"no files", sys(syscall.EMFILE), "reset", "dial: connect: too many open files"},
		{"no port left", sys(syscall.EADDRNOTAVAIL), "reset", "dial: connect: cannot assign requested address"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, h := newRig(t), newHeldSYN()
			r.net.dial = func(context.Context) (*fakeUp, error) { return nil, tc.err }
			cause := r.relayTCP(context.Background(), h, r.link(h.flow, 1), func() (program, error) { return endedProgram{h: h}, nil })
			if !slices.Equal(h.answer, []string{tc.answer}) || cause != tc.cause {
				t.Errorf("program sees %q, cause %q; want %q, %q", h.answer, cause, tc.answer, tc.cause)
			}
		})
	}
}

// TestDialEnds: a dial lasts as long as somebody waits for it.
func TestDialEnds(t *testing.T) {
	for _, tc := range []struct {
		name          string
		end           func(stop, giveUp context.CancelFunc, kill func(string) bool)
		answer, cause string
	}{
		{"program gives up", func(_, giveUp context.CancelFunc, _ func(string) bool) { giveUp() }, "silence", "program gave up"},
		{"killed", func(_, _ context.CancelFunc, kill func(string) bool) { kill("killed by hand") }, "reset", "killed by hand"},
		{"shutdown", func(stop, _ context.CancelFunc, _ func(string) bool) { stop() }, "silence", "gatun stopped"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, h := newRig(t), newHeldSYN()
			var giveUp context.CancelFunc
			h.ctx, giveUp = context.WithCancel(context.Background())
			ctx, stop := context.WithCancel(context.Background())
			defer giveUp()
			defer stop()
			l := r.link(h.flow, 1)
			dialing := make(chan struct{})
			r.net.dial = func(ctx context.Context) (*fakeUp, error) {
				close(dialing)
				<-ctx.Done()
				return nil, ctx.Err()
			}
			got := make(chan string, 1)
			go func() { got <- r.relayTCP(ctx, h, l, nil) }()
			<-dialing
			tc.end(stop, giveUp, l.Kill)
			select {
			case cause := <-got:
				if cause != tc.cause || !slices.Equal(h.answer, []string{tc.answer}) {
					t.Errorf("program sees %q, cause %q; want %q, %q", h.answer, cause, tc.answer, tc.cause)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("the dial goes on")
			}
		})
	}
}

// TestDialedIsTold: the network's doings are told, and what a program or a person does is not.
func TestDialedIsTold(t *testing.T) {
	remote := newHeldSYN().flow.Remote
	for _, c := range []struct {
		name string
		err  error
		took time.Duration
		want error
		told bool
	}{
		{"made", nil, 0, nil, true},
		{"refused", syscall.ECONNREFUSED, 0, syscall.ECONNREFUSED, true},
		{"no route", packet.NetUnreachable(netip.Addr{}), 0, syscall.ENETUNREACH, true},
		{"program gives up at once", errProgramGone, inVain - 1, nil, false},
		{"program gives up after a while", errProgramGone, inVain, syscall.ETIMEDOUT, true},
		{"killed", killedError("by hand"), inVain, nil, false},
		{"stopped", context.Canceled, inVain, nil, false},
	} {
		r, told := new(Relay), 0
		r.tell(remote, c.err, c.took) // nobody wants to know
		r.Dialed = func(to netip.AddrPort, err error) {
			told++
			if to != remote || !errors.Is(err, c.want) {
				t.Errorf("%s: told %v, %v; want %v", c.name, to, err, c.want)
			}
		}
		if r.tell(remote, c.err, c.took); (told == 1) != c.told {
			t.Errorf("%s: told %d times", c.name, told)
		}
	}
	r, h := newRig(t), newHeldSYN()
	var told []error
	r.Dialed = func(_ netip.AddrPort, err error) { told = append(told, err) }
	r.net.dial = func(context.Context) (*fakeUp, error) { return nil, syscall.ENETUNREACH }
	r.relayTCP(context.Background(), h, r.link(h.flow, 1), nil)
	if len(told) != 1 || !errors.Is(told[0], syscall.ENETUNREACH) {
		t.Errorf("a connection without a route: told %v", told)
	}
}

// TestProgramGoneBeforeAccept: the server must not keep a connection that nobody has.
func TestProgramGoneBeforeAccept(t *testing.T) {
	r, h := newRig(t), newHeldSYN()
	up := &fakeUp{}
	r.net.dial = func(context.Context) (*fakeUp, error) { return up, nil }
	cause := r.relayTCP(context.Background(), h, r.link(h.flow, 1), func() (program, error) { return nil, errors.New("gone") })
	if cause != causeGaveUp || up.aborts.Load() != 1 {
		t.Errorf("cause %q, upstream reset %d times", cause, up.aborts.Load())
	}
}

// stuck is a program that says nothing until it is reset.
type stuck struct {
	endedProgram
	once  sync.Once
	reset chan struct{}
}

func (p *stuck) Fill(func() []byte, func([]byte)) ([]byte, int, error) {
	<-p.reset
	return nil, 0, syscall.ECONNRESET
}
func (p *stuck) CloseWrite() error { return nil }
func (p *stuck) Abort()            { p.once.Do(func() { close(p.reset) }) }
func (p *stuck) Interrupt()        {}

// TestKilledWhileAccepted: a kill that meets the moment between the dial and the connection ends the
// connection.
func TestKilledWhileAccepted(t *testing.T) {
	for range 500 {
		r, h := newRig(t), newHeldSYN()
		prog := &stuck{reset: make(chan struct{})}
		r.net.dial = func(context.Context) (*fakeUp, error) { return &fakeUp{}, nil }
		l := r.link(h.flow, 1)
		got := make(chan string, 1)
		go func() {
			got <- r.relayTCP(context.Background(), h, l, func() (program, error) {
				go l.Kill("killed by hand")
				return prog, nil
			})
		}()
		select {
		case cause := <-got:
			if cause != "killed by hand" {
				t.Fatalf("cause %q", cause)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the connection goes on")
		}
	}
}

// panicky is a program whose reading panics.
type panicky struct {
	endedProgram
	aborts int
}

func (p *panicky) Fill(func() []byte, func([]byte)) ([]byte, int, error) { panic("bug") }
func (p *panicky) CloseWrite() error                                     { return nil }
func (p *panicky) Close() error                                          { return nil }
func (p *panicky) Abort()                                                { p.aborts++ }

// TestPanicEndsOneFlow: a bug in one flow ends that flow, both sides, and is counted.
func TestPanicEndsOneFlow(t *testing.T) {
	r, h := newRig(t), newHeldSYN()
	up, prog := &fakeUp{}, &panicky{}
	r.net.dial = func(context.Context) (*fakeUp, error) { return up, nil }
	cause := r.relayTCP(context.Background(), h, r.link(h.flow, 1), func() (program, error) { return prog, nil })
	if cause != "internal error" || up.aborts.Load() == 0 || prog.aborts == 0 || r.Counters().Panics != 1 {
		t.Errorf("cause %q, resets %d and %d, %+v", cause, up.aborts.Load(), prog.aborts, r.Counters())
	}
}

// resetServer resets a connection into which the program writes, after it has sent its answer.
type resetServer struct {
	fakeUp
	wrote   chan struct{}
	answers []string
}

func (c *resetServer) Write([]byte) (int, error) {
	defer close(c.wrote)
	return 0, os.NewSyscallError("write", syscall.ECONNRESET)
}

func (c *resetServer) Broken() bool {
	select {
	case <-c.wrote:
		return true
	default:
		return false
	}
}

func (c *resetServer) Fill(get func() []byte, _ func([]byte)) ([]byte, int, error) {
	<-c.wrote
	if len(c.answers) == 0 {
		return nil, 0, io.EOF // the write has taken the socket's error: the read sees only the end
	}
	b := get()
	n := copy(b, c.answers[0])
	c.answers = c.answers[1:]
	return b, n, nil
}

// writer is a program that sends one request and notes what it sees: of several resets only the
// first one.
type writer struct {
	mu  sync.Mutex
	saw []string
}

func (p *writer) note(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Contains(p.saw, "RST") {
		p.saw = append(p.saw, what)
	}
}

func (p *writer) Fill(get func() []byte, _ func([]byte)) ([]byte, int, error) {
	b := get()
	return b, copy(b, "request"), nil
}
func (p *writer) Write(b []byte) (int, error) { p.note(string(b)); return len(b), nil }
func (p *writer) CloseWrite() error           { p.note("FIN"); return nil }
func (p *writer) Close() error                { return nil }
func (p *writer) Abort()                      { p.note("RST") }
func (p *writer) Broken() bool                { return false }
func (p *writer) Interrupt()                  {}
func (p *writer) Park(func()) bool            { return false }
func (p *writer) Peek() (bool, error)         { return false, nil }
func (p *writer) Resume() error               { return nil }

// TestServerResetIsNoFIN: a reset that a write has met first is still a reset for the program,
// behind all that the server had sent.
func TestServerResetIsNoFIN(t *testing.T) {
	r, prog := newRig(t), &writer{}
	up := &resetServer{wrote: make(chan struct{}), answers: []string{"half ", "an answer"}}
	h := newHeldSYN()
	r.up.tcp = func(context.Context, netip.Addr, netip.AddrPort, uint8) (Upstream, error) { return up, nil }
	cause := r.relayTCP(context.Background(), h, r.link(h.flow, 1), func() (program, error) { return prog, nil })
	if !slices.Equal(prog.saw, []string{"half ", "an answer", "RST"}) || cause != causeServerReset {
		t.Errorf("program sees %q, cause %q", prog.saw, cause)
	}
}

func TestNoFileNoDial(t *testing.T) {
	r, h := newRig(t), newHeldSYN()
	r.Files = NewFileBudget(reservedFiles + 1)
	other := OwnerKey{PID: 9}
	if err := r.Files.Acquire(other); err == nil {
		defer r.Files.Release(other)
	}
	r.net.dial = func(context.Context) (*fakeUp, error) { t.Error("dialled"); return nil, errors.New("x") }
	cause := r.relayTCP(context.Background(), h, r.link(h.flow, 9), nil)
	if !slices.Equal(h.answer, []string{"reset"}) || r.Counters().TCPRefused != 1 {
		t.Errorf("program sees %q, cause %q, %+v", h.answer, cause, r.Counters())
	}
}
