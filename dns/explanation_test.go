package dns

import (
	"strings"
	"testing"

	mdns "github.com/miekg/dns"
)

// TestExplanation: what the upstream says of a failure reaches the program that speaks EDNS, from
// the cache too, in one line of limited length; others get none.
func TestExplanation(t *testing.T) {
	said := "the signature\nis wrong \xff " + strings.Repeat("x", 1000)
	up := answering(t, func(q *mdns.Msg) *mdns.Msg {
		m := respond(t, q, mdns.RcodeServerFailure)
		m.SetEdns0(1232, false)
		m.IsEdns0().Option = []mdns.EDNS0{
			&mdns.EDNS0_EDE{InfoCode: mdns.ExtendedErrorCodeDNSBogus, ExtraText: said},
			&mdns.EDNS0_EDE{InfoCode: mdns.ExtendedErrorCodeOther, ExtraText: "a second one"},
		}
		return m
	})
	r := newRig(t, nil, up.resolver())
	for range 2 {
		m := ask("bogus.example", mdns.TypeA)
		m.SetEdns0(1232, false)
		reply := r.query(t, m)
		code, text := ede(reply)
		if reply.Rcode != mdns.RcodeServerFailure || code != mdns.ExtendedErrorCodeDNSBogus || len(text) > maxReason ||
			!strings.HasPrefix(text, "the signature; is wrong ? xxx") {
			t.Fatalf("%v: %d %q", reply, code, text)
		}
	}
	if n := up.queries.Load(); n != 1 {
		t.Errorf("%d queries upstream", n)
	}
	if plain := r.query(t, ask("bogus.example", mdns.TypeA)); plain.IsEdns0() != nil {
		t.Errorf("an OPT for who sent none: %v", plain)
	}
}
