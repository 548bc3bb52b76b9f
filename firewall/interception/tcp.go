package interception

import (
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"gatun/network"
)

// program is the program's end of a connection. *stack.TCPConn is one, and *route.TCPConn where the
// system's kernel ends the connection for us.
type program = Upstream

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

// tcpRelay copies one connection. Each direction has one goroutine while the connection is in
// use, and none while it is parked (tcppark.go); a FIN passes on alone, and a reset of either side
// resets the other.
type tcpRelay struct {
	r    *Relay
	prog program
	up   Upstream
	bulk bulkWays
	link *network.Link

	diverted bool // the kernel ends the program's side
	owner    OwnerKey

	end       atomic.Pointer[ending]
	upDone    atomic.Bool // the program's FIN was passed on
	downDone  atomic.Bool // the server's FIN was passed on
	sending   atomic.Bool // in a write to the server, perhaps for long
	receiving atomic.Bool // in a write to the program, perhaps for long
	serverRST atomic.Bool // seen by a write; what the server sent before is still delivered

	mu       sync.Mutex
	running  direction   // those that have a goroutine
	finished direction   // those that have ended
	leave    atomic.Bool // the goroutines are to end where they would wait; written under mu
	parking  atomic.Int32

	lastMoved uint64 // bytes at the last sweep; the sweeper's own
	idle      uint32 // ticks without a byte; the sweeper's own
	lastLook  uint64 // bytes at the last look for idle connections; the looker's own
}

// direction is a set of directions.
type direction uint8

const (
	upward   direction = 1 << iota // from the program to the server
	downward                       // from the server to the program
	bothWays = upward | downward
)

// begin copies until the connection is over or idle. The goroutine of the caller carries one
// direction.
func (t *tcpRelay) begin() {
	t.running = bothWays
	if !t.r.tcp.add(t) {
		t.abort(causeStopped)
	}
	t.start(downward)
	t.carry(upward)
}

// start gives a direction a goroutine of its own.
func (t *tcpRelay) start(d direction) {
	if !t.r.workers.start(func() { t.carry(d) }) {
		t.abort(causeStopped)
		t.exit(d, true)
	}
}

// carry copies in one direction until that is over, or parked.
func (t *tcpRelay) carry(d direction) {
	for !t.exit(d, t.copy(d)) {
	}
}

// copy returns whether the direction is over; else it has only been interrupted. A panic ends
// the flow.
func (t *tcpRelay) copy(d direction) (over bool) {
	defer func() {
		if p := recover(); p != nil {
			t.r.panicked("tcp relay", p)
			t.abort("internal error")
			over = true
		}
	}()
	if d == upward {
		return t.copyUp()
	}
	return t.copyDown()
}

// exit takes the goroutine of a direction out. False: it was called back meanwhile.
func (t *tcpRelay) exit(d direction, over bool) bool {
	t.mu.Lock()
	if !over && !t.leave.Load() {
		t.mu.Unlock()
		return false
	}
	t.running &^= d
	if over {
		t.finished |= d
	}
	last, ended := t.running == 0, t.finished == bothWays
	t.mu.Unlock()
	switch {
	case !last:
	case ended || t.aborted():
		t.finish()
	default:
		t.park()
	}
	return true
}

// finish is called once, when no goroutine carries the connection any more.
func (t *tcpRelay) finish() {
	if t.aborted() {
		t.reset() // abort, on another goroutine, may have come to one side only
	} else {
		t.prog.Close()
		t.up.Close()
	}
	t.r.tcp.remove(t)
	t.r.Files.Release(t.owner)
	if t.diverted {
		t.r.undivert(t.link.Flow)
	}
	t.r.ended(t.link, t.end.Load().cause)
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
			t.reset()
			t.wake()
			return
		}
	}
}

// reset ends both sides by RST. Again, it does nothing.
func (t *tcpRelay) reset() {
	t.prog.Abort()
	t.up.Abort()
}

func (t *tcpRelay) aborted() bool {
	e := t.end.Load()
	return e != nil && e.reset
}

// copyUp carries the program's bytes to the server.
func (t *tcpRelay) copyUp() (over bool) {
	buffers, last := &t.r.buffers, 0
	for {
		var n int
		var err error
		open := true
		if t.bulk.up != nil && last >= smallBuffer {
			n, open, err = t.bulk.up()
		} else {
			n, open, err = t.throughBuffer(t.prog, buffers.sized(last), t.send)
		}
		last = n
		switch {
		case !open:
			return true
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return false
		case err == io.EOF:
			t.clientClosed()
			return true
		default:
			t.abort(clientCause(err))
			return true
		}
	}
}

