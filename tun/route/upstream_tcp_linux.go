package route

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// TCPConn is an upstream connection: a net.Conn that can also be half-closed, aborted, and
// read without holding a buffer while nothing is there. One goroutine may read and one write;
// Close, Abort and Broken may be called from any. While nobody needs it, it can be parked.
//
// It is not a *net.TCPConn because turning our socket into one costs a second descriptor and
// some fifteen system calls per connection.
type TCPConn struct {
	d      *Dialer
	remote netip.AddrPort
	fill   fillState
	offer  *offerState // since it is needed

	mu     sync.Mutex
	f      *os.File // nil while parked
	raw    syscall.RawConn
	fd     int      // notParked, or the descriptor
	w      *watcher // while parked
	closed bool
}

// fillState is the state of one Fill. It lives here because a closure per read would allocate.
type fillState struct {
	get  func() []byte
	put  func([]byte)
	b    []byte
	n    int
	err  error
	read func(fd uintptr) bool
}

func newTCPConn(d *Dialer, f *os.File, raw syscall.RawConn, remote netip.AddrPort) *TCPConn {
	c := &TCPConn{d: d, f: f, raw: raw, fd: notParked, remote: remote}
	c.fill.read = c.tryFill
	return c
}

// Read reads at least one byte, or returns io.EOF after the server's FIN.
func (c *TCPConn) Read(b []byte) (int, error) { return c.f.Read(b) }

// Write writes all of b.
func (c *TCPConn) Write(b []byte) (int, error) { return c.f.Write(b) }

// Fill waits until bytes are there, and only then takes a buffer from get and reads into it.
// The caller gives b back. With an error b is nil; io.EOF is the server's FIN.
func (c *TCPConn) Fill(get func() []byte, put func([]byte)) (b []byte, n int, err error) {
	s := &c.fill
	s.get, s.put, s.b, s.n, s.err = get, put, nil, 0, nil
	if err = c.raw.Read(s.read); err != nil {
		err = closedError(err)
	} else {
		err = s.err
	}
	b, n = s.b, s.n
	s.b = nil
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		if b != nil {
			put(b)
		}
		return nil, 0, err
	}
	return b, n, nil
}

func (c *TCPConn) tryFill(fd uintptr) bool {
	s := &c.fill
	s.b = s.get()
	n, err := quickly(unix.SYS_READ, int(fd), s.b)
	switch err {
	case nil:
		s.n = n
		return true
	case syscall.EAGAIN:
		s.put(s.b)
		s.b = nil
		return false
	default:
		s.err = os.NewSyscallError("read", err)
		return true
	}
}

// CloseWrite sends our FIN; reading goes on.
func (c *TCPConn) CloseWrite() error {
	var err error
	if e := c.control(func(fd uintptr) { err = unix.Shutdown(int(fd), unix.SHUT_WR) }); e != nil {
		return closedError(e)
	}
	return os.NewSyscallError("shutdown", err)
}

// Close closes both directions in good order, or resets where unread bytes are left.
func (c *TCPConn) Close() error { return c.close() }

// Abort resets the connection: the server sees RST, and no TIME_WAIT stays behind.
func (c *TCPConn) Abort() {
	_ = c.control(func(fd uintptr) {
		_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	})
	_ = c.close()
}

// Broken reports whether the connection is over, as after a RST or a time-out, without
// reading from it.
func (c *TCPConn) Broken() bool {
	const stateClose = 7 // TCP_CLOSE of tcp_states.h
	broken := true
	_ = c.control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		broken = err == nil && info.State == stateClose
	})
	return broken
}

// LocalAddr is the address that the server sees, nil when the socket is closed.
func (c *TCPConn) LocalAddr() net.Addr {
	var local netip.AddrPort
	_ = c.control(func(fd uintptr) {
		if sa, err := unix.Getsockname(int(fd)); err == nil {
			local = addrPort(sa)
		}
	})
	if !local.IsValid() {
		return nil
	}
	return net.TCPAddrFromAddrPort(local)
}

// RemoteAddr is the server's address.
func (c *TCPConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// SyscallConn gives access to the descriptor, for socket options.
func (c *TCPConn) SyscallConn() (syscall.RawConn, error) { return c.raw, nil }

// SetDeadline ends reads and writes at t.
func (c *TCPConn) SetDeadline(t time.Time) error { return c.f.SetDeadline(t) }

// SetReadDeadline ends reads at t.
func (c *TCPConn) SetReadDeadline(t time.Time) error { return c.f.SetReadDeadline(t) }

// SetWriteDeadline ends writes at t.
func (c *TCPConn) SetWriteDeadline(t time.Time) error { return c.f.SetWriteDeadline(t) }
