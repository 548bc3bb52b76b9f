// Package packet turns bytes into values: the flow a packet belongs to and the few header
// fields the rest of the program needs.
//
// Anyone may import it; it imports nothing of ours. It does not keep state, does not know
// links or verdicts and never blocks.
package packet

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Proto is an IP protocol number (IANA "Assigned Internet Protocol Numbers").
type Proto uint8

// The protocols that gatun relays. Every other number is decided by rule and scope only.
const (
	ICMP   Proto = 1
	TCP    Proto = 6
	UDP    Proto = 17
	ICMPv6 Proto = 58
)

// String returns "tcp", "udp", "icmp" or "icmpv6", and the decimal number for all others.
func (p Proto) String() string {
	switch p {
	case ICMP:
		return "icmp"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case ICMPv6:
		return "icmpv6"
	default:
		return strconv.Itoa(int(p))
	}
}

// IsICMP reports whether p is ICMP or ICMPv6.
func (p Proto) IsICMP() bool { return p == ICMP || p == ICMPv6 }

// ParseProto reads a protocol name as printed by String, or a number from 1 to 255.
func ParseProto(s string) (Proto, error) {
	switch strings.ToLower(s) {
	case "icmp":
		return ICMP, nil
	case "tcp":
		return TCP, nil
	case "udp":
		return UDP, nil
	case "icmpv6", "icmp6":
		return ICMPv6, nil
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("want tcp, udp, icmp, icmpv6 or a number from 1 to 255, got %q", s)
	}
	return Proto(n), nil
}

// Flow names one flow as the machine that owns the program sees it. It is comparable and is
// the key of every table. Local is the program's side, Remote the other side, whoever sent
// the first packet: the direction of a flow is not part of its name.
//
// For an ICMP echo Local carries the echo identifier as its port and Remote has port 0.
// Addresses are never IPv4-mapped and never carry a zone.
type Flow struct {
	Proto         Proto
	Local, Remote netip.AddrPort
}

// String formats f for people: "tcp 10.0.0.2:40000 > 192.0.2.1:443".
func (f Flow) String() string {
	return f.Proto.String() + " " + f.Local.String() + " > " + f.Remote.String()
}

// Is6 reports whether the flow runs over IPv6.
func (f Flow) Is6() bool { return f.Remote.Addr().Is6() }
