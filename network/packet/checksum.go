package packet

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Sum adds the bytes of b to the running internet checksum (RFC 1071) start. Only the last of
// several parts may have an odd length.
func Sum(b []byte, start uint64) uint64 {
	acc, carry := start, uint64(0)
	for len(b) >= 32 {
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[8:]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[16:]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[24:]), carry)
		b = b[32:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b), carry)
		b = b[8:]
	}
	if len(b) > 0 {
		var tail [8]byte
		copy(tail[:], b)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(tail[:]), carry)
	}
	acc, carry = bits.Add64(acc, 0, carry)
	return acc + carry
}

// Fold turns a running sum into the 16-bit value that goes on the wire.
func Fold(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum)
}

// PseudoSum is the sum of the pseudo-header that TCP, UDP and ICMPv6 cover (RFC 9293 3.1,
// RFC 8200 8.1). length is that of the transport header and payload.
func PseudoSum(src, dst netip.Addr, proto Proto, length int) uint64 {
	acc := uint64(proto) + uint64(length)
	if src.Is4() {
		s, d := src.As4(), dst.As4()
		return Sum(d[:], Sum(s[:], acc))
	}
	s, d := src.As16(), dst.As16()
	return Sum(d[:], Sum(s[:], acc))
}

// HeaderChecksumOK verifies the IPv4 header's checksum of the packet b that h was parsed
// from. IPv6 has none: always true.
func (h *Header) HeaderChecksumOK(b []byte) bool {
	if h.Flow.Is6() {
		return true
	}
	return Fold(Sum(b[:h.NetworkLen], 0)) == 0
}

// TransportChecksumOK verifies the checksum of TCP, UDP, ICMP or ICMPv6 in the packet b that
// h was parsed from. A zero UDP checksum over IPv4 means "not computed" and is fine; over
// IPv6 it is not (RFC 8200 8.1). Of a fragment, or any other protocol, nothing can be said:
// true.
func (h *Header) TransportChecksumOK(b []byte) bool {
	if h.Fragment {
		return true
	}
	seg := b[h.NetworkLen:h.TotalLen]
	var start uint64
	switch h.Flow.Proto {
	case ICMP:
	case UDP:
		if seg[6] == 0 && seg[7] == 0 {
			return !h.Flow.Is6()
		}
		fallthrough
	case TCP, ICMPv6:
		start = PseudoSum(h.Flow.Local.Addr(), h.Flow.Remote.Addr(), h.Flow.Proto, len(seg))
	default:
		return true
	}
	return Fold(Sum(seg, start)) == 0
}
