package route

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// udpConn is a connected UDP socket. It is not a *net.UDPConn because that costs twice the system
// calls, and every question to a nameserver has a socket of its own. Any goroutine may use it.
type udpConn struct {
	*os.File
	remote netip.AddrPort
}

// dialUDP connects a socket with a port that the kernel draws.
func (d *Dialer) dialUDP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	fd, err := unix.Socket(familyOf(to.Addr()).domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = d.mark(fd)
	if err == nil {
		err = os.NewSyscallError("connect", unix.Connect(fd, sockaddr(to)))
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &udpConn{File: os.NewFile(uintptr(fd), "udp"), remote: to}, nil
}

// Read returns one datagram; an empty one is not the end.
func (c *udpConn) Read(b []byte) (int, error) {
	n, err := c.File.Read(b)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, netError(err)
}

// Write sends one datagram.
func (c *udpConn) Write(b []byte) (int, error) {
	n, err := c.File.Write(b)
	return n, netError(err)
}

// Close ends calls that block.
func (c *udpConn) Close() error { return netError(c.File.Close()) }

// netError says "closed" as connections do, not as files do.
func netError(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	return err
}

// RemoteAddr returns the address that was dialled.
func (c *udpConn) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(c.remote) }

// LocalAddr returns our address and port.
func (c *udpConn) LocalAddr() net.Addr {
	var local netip.AddrPort
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if sa, err := unix.Getsockname(int(fd)); err == nil {
				local = addrPort(sa)
			}
		})
	}
	return net.UDPAddrFromAddrPort(local)
}
