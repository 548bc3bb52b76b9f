package packet

import (
	"encoding/binary"
	"net/netip"
)

// DefaultTTL is the hop limit of packets that this machine makes itself.
const DefaultTTL = 64

// MinIPv6MTU is the size that every IPv6 link carries (RFC 8200 section 5).
const MinIPv6MTU = 1280

// The room that an ICMP error has for the packet it quotes, so that the whole message stays
// within 576 bytes (RFC 1812 4.3.2.3) or the minimum IPv6 MTU (RFC 4443 2.4).
const (
	maxQuote4 = 576 - 20 - 8
	maxQuote6 = MinIPv6MTU - 40 - 8
)

// tosInternetControl is the precedence of ICMP errors (RFC 1812 section 4.3.2.5).
const tosInternetControl = 0xc0

// IP describes the IP header of a packet to build. Both addresses are of one family.
type IP struct {
	Src, Dst     netip.Addr
	TTL, TOS     uint8
	ID           uint16 // IPv4 only
	DontFragment bool   // IPv4 only
}

// appendHeader appends an IP header for length bytes of proto.
func (ip *IP) appendHeader(b []byte, proto Proto, length int) []byte {
	at := len(b)
	if ip.Dst.Is4() {
		var flags byte
		if ip.DontFragment {
			flags = 0x40
		}
		n := 20 + length
		b = append(b, 0x45, ip.TOS, byte(n>>8), byte(n), byte(ip.ID>>8), byte(ip.ID), flags, 0, ip.TTL, byte(proto), 0, 0)
		s, d := ip.Src.As4(), ip.Dst.As4()
		b = append(append(b, s[:]...), d[:]...)
		binary.BigEndian.PutUint16(b[at+10:], Fold(Sum(b[at:], 0)))
		return b
	}
	b = append(b, 0x60|ip.TOS>>4, ip.TOS<<4, 0, 0, byte(length>>8), byte(length), byte(proto), ip.TTL)
	s, d := ip.Src.As16(), ip.Dst.As16()
	return append(append(b, s[:]...), d[:]...)
}

// seal writes the checksum at offset at of the segment seg.
func (ip *IP) seal(seg []byte, at int, proto Proto) {
	var start uint64
	if proto != ICMP {
		start = PseudoSum(ip.Src, ip.Dst, proto, len(seg))
	}
	sum := Fold(Sum(seg, start))
	if sum == 0 && proto == UDP {
		sum = 0xffff // zero would say "not computed" (RFC 768)
	}
	binary.BigEndian.PutUint16(seg[at:], sum)
}

// AppendUDP appends a UDP datagram with its IP header to b and returns the longer slice. It
// does not allocate where b has room: payload and 48 bytes.
func AppendUDP(b []byte, ip *IP, srcPort, dstPort uint16, payload []byte) []byte {
	n := 8 + len(payload)
	b = ip.appendHeader(b, UDP, n)
	at := len(b)
	b = append(b, byte(srcPort>>8), byte(srcPort), byte(dstPort>>8), byte(dstPort), byte(n>>8), byte(n), 0, 0)
	b = append(b, payload...)
	ip.seal(b[at:], 6, UDP)
	return b
}

// AppendEchoReply appends an ICMP or ICMPv6 echo reply with its IP header to b.
func AppendEchoReply(b []byte, ip *IP, id, seq uint16, payload []byte) []byte {
	proto, typ := ICMP, byte(ICMP4EchoReply)
	if ip.Dst.Is6() {
		proto, typ = ICMPv6, ICMP6EchoReply
	}
	return ip.appendICMP(b, proto, [8]byte{typ, 0, 0, 0, byte(id >> 8), byte(id), byte(seq >> 8), byte(seq)}, payload)
}

func (ip *IP) appendICMP(b []byte, proto Proto, head [8]byte, body []byte) []byte {
	b = ip.appendHeader(b, proto, 8+len(body))
	at := len(b)
	b = append(append(b, head[:]...), body...)
	ip.seal(b[at:], 2, proto)
	return b
}

