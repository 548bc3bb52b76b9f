package stack

import (
	"io"

	"gvisor.dev/gvisor/pkg/tcpip"
)

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
