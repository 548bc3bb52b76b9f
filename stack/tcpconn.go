package stack

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"gatun/network/packet"
)

// TCPConn is the program's end of an accepted connection: a net.Conn with half-close and reset.
// LocalAddr is the address that the program asked for, RemoteAddr is the program. It holds no
// buffer while it is idle.
type TCPConn struct {
	flow packet.Flow
	ep   tcpip.Endpoint
	wq   waiter.Queue

	closeOnce sync.Once
	closed    chan struct{}
	readable  notifier
	writable  notifier
	rd, wd    deadline
	leave     atomic.Bool // WaitReadable is not to wait

	rmu    sync.Mutex // one reader at a time
	into   tcpip.SliceWriter
	wmu    sync.Mutex // one writer at a time
	source bytes.Reader
}

// notifier wakes the one goroutine that waits for an event, or, where none does, calls instead.
type notifier struct {
	entry   waiter.Entry
	c       chan struct{}
	instead atomic.Pointer[func()]
}

func (n *notifier) init(mask waiter.EventMask) {
	n.c = make(chan struct{}, 1)
	n.entry.Init(n, mask)
}

// NotifyEvent implements waiter.EventListener. It never blocks: it is called under netstack's
// locks.
func (n *notifier) NotifyEvent(waiter.EventMask) {
	if call := n.instead.Load(); call != nil {
		(*call)()
		return
	}
	select {
	case n.c <- struct{}{}:
	default:
	}
}

