package dns

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/net/idna"

	"gatun/attribution"
	"gatun/network"
)

// Result is what a program would be answered.
type Result struct {
	Name, Type string
	Rcode      string   // "" is silence
	Records    []string // of the answer, in presentation form
	TTL        time.Duration
	Cached     bool
	Stale      bool   // it has expired, and is served until there is a fresh one
	Resolver   string // who answered; "" where nobody was asked
	Duration   time.Duration
	Decision   network.Decision
	EDE        string // the Extended DNS Error, "" if none
}

// Query answers as if the owner's program had asked, decisions and all, but the query is not
// listed, and the program's names do not change. The type is a name such as AAAA, TYPE65 or a
// number; "" is A.
func (s *Server) Query(ctx context.Context, owner attribution.Owner, name, qtype string) (Result, error) {
	req, err := question(name, qtype)
	if err != nil {
		return Result{}, err
	}
	q := &Query{Owner: owner, Name: req.name, Type: req.qtype, Link: &network.Link{Kind: network.KindDNS}, Dry: true}
	s.describe(q)
	start := s.o.Clock()
	e := s.handle(ctx, q, req)
	r := Result{
		Name: req.name, Type: typeName(req.qtype), Cached: e.found.cached, Stale: e.found.stale,
		Duration: s.o.Clock().Sub(start), Decision: e.decision, Records: []string{},
	}
	if e.found.answer != nil {
		r.Resolver = e.found.answer.from
	}
	if a := e.reply.answer; a != nil {
		r.Rcode, r.Records, r.TTL = rcodeName(a.rcode), a.texts(e.reply.ttl), e.reply.ttl
	}
	if ede := e.reply.ede; ede != nil {
		r.EDE = fmt.Sprintf("%d (%s)", ede.InfoCode, mdns.ExtendedErrorCodeToString[ede.InfoCode])
		if ede.ExtraText != "" {
			r.EDE += ": " + ede.ExtraText
		}
	}
	return r, context.Cause(ctx)
}

// question reads what a person asks for.
func question(name, qtype string) (*request, error) {
	wire, err := idna.Lookup.ToASCII(name)
	if err != nil { // names with an underscore and the like are good names in the DNS
		wire = name
	}
	if _, ok := mdns.IsDomainName(wire); !ok || !ascii(wire) {
		return nil, fmt.Errorf("%q is not a domain name", name)
	}
	r := &request{name: bareName(wire), flags: flagRD, qtype: mdns.TypeA, class: mdns.ClassINET, edns: true, size: maxTCP}
	if qtype != "" {
		known, ok := mdns.StringToType[strings.ToUpper(qtype)]
		if n, err := strconv.ParseUint(strings.TrimPrefix(strings.ToUpper(qtype), "TYPE"), 10, 16); err == nil && !ok {
			known, ok = uint16(n), true
		}
		if r.qtype = known; !ok {
			return nil, fmt.Errorf("%q is not a type of DNS records; examples: A, AAAA, HTTPS, MX, TXT", qtype)
		}
	}
	if r.check() != mdns.RcodeSuccess {
		return nil, fmt.Errorf("type %s cannot be asked for", typeName(r.qtype))
	}
	return r, nil
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
