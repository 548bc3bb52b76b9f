package interception

import (
	"errors"
	"io"
)

// Bulk from a program is carried without a buffer of ours: it is written to the server from
// netstack's memory. A connection is in bulk while a read fills a small buffer. Chatter is cheaper
// through one: its pieces travel together. Bulk from a server goes through a big buffer: netstack
// makes large packets of it while the next are read (docs/decisions/0019).

// bulkProgram is a program's end that can do without our buffers. *stack.TCPConn is one.
type bulkProgram interface {
	Drain(w io.Writer) (int, error) // w must neither block nor keep what it gets
}

// bulkUpstream is a server's end that can. *route.TCPConn is one where the system allows it.
type bulkUpstream interface {
	Offer(b []byte) (int, error) // what finds room now
	WaitWritable() error
}

// bulkEnds are both ends of a connection that can, or nothing.
type bulkEnds struct {
	prog bulkProgram
	up   bulkUpstream
}

func bulkOf(p program, u Upstream) (b bulkEnds) {
	prog, up := p.(bulkProgram)
	server, down := u.(bulkUpstream)
	if up && down {
		b = bulkEnds{prog, server}
	}
	return b
}

func (b bulkEnds) possible() bool { return b.prog != nil }

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
func (t *tcpRelay) drainUp() (n int, open bool, read error) {
	t.sending.Store(true)
	t.stay()
	g := gather{up: t.bulk.up, get: t.r.buffers.getBig}
	n, read = t.bulk.prog.Drain(&g)
	switch {
	case g.err != nil:
	case len(g.kept) > 0:
		_, g.err = t.up.Write(g.kept)
	case g.full:
		g.err = t.bulk.up.WaitWritable()
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
