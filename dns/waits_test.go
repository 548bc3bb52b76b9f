package dns

import (
	"sync/atomic"
	"testing"

	mdns "github.com/miekg/dns"

	"gatun/network"
)

// Who serves queries one by one hears of the wait before the query is sent, and nothing where the
// answer is there.
func TestWaitsBeforeItWaits(t *testing.T) {
	waited := int64(0)
	var asked atomic.Int64
	up := answering(t, func(q *mdns.Msg) *mdns.Msg {
		asked.Add(1)
		return respond(t, q, mdns.RcodeSuccess, q.Question[0].Name+" 60 IN A 198.51.100.1")
	})
	r := newRig(t, nil, up.resolver())
	ctx := Waits(t.Context(), func() {
		if asked.Load() != waited {
			t.Error("the wait is told when it is over")
		}
		waited++
	})
	serve := func(name string) {
		t.Helper()
		if r.ServeUDP(ctx, clientFlow, owner("/usr/bin/a", 1000), packed(t, ask(name, mdns.TypeA))) == nil {
			t.Fatal("no answer")
		}
	}
	serve("a.example")
	serve("a.example")
	serve("b.example")
	if waited != 2 || asked.Load() != 2 {
		t.Errorf("%d waits for %d inquiries, want 2", waited, asked.Load())
	}
	r.firewall.before = func(*Query) network.Decision { return network.Decision{Verdict: network.Block, Code: "rule"} }
	serve("c.example")
	if waited != 2 {
		t.Error("a denial waits for nobody")
	}
	if r.ServeUDP(t.Context(), clientFlow, owner("/usr/bin/a", 1000), packed(t, ask("d.example", mdns.TypeA))) == nil {
		t.Error("no answer without a listener")
	}
}
