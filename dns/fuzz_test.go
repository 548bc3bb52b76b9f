package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"gatun/attribution"
	"gatun/network"
)

// FuzzMessage: whatever a program sends to port 53, the server does not panic, answers nothing
// but whole messages with the same ID, and never more than the client takes. The oracle is the
// parser of the library.
func FuzzMessage(f *testing.F) {
	for _, qtype := range []uint16{mdns.TypeA, mdns.TypeHTTPS, mdns.TypeANY, mdns.TypeAXFR} {
		m := ask("www.localhost", qtype)
		b, _ := m.Pack()
		f.Add(b)
		b, _ = m.SetEdns0(4096, true).Pack()
		f.Add(b)
		b, _ = withCookie(ask("x.invalid", qtype), "client-1").Pack()
		f.Add(b)
	}
	f.Add(header(flagRD, 1, 0, 0, 0))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	style := BlockStyle(0)
	firewall := &fakeFirewall{}
	s := New(Options{
		Firewall: firewall, Dialer: failingDialer{context.Canceled}, Memory: NewMemory(MemoryOptions{}), Recorder: network.NewTable(time.Now),
		BlockStyle: func(attribution.Owner, network.Decision) BlockStyle { return style },
	})
	deny := network.Decision{Verdict: network.Block, Reason: "fuzz", Rule: network.RuleRef{Text: "- *"}}
	f.Fuzz(func(t *testing.T, msg []byte) {
		for i := range 5 {
			style = BlockStyle(i % 3)
			firewall.after = nil
			if i > 1 {
				firewall.after = func(*Query, *Answer) network.Decision { return deny }
			}
			checkReply(t, msg, s.ServeUDP(context.Background(), clientFlow, owner("/bin/fuzz", 0), slices.Clone(msg)))
		}
		if s.Counters().Panics != 0 {
			t.Fatal("a panic")
		}
	})
}

// FuzzCacheKey: two queries share an answer if and only if they ask for the same. The oracle is the
// parser of the library.
func FuzzCacheKey(f *testing.F) {
	seed := func(a, b *mdns.Msg) {
		x, _ := a.Pack()
		y, _ := b.Pack()
		f.Add(x, y)
	}
	seed(ask("a.example", mdns.TypeA), ask("A.eXample", mdns.TypeA))
	seed(ask("a.example", mdns.TypeA), ask("a.example", mdns.TypeAAAA))
	seed(ask("a.example", mdns.TypeA).SetEdns0(512, true), ask("a.example", mdns.TypeA).SetEdns0(512, false))
	seed(ask(`a\.b.example`, mdns.TypeA), ask("a.b.example", mdns.TypeA))
	seed(ask(`a\000.example`, mdns.TypeA), ask(`a\\000.example`, mdns.TypeA))
	seed(ask("", mdns.TypeA), ask(".", mdns.TypeA))
	cd := ask("a.example", mdns.TypeA)
	cd.CheckingDisabled = true
	seed(ask("a.example", mdns.TypeA), cd)
	essence := func(m *mdns.Msg) string {
		wire := make([]byte, 256) // names are compared as they are on the wire, ASCII letters lowered
		n, err := mdns.PackDomainName(m.Question[0].Name, wire, 0, nil, false)
		if err != nil {
			return ""
		}
		for i, c := range wire[:n] {
			if 'A' <= c && c <= 'Z' {
				wire[i] += 'a' - 'A'
			}
		}
		do := m.IsEdns0() != nil && m.IsEdns0().Do()
		return fmt.Sprintf("%x %d %v %v", wire[:n], m.Question[0].Qtype, do, m.CheckingDisabled)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		ra, codeA := parseRequest(a)
		rb, codeB := parseRequest(b)
		ma, mb := new(mdns.Msg), new(mdns.Msg)
		if codeA != mdns.RcodeSuccess || codeB != mdns.RcodeSuccess || ma.Unpack(a) != nil || mb.Unpack(b) != nil {
			return
		}
		ea, eb := essence(ma), essence(mb)
		if ea == "" || eb == "" {
			return
		}
		qa, qb := &Query{Name: ra.name, Type: ra.qtype}, &Query{Name: rb.name, Type: rb.qtype}
		if same := qa.key(&ra, 1) == qb.key(&rb, 1); same != (ea == eb) {
			t.Fatalf("%+v and %+v share: %v; want %v", qa.key(&ra, 1), qb.key(&rb, 1), same, ea == eb)
		}
		if qa.key(&ra, 1) == qb.key(&rb, 2) {
			t.Fatal("two scopes share")
		}
	})
}

func checkReply(t *testing.T, msg, reply []byte) {
	if len(msg) < headerLen || msg[2]&0x80 != 0 {
		if reply != nil {
			t.Fatalf("answered %x with %x", msg, reply)
		}
		return
	}
	m := new(mdns.Msg)
	if err := m.Unpack(reply); err != nil {
		t.Fatalf("our reply %x: %v", reply, err)
	}
	if m.Id != binary.BigEndian.Uint16(msg) || !m.Response || m.AuthenticatedData || len(reply) > maxUDP || !wholeRecordsOf(reply) {
		t.Fatalf("reply %v", m)
	}
	if m.Rcode == mdns.RcodeFormatError || len(m.Question) == 0 {
		return
	}
	q := new(mdns.Msg)
	if err := q.Unpack(msg); err == nil && (len(q.Question) != 1 || q.Question[0] != m.Question[0]) {
		t.Fatalf("question %v answered as %v", q.Question, m.Question)
	}
	if !bytes.Equal(reply[headerLen:headerLen+4], msg[headerLen:headerLen+4]) {
		t.Fatal("the question is not the client's own")
	}
}

