package state

import (
	"errors"
	"net/netip"

	"gatun/network/packet"
)

// ErrNoPermits says that connections cannot be permitted ahead.
var ErrNoPermits = errors.New("connections cannot be permitted at connect(2)")

// Permission lets one program image, as one user, begin connections to one destination without anybody
// being asked.
type Permission struct {
	ImageID
	UID    uint32
	Proto  packet.Proto // TCP
	Remote netip.AddrPort
}

// ErrOutdated says that what a permission rests on has changed since it was decided.
var ErrOutdated = errors.New("the permission is outdated")

// Moment is what was in force when a decision was made that is to become a Permission.
type Moment struct{ generation, answers uint64 }

// Begun is a connection that began by a Permission.
type Begun struct {
	Flow   packet.Flow
	Sender Sender
	// Stale says that the Permission had ended when the connection was about to begin: nothing of it
	// was sent, and nothing will be.
	Stale bool
}

// cacheable reports whether a destination may be permitted ahead: another host, by a name of its own.
func cacheable(proto packet.Proto, to netip.AddrPort) bool {
	const dns = 53
	a := to.Addr()
	return proto == packet.TCP && a.IsValid() && a.Zone() == "" && !a.Is4In6() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() &&
		!a.IsLinkLocalUnicast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255}) && to.Port() != 0 && to.Port() != dns
}
