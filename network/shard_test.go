package network

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
	"unsafe"

	"gatun/attribution"
	"gatun/network/packet"
)

func flowAt(port uint16) packet.Flow {
	return packet.Flow{Proto: packet.TCP, Local: netip.MustParseAddrPort("10.0.0.2:4000"), Remote: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port)}
}

// Links whose hashes are the same must not be taken for one another, in whatever order they go.
func TestShardSameHash(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}, {1, 2, 0}} {
		s := shard{links: map[uint64]*Link{}}
		var links []*Link
		for i := range 3 {
			l := &Link{Flow: flowAt(uint16(i + 1)), id: uint64(i)}
			links = append(links, l)
			s.add(7, l)
		}
		s.add(8, &Link{Flow: flowAt(99)})
		left := slices.Clone(links)
		for _, i := range order {
			s.remove(7, links[i])
			s.remove(7, links[i]) // once more changes nothing
			left = slices.DeleteFunc(left, func(l *Link) bool { return l == links[i] })
			if links[i].next != nil || s.count != len(left)+1 || len(s.all(nil)) != s.count {
				t.Fatalf("%v: %d removed: count %d, all %d", order, i, s.count, len(s.all(nil)))
			}
			for j, l := range links {
				want := l
				if !slices.Contains(left, l) {
					want = nil
				}
				if got := s.find(7, &l.Flow); got != want {
					t.Fatalf("%v: %d removed: link %d found as %v", order, i, j, got)
				}
			}
		}
		if f := flowAt(99); s.find(7, &f) != nil || s.find(8, &f) == nil {
			t.Fatal("a flow is found by its own hash only")
		}
	}
}

func TestDecisionsAreShared(t *testing.T) {
	table := NewTable(time.Now)
	owner := attribution.Owner{Process: &attribution.Process{PID: 5, Path: "/bin/a", Kind: attribution.KindProgram}}
	d := Decision{Verdict: PermanentAccept, Stage: StageLink, Reason: "nothing forbids it", Code: "default-action"}
	var links []*Link
	for i := range 3 {
		l, _ := table.Link(flowAt(uint16(i + 1)))
		table.Bind(l, &Communication{Owner: owner, Entity: Entity{Addr: l.Flow.Remote.Addr()}})
		made := d
		if i == 2 {
			made.Reason = fmt.Sprint("rule ", i)
		}
		table.Decide(l, made)
		if l.Decision() != made {
			t.Errorf("link %d: %+v", i, l.Decision())
		}
		links = append(links, l)
	}
	if links[0].decision.Load() != links[1].decision.Load() || links[1].decision.Load() == links[2].decision.Load() {
		t.Error("equal decisions are one, others are not")
	}
	table.Decide(links[0], Decision{Verdict: Block}) // changes no other link
	if links[1].Decision() != d || links[0].Decision().Verdict != Block {
		t.Errorf("%+v, %+v", links[0].Decision(), links[1].Decision())
	}
}

// What an idle flow costs is a promise (memory of handed-back flows).
func TestLinkSize(t *testing.T) {
	if size := unsafe.Sizeof(Link{}); unsafe.Sizeof(uintptr(0)) == 8 && size > 192 {
		t.Errorf("a link is %d bytes", size)
	}
}

func TestKillerIsShared(t *testing.T) {
	killed := map[*Link]string{}
	k := Killer(func(l *Link, cause string) { killed[l] = cause })
	a, b := &Link{}, &Link{}
	if b.Kill("early") {
		t.Error("nobody carries it yet")
	}
	a.OnKillBy(&k)
	b.OnKillBy(&k)
	if killed[b] != "early" || len(killed) != 1 {
		t.Errorf("%v", killed)
	}
	if !a.Kill("late") || a.Kill("again") || killed[a] != "late" {
		t.Errorf("%v", killed)
	}
}
