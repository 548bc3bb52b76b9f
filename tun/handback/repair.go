package handback

import (
	"encoding/binary"
	"fmt"

	"gatun/network/packet"
)

// Offsets in the transport headers.
const (
	tcpChecksumAt = 16
	udpChecksumAt = 6
)

// repair returns a copy of the held packet with a whole transport checksum: a packet that was
// never on a wire carries the sum of its pseudo header only (tun.Device.Unsummed), and a raw socket
// sends what it is given. It refuses what is not the packet of f, whole.
func repair(f packet.Flow, held []byte) ([]byte, error) {
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
	if f.Proto == packet.UDP {
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

// isSYN reports whether the whole packet b of f begins a connection.
func isSYN(f packet.Flow, b []byte) bool {
	segment := segmentOf(f, b)
	return segment != nil && segment[13]&0x02 != 0
}

// sequence is the sequence number of the whole packet b of f, 0 where it has none.
func sequence(f packet.Flow, b []byte) uint32 {
	if segment := segmentOf(f, b); segment != nil {
		return binary.BigEndian.Uint32(segment[4:])
	}
	return 0
}

func segmentOf(f packet.Flow, b []byte) []byte {
	h, err := packet.Parse(b)
	if err != nil || f.Proto != packet.TCP {
		return nil
	}
	return b[h.NetworkLen:]
}
