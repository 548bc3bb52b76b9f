package stack

import (
	"io"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// takeMost is the most that Take moves at once: a multiple of what one super-packet carries. A little
// more than one would give a large and a tiny segment each time.
const takeMost = 252 << 10

// Drain moves the bytes that have come from the program into w, without a copy and without waiting.
// w.Write gets netstack's own memory, under netstack's lock: it must neither block, nor keep the
// slice, nor use the connection. It may take a part and return an error, which ends the call; what
// it took is gone from the connection. 0 and no error: nothing is there, or w takes nothing.
func (c *TCPConn) Drain(w io.Writer) (int, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	if err := c.alive(&c.rd); err != nil {
		return 0, c.opError("read", err)
	}
	res, terr := c.ep.Read(w, tcpip.ReadOptions{})
	switch terr.(type) {
	case nil, *tcpip.ErrWouldBlock, *tcpip.ErrBadBuffer: // the last: w took nothing
		return res.Count, nil
	case *tcpip.ErrClosedForReceive:
		return 0, c.endOfStream()
	default:
		return 0, c.opError("read", translate(terr))
	}
}

// lent is a reader with a known number of bytes.
type lent struct {
	io.Reader
	n    int
	read int64
}

// Read implements io.Reader.
func (l *lent) Read(b []byte) (int, error) {
	n, err := l.Reader.Read(b)
	l.read += int64(n)
	return n, err
}

// Len implements tcpip.Payloader.
func (l *lent) Len() int { return l.n }

// Take moves up to n bytes from r to the program, without waiting for room: r is read straight into
// what becomes the packet. r must give, without blocking, the n bytes that it is said to have;
// where it does not, the bytes of this call are lost and the error says so. 0 and no error: there
// is no room, see WaitWritable.
func (c *TCPConn) Take(r io.Reader, n int) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := c.alive(&c.wd); err != nil {
		return 0, c.opError("write", err)
	}
	c.lent = lent{Reader: r, n: min(n, takeMost)}
	wrote, terr := c.ep.Write(&c.lent, tcpip.WriteOptions{})
	read := c.lent.read
	c.lent = lent{}
	switch terr.(type) {
	case nil, *tcpip.ErrWouldBlock:
		if wrote != read {
			return int(wrote), c.opError("write", io.ErrUnexpectedEOF)
		}
		return int(wrote), nil
	case *tcpip.ErrBadBuffer:
		return 0, c.opError("write", io.ErrUnexpectedEOF)
	default:
		return 0, c.opError("write", translate(terr))
	}
}

// WaitWritable waits, after a Take that found no room, until there is room again: half of the send
// buffer, so that what is taken next is large. It ends early with an error of the connection, which
// Take returns, with the write deadline, and with Close.
func (c *TCPConn) WaitWritable() error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.ep.Readiness(waiter.EventHUp|waiter.EventErr) != 0 {
		return nil
	}
	select {
	case <-c.writable.c: // kept where it came before we wait
	case <-c.wd.expired():
	case <-c.closed:
	}
	if err := c.alive(&c.wd); err != nil {
		return c.opError("wait", err)
	}
	return nil
}
