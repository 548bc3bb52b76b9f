package interception

import (
	"net/netip"
	"testing"
	"time"

	"gatun/network"
	"gatun/network/packet"
)

// TestLateSYN: a SYN that was held until the kernel sent it again leaves its refusal behind for the
// second one; one that was refused at once leaves nothing.
func TestLateSYN(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	g := &Gate{Table: network.NewTable(clock), Clock: clock}
	refused := network.Decision{Verdict: network.Block, Code: "prompt-timeout", Reason: "nobody answered"}
	deny := func(port uint16, held time.Duration) packet.Flow {
		f := packet.Flow{Proto: packet.TCP, Local: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), port), Remote: netip.MustParseAddrPort("198.51.100.1:7")}
		l, _ := g.Table.Link(f)
		now = now.Add(held)
		g.Table.Decide(l, refused)
		g.end(l, refused)
		return f
	}
	if f := deny(1000, 800*time.Millisecond); g.Table.Find(f) != nil {
		t.Error("a SYN that was refused at once is remembered")
	}
	f := deny(1001, time.Second)
	if l := g.Table.Find(f); l == nil || l.Decision().Verdict != network.Block {
		t.Fatal("the second SYN of a flow that was held for a second is decided anew")
	}
	now = now.Add(lateSYN + time.Millisecond)
	g.sweep()
	if g.Table.Find(f) != nil {
		t.Error("the refusal is remembered for longer than a SYN is on its way")
	}
}
