package interception

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
)

// fakeAhead notes what the Gate says.
type fakeAhead struct {
	mu        sync.Mutex
	said      []string
	considers bool
}

func (a *fakeAhead) say(what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.said = append(a.said, what)
}

func (a *fakeAhead) did() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.said)
}

func (a *fakeAhead) Consider(_ attribution.Owner, f packet.Flow) func() {
	if !a.considers {
		return nil
	}
	a.say("consider " + f.Remote.String())
	return func() { a.say("permit " + f.Remote.String()) }
}

func (a *fakeAhead) Forget(to netip.AddrPort) { a.say("forget " + to.String()) }

func newAheadLab(t *testing.T, yaml string, considers bool) (*witnesses, *fakeAhead) {
	a := &fakeAhead{considers: considers}
	w := &witnesses{}
	w.kernelLab = newKernelLabWith(t, yaml, func(l *kernelLab) Owners { w.kernelLab = l; return w }, func(g *Gate) { g.Ahead = a })
	return w, a
}

// TestBegan: what began ahead is decided, listed and counted as if its SYN had been held, and ends where the
// policy does not permit it.
func TestBegan(t *testing.T) {
	l, a := newAheadLab(t, "", false)
	if !l.gate.Began(kernelTCP, l.owner) {
		t.Error("it is not permitted")
	}
	k := l.gate.Table.Find(kernelTCP)
	if k == nil || !k.HandedBack() || k.Decision().Verdict != network.PermanentAccept || k.Comm().Owner.Process != l.owner.Process {
		t.Fatalf("%+v", k)
	}
	if decided, denied := l.gate.Counts(); decided != 1 || denied != 0 || !l.gate.CarriedElsewhere(kernelTCP) {
		t.Errorf("%d decided, %d denied", decided, denied)
	}
	if !l.gate.Began(kernelTCP, l.owner) || !k.Ended() { // another one with the same five values
		t.Error("the one before it goes on")
	}
	l.gate.KernelEnded(KernelEnd{Flow: kernelTCP, Sent: 3, Received: 4, Cause: "closed"})
	if n := l.gate.Table.LiveCount(); n != 0 {
		t.Errorf("%d live", n)
	}
	// A kill ends it, and every other one like it is decided.
	l.gate.Began(kernelTCP, l.owner)
	l.gate.Table.Find(kernelTCP).Kill("enough")
	if did := a.did(); !slices.Equal(did, []string{"forget " + kernelRemote.String()}) {
		t.Errorf("%v", did)
	}
	waitFor(t, "it is revoked", func() bool { return slices.Contains(l.kernel.did(), "revoke 192.0.2.1:443") })
}

// TestBeganDenied: the policy has changed since it was permitted.
func TestBeganDenied(t *testing.T) {
	for _, yaml := range []string{"filter: {defaultAction: block}\n", "filter: {defaultAction: ask}\n"} {
		l, a := newAheadLab(t, yaml, false)
		if l.gate.Began(kernelTCP, l.owner) {
			t.Errorf("%s: it is permitted", yaml)
		}
		waitFor(t, "it is revoked", func() bool { return slices.Contains(l.kernel.did(), "revoke 192.0.2.1:443") })
		waitFor(t, "it has ended", func() bool { return l.gate.Table.LiveCount() == 0 })
		if did := a.did(); !slices.Contains(did, "forget "+kernelRemote.String()) {
			t.Errorf("%s: %v", yaml, did)
		}
	}
	l, _ := newAheadLab(t, "core: {releaseLevel: experimental}\nfilter: {permanentVerdicts: off}\n", false)
	if l.gate.Began(kernelTCP, l.owner) || l.gate.Table.Find(kernelTCP) == nil {
		t.Error("what is permitted, but not for good, goes on and is no example")
	}
}

// TestConsidered: a permission comes after the connection was handed back, and from no other one.
func TestConsidered(t *testing.T) {
	remote := kernelRemote.String()
	t.Run("handed back", func(t *testing.T) {
		l, a := newAheadLab(t, "", true)
		l.write(synFrom(50000))
		waitFor(t, "a permission", func() bool { return slices.Equal(a.did(), []string{"consider " + remote, "permit " + remote}) })
		if did := l.kernel.did(); len(did) != 1 {
			t.Errorf("%v", did)
		}
	})
	t.Run("blocked", func(t *testing.T) {
		l, a := newAheadLab(t, "filter: {defaultAction: block}\n", true)
		l.write(synFrom(50000))
		if flags := l.answer(); flags&flagRST == 0 || !slices.Equal(a.did(), []string{"consider " + remote}) {
			t.Errorf("flags %#x, %v", flags, a.did())
		}
	})
	t.Run("not taken", func(t *testing.T) {
		l, a := newAheadLab(t, "", true)
		l.kernel.err = errors.New("full")
		l.write(synFrom(50000))
		if flags := l.answer(); flags&flagRST == 0 || slices.Contains(a.did(), "permit "+remote) {
			t.Errorf("flags %#x, %v", flags, a.did())
		}
	})
}