func wholeRecordsOf(reply []byte) bool {
	if binary.BigEndian.Uint16(reply[4:]) == 0 {
		return len(reply) >= headerLen
	}
	end, ok := plainNameEnd(reply, headerLen)
	return ok && wholeRecords(reply, end+4)
}

// FuzzUpstreamReply: whatever an upstream sends, only records of the asked name's chain come
// out, in a message of which every part is whole.
func FuzzUpstreamReply(f *testing.F) {
	const id = 0x1234
	q := inquiry{name: "v.example", qtype: mdns.TypeA, do: true}
	seed := func(records ...string) {
		m := ask("v.example", mdns.TypeA)
		m.Id, m.Response, m.Compress = id, true, true
		for _, s := range records {
			rr, err := mdns.NewRR(s)
			if err != nil {
				f.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		m.Ns = append(m.Ns, &mdns.SOA{Hdr: mdns.RR_Header{Name: "example.", Rrtype: mdns.TypeSOA, Class: 1, Ttl: 60}, Ns: "a.", Mbox: "b.", Minttl: 60})
		b, err := m.SetEdns0(1232, true).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint16(mdns.TypeA))
		f.Add(b, uint16(mdns.TypeANY))
	}
	seed("v.example. 60 IN A 198.51.100.1")
	seed("v.example. 60 IN CNAME c.example.", "c.example. 60 IN A 198.51.100.1", "x.example. 60 IN A 203.0.113.1")
	seed("v.example. 60 IN CNAME v.example.")
	seed("example. 60 IN DNAME other.", "v.example. 60 IN CNAME v.other.", "v.other. 60 IN A 198.51.100.1")
	seed(`v.example. 60 IN HTTPS 1 . alpn="h2" ipv4hint="192.0.2.1" ipv6hint="2001:db8::1"`)
	seed("v.example. 60 IN RRSIG A 8 2 60 20300101000000 20200101000000 1 example. AAAA")
	f.Fuzz(func(t *testing.T, b []byte, qtype uint16) {
		q.qtype = qtype
		if len(b) > headerLen {
			b[0], b[1] = id>>8, id&0xff
		}
		m, err := parseReply(b, id, q)
		if err != nil || m.Truncated {
			return
		}
		grow(m, "30")
		for form := range BlockForm(len(blockForms)) {
			if blocks(form, m) && form == BlockDisabled {
				t.Fatal("blocked where that is never said")
			}
		}
		a, err := clean(m, q)
		if err != nil {
			return
		}
		checkChain(t, a, q)
		checkPacked(t, a, q)
		if filtered, err := a.without(q.name, q.qtype, a.addrs); err != nil || len(filtered.addrs) != 0 {
			t.Fatalf("%v: addresses left: %v", err, filtered)
		} else {
			checkPacked(t, filtered, q)
		}
	})
}

func checkChain(t *testing.T, a *answer, q inquiry) {
	allowed := map[string]bool{q.name: true}
	for _, c := range a.cnames {
		allowed[c] = true
	}
	for _, rr := range a.records {
		name := bareName(rr.Header().Name)
		_, isDNAME := rr.(*mdns.DNAME)
		_, isSig := rr.(*mdns.RRSIG)
		if !allowed[name] && !isDNAME && !isSig || rr.Header().Class != mdns.ClassINET {
			t.Fatalf("a foreign record came out: %v (chain %v)", rr, allowed)
		}
	}
	for _, addr := range a.addrs {
		if !addr.IsValid() || addr.Is4In6() {
			t.Fatalf("address %v", addr)
		}
	}
	if a.lifetime < 0 || a.lifetime > maxTTL {
		t.Fatalf("lifetime %v", a.lifetime)
	}
}

func checkPacked(t *testing.T, a *answer, q inquiry) {
	wire, err := q.pack(7, withEDNS)
	if err != nil {
		t.Skip("the name cannot be asked")
	}
	r, rcode := parseRequest(wire)
	if rcode != mdns.RcodeSuccess {
		return
	}
	for _, limit := range []int{minUDP, maxUDP, maxTCP} {
		b := r.pack(reply{answer: a, ttl: 77 * time.Second}, limit)
		m := new(mdns.Msg)
		if err := m.Unpack(b); err != nil || len(b) > limit || !wholeRecordsOf(b) {
			t.Fatalf("limit %d: %d bytes, %v", limit, len(b), err)
		}
		if !m.Truncated && (len(m.Answer) != a.an || len(m.Ns) != a.ns) {
			t.Fatalf("%d+%d records, want %d+%d", len(m.Answer), len(m.Ns), a.an, a.ns)
		}
		for _, rr := range append(m.Answer, m.Ns...) {
			if rr.Header().Ttl != 77 {
				t.Fatalf("TTL of %v", rr)
			}
		}
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 127.0.0.53\nsearch x\n"))
	f.Add([]byte("search corp.example. .. LAN lan\ndomain home.arpa\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		servers, search := parseResolvConf(b)
		if len(search) > maxSearchDomains {
			t.Fatalf("%d search domains", len(search))
		}
		for _, d := range search {
			if d == "" || d != strings.ToLower(d) || strings.Trim(d, ".") != d || strings.ContainsAny(d, " \t\n") {
				t.Fatalf("search domain %q", d)
			}
		}
		for _, r := range (SystemOptions{}).usable(servers) {
			if a := r.Addr.Addr(); a.IsLoopback() || a.IsUnspecified() || a.Is4In6() || r.Addr == (netip.AddrPort{}) {
				t.Fatalf("%v", r)
			}
		}
	})
}