func newTCPConn(f *TCPFlow) *TCPConn {
	c := &TCPConn{flow: f.flow, closed: make(chan struct{})}
	c.readable.init(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	c.writable.init(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	c.rd.init()
	c.wd.init()
	return c
}

func (c *TCPConn) start(ep tcpip.Endpoint) {
	c.ep = ep
	c.wq.EventRegister(&c.readable.entry)
	c.wq.EventRegister(&c.writable.entry)
}

// Read implements net.Conn. A reset by the program is syscall.ECONNRESET, its FIN is io.EOF.
func (c *TCPConn) Read(b []byte) (int, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	for {
		if err := c.alive(&c.rd); err != nil {
			return 0, c.opError("read", err)
		}
		if len(b) == 0 {
			return 0, nil
		}
		c.into = b
		res, terr := c.ep.Read(&c.into, tcpip.ReadOptions{})
		c.into = nil
		switch terr.(type) {
		case nil:
			return res.Count, nil
		case *tcpip.ErrClosedForReceive:
			return 0, c.endOfStream()
		case *tcpip.ErrWouldBlock:
		default:
			return 0, c.opError("read", translate(terr))
		}
		select {
		case <-c.readable.c:
		case <-c.rd.expired():
		case <-c.closed:
		}
	}
}

func (c *TCPConn) endOfStream() error {
	if c.isClosed() {
		return c.opError("read", net.ErrClosed)
	}
	return io.EOF
}

// WaitReadable returns nil when Read would not block: bytes, EOF or an error are there. It
// holds no buffer. It ends early with ctx, the read deadline, Interrupt, or Close.
func (c *TCPConn) WaitReadable(ctx context.Context) error {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	for {
		if err := c.alive(&c.rd); err != nil {
			return c.opError("wait", err)
		}
		if c.ep.Readiness(waiter.ReadableEvents|waiter.EventHUp|waiter.EventErr) != 0 {
			return nil
		}
		if c.leave.Load() {
			return os.ErrDeadlineExceeded
		}
		select {
		case <-c.readable.c:
		case <-c.rd.expired():
		case <-c.closed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Fill waits until bytes are there, and only then takes a buffer from get and reads into it. The
// caller gives b back. With an error b is nil; io.EOF is the program's FIN, os.ErrDeadlineExceeded what
// Interrupt brings about.
func (c *TCPConn) Fill(get func() []byte, put func([]byte)) (b []byte, n int, err error) {
	if err := c.WaitReadable(context.Background()); err != nil {
		return nil, 0, err
	}
	b = get()
	if n, err = c.Read(b); err != nil {
		put(b)
		return nil, 0, err
	}
	return b, n, nil
}

// Interrupt makes Fill and WaitReadable return os.ErrDeadlineExceeded instead of waiting, until Resume.
func (c *TCPConn) Interrupt() {
	c.leave.Store(true)
	c.readable.NotifyEvent(0)
}

// Resume undoes Interrupt and Park. It never fails.
func (c *TCPConn) Resume() error {
	c.readable.instead.Store(nil)
	c.leave.Store(false)
	return nil
}

// Park makes an idle connection cost no goroutine: until Resume, ready is called whenever Read
// might not block any more, and at once where that is so already. ready is called under
// netstack's locks: it must not block and must not use the connection. Nobody may be waiting in
// Read, Fill or WaitReadable meanwhile. Close and Abort do not call it. It is always possible.
func (c *TCPConn) Park(ready func()) bool {
	c.readable.instead.Store(&ready)
	if c.ep.Readiness(waiter.ReadableEvents|waiter.EventHUp|waiter.EventErr) != 0 {
		ready()
	}
	return true
}

// Write implements net.Conn. It returns when netstack has taken all of b. After a reset by the
// program it is syscall.ECONNRESET, after CloseWrite syscall.EPIPE.
func (c *TCPConn) Write(b []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	n := 0
	for {
		if err := c.alive(&c.wd); err != nil {
			return n, c.opError("write", err)
		}
		if n == len(b) {
			return n, nil
		}
		c.source.Reset(b[n:])
		wrote, terr := c.ep.Write(&c.source, tcpip.WriteOptions{})
		c.source.Reset(nil)
		n += int(wrote)
		switch terr.(type) {
		case nil:
			continue
		case *tcpip.ErrWouldBlock:
		default:
			return n, c.opError("write", translate(terr))
		}
		select {
		case <-c.writable.c:
		case <-c.wd.expired():
		case <-c.closed:
		}
	}
}

// alive reports why a call must not go on.
func (c *TCPConn) alive(d *deadline) error {
	switch {
	case c.isClosed():
		return net.ErrClosed
	case d.passed():
		return os.ErrDeadlineExceeded
	default:
		return nil
	}
}

func (c *TCPConn) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// CloseWrite sends FIN: the program reads EOF and may still write.
func (c *TCPConn) CloseWrite() error { return c.shutdown(tcpip.ShutdownWrite) }

// CloseRead makes Read return EOF. The program is not told.
func (c *TCPConn) CloseRead() error { return c.shutdown(tcpip.ShutdownRead) }

func (c *TCPConn) shutdown(how tcpip.ShutdownFlags) error {
	if c.isClosed() {
		return c.opError("close", net.ErrClosed)
	}
	if err := c.ep.Shutdown(how); err != nil {
		return c.opError("close", translate(err))
	}
	return nil
}

// Peek reports without waiting whether bytes can be read; io.EOF is the program's FIN, another
// error the end of the connection. It takes no byte.
func (c *TCPConn) Peek() (bytes bool, err error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	if c.isClosed() {
		return false, c.opError("peek", net.ErrClosed)
	}
	var one [1]byte
	c.into = one[:]
	_, terr := c.ep.Read(&c.into, tcpip.ReadOptions{Peek: true})
	c.into = nil
	switch terr.(type) {
	case nil:
		return true, nil
	case *tcpip.ErrWouldBlock:
		return false, nil
	case *tcpip.ErrClosedForReceive:
		return false, c.endOfStream()
	default:
		return false, c.opError("peek", translate(terr))
	}
}

// Close implements net.Conn. Bytes that were written are still delivered; bytes that were not
// read make it a reset, as in Linux.
func (c *TCPConn) Close() error {
	err := c.opError("close", net.ErrClosed)
	c.closeOnce.Do(func() {
		close(c.closed)
		c.ep.Close()
		c.release()
		err = nil
	})
	return err
}

// Abort resets the connection: the program sees ECONNRESET. What was not delivered is lost.
func (c *TCPConn) Abort() {
	c.closeOnce.Do(func() {
		close(c.closed)
		c.ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true})
		c.ep.Close()
		c.release()
	})
}

// Broken reports whether the connection is over, as after a reset by the program, without
// reading from it.
func (c *TCPConn) Broken() bool {
	switch tcp.EndpointState(c.ep.State()) {
	case tcp.StateError, tcp.StateClose: // a reset after the program's FIN leads to the second
		return true
	default:
		return false
	}
}

func (c *TCPConn) release() {
	c.wq.EventUnregister(&c.readable.entry)
	c.wq.EventUnregister(&c.writable.entry)
	c.rd.set(time.Time{})
	c.wd.set(time.Time{})
}

// LocalAddr implements net.Conn: the address that the program asked for.
func (c *TCPConn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.flow.Remote) }

// RemoteAddr implements net.Conn: the program.
func (c *TCPConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.flow.Local) }

// SetDeadline implements net.Conn.
func (c *TCPConn) SetDeadline(t time.Time) error {
	return firstError(c.setDeadline(&c.rd, t), c.setDeadline(&c.wd, t))
}

// SetReadDeadline implements net.Conn; it also ends WaitReadable.
func (c *TCPConn) SetReadDeadline(t time.Time) error { return c.setDeadline(&c.rd, t) }

// SetWriteDeadline implements net.Conn.
func (c *TCPConn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.wd, t) }

func (c *TCPConn) setDeadline(d *deadline, t time.Time) error {
	if c.isClosed() {
		return c.opError("set", net.ErrClosed)
	}
	d.set(t)
	return nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *TCPConn) opError(op string, err error) error {
	if op == "write" && err == error(syscall.ENOTCONN) {
		err = syscall.EPIPE
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// deadline is a channel that closes at a time that can be moved.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	c     chan struct{}
}

func (d *deadline) init() { d.c = make(chan struct{}) }

func (d *deadline) expired() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.c
}

func (d *deadline) passed() bool {
	select {
	case <-d.expired():
		return true
	default:
		return false
	}
}

// set moves the deadline to t; the zero time means never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.c // the timer fired: wait until it has closed the channel
	}
	d.timer = nil
	select {
	case <-d.c:
		d.c = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	c := d.c
	if wait := time.Until(t); wait > 0 {
		d.timer = time.AfterFunc(wait, func() { close(c) })
		return
	}
	close(c)
}
