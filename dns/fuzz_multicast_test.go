package dns

import (
	"slices"
	"testing"

	mdns "github.com/miekg/dns"
)

// FuzzMulticast: whatever a neighbour says, only records of the asked name come out, and no
// address that leads to this machine.
func FuzzMulticast(f *testing.F) {
	const id = 0x1234
	for _, records := range [][]string{
		{"v.local. 10 IN A 10.0.0.1", "v.local. 10 IN A 127.0.0.1"}, {"v.local. 10 IN AAAA fe80::1", "v.local. 10 IN AAAA fd00::1"},
		{"v.local. 10 IN CNAME x.local.", "x.local. 10 IN A 10.0.0.1"}, {"v.local. 10 IN NSEC v.local. A"}, {"v.local. 10 IN PTR a.local."},
	} {
		m := &mdns.Msg{MsgHdr: mdns.MsgHdr{Id: id, Response: true}}
		for _, text := range records {
			rr, err := mdns.NewRR(text)
			if err != nil {
				f.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		for _, qtype := range []uint16{mdns.TypeA, mdns.TypeAAAA, mdns.TypePTR, mdns.TypeANY} {
			f.Add(b, qtype)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, qtype uint16) {
		q := inquiry{name: "v.local", qtype: qtype}
		if len(b) > headerLen {
			b[0], b[1] = id>>8, id&0xff
		}
		h := q.hear(b, id)
		if (h.kind == heardAnswer) != (h.answer != nil) {
			t.Fatalf("kind %d with answer %v", h.kind, h.answer)
		}
		if h.answer == nil {
			return
		}
		checkChain(t, h.answer, q)
		checkPacked(t, h.answer, q)
		if slices.ContainsFunc(h.answer.addrs, useless) {
			t.Fatalf("addresses %v", h.answer.addrs)
		}
		if h.answer.lifetime < errorTTL || h.answer.lifetime > maxMulticastTTL {
			t.Fatalf("lifetime %v", h.answer.lifetime)
		}
	})
}
