package dns

import (
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	maxChain   = 16   // aliases followed in one answer
	maxRecords = 1000 // records of one reply; no honest name has more
)

var (
	errBogus   = errors.New("not a reply to this query")
	errChain   = errors.New("the upstream's answer is a chain of more than 16 aliases or a loop")
	errRecords = errors.New("the upstream's answer has more than 1000 records")
)

// inquiry is one question to an upstream.
type inquiry struct {
	name  string // lower-case, escaped, without the final dot
	qtype uint16
	do    bool
	cd    bool
}

// packing is the form in which a query is sent.
type packing uint8

const (
	withoutEDNS packing = iota // for servers that do not know it
	withEDNS
	padded // as well, so that its length does not tell which name it is for
)

// paddedTo is the multiple to which queries are padded (RFC 8467, 4.1).
const paddedTo = 128

// pack renders the query.
func (q inquiry) pack(id uint16, form packing) ([]byte, error) {
	m := mdns.Msg{
		MsgHdr:   mdns.MsgHdr{Id: id, RecursionDesired: true, CheckingDisabled: q.cd},
		Question: []mdns.Question{{Name: mdns.Fqdn(q.name), Qtype: q.qtype, Qclass: mdns.ClassINET}},
	}
	if form == withoutEDNS {
		return m.Pack()
	}
	m.SetEdns0(maxUDP, q.do)
	if form == padded {
		padding := new(mdns.EDNS0_PADDING)
		opt := m.IsEdns0()
		opt.Option = append(opt.Option, padding)
		padding.Padding = make([]byte, (paddedTo-m.Len()%paddedTo)%paddedTo)
	}
	return m.Pack()
}

// parseReply reads what came from an upstream. Everything that is not a whole reply to exactly
// this query is errBogus, and the caller goes on waiting: an attacker who guesses may cost us a
// packet, never the true answer. A reply with TC set may be cut anywhere behind the question.
func parseReply(msg []byte, id uint16, q inquiry) (*mdns.Msg, error) {
	if len(msg) < headerLen || binary.BigEndian.Uint16(msg) != id {
		return nil, errBogus
	}
	flags := binary.BigEndian.Uint16(msg[2:])
	if flags&flagQR == 0 || flags>>opcodeShift&opcodeMask != mdns.OpcodeQuery || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return nil, errBogus
	}
	var r request
	off, ok := r.parseQuestion(msg)
	if !ok || r.name != q.name || r.qtype != q.qtype || r.class != mdns.ClassINET {
		return nil, errBogus
	}
	if flags&flagTC != 0 {
		return &mdns.Msg{MsgHdr: mdns.MsgHdr{Id: id, Response: true, Truncated: true, Rcode: int(flags & 0xf)}}, nil
	}
	if !wholeRecords(msg, off) {
		return nil, errBogus
	}
	m := new(mdns.Msg)
	if err := m.Unpack(msg); err != nil || slices.ContainsFunc(m.Answer, hollow) {
		return nil, errBogus
	}
	return m, nil
}

// wholeRecords walks the sections: a message cut between two records looks well-formed to a
// parser that stops at the end of the bytes.
func wholeRecords(msg []byte, off int) bool {
	n := 0
	for i := 6; i < headerLen; i += 2 {
		n += int(binary.BigEndian.Uint16(msg[i:]))
	}
	for range n {
		end, ok := nameEnd(msg, off)
		if !ok || end+10 > len(msg) {
			return false
		}
		off = end + 10 + int(binary.BigEndian.Uint16(msg[end+8:]))
		if off > len(msg) {
			return false
		}
	}
	return off == len(msg)
}

// clean keeps of a reply what answers the question and drops the rest: only records on the
// alias chain that begins at the asked name, and of the authority section what makes a
// negative answer (or its DNSSEC proof, if it was asked for). Foreign records are how caches
// are poisoned.
func clean(m *mdns.Msg, q inquiry) (*answer, error) {
	if len(m.Answer)+len(m.Ns)+len(m.Extra) > maxRecords {
		return nil, errRecords
	}
	records, last, err := chain(m.Answer, q)
	if err != nil {
		return nil, err
	}
	authority := proof(m.Ns, last, q.do)
	a, err := newAnswer(q.name, q.qtype, m.Rcode, records, authority, lifetime(m.Rcode, records, authority, q))
	if err == nil {
		a.ede = explanation(m)
	}
	return a, err
}

// explanation is the upstream's first Extended DNS Error (RFC 8914), such as that a signature is
// wrong, in our own record.
func explanation(m *mdns.Msg) *mdns.EDNS0_EDE {
	opt := m.IsEdns0()
	if opt == nil {
		return nil
	}
	for _, o := range opt.Option {
		if e, ok := o.(*mdns.EDNS0_EDE); ok {
			return &mdns.EDNS0_EDE{InfoCode: e.InfoCode, ExtraText: cut(oneLineText(e.ExtraText), maxReason)}
		}
	}
	return nil
}

