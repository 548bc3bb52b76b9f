package firewall

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"gatun/network"
	"gatun/network/packet"
)

// manyFlows is a table with n live links of one program, each decided.
func manyFlows(m *Master, n int) *network.Table {
	t := network.NewTable(time.Now)
	for i := range n {
		admit(m, t, nthFlow(i))
	}
	return t
}

// nthFlow is a flow that differs from all others in port or address.
func nthFlow(i int) packet.Flow {
	f := flow(packet.TCP, "198.51.100.1:443")
	remote := [4]byte{10, byte(i >> 24), byte(i >> 16), byte(i >> 8)}
	f.Local = netip.AddrPortFrom(f.Local.Addr(), uint16(1024+i%50_000))
	f.Remote = netip.AddrPortFrom(netip.AddrFrom4(remote), uint16(443+i&0xff))
	return f
}

// admit is what happens to a new flow between its first packet and the verdict's effect, but for
// the question whose it is.
func admit(m *Master, t *network.Table, f packet.Flow) *network.Link {
	l, _ := t.Link(f)
	c := t.Bind(l, &network.Communication{Owner: curl(), Entity: network.Entity{Addr: f.Remote.Addr()}})
	t.Decide(l, m.Decide(c, f))
	return l
}

// TestManyFlows: what BenchmarkLive measures is a decision, and the others stay.
func TestManyFlows(t *testing.T) {
	m := New(fixed{})
	table := manyFlows(m, 1000)
	l := admit(m, table, nthFlow(5000))
	if table.LiveCount() != 1001 || l.Decision().Verdict != network.Accept {
		t.Errorf("%d live flows, %v", table.LiveCount(), l.Decision())
	}
	table.End(l, "closed")
	if table.LiveCount() != 1000 {
		t.Errorf("%d live flows", table.LiveCount())
	}
}

// BenchmarkLive is the curve of performance.md: a new flow's decision and end beside n live ones.
func BenchmarkLive(b *testing.B) {
	for _, n := range []int{10, 1000, 20_000, 200_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m := New(fixed{})
			t := manyFlows(m, n)
			i := n
			b.ReportAllocs()
			for b.Loop() {
				i++
				t.End(admit(m, t, nthFlow(n+i%1000)), "closed")
			}
			if t.LiveCount() != n {
				b.Fatalf("%d live flows, want %d", t.LiveCount(), n)
			}
		})
	}
}
