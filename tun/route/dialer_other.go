//go:build !linux

package route

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
)

// control sets nothing: the other systems have no packet mark.
func (d *Dialer) control(_, _ string, _ syscall.RawConn) error { return nil }

// dialTCP knows neither the TTL nor the hop that refused.
func (d *Dialer) dialTCP(ctx context.Context, source netip.Addr, remote netip.AddrPort, _ uint8) (*TCPConn, error) {
	nd := net.Dialer{}
	var local netip.AddrPort
	if source.IsValid() {
		local = netip.AddrPortFrom(source, 0)
	}
	c, err := nd.DialTCP(ctx, "tcp", local, remote)
	var call *os.SyscallError
	if errors.As(err, &call) && call.Syscall == "bind" { // not an address of this host
		c, err = nd.DialTCP(ctx, "tcp", netip.AddrPort{}, remote)
	}
	if err != nil {
		return nil, err
	}
	return &TCPConn{TCPConn: c}, nil
}

// dialUDP connects a socket.
func (d *Dialer) dialUDP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	nd := net.Dialer{}
	c, err := nd.DialUDP(ctx, "udp", netip.AddrPort{}, to)
	if err != nil {
		return nil, err // not a nil pointer in an interface
	}
	return c, nil
}
