package interception

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
)

// witnesses is an Owners that knows everybody's program at once, unless it is blind.
type witnesses struct {
	*kernelLab
	blind    atomic.Bool
	searched atomic.Int32
}

func (w *witnesses) Find(ctx context.Context, f packet.Flow) attribution.Owner {
	w.searched.Add(1)
	return w.kernelLab.Find(ctx, f)
}

func (w *witnesses) Seen(packet.Flow) (attribution.Owner, bool) { return w.owner, !w.blind.Load() }

// synFrom is the SYN of one port.
func synFrom(port uint16) []byte {
	b := segment(flagSYN, 100, "")
	binary.BigEndian.PutUint16(b[20:], port)
	binary.BigEndian.PutUint16(b[36:], 0)
	binary.BigEndian.PutUint16(b[36:], packet.Fold(packet.Sum(b[20:], packet.PseudoSum(kernelLocal.Addr(), kernelRemote.Addr(), packet.TCP, 20))))
	return b
}

func newQuickLab(t *testing.T, yaml string) *witnesses {
	w := &witnesses{}
	w.kernelLab = newKernelLabOf(t, yaml, func(l *kernelLab) Owners { w.kernelLab = l; return w })
	return w
}

// TestQuick: connections of programs that the kernel saw are handed back together and without a search;
// what is not permitted for good, or has data, or was not seen, is handled as ever.
func TestQuick(t *testing.T) {
	l := newQuickLab(t, "")
	var burst [][]byte
	const many = 8
	for port := uint16(50000); port < 50000+many; port++ {
		burst = append(burst, synFrom(port))
	}
	if _, err := l.prog.Write(burst); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "all are handed back", func() bool { return len(l.kernel.did()) == many })
	for _, k := range l.gate.Table.All() {
		if d := k.Decision(); !k.HandedBack() || d.Verdict != network.PermanentAccept {
			t.Errorf("%s: handed back %t, %s", k.Flow, k.HandedBack(), d.Verdict)
		}
	}
	if l.searched.Load() != 0 {
		t.Errorf("%d owners were searched", l.searched.Load())
	}
	l.kernel.mu.Lock()
	sum := 0
	for _, n := range l.kernel.together {
		sum += n
	}
	if sum != many || !slices.Equal(l.kernel.sent[0], burst[0]) {
		t.Errorf("%d together, sent %x", sum, l.kernel.sent[0])
	}
	l.kernel.mu.Unlock()
	if decided, _ := l.gate.Counts(); decided != many {
		t.Errorf("%d decisions", decided)
	}
	l.write(synFrom(50000)) // sent again
	waitFor(t, "it follows", func() bool { did := l.kernel.did(); return did[len(did)-1] == "follow 192.0.2.1:443" })
	l.gate.Table.Find(packet.Flow{Proto: packet.TCP, Local: l.gate.Table.All()[0].Flow.Local, Remote: kernelRemote}).Kill("enough")
	waitFor(t, "it is revoked", func() bool { return slices.Contains(l.kernel.did(), "revoke 192.0.2.1:443") })
	l.blind.Store(true)
	l.write(synFrom(60000))
	waitFor(t, "a search", func() bool { return l.searched.Load() == 1 && len(l.kernel.did()) == many+3 })
}

// TestQuickRefuses: what is denied is denied, and what the kernel does not take is relayed.
func TestQuickRefuses(t *testing.T) {
	t.Run("blocked", func(t *testing.T) {
		l := newQuickLab(t, "filter: {defaultAction: block}\n")
		l.write(synFrom(50000))
		if flags := l.answer(); flags&flagRST == 0 {
			t.Errorf("flags %#x, want a reset", flags)
		}
		if did := l.kernel.did(); len(did) != 0 || l.searched.Load() != 0 {
			t.Errorf("%v, %d searched", did, l.searched.Load())
		}
		if decided, denied := l.gate.Counts(); decided != 1 || denied != 1 {
			t.Errorf("%d decided, %d denied", decided, denied)
		}
		l.live(0)
	})
	t.Run("not taken", func(t *testing.T) {
		l := newQuickLab(t, "")
		l.kernel.err = errors.New("full")
		l.write(synFrom(50000))
		if flags := l.answer(); flags&flagRST == 0 { // the relay's server refuses
			t.Errorf("flags %#x, want a reset", flags)
		}
		if l.gate.Refused() != 1 {
			t.Errorf("%d refused", l.gate.Refused())
		}
		l.live(0)
	})
}

// live waits until there are so many live links.
func (w *witnesses) live(want int) {
	w.t.Helper()
	waitFor(w.t, fmt.Sprintf("%d live links", want), func() bool { return w.gate.Table.LiveCount() == want })
}
