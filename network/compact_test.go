package network

import (
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"testing"
	"time"

	"gatun/attribution"
	"gatun/network/packet"
)

func floodFlow(i int) packet.Flow {
	return packet.Flow{Proto: packet.UDP, Local: netip.MustParseAddrPort("10.0.0.2:1000"),
		Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), uint16(i>>16)+1)}
}

// flood makes n links that each own what the Gate gives them, and returns them.
func flood(t *Table, n int) []*Link {
	p := &attribution.Process{PID: 7, Kind: attribution.KindProgram, Path: "/bin/x"}
	links := make([]*Link, n)
	for i := range links {
		links[i], _ = t.Link(floodFlow(i))
		t.Bind(links[i], &Communication{Owner: attribution.Owner{Process: p}, Entity: Entity{Addr: links[i].Flow.Remote.Addr()}})
		t.Decide(links[i], Decision{Verdict: Accept, Reason: fmt.Sprint("because ", i%2)})
		links[i].Sent(i)
	}
	return links
}

// TestCompact: nobody sees a difference.
func TestCompact(t *testing.T) {
	now := time.Unix(1000, 0)
	table := NewTable(func() time.Time { return now })
	links := flood(table, 6)
	for _, l := range links[:4] {
		table.End(l, "idle")
	}
	live := links[4].Comm()
	shared, _ := table.Link(floodFlow(100))
	table.Bind(shared, &Communication{Owner: live.Owner, Entity: live.Entity})
	table.End(shared, "idle")
	gone, _ := table.Link(floodFlow(200))
	facts := &attribution.Process{PID: 8, Kind: attribution.KindProgram, Path: "/bin/y", Args: []string{"y", "-z"}, Script: "/bin/y"}
	table.Bind(gone, &Communication{Owner: attribution.Owner{Process: facts}, Entity: live.Entity})
	table.End(gone, "idle")
	type seen struct {
		Report Report
		Sent   uint64
		Ended  bool
	}
	look := func() (all []seen) {
		for _, l := range table.All() {
			sent, _ := l.Bytes()
			all = append(all, seen{l.Report(), sent, l.Ended()})
		}
		return all
	}
	before := look()
	table.Compact()
	if after := look(); !reflect.DeepEqual(before, after) {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
	if table.Get(links[0].ID()) == links[0] {
		t.Error("an ended link was not copied")
	}
	if l, known := table.Link(links[5].Flow); !known || l != links[5] {
		t.Error("a live link was copied")
	}
	if c := table.Get(links[0].ID()).Comm(); c == links[0].Comm() || !reflect.DeepEqual(c.Entity, links[0].Comm().Entity) {
		t.Errorf("the Communication of an ended link was not copied: %+v", c)
	}
	if c := table.Get(shared.ID()).Comm(); c != links[4].Comm() {
		t.Error("an ended link has another Communication than the live one that shares it")
	}
	if c := table.Get(shared.ID()).Comm(); c.Owner.Process != live.Owner.Process {
		t.Error("a process with a live link was copied")
	}
	if p := table.Get(gone.ID()).Comm().Owner.Process; p == facts || !reflect.DeepEqual(p, facts) {
		t.Errorf("the facts of an ended process: %+v", p)
	}
	w := table.Watch(0)
	defer w.Close()
	byID := map[string]*Link{}
	for range 12 {
		e := <-w.Events()
		if old := byID[e.Link.ID()]; old != nil && old != e.Link {
			t.Errorf("two links %s in the events", e.Link.ID())
		}
		byID[e.Link.ID()] = e.Link
	}
	for _, l := range links[4:] {
		table.End(l, "idle")
	}
	if table.LiveCount() != 0 || len(table.All()) != 8 {
		t.Errorf("%d live, %d in all", table.LiveCount(), len(table.All()))
	}
}

// TestCompactGivesBack: what is kept of a flood does not pin the rest. Without the copy the links
// that are kept hold several times their own size.
func TestCompactGivesBack(t *testing.T) {
	table := NewTable(time.Now)
	const n = 20000
	links := flood(table, n)
	for i := range links { // the ends come in another order than the starts
		table.End(links[i*7919%n], "idle")
	}
	clear(links)
	inUse := func() uint64 {
		var m runtime.MemStats
		for range 3 {
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return m.HeapInuse
	}
	pinned := inUse()
	table.Compact()
	left := inUse()
	t.Logf("%d KiB of heap before, %d KiB after", pinned>>10, left>>10)
	if left > pinned*3/4 {
		t.Errorf("%d KiB of heap before, %d KiB after", pinned>>10, left>>10)
	}
	runtime.KeepAlive(table)
}
