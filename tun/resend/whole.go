// Package resend sends packets that were held once more, as they were.
//
// tun/handback and tun/route use it: Whole makes of a held packet one that may leave, Sockets send it, past
// netfilter and routing with a mark of the caller's choice. It knows no flow's verdict, answers nothing and
// keeps nothing.
package resend

import (
	"encoding/binary"
	"errors"
	"fmt"

	"gatun/network/packet"
)

// Offsets in the transport headers.
const (
	tcpChecksumAt = 16
	udpChecksumAt = 6
)

// ErrUnsupported says that the kernel lacks what this needs, or that such a packet is never sent again.
var ErrUnsupported = errors.New("not possible here")

// Whole returns a copy of the held packet with a whole transport checksum: a packet of TCP or UDP that
// was never on a wire carries the sum of its pseudo header only (tun.Device.Unsummed), and a raw socket
// sends what it is given. Other protocols have summed up themselves. It refuses what is not the packet
// of f, whole.
func Whole(f packet.Flow, held []byte) ([]byte, error) {
	h, err := packet.Parse(held)
	if err != nil {
		return nil, fmt.Errorf("%s: held packet: %w: %w", f, ErrUnsupported, err)
	}
	switch {
	case h.Flow != f:
		return nil, fmt.Errorf("%s: %w: the held packet is of %s", f, ErrUnsupported, h.Flow)
	case h.Fragment:
		return nil, fmt.Errorf("%s: %w: the held packet is a fragment", f, ErrUnsupported)
	case ipLength(held) != h.TotalLen:
		return nil, fmt.Errorf("%s: %w: the held packet carries more than its datagram", f, ErrUnsupported)
	case h.SourceRoute:
		return nil, fmt.Errorf("%s: %w: the held packet names its own route", f, ErrUnsupported)
	}
	b := append([]byte(nil), held[:h.TotalLen]...)
	segment, at := b[h.NetworkLen:], tcpChecksumAt
	switch f.Proto {
	case packet.TCP:
	default:
		return b, nil
	case packet.UDP:
		at = udpChecksumAt
		if f.Local.Addr().Is4() && segment[at] == 0 && segment[at+1] == 0 {
			return b, nil // the program asked for none (RFC 768)
		}
	}
	segment[at], segment[at+1] = 0, 0
	sum := packet.Fold(packet.Sum(segment, packet.PseudoSum(f.Local.Addr(), f.Remote.Addr(), f.Proto, len(segment))))
	if sum == 0 && f.Proto == packet.UDP {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(segment[at:], sum)
	return b, nil
}

// ipLength is the length of the packet b as its IP header says.
func ipLength(b []byte) int {
	if b[0]>>4 == 6 {
		return 40 + int(binary.BigEndian.Uint16(b[4:]))
	}
	return int(binary.BigEndian.Uint16(b[2:]))
}
