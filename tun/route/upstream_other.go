//go:build !linux

package route

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"

	"gatun/network/packet"
)

// TCPConn is an upstream connection: a net.Conn that can also be half-closed and aborted. On
// this system it keeps a small buffer while it waits.
type TCPConn struct {
	*net.TCPConn
	broken atomic.Bool
}

// Fill takes a buffer from get, waits until bytes are there and reads into it. The caller
// gives b back. With an error b is nil; io.EOF is the server's FIN.
func (c *TCPConn) Fill(get func() []byte, put func([]byte)) (b []byte, n int, err error) {
	b = get()
	if n, err = c.Read(b); n > 0 {
		return b, n, nil
	}
	put(b)
	if err != nil && !errors.Is(err, io.EOF) {
		c.broken.Store(true)
	}
	return nil, 0, err
}

// Abort resets the connection.
func (c *TCPConn) Abort() {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// Broken reports whether a read has failed; this system does not tell more without reading.
func (c *TCPConn) Broken() bool { return c.broken.Load() }

// watcher is not needed on this system: no connection is ever parked.
type watcher struct{}

// udpPollers are not needed on this system: each UDP socket is served by a goroutine.
type udpPollers struct{}

// Watch waits for the end of ctx.
func (d *Dialer) Watch(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// Interrupt does nothing: no connection is ever parked.
func (c *TCPConn) Interrupt() {}

// Park reports that the connection cannot be parked.
func (c *TCPConn) Park(func()) bool { return false }

// Peek is of no use here: no connection is ever parked.
func (c *TCPConn) Peek() (bytes bool, err error) { return false, nil }

// Resume does nothing.
func (c *TCPConn) Resume() error { return nil }

// UDPSocket is an unconnected upstream socket. This system's portable interface has neither
// TTL nor TOS nor ICMP errors of unconnected sockets.
type UDPSocket struct {
	d *Dialer
	c *net.UDPConn
}

func (d *Dialer) listenUDP(local netip.Addr) (*UDPSocket, error) {
	network := "udp4"
	if local.Is6() {
		network = "udp6"
	}
	var at net.UDPAddr
	if source := d.source(local, local); source.IsValid() {
		at.IP = source.AsSlice()
	}
	c, err := net.ListenUDP(network, &at)
	if err != nil && at.IP != nil {
		c, err = net.ListenUDP(network, nil)
	}
	if err != nil {
		return nil, err
	}
	return &UDPSocket{d: d, c: c}, nil
}

// Send sends datagrams until one fails, and returns how many it has sent; ttl, tos and df are not
// passed on.
func (s *UDPSocket) Send(b [][]byte, to netip.AddrPort, _, _ uint8, _ bool) (sent int, err error) {
	if err := s.d.check(to.Addr()); err != nil {
		return 0, err
	}
	for i := range b {
		if _, err := s.c.WriteToUDPAddrPort(b[i], to); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

// Attach reports that the socket is to be served.
func (s *UDPSocket) Attach(func(b []byte, from netip.AddrPort, tos uint8), func(peer netip.AddrPort, e *packet.ICMPError)) bool {
	return false
}

// Serve calls datagram for each datagram that arrives until the socket is closed; then it
// returns os.ErrClosed. report is never called here.
func (s *UDPSocket) Serve(datagram func(b []byte, from netip.AddrPort, tos uint8), _ func(peer netip.AddrPort, e *packet.ICMPError)) error {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := s.c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return net.ErrClosed
		}
		if err == nil {
			datagram(buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), 0)
		}
	}
}

// LocalPort is the port that peers see.
func (s *UDPSocket) LocalPort() uint16 {
	if a, ok := s.c.LocalAddr().(*net.UDPAddr); ok {
		return a.AddrPort().Port()
	}
	return 0
}

// Close ends Serve.
func (s *UDPSocket) Close() error { return s.c.Close() }

// EchoSocket is not available on this system.
type EchoSocket struct{}

func (d *Dialer) listenEcho(_, _ netip.Addr) (*EchoSocket, error) { return nil, errors.ErrUnsupported }

// Send fails.
func (s *EchoSocket) Send(uint16, []byte, uint8, uint8) error { return ErrEchoForbidden }

// Serve fails.
func (s *EchoSocket) Serve(func(uint16, []byte, uint8), func(uint16, *packet.ICMPError)) error {
	return ErrEchoForbidden
}

// Close does nothing.
func (s *EchoSocket) Close() error { return nil }
