package main

import (
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap"

	"gatun/attribution"
	"gatun/network/packet"
)

// TestAheadAgain: the second connection of one program to one destination within a few seconds is worth a
// permission, and no other.
func TestAheadAgain(t *testing.T) {
	a := newAhead(nil, nil, nil, zap.NewNop())
	one, other := &attribution.Process{PID: 1}, &attribution.Process{PID: 1}
	to := netip.MustParseAddrPort("192.0.2.1:443")
	now := time.Now()
	for i, c := range []struct {
		k    pair
		at   time.Duration
		want bool
	}{
		{pair{one, to}, 0, false},
		{pair{other, to}, 0, false},
		{pair{one, netip.AddrPortFrom(to.Addr(), 80)}, 0, false},
		{pair{one, to}, time.Second, true},
		{pair{one, to}, aheadWithin + 2*time.Second, false},
	} {
		if got := a.again(c.k, now.Add(c.at)); got != c.want {
			t.Errorf("%d: %t", i, got)
		}
	}
	for i := range 2 * aheadSeen {
		a.again(pair{one, netip.AddrPortFrom(to.Addr(), uint16(i))}, now)
	}
	if len(a.seen) > aheadSeen {
		t.Errorf("%d are remembered, want at most %d", len(a.seen), aheadSeen)
	}
}

// TestAheadWithoutHooks: nothing is permitted, and nobody needs to ask whether it could be.
func TestAheadWithoutHooks(t *testing.T) {
	var none *ahead
	none.enter()
	none.answered(netip.Addr{})
	none.attach(nil)
	if none.text() != "" {
		t.Error(none.text())
	}
	a := newAhead(nil, nil, nil, zap.NewNop())
	f := packet.Flow{Proto: packet.TCP, Remote: netip.MustParseAddrPort("192.0.2.1:443")}
	for range 3 {
		if a.Consider(attribution.Owner{Process: &attribution.Process{}}, f) != nil {
			t.Error("a permission without hooks")
		}
	}
	a.moved()
	a.Forget(f.Remote)
	a.answered(f.Remote.Addr())
	a.enter()
}
