package dns

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	mdns "github.com/miekg/dns"
)

// heard is what one reply says.
type heard struct {
	kind    heardKind
	answer  *answer
	records []mdns.RR
}

type heardKind uint8

const (
	heardNothing heardKind = iota
	heardAnswer
	heardOther  // the host exists and has the other type of address
	heardAbsent // the host says that it has no such record
)

// hear reads a reply. Records of other names are passed over, whoever sent them.
func (q inquiry) hear(b []byte, id uint16) heard {
	if len(b) < headerLen || binary.BigEndian.Uint16(b) != id {
		return heard{}
	}
	m := new(mdns.Msg)
	if m.Unpack(b) != nil || !m.Response || m.Opcode != mdns.OpcodeQuery || m.Rcode != mdns.RcodeSuccess || len(m.Answer)+len(m.Ns)+len(m.Extra) > maxRecords {
		return heard{}
	}
	for _, asked := range m.Question {
		if bareName(asked.Name) != q.name {
			return heard{}
		}
	}
	h := heard{}
	var kept []mdns.RR
	for i, rr := range slices.Concat(m.Answer, m.Ns, m.Extra) {
		head := rr.Header()
		head.Class &^= unicastResponse
		if nsec, ok := rr.(*mdns.NSEC); ok && h.kind == heardNothing && bareName(head.Name) == q.name && !slices.Contains(nsec.TypeBitMap, q.qtype) {
			h.kind = heardAbsent
		}
		if i >= len(m.Answer) || hollow(rr) {
			continue
		}
		kept = append(kept, rr)
		if bareName(head.Name) == q.name && head.Rrtype == sibling(q.qtype) {
			h.kind = heardOther
		}
	}
	if a, err := q.multicastAnswer(kept); err == nil && a.an > 0 {
		return heard{kind: heardAnswer, answer: a, records: a.records}
	}
	return h
}

// useless reports an address that means nothing on the way from the host to the program: of
// the program's own machine, of a group, or one that needs an interface's name beside it.
func useless(a netip.Addr) bool {
	return a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.Is6() && a.IsLinkLocalUnicast()
}

func (q inquiry) multicastAnswer(records []mdns.RR) (*answer, error) {
	a, err := clean(&mdns.Msg{Answer: records}, q)
	if err == nil && slices.ContainsFunc(a.addrs, useless) {
		a, err = a.without(q.name, q.qtype, slices.DeleteFunc(a.addrs, func(x netip.Addr) bool { return !useless(x) }))
	}
	if err != nil {
		return nil, err
	}
	least := maxMulticastTTL
	for _, rr := range a.records {
		least = min(least, time.Duration(rr.Header().Ttl)*time.Second)
	}
	a.lifetime = max(least, errorTTL)
	a.answeredBy("multicast", q.qtype)
	return a, nil
}

// gather makes one answer of what was heard. A record that only one host has is believed as it
// came first, and whoever contradicts it is too late; of shared ones all are taken that come
// soon after the first.
func (q inquiry) gather(ctx context.Context, in <-chan heard) *answer {
	var (
		end      <-chan time.Time
		absent   *answer
		shared   []mdns.RR
		many     = q.qtype == mdns.TypePTR || q.qtype == mdns.TypeANY
		negative = func() *answer {
			a := &answer{lifetime: errorTTL}
			a.answeredBy("multicast", q.qtype)
			return a
		}
	)
	result := func() *answer {
		if a, err := q.multicastAnswer(shared); err == nil && len(shared) > 0 {
			return a
		}
		return absent
	}
	for {
		select {
		case h := <-in:
			switch {
			case h.kind == heardAnswer && !many:
				return h.answer
			case h.kind == heardAnswer:
				if shared = merged(shared, h.records); end == nil {
					end = time.After(multicastGather)
				}
			case absent == nil:
				if absent = negative(); end == nil {
					end = time.After(multicastGrace)
				}
			}
		case <-end:
			return result()
		case <-ctx.Done():
			return result()
		}
	}
}

// merged adds the records that are new.
func merged(have, more []mdns.RR) []mdns.RR {
	for _, rr := range more {
		if len(have) < maxRecords/2 && !slices.ContainsFunc(have, func(o mdns.RR) bool { return mdns.IsDuplicate(o, rr) }) {
			have = append(have, rr)
		}
	}
	return have
}
