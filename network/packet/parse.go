package packet

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// The reasons for which Parse refuses a packet. All are the sender's fault: the packet is to
// be dropped and counted, never answered.
var (
	ErrTruncated = errors.New("packet is shorter than its headers say")
	ErrVersion   = errors.New("not an IPv4 or IPv6 packet")
	ErrHeader    = errors.New("malformed IP header")
	ErrTransport = errors.New("malformed transport header")
	ErrFragment  = errors.New("fragment that hides its transport header or exceeds 65535 bytes")
	ErrAddress   = errors.New("IPv4-mapped IPv6 address on the wire")
)

// TCP flags, as in Header.TCPFlags.
const (
	TCPFin = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
	TCPUrg
)

// IPv6 extension headers that Parse walks over.
const (
	ext6HopByHop = 0
	ext6Routing  = 43
	ext6Fragment = 44
	ext6DestOpts = 60
)

// maxExt6 bounds the chain of extension headers; real packets have at most three.
const maxExt6 = 8

// Header is what Parse finds in a packet. All offsets are within the packet:
// 0 < NetworkLen <= HeaderLen <= TotalLen <= len(b).
type Header struct {
	// Flow has the packet's source as Local and its destination as Remote. For an ICMP echo
	// Local's port is the identifier. Ports are 0 in a fragment and for other protocols.
	Flow Flow

	TTL, TOS     uint8
	DontFragment bool // always true over IPv6
	SourceRoute  bool // an IPv4 source routing option or an IPv6 routing header

	// Fragment is true for the pieces of a larger packet; the transport header is not parsed
	// then and HeaderLen equals NetworkLen.
	Fragment       bool
	MoreFragments  bool
	FragmentOffset int    // in bytes
	FragmentID     uint32 // the IPv4 identification or that of the IPv6 fragment header
	UnfragLen      int    // IPv6: offset of the fragment header
	UnfragNext     int    // IPv6: offset of the byte that names the fragment header

	ICMPType, ICMPCode uint8
	ICMPSeq            uint16 // of an echo
	TCPFlags           uint8
	TCPSeq             uint32

	NetworkLen int // offset of the transport header
	HeaderLen  int // offset of the transport payload
	TotalLen   int // length of the packet by its own account; bytes after it are padding
}

// Parse reads the headers of the IP packet b. It does not verify checksums and never keeps b.
func Parse(b []byte) (Header, error) {
	var h Header
	err := h.Parse(b)
	return h, err
}

// Parse is the function Parse without the copy of the result, for the packet path.
func (h *Header) Parse(b []byte) error {
	*h = Header{}
	if len(b) == 0 {
		return ErrTruncated
	}
	var err error
	switch b[0] >> 4 {
	case 4:
		err = h.parse4(b)
	case 6:
		err = h.parse6(b)
	default:
		err = ErrVersion
	}
	if err != nil {
		return err
	}
	h.HeaderLen = h.NetworkLen
	if h.Fragment {
		return h.checkFragment(b[h.NetworkLen:h.TotalLen])
	}
	return h.parseTransport(b[h.NetworkLen:h.TotalLen])
}

// Is6 reports whether the packet is an IPv6 packet.
func (h *Header) Is6() bool { return h.Flow.Is6() }

// IsEcho reports whether the packet is an unfragmented ICMP or ICMPv6 echo request.
func (h *Header) IsEcho() bool {
	switch h.Flow.Proto {
	case ICMP:
		return !h.Is6() && h.ICMPType == ICMP4Echo && !h.Fragment
	case ICMPv6:
		return h.Is6() && h.ICMPType == ICMP6Echo && !h.Fragment
	default:
		return false
	}
}

func (h *Header) parse4(b []byte) error {
	if len(b) < 20 {
		return ErrTruncated
	}
	h.NetworkLen = int(b[0]&15) * 4
	h.TotalLen = int(binary.BigEndian.Uint16(b[2:]))
	if h.NetworkLen < 20 || h.TotalLen < h.NetworkLen {
		return ErrHeader
	}
	if h.TotalLen > len(b) {
		return ErrTruncated
	}
	frag := binary.BigEndian.Uint16(b[6:])
	h.TOS, h.TTL = b[1], b[8]
	h.DontFragment = frag&0x4000 != 0
	h.MoreFragments = frag&0x2000 != 0
	h.FragmentOffset = int(frag&0x1fff) * 8
	h.Fragment = h.MoreFragments || h.FragmentOffset != 0
	h.FragmentID = uint32(binary.BigEndian.Uint16(b[4:]))
	h.setFlow(Proto(b[9]), netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])))
	return h.parseOptions4(b[20:h.NetworkLen])
}

// parseOptions4 looks for source routing: with it a packet reaches a host that the verdict
// never saw (RFC 7126 section 4.3 and 4.4 recommend to drop it).
func (h *Header) parseOptions4(opt []byte) error {
	for len(opt) > 0 {
		switch opt[0] {
		case 0:
			return nil
		case 1:
			opt = opt[1:]
			continue
		case 131, 137:
			h.SourceRoute = true
		}
		if len(opt) < 2 || opt[1] < 2 || int(opt[1]) > len(opt) {
			return ErrHeader
		}
		opt = opt[opt[1]:]
	}
	return nil
}

