package dns

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	mdns "github.com/miekg/dns"

	"gatun/network"
)

// Limits of the lifetime of an answer (dns.md, Cache).
const (
	minTTL      = time.Minute
	maxTTL      = 24 * time.Hour
	maxNegative = 3 * time.Hour // RFC 2308, section 5
	errorTTL    = 10 * time.Second
)

// answer is what is known about one question: immutable, shared by the cache and by all
// programs that ask. body is the packed answer and authority section, compressed as if it
// followed a 12 byte header and the question, which has the same length however it is spelled.
type answer struct {
	rcode     int
	records   []mdns.RR
	authority []mdns.RR
	addrs     []netip.Addr
	cnames    []string
	lifetime  time.Duration   // 0: not to be cached
	note      string          // why it failed, for people
	ede       *mdns.EDNS0_EDE // what the upstream said of it
	from      string          // who answered, for people
	blockedBy string          // the resolver that says it blocks the name
	told      *network.Answered

	body   []byte
	an, ns int
	ttlAt  []int // offsets of the TTLs in body

	expires time.Time // set by the cache
}

var errUnpackable = errors.New("the answer cannot be packed")

// newAnswer packs an answer to the question.
func newAnswer(name string, qtype uint16, rcode int, records, authority []mdns.RR, lifetime time.Duration) (*answer, error) {
	a := &answer{rcode: rcode, records: records, authority: authority, lifetime: lifetime, an: len(records), ns: len(authority)}
	if err := a.pack(name, qtype); err != nil {
		return nil, err
	}
	a.collect()
	return a, nil
}

func (a *answer) pack(name string, qtype uint16) error {
	if a.an+a.ns == 0 {
		return nil
	}
	m := mdns.Msg{
		Question: []mdns.Question{{Name: mdns.Fqdn(name), Qtype: qtype, Qclass: mdns.ClassINET}},
		Answer:   a.records, Ns: a.authority, Compress: true,
	}
	wire, err := m.Pack()
	if err != nil {
		return errors.Join(errUnpackable, err)
	}
	end, ok := plainNameEnd(wire, headerLen)
	if !ok {
		return errUnpackable
	}
	end += 4
	for off := end; off < len(wire); {
		n, ok := nameEnd(wire, off)
		if !ok || n+10 > len(wire) {
			return errUnpackable
		}
		a.ttlAt = append(a.ttlAt, n+4-end)
		off = n + 10 + int(binary.BigEndian.Uint16(wire[n+8:]))
	}
	a.body = slices.Clone(wire[end:])
	return nil
}

// collect gathers what the firewall and the memory need.
func (a *answer) collect() {
	for _, rr := range a.records {
		switch rr := rr.(type) {
		case *mdns.CNAME:
			a.cnames = append(a.cnames, bareName(rr.Target))
		case *mdns.A:
			a.addAddr(rr.A)
		case *mdns.AAAA:
			a.addAddr(rr.AAAA)
		case *mdns.HTTPS:
			a.addHints(&rr.SVCB)
		case *mdns.SVCB:
			a.addHints(rr)
		}
	}
}

func (a *answer) addHints(rr *mdns.SVCB) {
	for _, v := range rr.Value {
		for _, ip := range hints(v) {
			a.addAddr(ip)
		}
	}
}

func (a *answer) addAddr(ip net.IP) {
	if addr, ok := netip.AddrFromSlice(ip); ok && !slices.Contains(a.addrs, addr.Unmap()) {
		a.addrs = append(a.addrs, addr.Unmap())
	}
}

func hints(v mdns.SVCBKeyValue) []net.IP {
	switch v := v.(type) {
	case *mdns.SVCBIPv4Hint:
		return v.Hint
	case *mdns.SVCBIPv6Hint:
		return v.Hint
	}
	return nil
}

// without returns the answer with those addresses removed, in hints too. Signatures over a
// changed set would be false, so they go as well.
func (a *answer) without(name string, qtype uint16, remove []netip.Addr) (*answer, error) {
	gone := func(ip net.IP) bool {
		addr, ok := netip.AddrFromSlice(ip)
		return ok && slices.Contains(remove, addr.Unmap())
	}
	var kept []mdns.RR
	for _, rr := range a.records {
		switch rr := rr.(type) {
		case *mdns.A:
			if gone(rr.A) {
				continue
			}
		case *mdns.AAAA:
			if gone(rr.AAAA) {
				continue
			}
		case *mdns.HTTPS:
			if c, whole := withoutHints(&rr.SVCB, gone); whole {
				kept = append(kept, &mdns.HTTPS{SVCB: c})
			}
			continue
		case *mdns.SVCB:
			if c, whole := withoutHints(rr, gone); whole {
				kept = append(kept, &c)
			}
			continue
		case *mdns.RRSIG:
			continue
		}
		kept = append(kept, rr)
	}
	return newAnswer(name, qtype, a.rcode, kept, a.authority, a.lifetime)
}

// withoutHints copies the record without the hints that are gone; a hint list that becomes
// empty is left out, because an empty one is malformed (RFC 9460, 7.3). The record is not whole
// if its list of mandatory parameters names one that was left out: then nobody may use it.
func withoutHints(rr *mdns.SVCB, gone func(net.IP) bool) (c mdns.SVCB, whole bool) {
	c = *rr
	c.Value = nil
	var lost []mdns.SVCBKey
	for _, v := range rr.Value {
		left := slices.DeleteFunc(slices.Clone(hints(v)), gone)
		switch v.(type) {
		case *mdns.SVCBIPv4Hint:
			v = &mdns.SVCBIPv4Hint{Hint: left}
		case *mdns.SVCBIPv6Hint:
			v = &mdns.SVCBIPv6Hint{Hint: left}
		default:
			c.Value = append(c.Value, v)
			continue
		}
		if len(left) == 0 {
			lost = append(lost, v.Key())
			continue
		}
		c.Value = append(c.Value, v)
	}
	for _, v := range c.Value {
		if m, ok := v.(*mdns.SVCBMandatory); ok && slices.ContainsFunc(m.Code, func(k mdns.SVCBKey) bool { return slices.Contains(lost, k) }) {
			return c, false
		}
	}
	return c, true
}

// failed reports that the upstream could not say whether the name exists.
func (a *answer) failed() bool {
	return a.rcode != mdns.RcodeSuccess && a.rcode != mdns.RcodeNameError
}

// positive reports records that answer the question.
func (a *answer) positive() bool { return a.rcode == mdns.RcodeSuccess && a.an > 0 }

// answeredBy notes who answered, and to which question.
func (a *answer) answeredBy(from string, qtype uint16) {
	a.from = from
	a.told = &network.Answered{Type: typeName(qtype), Resolver: from, Rcode: rcodeName(a.rcode)}
}

// texts renders the records with that TTL.
func (a *answer) texts(ttl time.Duration) []string {
	list := make([]string, 0, len(a.records))
	for _, rr := range a.records {
		rr = mdns.Copy(rr)
		rr.Header().Ttl = uint32(ttl / time.Second)
		list = append(list, strings.ReplaceAll(rr.String(), "\t", " "))
	}
	return list
}

// weight estimates the bytes the answer occupies: packed, parsed, and the entry itself.
func (a *answer) weight() int { return 512 + 2*len(a.body) + 160*(a.an+a.ns) }