// send writes to the server and reports whether to go on.
func (t *tcpRelay) send(b []byte) bool {
	t.sending.Store(true)
	t.stay()
	n, err := t.up.Write(b)
	return t.sent(n, err)
}

// sent ends a write to the server, and reports whether to go on.
func (t *tcpRelay) sent(n int, err error) bool {
	reset := isReset(err) && !t.aborted()
	if reset {
		// What the server sent before its reset may still be on the way to the program. The
		// other direction delivers it and then resets.
		t.note(causeServerReset)
		t.serverRST.Store(true)
	}
	t.sending.Store(false) // not before: see serverClosed
	t.link.Sent(n)
	if err != nil && !reset {
		t.abort(serverCause(err))
	}
	return err == nil
}

// copyDown carries the server's bytes to the program.
func (t *tcpRelay) copyDown() (over bool) {
	buffers, last := &t.r.buffers, 0
	for {
		var n int
		var err error
		open := true
		if t.bulk.down != nil && last >= smallBuffer {
			n, open, err = t.bulk.down()
		} else {
			n, open, err = t.throughBuffer(t.up, buffers.sized(last), t.receive)
		}
		last = n
		switch {
		case !open:
			return true
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return false
		case err == io.EOF:
			t.serverClosed()
			return true
		default:
			t.abort(serverCause(err))
			return true
		}
	}
}

// receive writes to the program and reports whether to go on.
func (t *tcpRelay) receive(b []byte) bool {
	t.receiving.Store(true)
	t.stay()
	n, err := t.prog.Write(b)
	return t.received(n, err)
}

// received ends a write to the program, and reports whether to go on.
func (t *tcpRelay) received(n int, err error) bool {
	t.receiving.Store(false)
	t.link.Received(n)
	if err != nil {
		t.abort(clientCause(err))
	}
	return err == nil
}

// throughBuffer waits for bytes of one end and writes them to the other.
func (t *tcpRelay) throughBuffer(from Upstream, get func() []byte, write func([]byte) bool) (n int, open bool, read error) {
	b, n, err := from.Fill(get, t.r.buffers.put)
	if err != nil {
		return 0, true, err
	}
	open = write(b[:n])
	t.r.buffers.put(b)
	return n, open, nil
}

// clientClosed passes the program's FIN on.
func (t *tcpRelay) clientClosed() {
	t.note("client closed")
	_ = t.up.CloseWrite() // a server that has reset meanwhile is the other direction's news
	t.upDone.Store(true)
}

// serverClosed passes the server's FIN on, or the reset that a write has met before: it has taken
// the socket's error, and may not have said so yet.
func (t *tcpRelay) serverClosed() {
	if t.sending.Load() && t.up.Broken() || t.serverRST.Load() {
		t.abort(causeServerReset)
		return
	}
	t.note("server closed")
	_ = t.prog.CloseWrite()
	t.downDone.Store(true)
}

func isReset(err error) bool {
	return isErrno(err, syscall.ECONNRESET, wsaECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func clientCause(err error) string {
	switch {
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

// tcpRelays holds all connections.
type tcpRelays struct {
	mu    sync.Mutex
	ended bool                   // no more are taken
	live  map[*tcpRelay]struct{} // all
	awake map[*tcpRelay]struct{} // those that are not parked
	look  []*tcpRelay            // the sweeper's own

	woken    []*tcpRelay // wait for a step
	stepping int         // goroutines that make steps
}

func (s *tcpRelays) init() { s.live, s.awake = map[*tcpRelay]struct{}{}, map[*tcpRelay]struct{}{} }

// add reports whether the connection may live.
func (s *tcpRelays) add(t *tcpRelay) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live[t], s.awake[t] = struct{}{}, struct{}{}
	return !s.ended
}

func (s *tcpRelays) remove(t *tcpRelay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, t)
	delete(s.awake, t)
	if len(s.live) == 0 {
		s.init() // a Go map never shrinks
	}
}

// setAwake notes whether the connection, if it still lives, has goroutines.
func (s *tcpRelays) setAwake(t *tcpRelay, awake bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, lives := s.live[t]; lives && awake {
		s.awake[t] = struct{}{}
		return
	}
	delete(s.awake, t)
}

// endAll resets all connections, and lets no other begin.
func (s *tcpRelays) endAll(cause string) {
	s.mu.Lock()
	s.ended = true
	all := slices.Collect(maps.Keys(s.live))
	s.mu.Unlock()
	for _, t := range all {
		t.abort(cause)
	}
}

// sweep looks after the connections that none of their goroutines can look after: half-closed
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
