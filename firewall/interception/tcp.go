package interception

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
)

// program is the program's end of a connection. *stack.TCPConn is one.
type program interface {
	Read([]byte) (int, error)
	Write([]byte) (int, error)
	// WaitReadable blocks without a buffer until Read would not.
	WaitReadable(context.Context) error
	CloseWrite() error
	Close() error
	Abort()       // RST; ends blocked calls
	Broken() bool // reset or timed out, seen without reading
}

// Meter counts payload. *network.Link is one.
type Meter interface {
	Sent(n int)
	Received(n int)
	Bytes() (sent, received uint64)
}

const (
	smallBuffer = 16 << 10
	// bigBuffer is a multiple of what one super-packet carries; a little more than one would
	// give a large and a tiny segment each time.
	bigBuffer = 252 << 10
)

// buffers lends chunks. A flow that is idle has none.
type buffers struct {
	small, big       sync.Pool
	getSmall, getBig func() []byte
	put              func([]byte)
}

func (p *buffers) init() {
	p.small.New = func() any { return new([smallBuffer]byte) }
	p.big.New = func() any { return new([bigBuffer]byte) }
	p.getSmall = func() []byte { return p.small.Get().(*[smallBuffer]byte)[:] }
	p.getBig = func() []byte { return p.big.Get().(*[bigBuffer]byte)[:] }
	p.put = func(b []byte) {
		switch len(b) {
		case smallBuffer:
			p.small.Put((*[smallBuffer]byte)(b))
		case bigBuffer:
			p.big.Put((*[bigBuffer]byte)(b))
		}
	}
}

// sized returns the pool for a stream whose last read returned n bytes: bulk gets big chunks.
func (p *buffers) sized(n int) func() []byte {
	if n >= smallBuffer {
		return p.getBig
	}
	return p.getSmall
}

// tcpRelay copies one connection. Each direction has one goroutine; a FIN passes on alone, and
// a reset of either side resets the other.
type tcpRelay struct {
	prog     program
	up       Upstream
	link     Meter
	buffers  *buffers
	panicked func(what string, p any)

	end       atomic.Pointer[ending]
	upDone    atomic.Bool // the program's FIN was passed on
	downDone  atomic.Bool // the server's FIN was passed on
	sending   atomic.Bool // in a write to the server, perhaps for long
	serverRST atomic.Bool // seen by a write; what the server sent before is still delivered

	lastMoved uint64 // bytes at the last sweep; the sweeper's own
	idle      uint32 // ticks without a byte; the sweeper's own
}

// run copies until both directions have ended and returns the close cause.
func (t *tcpRelay) run(ctx context.Context) string {
	stop := context.AfterFunc(ctx, func() { t.abort(causeOf(ctx)) })
	defer stop()
	down := make(chan struct{})
	go func() {
		defer close(down)
		defer t.guard()
		t.copyDown()
	}()
	t.runUp(ctx)
	<-down
	t.prog.Close()
	t.up.Close()
	return t.end.Load().cause
}

func (t *tcpRelay) runUp(ctx context.Context) {
	defer t.guard()
	t.copyUp(ctx)
}

// guard ends the flow when a direction panicked; otherwise it has ended in order.
func (t *tcpRelay) guard() {
	if p := recover(); p != nil {
		t.panicked("tcp relay", p)
		t.abort("internal error")
	}
}

// ending is how a connection ended; a reset is the last word.
type ending struct {
	cause string
	reset bool
}

// note keeps the first cause of an end in good order.
func (t *tcpRelay) note(cause string) { t.end.CompareAndSwap(nil, &ending{cause: cause}) }

// abort resets both sides. It may be called from any goroutine, and again. Its cause replaces
// that of a half-close before it.
func (t *tcpRelay) abort(cause string) {
	e := &ending{cause: cause, reset: true}
	for {
		old := t.end.Load()
		if old != nil && old.reset {
			return
		}
		if t.end.CompareAndSwap(old, e) {
			t.prog.Abort()
			t.up.Abort()
			return
		}
	}
}

func (t *tcpRelay) aborted() bool {
	e := t.end.Load()
	return e != nil && e.reset
}

