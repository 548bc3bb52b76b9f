package dns

import (
	"encoding/binary"
	"time"

	mdns "github.com/miekg/dns"
)

// reply is one reply in the making.
type reply struct {
	answer *answer
	ttl    time.Duration // what the records still live
	extra  mdns.RR       // one record for the additional section, may be nil
	ede    *mdns.EDNS0_EDE
}

// failed answers with an rcode and nothing else.
func failed(rcode int) reply { return reply{answer: &answer{rcode: rcode}} }

// pack renders the reply for the client. limit is what the transport takes. What does not fit
// is left out in the order of its use: the reason, then all records with TC set, so that the
// client asks over TCP.
func (r *request) pack(rep reply, limit int) []byte {
	a := rep.answer
	more, ede := packExtra(rep.extra), rep.ede
	buf := make([]byte, headerLen, headerLen+len(r.question)+len(a.body)+len(more)+r.optionLen(ede))
	flags := uint16(flagQR) | r.flags&(opcodeMask<<opcodeShift|flagRD|flagCD) | flagRA | uint16(a.rcode&0xf)
	var qd, an, ns, ar int
	if r.question != nil {
		buf, qd = append(buf, r.question...), 1
	}
	if len(buf)+len(a.body)+r.optionLen(nil) > limit {
		flags |= flagTC
		ede = nil
	} else {
		start := len(buf)
		buf, an, ns = append(buf, a.body...), a.an, a.ns
		for _, off := range a.ttlAt {
			binary.BigEndian.PutUint32(buf[start+off:], uint32(rep.ttl/time.Second))
		}
		if len(buf)+r.optionLen(ede) > limit {
			ede = nil
		}
		if len(more) > 0 && len(buf)+len(more)+r.optionLen(ede) <= limit {
			buf, ar = append(buf, more...), 1
		}
	}
	if r.edns {
		buf, ar = r.appendOption(buf, a.rcode, ede), ar+1
	}
	binary.BigEndian.PutUint16(buf, r.id)
	for i, v := range [...]uint16{flags, uint16(qd), uint16(an), uint16(ns), uint16(ar)} {
		binary.BigEndian.PutUint16(buf[2+2*i:], v)
	}
	return buf
}

const (
	optionHead = 11 // of an OPT record without options
	optionItem = 4  // code and length of one option
)

// optionLen is the size of what appendOption appends.
func (r *request) optionLen(ede *mdns.EDNS0_EDE) int {
	if !r.edns {
		return 0
	}
	n := optionHead
	if r.served != nil {
		n += optionItem + len(r.served)
	}
	if ede != nil {
		n += optionItem + 2 + len(ede.ExtraText)
	}
	return n
}

// appendOption renders our OPT record, which only a client that sent one may get.
func (r *request) appendOption(b []byte, rcode int, ede *mdns.EDNS0_EDE) []byte {
	b = append(b, 0)
	b = binary.BigEndian.AppendUint16(b, mdns.TypeOPT)
	b = binary.BigEndian.AppendUint16(b, maxUDP)
	b = append(b, byte(rcode>>4), 0, 0, 0)
	if r.do {
		b[len(b)-2] = 0x80
	}
	b = binary.BigEndian.AppendUint16(b, uint16(r.optionLen(ede)-optionHead))
	if r.served != nil {
		b = binary.BigEndian.AppendUint16(b, mdns.EDNS0COOKIE)
		b = binary.BigEndian.AppendUint16(b, uint16(len(r.served)))
		b = append(b, r.served...)
	}
	if ede != nil {
		b = binary.BigEndian.AppendUint16(b, mdns.EDNS0EDE)
		b = binary.BigEndian.AppendUint16(b, uint16(2+len(ede.ExtraText)))
		b = binary.BigEndian.AppendUint16(b, ede.InfoCode)
		b = append(b, ede.ExtraText...)
	}
	return b
}

func packExtra(rr mdns.RR) []byte {
	if rr == nil {
		return nil
	}
	b := make([]byte, mdns.Len(rr)+1)
	n, err := mdns.PackRR(rr, b, 0, nil, false)
	if err != nil {
		return nil
	}
	return b[:n]
}
