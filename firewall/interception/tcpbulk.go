package interception

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
)

// Bulk is carried without a buffer of ours. A connection is in bulk while a read fills a small buffer.
// Chatter is cheaper through one: its pieces travel together. Where the kernel ends both sides, bytes move
// through a pipe (docs/decisions/0020). Where netstack is the program's side, they are written to the server
// from netstack's memory; bulk from the server goes through a big buffer: netstack makes large packets of it
// while the next are read (docs/decisions/0019).

// bulkProgram is a program's end that can do without our buffers. *stack.TCPConn is one.
type bulkProgram interface {
	WaitReadable(context.Context) error
	Drain(w io.Writer) (int, error) // w must neither block nor keep what it gets
}

// bulkUpstream is a server's end that can. *route.TCPConn is one where the system allows it.
type bulkUpstream interface {
	Offer(b []byte) (int, error) // what finds room now
	WaitWritable() error
}

// bulkWays are how much is carried, or nil: through a buffer. Each waits for bytes and returns how many it
// has moved at least, whether the end that it writes to takes more, and the error of the other one.
type bulkWays struct {
	up, down func() (n int, open bool, read error)
}

// carryBulk finds the way for the two ends of t.
func (t *tcpRelay) carryBulk() {
	from, ours := t.prog.(syscall.Conn)
	to, theirs := t.up.(syscall.Conn)
	if ours && theirs && t.r.Pipe != nil {
		t.bulk.up = func() (int, bool, error) {
			return t.throughPipe(from, to, func() { t.sending.Store(true) }, t.sent, t.prog, t.send)
		}
		t.bulk.down = func() (int, bool, error) {
			return t.throughPipe(to, from, func() { t.receiving.Store(true) }, t.received, t.up, t.receive)
		}
		return
	}
	prog, up := t.prog.(bulkProgram)
	server, down := t.up.(bulkUpstream)
	if up && down {
		t.bulk.up = func() (int, bool, error) { return t.drainUp(prog, server) }
	}
}

// errFull ends a Drain: nothing more finds room.
var errFull = errors.New("no room")

// gather writes large pieces to the server at once and keeps small ones, so that they travel
// together.
type gather struct {
	up   bulkUpstream
	kept []byte // in a big buffer, or nil
	get  func() []byte
	full bool // the server takes nothing more now
	err  error
}

// Write implements io.Writer for bulkProgram.Drain.
func (g *gather) Write(b []byte) (int, error) {
	switch {
	case len(b) < smallBuffer:
		if g.kept == nil {
			g.kept = g.get()[:0]
		}
		if len(g.kept)+len(b) > cap(g.kept) {
			return 0, errFull
		}
		g.kept = append(g.kept, b...)
		return len(b), nil
	case len(g.kept) > 0: // they go first
		return 0, errFull
	}
	n, err := g.up.Offer(b)
	g.err, g.full = err, n < len(b)
	if g.full {
		return n, errFull
	}
	return n, nil
}

// drainUp carries what the program has sent so far, and reports how much that was, at least, and
// whether the server takes more.
func (t *tcpRelay) drainUp(prog bulkProgram, server bulkUpstream) (n int, open bool, read error) {
	if err := prog.WaitReadable(context.Background()); err != nil {
		return 0, true, err
	}
	t.sending.Store(true)
	t.stay()
	g := gather{up: server, get: t.r.buffers.getBig}
	n, read = prog.Drain(&g)
	switch {
	case g.err != nil:
	case len(g.kept) > 0:
		_, g.err = t.up.Write(g.kept)
	case g.full:
		g.err = server.WaitWritable()
	}
	if g.kept != nil {
		t.r.buffers.put(g.kept[:cap(g.kept)])
	}
	open = t.sent(n, g.err)
	if g.full {
		n = max(n, smallBuffer)
	}
	return n, open, read
}

// Pipe moves bytes between two sockets of the system's kernel without copying them. One goroutine
// uses it at a time. *route.Pipe is one.
type Pipe interface {
	Fill(from syscall.Conn) (int, error) // waits until bytes are there; io.EOF, and what Fill of Upstream returns
	Drain(to syscall.Conn) (int, error)  // writes all of them; after an error only Close
	Close()
}

// pipesInUse bounds how many connections have a pipe, which is two files, and room for their bytes.
const pipesInUse = 64

// pipes lends pipes.
type pipes struct {
	mu   sync.Mutex
	idle []Pipe
	lent int
}

// get returns nil where there is none to be had: then bytes go through a buffer.
func (p *pipes) get(open func() (Pipe, error)) Pipe {
	got, room := p.reserve()
	if got != nil || !room {
		return got
	}
	got, err := open()
	if err != nil {
		p.mu.Lock()
		p.lent--
		p.mu.Unlock()
		return nil
	}
	return got
}

// reserve takes a place, and an idle pipe where there is one.
func (p *pipes) reserve() (idle Pipe, room bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lent >= pipesInUse {
		return nil, false
	}
	p.lent++
	if n := len(p.idle); n > 0 {
		idle = p.idle[n-1]
		p.idle = p.idle[:n-1]
	}
	return idle, true
}

// put takes a pipe back; one that is not empty ends.
func (p *pipes) put(got Pipe, empty bool) {
	p.mu.Lock()
	p.lent--
	if empty {
		p.idle = append(p.idle, got)
	}
	p.mu.Unlock()
	if !empty {
		got.Close()
	}
}

// rest closes the pipes that nobody uses.
func (p *pipes) rest() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, got := range idle {
		got.Close()
	}
}

// throughPipe waits for bytes of one socket and moves them to the other. Where there is no pipe they go
// through a buffer.
func (t *tcpRelay) throughPipe(from, to syscall.Conn, begin func(), done func(int, error) bool, end Upstream, write func([]byte) bool) (n int, open bool, read error) {
	p := t.r.pipes.get(t.r.Pipe)
	if p == nil {
		return t.throughBuffer(end, t.r.buffers.getBig, write)
	}
	n, read = p.Fill(from)
	if read != nil {
		t.r.pipes.put(p, true)
		return 0, true, read
	}
	begin()
	t.stay()
	wrote, err := p.Drain(to)
	t.r.pipes.put(p, err == nil)
	return n, done(wrote, err), nil
}
