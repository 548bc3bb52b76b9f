package route

import (
	"errors"
	"fmt"
	"net/netip"

	"gatun/network/packet"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// openFlows returns every established TCP flow and, if asked, every connected UDP socket that
// leaves the machine. A socket in TIME_WAIT has ended.
func openFlows(protos ...packet.Proto) (map[packet.Flow]struct{}, error) {
	flows := map[packet.Flow]struct{}{}
	for _, proto := range protos {
		list := netlink.SocketDiagTCP
		if proto == packet.UDP {
			list = netlink.SocketDiagUDP
		}
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			sockets, err := dump(func() ([]*netlink.Socket, error) { return list(family) })
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) && family == unix.AF_INET6 {
				continue // the kernel has no diagnosis for this protocol or family
			}
			if err != nil {
				return nil, fmt.Errorf("list %s sockets: %w", proto, err)
			}
			for _, s := range sockets {
				if f, ok := openFlow(proto, s); ok {
					flows[f] = struct{}{}
				}
			}
		}
	}
	return flows, nil
}

// openFlow returns the flow of a socket that is connected to another machine.
func openFlow(proto packet.Proto, s *netlink.Socket) (packet.Flow, bool) {
	switch s.State {
	case netlink.TCP_ESTABLISHED:
	case netlink.TCP_SYN_RECV, netlink.TCP_FIN_WAIT1, netlink.TCP_FIN_WAIT2, netlink.TCP_CLOSE_WAIT, netlink.TCP_LAST_ACK, netlink.TCP_CLOSING:
		if proto != packet.TCP {
			return packet.Flow{}, false
		}
	default:
		return packet.Flow{}, false
	}
	f := packet.Flow{Proto: proto,
		Local:  netip.AddrPortFrom(addrOf(s.ID.Source), s.ID.SourcePort),
		Remote: netip.AddrPortFrom(addrOf(s.ID.Destination), s.ID.DestinationPort)}
	local, remote := f.Local.Addr(), f.Remote.Addr()
	ok := local.IsValid() && remote.IsValid() && local.Is4() == remote.Is4() && f.Remote.Port() != 0 &&
		!local.IsUnspecified() && !remote.IsUnspecified() && !local.IsLoopback() && local != remote &&
		!remote.IsMulticast() && !(remote.Is6() && remote.IsLinkLocalUnicast())
	return f, ok
}
