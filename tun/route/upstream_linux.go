package route

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

// family holds what differs between IPv4 and IPv6 in the socket API.
type family struct {
	domain           int
	level            int
	ttl, recvTTL     int // socket options
	tos, recvTOS     int
	recvErr          int
	mtuDiscover, mtu int
	cmsgTTL          int32 // control message that sets the TTL of one datagram, and carries it inbound
	discoverOn       int   // DF, no fragments made here, whatever we heard of the path before: the program keeps that book
	discoverOff      int
	icmpProto        int
	reply            byte // ICMP type of an echo reply
}

func familyOf(a netip.Addr) family {
	if a.Is4() || a.Is4In6() {
		return family{
			domain: unix.AF_INET, level: unix.SOL_IP,
			ttl: unix.IP_TTL, recvTTL: unix.IP_RECVTTL, tos: unix.IP_TOS, recvTOS: unix.IP_RECVTOS,
			recvErr: unix.IP_RECVERR, mtuDiscover: unix.IP_MTU_DISCOVER, mtu: unix.IP_MTU,
			cmsgTTL: unix.IP_TTL, discoverOn: unix.IP_PMTUDISC_PROBE, discoverOff: unix.IP_PMTUDISC_DONT,
			icmpProto: unix.IPPROTO_ICMP, reply: packet.ICMP4EchoReply,
		}
	}
	return family{
		domain: unix.AF_INET6, level: unix.SOL_IPV6,
		ttl: unix.IPV6_UNICAST_HOPS, recvTTL: unix.IPV6_RECVHOPLIMIT, tos: unix.IPV6_TCLASS, recvTOS: unix.IPV6_RECVTCLASS,
		recvErr: unix.IPV6_RECVERR, mtuDiscover: unix.IPV6_MTU_DISCOVER, mtu: unix.IPV6_MTU,
		cmsgTTL: unix.IPV6_HOPLIMIT, discoverOn: unix.IPV6_PMTUDISC_PROBE, discoverOff: unix.IPV6_PMTUDISC_WANT,
		icmpProto: unix.IPPROTO_ICMPV6, reply: packet.ICMP6EchoReply,
	}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if addr := a.Addr().Unmap(); addr.Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: addr.As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	default:
		return netip.AddrPort{}
	}
}

// queued is one message of a socket's error queue.
type queued struct {
	peer netip.AddrPort    // where the packet went that the error is about
	icmp *packet.ICMPError // nil for an error of our own kernel
	n    int               // bytes of that packet's payload, put into the caller's buffer
}

// readErrQueue takes one message from the error queue, without waiting. EAGAIN: it is empty.
func readErrQueue(fd int, data []byte) (queued, error) {
	var oob [512]byte
	n, oobn, _, from, err := unix.Recvmsg(fd, data, oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		return queued{}, err
	}
	q := queued{n: n}
	if from != nil {
		q.peer = addrPort(from)
	}
	q.icmp = queuedError(oob[:oobn])
	return q, nil
}

// queuedError finds the ICMP error among the control messages of an error queue's message, nil
// where it is an error of our own kernel.
func queuedError(oob []byte) (e *packet.ICMPError) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_RECVERR ||
			m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_RECVERR {
			e = parseExtendedErr(m.Data)
		}
	}
	return e
}

// parseExtendedErr reads struct sock_extended_err and the address of the offender behind it.
func parseExtendedErr(b []byte) *packet.ICMPError {
	const size = 16
	if len(b) < size {
		return nil
	}
	origin, typ, code := b[4], b[5], b[6]
	if origin != unix.SO_EE_ORIGIN_ICMP && origin != unix.SO_EE_ORIGIN_ICMP6 {
		return nil
	}
	from := offender(b[size:])
	if !from.IsValid() {
		return nil
	}
	return &packet.ICMPError{From: from, Type: typ, Code: code, MTU: binary.NativeEndian.Uint32(b[8:])}
}

func offender(sa []byte) netip.Addr {
	if len(sa) < 8 {
		return netip.Addr{}
	}
	switch binary.NativeEndian.Uint16(sa) {
	case unix.AF_INET:
		return netip.AddrFrom4([4]byte(sa[4:8]))
	case unix.AF_INET6:
		if len(sa) >= 24 {
			return netip.AddrFrom16([16]byte(sa[8:24])).Unmap()
		}
	}
	return netip.Addr{}
}
