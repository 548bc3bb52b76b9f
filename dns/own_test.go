package dns

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	mdns "github.com/miekg/dns"

	"gatun/network"
)

// TestAddresses: the program's own names take the way of the settings, and leave no trace.
func TestAddresses(t *testing.T) {
	up := newUpstream(t, func(q *mdns.Msg, _ []byte, _ netip.AddrPort, send func([]byte)) {
		switch name := q.Question[0].Name; {
		case lower(name) == "none.example.":
			send(packed(t, respond(t, q, mdns.RcodeNameError)))
		case q.Question[0].Qtype == mdns.TypeA:
			send(packed(t, respond(t, q, mdns.RcodeSuccess, "lists.example. 60 IN A 198.51.100.1")))
		default:
			send(packed(t, respond(t, q, mdns.RcodeSuccess, "lists.example. 60 IN AAAA 2001:db8::1")))
		}
	}, nil)
	r := newRig(t, nil, up.resolver())
	r.firewall.before = func(q *Query) network.Decision {
		t.Errorf("the firewall is asked about %s", q.Name)
		return accepted
	}
	got, err := r.Server.Addresses(context.Background(), "Lists.example.")
	slices.SortFunc(got, netip.Addr.Compare)
	if err != nil || !slices.Equal(got, []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")}) {
		t.Errorf("got %v %v", got, err)
	}
	if got, err := r.Server.Addresses(context.Background(), "none.example"); err == nil {
		t.Errorf("a name that does not exist has %v", got)
	}
	if n := r.Server.o.Memory.Len(); n != 0 {
		t.Errorf("%d names are remembered", n)
	}
	asked := r.Server.Counters().Exchanges
	if _, err := r.Server.Addresses(context.Background(), "lists.example"); err != nil || r.Server.Counters().Exchanges != asked {
		t.Errorf("not from the cache: %v", err)
	}
}