func (h *Header) parse6(b []byte) error {
	if len(b) < 40 {
		return ErrTruncated
	}
	h.TotalLen = 40 + int(binary.BigEndian.Uint16(b[4:]))
	if h.TotalLen > len(b) {
		return ErrTruncated
	}
	h.TOS, h.TTL = b[0]<<4|b[1]>>4, b[7]
	h.DontFragment = true
	h.NetworkLen = 40
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	if src.Is4In6() || dst.Is4In6() {
		return ErrAddress
	}
	return h.walk6(b[:h.TotalLen], src, dst)
}

// walk6 follows the chain of extension headers up to the transport header or the fragment
// header, whichever comes first.
func (h *Header) walk6(b []byte, src, dst netip.Addr) error {
	next, nextAt := b[6], 6
	for range maxExt6 {
		ext := b[h.NetworkLen:]
		switch next {
		case ext6HopByHop, ext6Routing, ext6DestOpts:
			if next == ext6HopByHop && h.NetworkLen != 40 {
				return ErrHeader
			}
			if len(ext) < 8 || len(ext) < 8+8*int(ext[1]) {
				return ErrTruncated
			}
			h.SourceRoute = h.SourceRoute || next == ext6Routing
			next, nextAt = ext[0], h.NetworkLen
			h.NetworkLen += 8 + 8*int(ext[1])
		case ext6Fragment:
			if len(ext) < 8 {
				return ErrTruncated
			}
			off := binary.BigEndian.Uint16(ext[2:])
			h.UnfragLen, h.UnfragNext = h.NetworkLen, nextAt
			h.MoreFragments = off&1 != 0
			h.FragmentOffset = int(off &^ 7)
			h.FragmentID = binary.BigEndian.Uint32(ext[4:])
			h.NetworkLen += 8
			if h.MoreFragments || h.FragmentOffset != 0 {
				h.Fragment = true
				h.setFlow(Proto(ext[0]), src, dst)
				return nil
			}
			// An atomic fragment (RFC 6946) is a whole packet.
			next, nextAt = ext[0], h.UnfragLen
		default:
			h.setFlow(Proto(next), src, dst)
			return nil
		}
	}
	return ErrHeader
}

func (h *Header) setFlow(p Proto, src, dst netip.Addr) {
	h.Flow = Flow{Proto: p, Local: netip.AddrPortFrom(src, 0), Remote: netip.AddrPortFrom(dst, 0)}
}

// checkFragment refuses pieces that are made to slip past a filter: a first piece without the
// whole transport header (RFC 1858, RFC 7112), a second one that would overwrite it, a piece
// that ends beyond the largest packet, a middle piece that is no multiple of eight.
func (h *Header) checkFragment(piece []byte) error {
	if len(piece) == 0 || h.MoreFragments && len(piece)%8 != 0 {
		return ErrFragment
	}
	// IPv6 does not count its fixed header into the length, and the fragment header goes.
	head := h.NetworkLen
	if h.Is6() {
		head = h.UnfragLen - 40
	}
	if head+h.FragmentOffset+len(piece) > 65535 {
		return ErrFragment
	}
	least := minTransport(h.Flow.Proto)
	if h.FragmentOffset < least && (h.FragmentOffset != 0 || len(piece) < least) {
		return ErrFragment
	}
	return nil
}

func minTransport(p Proto) int {
	switch p {
	case TCP:
		return 20
	case UDP, ICMP, ICMPv6:
		return 8
	default:
		return 0
	}
}

func (h *Header) parseTransport(seg []byte) error {
	if len(seg) < minTransport(h.Flow.Proto) {
		return ErrTransport
	}
	switch h.Flow.Proto {
	case TCP:
		n := int(seg[12]>>4) * 4
		if n < 20 || n > len(seg) {
			return ErrTransport
		}
		h.TCPFlags, h.TCPSeq = seg[13], binary.BigEndian.Uint32(seg[4:])
		h.HeaderLen += n
		h.setPorts(seg)
	case UDP:
		n := int(binary.BigEndian.Uint16(seg[4:]))
		if n < 8 || n > len(seg) {
			return ErrTransport
		}
		// Bytes after the UDP length belong to nobody (RFC 768): not payload, not covered by
		// the checksum.
		h.TotalLen = h.NetworkLen + n
		h.HeaderLen += 8
		h.setPorts(seg)
	case ICMP, ICMPv6:
		h.ICMPType, h.ICMPCode = seg[0], seg[1]
		h.HeaderLen += 8
		if h.IsEcho() {
			id := binary.BigEndian.Uint16(seg[4:])
			h.Flow.Local = netip.AddrPortFrom(h.Flow.Local.Addr(), id)
			h.ICMPSeq = binary.BigEndian.Uint16(seg[6:])
		}
	}
	return nil
}

func (h *Header) setPorts(seg []byte) {
	h.Flow.Local = netip.AddrPortFrom(h.Flow.Local.Addr(), binary.BigEndian.Uint16(seg))
	h.Flow.Remote = netip.AddrPortFrom(h.Flow.Remote.Addr(), binary.BigEndian.Uint16(seg[2:]))
}