// AppendICMPError appends to b the message e about the packet original, addressed to the
// original's sender. The source is e.From where it is of the packet's family, else the
// address that original was sent to. It returns b unchanged where an answer is forbidden or
// impossible (RFC 1122 3.2.2, RFC 4443 2.4 e): original is no IP packet, is itself an ICMP
// error, or is a later fragment. original may be cut short.
func AppendICMPError(b []byte, e *ICMPError, original []byte) []byte {
	src, dst, ok := answerable(original)
	if !ok {
		return b
	}
	x := e.For(dst)
	ip := IP{Src: dst, Dst: src, TTL: DefaultTTL, TOS: tosInternetControl}
	if e.From.IsValid() && e.From.Is6() == dst.Is6() {
		ip.Src = e.From
	}
	head := [8]byte{x.Type, x.Code}
	if dst.Is6() {
		if x.Type == ICMP6TooBig {
			binary.BigEndian.PutUint32(head[4:], x.MTU)
		}
		return ip.appendICMP(b, ICMPv6, head, original[:min(len(original), maxQuote6)])
	}
	if x.Type == ICMP4Unreachable && x.Code == codeFrag4 {
		binary.BigEndian.PutUint16(head[6:], uint16(min(x.MTU, 65535)))
	}
	return ip.appendICMP(b, ICMP, head, original[:min(len(original), maxQuote4)])
}

// answerable reports the addresses of original and whether an ICMP error may answer it.
func answerable(b []byte) (src, dst netip.Addr, ok bool) {
	switch {
	case len(b) >= 28 && b[0]>>4 == 4:
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		hl := int(b[0]&15) * 4
		first := binary.BigEndian.Uint16(b[6:])&0x1fff == 0
		isError := Proto(b[9]) == ICMP && (hl >= len(b) || isError4(b[hl]))
		return src, dst, first && !isError
	case len(b) >= 48 && b[0]>>4 == 6:
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		isError := Proto(b[6]) == ICMPv6 && b[40] < 128
		return src, dst, !isError && !src.Is4In6() && !dst.Is4In6()
	default:
		return src, dst, false
	}
}

func isError4(typ byte) bool {
	return typ == 3 || typ == 4 || typ == 5 || typ == ICMP4TimeExceeded || typ == ICMP4ParamProblem
}

// Split cuts the packet pkt, which was built here, into fragments of at most mtu bytes and
// calls emit with each. emit must not keep the slice. A packet that fits is emitted as it is.
// id is the identification of IPv6 fragments; IPv4 fragments have that of pkt.
func Split(pkt []byte, mtu int, id uint32, emit func([]byte)) {
	if len(pkt) <= mtu {
		emit(pkt)
		return
	}
	hl, room := 20, mtu-20
	if pkt[0]>>4 == 6 {
		hl, room = 40, mtu-48
	}
	room &^= 7
	if room <= 0 {
		return
	}
	body := pkt[hl:]
	buf := make([]byte, 0, mtu)
	for off := 0; off < len(body); off += room {
		piece := body[off:min(off+room, len(body))]
		more := off+room < len(body)
		if hl == 20 {
			buf = appendFragment4(buf[:0], pkt[:20], piece, off, more)
		} else {
			buf = appendFragment6(buf[:0], pkt[:40], piece, off, more, id)
		}
		emit(buf)
	}
}

func fragmentField(off int, more bool, moreBit uint16, shift int) uint16 {
	v := uint16(off/8) << shift
	if more {
		v |= moreBit
	}
	return v
}

func appendFragment4(b, head, piece []byte, off int, more bool) []byte {
	b = append(append(b, head...), piece...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[6:], fragmentField(off, more, 0x2000, 0))
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], Fold(Sum(b[:20], 0)))
	return b
}

func appendFragment6(b, head, piece []byte, off int, more bool, id uint32) []byte {
	next := head[6]
	b = append(b, head...)
	b[6] = ext6Fragment
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(piece)))
	b = append(b, next, 0)
	b = binary.BigEndian.AppendUint16(b, fragmentField(off, more, 1, 3))
	b = binary.BigEndian.AppendUint32(b, id)
	return append(b, piece...)
}
