package dns

import (
	"encoding/binary"
	"strings"

	mdns "github.com/miekg/dns"
)

const (
	headerLen = 12

	// maxUDP is the largest answer over UDP and the size we advertise, to clients and to
	// upstreams: it fits every path without fragments (DNS flag day 2020).
	maxUDP = 1232
	minUDP = 512 // what every client takes without EDNS (RFC 1035)
	maxTCP = 65535

	// typeMeta… is the range of QTYPEs and meta types that are no data (RFC 6895, 3.1).
	typeMetaFirst, typeMetaLast = 128, 250
)

// Header flags (RFC 1035, RFC 4035).
const (
	flagQR = 1 << 15
	flagTC = 1 << 9
	flagRD = 1 << 8
	flagRA = 1 << 7
	flagCD = 1 << 4

	opcodeShift = 11
	opcodeMask  = 0xf
)

// noReply is the rcode of a message that must not be answered: too short to have an ID, or a
// reply itself, which would make two servers talk to each other for ever.
const noReply = -1

// request is one parsed query.
type request struct {
	id       uint16
	flags    uint16
	question []byte // as asked, with its case: name, type, class
	name     string // lower-case, escaped, without the final dot; "" is the root
	qtype    uint16
	class    uint16
	edns     bool
	version  uint8
	do       bool
	size     int // what the client takes over UDP
	signed   bool
	cookie   []byte // of the client, and the one of ours that it sent back; nil: none
	served   []byte // the cookie for the reply
}

// parseRequest reads a query. The rcode is RcodeSuccess for one that is to be resolved,
// noReply for what must not be answered, else the error to answer at once; the request then
// holds as much as was understood.
func parseRequest(msg []byte) (request, int) {
	if len(msg) < headerLen {
		return request{}, noReply
	}
	r := request{id: binary.BigEndian.Uint16(msg), flags: binary.BigEndian.Uint16(msg[2:]), size: minUDP}
	if r.flags&flagQR != 0 {
		return r, noReply
	}
	var (
		qd, an = binary.BigEndian.Uint16(msg[4:]), binary.BigEndian.Uint16(msg[6:])
		ns, ar = binary.BigEndian.Uint16(msg[8:]), binary.BigEndian.Uint16(msg[10:])
	)
	off, ok := headerLen, true
	if qd == 1 {
		off, ok = r.parseQuestion(msg)
	}
	if r.flags>>opcodeShift&opcodeMask != mdns.OpcodeQuery {
		return r, mdns.RcodeNotImplemented // with the question where there is one: clients find their query by it
	}
	if qd == 0 && an == 0 && ns == 0 {
		r.parseAdditional(msg, off, int(ar)) // an OPT is answered with one, in an error too (RFC 6891, 6.1.1)
	}
	if qd != 1 || !ok {
		return r, mdns.RcodeFormatError
	}
	if r.qtype == mdns.TypeIXFR {
		ns, ar = 0, ns+ar // it carries an SOA (RFC 1995), which is passed over
	}
	if an != 0 || ns != 0 || !r.parseAdditional(msg, off, int(ar)) {
		return r, mdns.RcodeFormatError
	}
	return r, r.check()
}

// check finds what is well-formed but not for us.
func (r *request) check() int {
	switch {
	case r.edns && r.version != 0:
		return mdns.RcodeBadVers
	case r.class != mdns.ClassINET, r.signed, r.qtype == mdns.TypeAXFR, r.qtype == mdns.TypeIXFR:
		return mdns.RcodeRefused
	case r.qtype == mdns.TypeNone, r.qtype == mdns.TypeOPT, r.qtype == mdns.TypeMAILA, r.qtype == mdns.TypeMAILB,
		r.qtype >= typeMetaFirst && r.qtype <= typeMetaLast:
		return mdns.RcodeFormatError
	}
	return mdns.RcodeSuccess
}

// parseQuestion reads the question behind the header. A compressed name has nothing to point
// to there, so a pointer is an error.
func (r *request) parseQuestion(msg []byte) (next int, ok bool) {
	end, ok := plainNameEnd(msg, headerLen)
	if !ok || end+4 > len(msg) {
		return 0, false
	}
	name, _, err := mdns.UnpackDomainName(msg, headerLen)
	if err != nil {
		return 0, false
	}
	r.question = msg[headerLen : end+4]
	r.name = bareName(name)
	r.qtype = binary.BigEndian.Uint16(msg[end:])
	r.class = binary.BigEndian.Uint16(msg[end+2:])
	return end + 4, true
}

// parseAdditional reads n records up to the end of the message: at most one OPT, whose name is
// the root. Others are passed over; a signature we cannot check is noted.
func (r *request) parseAdditional(msg []byte, off, n int) bool {
	for range n {
		nameEnd, ok := nameEnd(msg, off)
		if !ok || nameEnd+10 > len(msg) {
			return false
		}
		var (
			typ   = binary.BigEndian.Uint16(msg[nameEnd:])
			class = binary.BigEndian.Uint16(msg[nameEnd+2:])
			ttl   = binary.BigEndian.Uint32(msg[nameEnd+4:])
			data  = nameEnd + 10
			end   = data + int(binary.BigEndian.Uint16(msg[nameEnd+8:]))
		)
		if end > len(msg) {
			return false
		}
		switch typ {
		case mdns.TypeOPT:
			if r.edns || nameEnd != off+1 || !r.parseOptions(msg[data:end]) {
				return false
			}
			r.edns, r.version, r.do = true, uint8(ttl>>16), ttl&0x8000 != 0
			r.size = min(max(int(class), minUDP), maxUDP)
		case mdns.TypeTSIG, mdns.TypeSIG:
			r.signed = true
		}
		off = end
	}
	return off == len(msg)
}

// parseOptions reads a list of EDNS options, which must be whole. All but the cookie are passed
// over: what else a client tells, such as its network, is nobody's business.
func (r *request) parseOptions(b []byte) bool {
	for len(b) > 0 {
		if len(b) < 4 {
			return false
		}
		code, n := binary.BigEndian.Uint16(b), 4+int(binary.BigEndian.Uint16(b[2:]))
		if n > len(b) {
			return false
		}
		if code == mdns.EDNS0COOKIE && r.cookie == nil {
			if r.cookie = b[4:n]; !wholeCookie(r.cookie) {
				r.cookie = nil
				return false
			}
		}
		b = b[n:]
	}
	return true
}

// plainNameEnd returns the offset behind the uncompressed name at off.
func plainNameEnd(msg []byte, off int) (int, bool) {
	for start := off; off < len(msg) && off-start < 255; {
		c := int(msg[off])
		if c == 0 {
			return off + 1, true
		}
		if c > 63 {
			return 0, false
		}
		off += 1 + c
	}
	return 0, false
}

// nameEnd returns the offset behind the name at off, which may end with a pointer.
func nameEnd(msg []byte, off int) (int, bool) {
	for off < len(msg) {
		c := int(msg[off])
		switch {
		case c == 0:
			return off + 1, true
		case c&0xc0 == 0xc0:
			return off + 2, off+2 <= len(msg)
		case c > 63:
			return 0, false
		}
		off += 1 + c
	}
	return 0, false
}

// bareName is the form of names in this program: lower-case and without the final dot.
func bareName(name string) string {
	return strings.TrimSuffix(lower(name), ".")
}

// lower lowers ASCII letters only: DNS knows no other case.
func lower(s string) string {
	for i := range len(s) {
		if c := s[i]; 'A' <= c && c <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if c := b[i]; 'A' <= c && c <= 'Z' {
					b[i] = c + 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}