// copyUp carries the program's bytes to the server.
func (t *tcpRelay) copyUp(ctx context.Context) {
	last := 0
	for {
		if err := t.prog.WaitReadable(ctx); err != nil {
			t.abort(clientCause(ctx, err))
			return
		}
		b := t.buffers.sized(last)()
		n, err := t.prog.Read(b)
		last = n
		if n > 0 && !t.send(b[:n]) {
			t.buffers.put(b)
			return
		}
		t.buffers.put(b)
		switch {
		case err == nil:
		case err == io.EOF:
			t.note("client closed")
			_ = t.up.CloseWrite() // a server that has reset meanwhile is the other direction's news
			t.upDone.Store(true)
			return
		default:
			t.abort(clientCause(ctx, err))
			return
		}
	}
}

// send writes to the server and reports whether to go on.
func (t *tcpRelay) send(b []byte) bool {
	t.sending.Store(true)
	n, err := t.up.Write(b)
	t.sending.Store(false)
	t.link.Sent(n)
	if err == nil {
		return true
	}
	if isReset(err) && !t.aborted() {
		// What the server sent before its reset may still be on the way to the program. The
		// other direction delivers it and then resets.
		t.note(causeServerReset)
		t.serverRST.Store(true)
		return false
	}
	t.abort(serverCause(err))
	return false
}

// copyDown carries the server's bytes to the program.
func (t *tcpRelay) copyDown() {
	last := 0
	for {
		b, n, err := t.up.Fill(t.buffers.sized(last), t.buffers.put)
		switch {
		case err == nil:
		case err == io.EOF && !t.serverRST.Load():
			t.note("server closed")
			_ = t.prog.CloseWrite()
			t.downDone.Store(true)
			return
		case err == io.EOF:
			t.abort(causeServerReset)
			return
		default:
			t.abort(serverCause(err))
			return
		}
		last = n
		wrote, err := t.prog.Write(b[:n])
		t.buffers.put(b)
		t.link.Received(wrote)
		if err != nil {
			t.abort(clientCause(context.Background(), err))
			return
		}
	}
}

func isReset(err error) bool {
	return isErrno(err, syscall.ECONNRESET, wsaECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func clientCause(ctx context.Context, err error) string {
	switch {
	case ctx.Err() != nil:
		return causeOf(ctx)
	case errors.Is(err, syscall.ETIMEDOUT):
		return "client timed out"
	default:
		return causeClientReset
	}
}

func serverCause(err error) string {
	switch {
	case isReset(err):
		return causeServerReset
	case isErrno(err, syscall.ETIMEDOUT, wsaETIMEDOUT):
		return "server timed out"
	default:
		return "server: " + err.Error()
	}
}

// tcpRelays is what the sweeper looks at.
type tcpRelays struct {
	mu   sync.Mutex
	live map[*tcpRelay]struct{}
	look []*tcpRelay // the sweeper's own
}

func (s *tcpRelays) init() { s.live = map[*tcpRelay]struct{}{} }

func (s *tcpRelays) add(t *tcpRelay) {
	s.mu.Lock()
	s.live[t] = struct{}{}
	s.mu.Unlock()
}

func (s *tcpRelays) remove(t *tcpRelay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, t)
	if len(s.live) == 0 {
		s.init() // a Go map never shrinks
	}
}

// sweep looks after the connections that one of their goroutines cannot look after: half-closed
// ones, and those that wait for a full window to open.
func (s *tcpRelays) sweep(halfClosed uint32) {
	s.mu.Lock()
	s.look = s.look[:0]
	for t := range s.live {
		if t.upDone.Load() || t.downDone.Load() || t.sending.Load() || t.serverRST.Load() {
			s.look = append(s.look, t)
		}
	}
	s.mu.Unlock()
	for _, t := range s.look {
		t.sweep(halfClosed)
	}
	clear(s.look)
}

// resetGrace is how many ticks a program may leave the server's last bytes unread after it has
// written into a connection that the server had reset.
const resetGrace = 5

func (t *tcpRelay) sweep(halfClosed uint32) {
	sent, received := t.link.Bytes()
	if sent+received != t.lastMoved {
		t.lastMoved, t.idle = sent+received, 0
	} else {
		t.idle++
	}
	switch {
	case (t.upDone.Load() || t.sending.Load() && t.idle > 0) && t.prog.Broken():
		t.abort(causeClientReset)
	case t.downDone.Load() && t.up.Broken(), t.serverRST.Load() && t.idle > resetGrace:
		t.abort(causeServerReset)
	case (t.upDone.Load() || t.downDone.Load()) && t.idle >= halfClosed:
		t.abort("half-closed too long")
	}
}