// chain follows the aliases from the asked name. It returns the records on the way, in order,
// and the name at its end.
func chain(all []mdns.RR, q inquiry) (kept []mdns.RR, last string, err error) {
	name := mdns.Fqdn(q.name)
	for range maxChain + 1 {
		next := ""
		for _, rr := range all {
			h := rr.Header()
			if h.Class != mdns.ClassINET || lower(h.Name) != name {
				if !isAncestorAlias(rr, name) {
					continue
				}
			}
			alias, wanted := judge(rr, q, next)
			if !wanted {
				continue
			}
			kept = append(kept, rr)
			if alias != "" {
				next = lower(alias)
			}
		}
		if next == "" {
			return kept, name, nil
		}
		name = next
	}
	return nil, "", errChain
}

// judge says whether a record at the chain's current name is part of the answer, and what it
// is an alias of. Of several aliases the first counts: more than one is malformed.
func judge(rr mdns.RR, q inquiry, next string) (alias string, wanted bool) {
	h := rr.Header()
	all := q.qtype == mdns.TypeANY
	switch rr := rr.(type) {
	case *mdns.CNAME:
		if all || q.qtype == mdns.TypeCNAME {
			return "", true
		}
		return rr.Target, next == ""
	case *mdns.DNAME:
		return "", true
	case *mdns.RRSIG:
		return "", all || q.do || q.qtype == mdns.TypeRRSIG
	}
	return "", all || h.Rrtype == q.qtype
}

// isAncestorAlias reports whether rr is a DNAME (or its signature) above name.
func isAncestorAlias(rr mdns.RR, name string) bool {
	h := rr.Header()
	if h.Class != mdns.ClassINET {
		return false
	}
	switch rr := rr.(type) {
	case *mdns.DNAME:
	case *mdns.RRSIG:
		if rr.TypeCovered != mdns.TypeDNAME {
			return false
		}
	default:
		return false
	}
	return mdns.IsSubDomain(lower(h.Name), name)
}

// hollow reports a record without the data it must have, which the library's parser accepts.
func hollow(rr mdns.RR) bool {
	switch rr := rr.(type) {
	case *mdns.A:
		return len(rr.A) == 0
	case *mdns.AAAA:
		return len(rr.AAAA) == 0
	case *mdns.CNAME:
		return rr.Target == ""
	case *mdns.DNAME:
		return rr.Target == ""
	}
	return false
}

// proof keeps the SOA of a zone that contains the name, and with DO the records that prove
// that something does not exist. None of them carries an address.
func proof(all []mdns.RR, name string, do bool) (kept []mdns.RR) {
	soa := false
	for _, rr := range all {
		h := rr.Header()
		if h.Class != mdns.ClassINET {
			continue
		}
		switch rr := rr.(type) {
		case *mdns.SOA:
			if !soa && mdns.IsSubDomain(lower(h.Name), name) && h.Rdlength > 0 {
				kept, soa = append(kept, rr), true
			}
		case *mdns.NSEC, *mdns.NSEC3:
			if do && h.Rdlength > 0 {
				kept = append(kept, rr)
			}
		case *mdns.RRSIG:
			covers := rr.TypeCovered == mdns.TypeSOA || rr.TypeCovered == mdns.TypeNSEC || rr.TypeCovered == mdns.TypeNSEC3
			if do && covers && h.Rdlength > 0 {
				kept = append(kept, rr)
			}
		}
	}
	return kept
}

// lifetime says how long the answer may be kept: the smallest TTL of the chain within the
// limits; a negative one as RFC 2308 says, not at all without an SOA; an error briefly.
func lifetime(rcode int, records, authority []mdns.RR, q inquiry) time.Duration {
	if rcode != mdns.RcodeSuccess && rcode != mdns.RcodeNameError {
		return errorTTL
	}
	least := maxTTL
	positive := false
	for _, rr := range records {
		h := rr.Header()
		least = min(least, time.Duration(h.Ttl)*time.Second)
		positive = positive || h.Rrtype == q.qtype || q.qtype == mdns.TypeANY
	}
	if positive {
		return max(least, minTTL)
	}
	for _, rr := range authority {
		if soa, ok := rr.(*mdns.SOA); ok {
			negative := time.Duration(min(soa.Hdr.Ttl, soa.Minttl)) * time.Second
			return min(negative, least, maxNegative)
		}
	}
	return 0
}

// blocks reports whether m is how a resolver with that form says that it blocks the name.
func blocks(form BlockForm, m *mdns.Msg) bool {
	if m == nil {
		return false
	}
	switch form {
	case BlockRefused:
		return m.Rcode == mdns.RcodeRefused
	case BlockEmpty:
		exists := m.Rcode == mdns.RcodeSuccess || m.Rcode == mdns.RcodeNameError
		return exists && len(m.Answer) == 0 && len(m.Ns) == 0
	case BlockZeroIP:
		return m.Rcode == mdns.RcodeSuccess && onlyZero(m.Answer)
	}
	return false
}

// onlyZero reports addresses of which none leads anywhere.
func onlyZero(records []mdns.RR) (zero bool) {
	for _, rr := range records {
		ip := net.IP(nil)
		switch rr := rr.(type) {
		case *mdns.A:
			ip = rr.A
		case *mdns.AAAA:
			ip = rr.AAAA
		default:
			continue
		}
		if !ip.IsUnspecified() {
			return false
		}
		zero = true
	}
	return zero
}
