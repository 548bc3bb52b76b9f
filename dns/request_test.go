package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"

	"gatun/network"
)

// header builds a message header with those counts.
func header(flags, qd, an, ns, ar uint16) []byte {
	b := make([]byte, headerLen)
	for i, v := range []uint16{0xbeef, flags, qd, an, ns, ar} {
		binary.BigEndian.PutUint16(b[2*i:], v)
	}
	return b
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// TestOddQueries: what is not an ordinary query gets the right error, and never reaches an
// upstream.
func TestOddQueries(t *testing.T) {
	var (
		question = []byte("\x01a\x07example\x00\x00\x01\x00\x01")
		opt      = []byte("\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00")
		qtype    = func(v uint16) []byte {
			return join([]byte("\x01a\x07example\x00"), binary.BigEndian.AppendUint16(nil, v), []byte{0, 1})
		}
		rr   = []byte("\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04\x01\x02\x03\x04")
		long = append(bytes.Repeat([]byte("\x3f"+string(bytes.Repeat([]byte{'a'}, 63))), 4), 0, 0, 1, 0, 1)
	)
	const silence = -1
	for _, c := range []struct {
		name  string
		msg   []byte
		rcode int
	}{
		{"empty", nil, silence},
		{"11 bytes", header(0, 1, 0, 0, 0)[:11], silence},
		{"a reply", join(header(flagQR, 1, 0, 0, 0), question), silence},
		{"header alone", header(flagRD, 0, 0, 0, 0), mdns.RcodeFormatError},
		{"question missing", header(flagRD, 1, 0, 0, 0), mdns.RcodeFormatError},
		{"two questions", join(header(flagRD, 2, 0, 0, 0), question, question), mdns.RcodeFormatError},
		{"question cut", join(header(flagRD, 1, 0, 0, 0), question[:9]), mdns.RcodeFormatError},
		{"compressed question", join(header(flagRD, 1, 0, 0, 0), []byte("\xc0\x0c\x00\x01\x00\x01")), mdns.RcodeFormatError},
		{"extended label", join(header(flagRD, 1, 0, 0, 0), []byte("\x41a\x00\x00\x01\x00\x01")), mdns.RcodeFormatError},
		{"name of 257 bytes", join(header(flagRD, 1, 0, 0, 0), long), mdns.RcodeFormatError},
		{"trailing bytes", join(header(flagRD, 1, 0, 0, 0), question, []byte{0}), mdns.RcodeFormatError},
		{"answer in a query", join(header(flagRD, 1, 1, 0, 0), question, rr), mdns.RcodeFormatError},
		{"authority in a query", join(header(flagRD, 1, 0, 1, 0), question, rr), mdns.RcodeFormatError},
		{"two OPT", join(header(flagRD, 1, 0, 0, 2), question, opt, opt), mdns.RcodeFormatError},
		{"OPT with a name", join(header(flagRD, 1, 0, 0, 1), question, []byte("\x01x"), opt), mdns.RcodeFormatError},
		{"OPT cut", join(header(flagRD, 1, 0, 0, 1), question, opt[:8]), mdns.RcodeFormatError},
		{"broken option", join(header(flagRD, 1, 0, 0, 1), question, opt[:10], []byte("\x03\x00\x0a\x00")), mdns.RcodeFormatError},
		{"option too long", join(header(flagRD, 1, 0, 0, 1), question, opt[:10], []byte("\x04\x00\x0a\x00\x09")), mdns.RcodeFormatError},
		{"EDNS version 1", join(header(flagRD, 1, 0, 0, 1), question, []byte("\x00\x00\x29\x04\xd0\x00\x01\x00\x00\x00\x00")), mdns.RcodeBadVers},
		{"TSIG", join(header(flagRD, 1, 0, 0, 1), question, []byte("\x00\x00\xfa\x00\xff\x00\x00\x00\x00\x00\x00")), mdns.RcodeRefused},
		{"IQUERY", join(header(1<<opcodeShift, 1, 0, 0, 0), question), mdns.RcodeNotImplemented},
		{"STATUS", join(header(2<<opcodeShift, 0, 0, 0, 0)), mdns.RcodeNotImplemented},
		{"NOTIFY", join(header(4<<opcodeShift, 1, 0, 0, 0), question), mdns.RcodeNotImplemented},
		{"UPDATE", join(header(5<<opcodeShift, 1, 0, 0, 0), question), mdns.RcodeNotImplemented},
		{"CHAOS", join(header(flagRD, 1, 0, 0, 0), []byte("\x07version\x04bind\x00\x00\x10\x00\x03")), mdns.RcodeRefused},
		{"class ANY", join(header(flagRD, 1, 0, 0, 0), []byte("\x01a\x00\x00\x01\x00\xff")), mdns.RcodeRefused},
		{"AXFR", join(header(flagRD, 1, 0, 0, 0), qtype(mdns.TypeAXFR)), mdns.RcodeRefused},
		{"IXFR", join(header(flagRD, 1, 0, 1, 0), qtype(mdns.TypeIXFR), rr), mdns.RcodeRefused},
		{"type OPT", join(header(flagRD, 1, 0, 0, 0), qtype(mdns.TypeOPT)), mdns.RcodeFormatError},
		{"type TKEY", join(header(flagRD, 1, 0, 0, 0), qtype(mdns.TypeTKEY)), mdns.RcodeFormatError},
		{"type MAILA", join(header(flagRD, 1, 0, 0, 0), qtype(mdns.TypeMAILA)), mdns.RcodeFormatError},
		{"type 0", join(header(flagRD, 1, 0, 0, 0), qtype(0)), mdns.RcodeFormatError},
		{"ordinary", join(header(flagRD, 1, 0, 0, 0), question), mdns.RcodeSuccess},
		{"not recursive", join(header(0, 1, 0, 0, 0), question), mdns.RcodeSuccess},
		{"with an additional record", join(header(flagRD, 1, 0, 0, 2), question, rr, opt), mdns.RcodeSuccess},
		{"with a cookie", join(header(flagRD, 1, 0, 0, 1), question, opt[:10], []byte("\x0c\x00\x0a\x00\x08abcdefgh")), mdns.RcodeSuccess},
	} {
		t.Run(c.name, func(t *testing.T) {
			up := simple(t)
			r := newRig(t, nil, up.resolver())
			b := r.ServeUDP(context.Background(), clientFlow, owner("/usr/bin/app", 0), c.msg)
			if c.rcode == silence {
				if b != nil {
					t.Fatalf("want silence, got %x", b)
				}
				return
			}
			m := new(mdns.Msg)
			if err := m.Unpack(b); err != nil {
				t.Fatalf("our reply %x: %v", b, err)
			}
			if m.Id != 0xbeef || !m.Response || m.Rcode != c.rcode || m.Opcode != int(c.msg[2]>>3&15) || m.RecursionDesired != (c.msg[2]&1 == 1) {
				t.Fatalf("got %v", m)
			}
			if asked := up.queries.Load() > 0; asked != (c.rcode == mdns.RcodeSuccess) {
				t.Fatalf("%d upstream queries", up.queries.Load())
			}
		})
	}
}

// TestErrorsRepeatWhatWasRead: an error carries the question where there is a readable one, and an
// OPT where the query had one.
func TestErrorsRepeatWhatWasRead(t *testing.T) {
	question, opt := []byte("\x01a\x07example\x00\x00\x01\x00\x01"), []byte("\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00")
	for name, c := range map[string]struct {
		msg       []byte
		questions int
		opt       bool
	}{
		"STATUS":                  {join(header(2<<opcodeShift, 1, 0, 0, 0), question), 1, false},
		"UPDATE without question": {header(5<<opcodeShift, 0, 0, 0, 0), 0, false},
		"an unreadable question":  {join(header(2<<opcodeShift, 1, 0, 0, 0), question[:5]), 0, false},
		"no question":             {header(flagRD, 0, 0, 0, 0), 0, false},
		"no question, OPT":        {join(header(flagRD, 0, 0, 0, 1), opt), 0, true},
		"two questions":           {join(header(flagRD, 2, 0, 0, 0), question, question), 0, false},
	} {
		r := newRig(t, nil, simple(t).resolver())
		m := new(mdns.Msg)
		if err := m.Unpack(r.ServeUDP(context.Background(), clientFlow, owner("/usr/bin/app", 0), c.msg)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(m.Question) != c.questions || (m.IsEdns0() != nil) != c.opt {
			t.Errorf("%s: %v", name, m)
		}
	}
}

func TestSizes(t *testing.T) {
	big := func(n int) func(q *mdns.Msg) *mdns.Msg {
		return func(q *mdns.Msg) *mdns.Msg {
			m := respond(t, q, mdns.RcodeSuccess)
			m.Compress = true
			for i := range n {
				m.Answer = append(m.Answer, &mdns.A{Hdr: mdns.RR_Header{Name: q.Question[0].Name, Rrtype: mdns.TypeA, Class: 1, Ttl: 60}, A: []byte{198, 51, 100, byte(i)}})
			}
			return m
		}
	}
	for _, c := range []struct {
		name    string
		records int
		edns    uint16 // 0: none
		cut     bool
	}{
		{"29 records fit 512", 29, 0, false}, // 12 + 18 + 29*16 = 494
		{"31 records do not", 31, 0, true},
		{"EDNS below 512 counts as 512", 29, 100, false},
		{"the OPT counts", 30, 512, true}, // 510 + 11
		{"74 records fit 1232", 74, 1232, false},
		{"75 do not", 75, 1232, true},
		{"never above 1232", 75, 4096, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			up := answering(t, big(c.records))
			r := newRig(t, nil, up.resolver())
			m := ask("size.example", mdns.TypeA)
			if c.edns != 0 {
				m.SetEdns0(c.edns, false)
			}
			b := r.ServeUDP(context.Background(), clientFlow, owner("/usr/bin/app", 0), packed(t, m))
			reply := new(mdns.Msg)
			if err := reply.Unpack(b); err != nil {
				t.Fatal(err)
			}
			limit := max(512, min(1232, int(c.edns)))
			if reply.Truncated != c.cut || len(b) > limit || (len(reply.Answer) == c.records) == c.cut {
				t.Fatalf("%d bytes, TC %v, %d records", len(b), reply.Truncated, len(reply.Answer))
			}
			if (reply.IsEdns0() != nil) != (c.edns != 0) {
				t.Fatalf("OPT %v", reply.IsEdns0())
			}
			if o := reply.IsEdns0(); o != nil && (o.UDPSize() != maxUDP || o.Version() != 0) {
				t.Fatalf("OPT %v", o)
			}
			b = r.serve(context.Background(), tcpFlow, owner("/usr/bin/app", 0), packed(t, m))
			if err := reply.Unpack(b); err != nil || reply.Truncated || len(reply.Answer) != c.records {
				t.Fatalf("over TCP: TC %v, %d records, %v", reply.Truncated, len(reply.Answer), err)
			}
		})
	}
}

func TestDNSSECRecordsOnlyOnDemand(t *testing.T) {
	const sig = ` 60 IN RRSIG A 8 2 60 20300101000000 20200101000000 1 example. AAAA`
	up := answering(t, func(q *mdns.Msg) *mdns.Msg {
		m := respond(t, q, mdns.RcodeSuccess, "a.example. 60 IN A 198.51.100.1", "a.example."+sig)
		m.AuthenticatedData = true
		m.Ns = append(m.Ns, record(t, "a.example. 60 IN NSEC b.example. A"), record(t, "example. 60 IN NS ns.example."))
		if (q.IsEdns0() != nil && q.IsEdns0().Do()) != (q.CheckingDisabled) {
			t.Error("this test asks with both or neither")
		}
		return m
	})
	r := newRig(t, nil, up.resolver())
	plain := r.query(t, ask("a.example", mdns.TypeA).SetEdns0(1232, false))
	if len(plain.Answer) != 1 || len(plain.Ns) != 0 || plain.AuthenticatedData || plain.IsEdns0().Do() {
		t.Fatalf("got %v", plain)
	}
	m := ask("a.example", mdns.TypeA).SetEdns0(1232, true)
	m.CheckingDisabled = true
	signed := r.query(t, m)
	if len(signed.Answer) != 2 || len(signed.Ns) != 1 || signed.AuthenticatedData || !signed.IsEdns0().Do() || !signed.CheckingDisabled {
		t.Fatalf("got %v", signed)
	}
	r.firewall.after = func(_ *Query, a *Answer) network.Decision { a.Remove = a.Addrs; return accepted }
	if cut := r.query(t, m); len(cut.Answer) != 0 {
		t.Fatalf("the signature of a removed record is left: %v", cut)
	}
	if up.queries.Load() != 2 {
		t.Fatalf("%d upstream queries: DO and CD are part of the key", up.queries.Load())
	}
}

func TestPassedThrough(t *testing.T) {
	for _, text := range []string{
		`x.example. 60 IN HTTPS 1 . alpn="h3,h2" port="8443" ech="AAAA"`,
		`x.example. 60 IN SVCB 1 t.example. key65000="z"`,
		`x.example. 60 IN MX 10 mail.example.`,
		`x.example. 60 IN TXT "one" "two"`,
		`x.example. 60 IN SRV 1 2 3 t.example.`,
		`x.example. 60 IN CAA 0 issue "ca.example"`,
		`x.example. 60 IN TYPE65400 \# 3 abcdef`,
		`x.example. 60 IN NS ns.example.`,
		`x.example. 60 IN CNAME y.example.`,
		`x.example. 60 IN PTR y.example.`,
		`x.example. 60 IN SOA a.example. b.example. 1 2 3 4 5`,
	} {
		want := record(t, text)
		up := answering(t, func(q *mdns.Msg) *mdns.Msg { return respond(t, q, mdns.RcodeSuccess, text) })
		r := newRig(t, nil, up.resolver())
		for _, qtype := range []uint16{want.Header().Rrtype, mdns.TypeANY} {
			reply := r.query(t, ask("x.example", qtype))
			if len(reply.Answer) != 1 || reply.Answer[0].String() != strings.Replace(want.String(), "IN\tTYPE", "CLASS1\tTYPE", 1) {
				t.Errorf("%s asked as %s: got %v", text, mdns.TypeToString[qtype], reply.Answer)
			}
		}
	}
}

func TestStrangeNames(t *testing.T) {
	for _, name := range []string{".", `a\.b.example.`, `\000\255.example.`, `sp\ ace.example.`, `x\..`, `"q".example.`, `\065BC.example.`} {
		up := answering(t, func(q *mdns.Msg) *mdns.Msg {
			return respond(t, q, mdns.RcodeSuccess, q.Question[0].Name+" 60 IN A 198.51.100.1")
		})
		r := newRig(t, nil, up.resolver())
		m := new(mdns.Msg)
		m.SetQuestion(name, mdns.TypeA)
		for range 2 {
			if reply := r.query(t, m); len(reply.Answer) != 1 || reply.Question[0].Name != reply.Answer[0].Header().Name {
				t.Errorf("%q: got %v", name, reply)
			}
		}
	}
}
