package handback

import (
	"net/netip"
	"runtime"
	"testing"

	"gatun/network/packet"
)

// After a flood the memory of its flows is given back, and what is left of them is known as before.
func TestCompact(t *testing.T) {
	const flood, left = 50_000, 10
	table := &Table{flows: map[packet.Flow]entry{}, ports: map[port][]packet.Flow{}}
	flow := func(i int) packet.Flow {
		return packet.Flow{Proto: packet.UDP, Local: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 16), 2}), uint16(i)), Remote: netip.MustParseAddrPort("192.0.2.1:53")}
	}
	for i := range flood {
		f := flow(i)
		table.flows[f] = entry{first: i}
		table.ports[portOf(f)] = append(table.ports[portOf(f)], f)
	}
	for i := left; i < flood; i++ {
		table.take(flow(i))
	}
	before := heap()
	table.Compact()
	if after := heap(); after+5<<20 > before {
		t.Errorf("%d bytes of the heap before, %d after", before, after)
	}
	if len(table.flows) != left || len(table.ports) != left {
		t.Errorf("%d flows of %d ports are left, want %d", len(table.flows), len(table.ports), left)
	}
	for i := range left {
		if f := flow(i); table.flows[f].first != i || len(table.ports[portOf(f)]) != 1 {
			t.Errorf("%s: %+v", f, table.flows[f])
		}
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
