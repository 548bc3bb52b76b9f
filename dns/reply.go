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
	buf := make([]byte, headerLen, headerLen+len(r.question)+len(a.body)+256)
	flags := uint16(flagQR) | r.flags&(opcodeMask<<opcodeShift|flagRD|flagCD) | flagRA | uint16(a.rcode&0xf)
	var qd, an, ns, ar int
	if r.question != nil {
		buf, qd = append(buf, r.question...), 1
	}
	opt := r.option(a.rcode, nil)
	if len(buf)+len(a.body)+len(opt) > limit {
		flags |= flagTC
	} else {
		start := len(buf)
		buf, an, ns = append(buf, a.body...), a.an, a.ns
		for _, off := range a.ttlAt {
			binary.BigEndian.PutUint32(buf[start+off:], uint32(rep.ttl/time.Second))
		}
		if with := r.option(a.rcode, rep.ede); len(buf)+len(with) <= limit {
			opt = with
		}
		if more := packExtra(rep.extra); len(more) > 0 && len(buf)+len(more)+len(opt) <= limit {
			buf, ar = append(buf, more...), 1
		}
	}
	if len(opt) > 0 {
		buf, ar = append(buf, opt...), ar+1
	}
	binary.BigEndian.PutUint16(buf, r.id)
	for i, v := range [...]uint16{flags, uint16(qd), uint16(an), uint16(ns), uint16(ar)} {
		binary.BigEndian.PutUint16(buf[2+2*i:], v)
	}
	return buf
}

// option renders our OPT record, which only a client that sent one may get.
func (r *request) option(rcode int, ede *mdns.EDNS0_EDE) []byte {
	if !r.edns {
		return nil
	}
	b := make([]byte, 11, 64)
	binary.BigEndian.PutUint16(b[1:], mdns.TypeOPT)
	binary.BigEndian.PutUint16(b[3:], maxUDP)
	b[5] = byte(rcode >> 4)
	if r.do {
		b[7] = 0x80
	}
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
	binary.BigEndian.PutUint16(b[9:], uint16(len(b)-11))
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
