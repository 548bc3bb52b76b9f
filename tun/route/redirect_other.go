//go:build !linux

package route

import (
	"net"
	"net/netip"

	"gatun/network/packet"
)

// Other systems have no redirect yet.

type origins struct{}

func openOrigins() (*origins, error)                   { return nil, ErrUnsupported }
func (*origins) find(packet.Flow) (packet.Flow, error) { return packet.Flow{}, ErrUnsupported }
func (*origins) close()                                {}
func noSuchFamily(error) bool                          { return false }
func forgetRedirected(uint16) error                    { return nil }
func listenLoopback(string, netip.AddrPort) (*net.UDPConn, *net.TCPListener, error) {
	return nil, nil, ErrUnsupported
}
