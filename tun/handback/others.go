package handback

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"gatun/network/packet"
)

// What is neither TCP, UDP nor ICMP cannot be relayed: the kernel carries it whole, or nobody does. A flow
// of such a protocol is three values: two addresses and the protocol. So whatever this machine sends of it
// to that address passes, whoever sends it, until the flow is taken back or has been silent for
// Options.OtherTimeout. The kernel does not tell when a raw socket is closed, and many such packets are not
// a program's at all (GRE, IPIP, 6in4, ESP).

// Protocols with ports at the place where TCP and UDP have theirs, which connection tracking looks at.
const (
	protoDCCP    packet.Proto = 33
	protoSCTP    packet.Proto = 132
	protoUDPLite packet.Proto = 136

	protoGRE packet.Proto = 47
	protoAH  packet.Proto = 51
)

// maxStrays is how many packets of one accepted flow may come to userspace all the same. Those that were on
// their way are not that many; where the kernel and this program do not name the packets alike, there is no end.
const maxStrays = 1024

// isOther reports whether flows of the protocol are three values.
func isOther(p packet.Proto) bool { return p != packet.TCP && p != packet.UDP }

// carriesOther reports whether the chain can tell packets of f, of another protocol, from all others. ICMP is
// not its business. Over IPv6 the kernel takes an authentication header for one that the protocol comes after.
func carriesOther(f packet.Flow) bool {
	return f.Proto != 0 && !f.Proto.IsICMP() && !(f.Proto == protoAH && f.Is6())
}

// setOf is where flows like f are of what is called set for TCP and UDP.
func setOf(set string, f packet.Flow) string {
	if set == setAccept && isOther(f.Proto) {
		return setOther
	}
	return set
}

// tupleIn is how connection tracking names the flow of the whole packet b of f.
func tupleIn(f packet.Flow, b []byte) key {
	switch f.Proto {
	case protoDCCP, protoSCTP, protoUDPLite:
		if h, err := packet.Parse(b); err == nil && len(b) >= h.NetworkLen+4 {
			f.Local = netip.AddrPortFrom(f.Local.Addr(), binary.BigEndian.Uint16(b[h.NetworkLen:]))
			f.Remote = netip.AddrPortFrom(f.Remote.Addr(), binary.BigEndian.Uint16(b[h.NetworkLen+2:]))
		}
	}
	return tupleOf(f)
}

// comesBack is the error of a flow whose packets come here although the kernel has it.
func comesBack(f packet.Flow) error {
	return fmt.Errorf("%s: %w: its packets come back", f, ErrUnsupported)
}
