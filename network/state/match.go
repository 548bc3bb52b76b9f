package state

import (
	"net/netip"
	"slices"

	"gatun/network/packet"
)

// ownersOfDatagram keeps those of the sockets from index start on that may have sent the
// datagrams of flow f. It keeps none if no socket fits the flow; if one does, it also keeps
// the other sockets of the same port, wherever they are bound or connected to: by IP_PKTINFO
// or sendto() they can send with the same addresses, so that an attacker who shares a port
// must make the flow ambiguous and must not inherit the name of the socket that fits best.
func ownersOfDatagram(sockets []Socket, start int, f packet.Flow) []Socket {
	fits := false
	kept := sockets[:start]
	for _, s := range sockets[start:] {
		if s.Local.Port() != f.Local.Port() || !speaks(s, f.Local.Addr()) {
			continue
		}
		kept = append(kept, s)
		fits = fits || fitsFlow(s, f)
	}
	if !fits {
		return sockets[:start]
	}
	return kept
}

// fitsFlow reports whether the addresses that s is bound and connected to are those of f.
func fitsFlow(s Socket, f packet.Flow) bool {
	local := s.Local.Addr()
	if !local.IsUnspecified() && local != f.Local.Addr() {
		return false
	}
	remote := s.Remote
	return remote.Addr().IsUnspecified() || remote == f.Remote
}

// speaks reports whether s can send from an address of a's family. An IPv6 socket that is
// bound to an IPv6 address cannot speak IPv4.
func speaks(s Socket, a netip.Addr) bool {
	local := s.Local.Addr()
	if a.Is4() {
		return local.Is4() || (local.IsUnspecified() && !s.V6Only)
	}
	return local.Is6()
}

// ownersOfRaw keeps those of the sockets from index start on that may have sent packets of
// flow f: ping sockets with its identifier, and raw sockets of its protocol or of IPPROTO_RAW
// that are not tied to other addresses. A ping socket with the very identifier excludes the
// raw sockets: the kernel would have delivered nothing of theirs to it.
func ownersOfRaw(sockets []Socket, start int, f packet.Flow) []Socket {
	const anyProtocol = 255 // IPPROTO_RAW: the program writes the header itself
	kept := sockets[:start]
	for _, s := range sockets[start:] {
		f := f
		switch {
		case s.Raw && (s.Proto == f.Proto || s.Proto == anyProtocol):
			f.Local = netip.AddrPortFrom(f.Local.Addr(), 0)
			f.Remote = netip.AddrPortFrom(f.Remote.Addr(), 0)
		case !s.Raw && s.Proto == f.Proto && s.Local.Port() == f.Local.Port():
			f.Remote = netip.AddrPortFrom(f.Remote.Addr(), s.Remote.Port())
		default:
			continue
		}
		if speaks(s, f.Local.Addr()) && fitsFlow(s, f) {
			kept = append(kept, s)
		}
	}
	isPing := func(s Socket) bool { return !s.Raw }
	if slices.ContainsFunc(kept[start:], isPing) {
		ping := slices.DeleteFunc(kept[start:], func(s Socket) bool { return s.Raw })
		return kept[:start+len(ping)]
	}
	return kept
}
