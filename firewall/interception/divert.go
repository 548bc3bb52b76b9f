package interception

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"gatun/network"
	"gatun/network/packet"
	"gatun/stack"
)

// diverted are the connections that the system's kernel ends for us: none of their packets comes to
// netstack.
type diverted struct {
	paused atomic.Uint32 // until this tick netstack ends all

	mu sync.Mutex
	of map[packet.Flow]*diversion
}

type diversion struct {
	syn     uint32    // the number that began it
	taken   bool      // something carries it
	relay   *tcpRelay // what does; nil once it was told that the connection is lost
	strayed time.Time // when the first segment came here all the same; zero: none did
}

// add notes a connection, or reports that there is one of this name.
func (d *diverted) add(f packet.Flow, v *diversion) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.of == nil {
		d.of = map[packet.Flow]*diversion{}
	}
	if d.of[f] != nil {
		return false
	}
	d.of[f] = v
	return true
}

// carried notes what carries the connection, and reports whether it is diverted.
func (d *diverted) carried(f packet.Flow, t *tcpRelay) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.of[f]
	if v == nil || v.taken { // that one has ended, and not said so yet
		return false
	}
	v.taken, v.relay = true, t
	return true
}

func (d *diverted) remove(f packet.Flow) *diversion {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.of[f]
	delete(d.of, f)
	if len(d.of) == 0 {
		d.of = nil // a Go map never shrinks
	}
	return v
}

// begunBy reports whether the connection is one that this SYN began.
func (d *diverted) begunBy(f packet.Flow, syn uint32) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.of[f]
	return v != nil && v.syn == syn
}

// strayWithin is how long segments of a diverted connection may come here: somebody has taken the rules
// away, which are put back at once. What comes later belongs to a connection that the kernel has forgotten.
const strayWithin = 2 * time.Second

// stray takes notice of a segment of f. lives is false for one that is not diverted, or not any more; lost
// is what carried it until now, once.
func (d *diverted) stray(f packet.Flow, now time.Time) (lives bool, lost *tcpRelay) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.of[f]
	switch {
	case v == nil:
		return false, nil
	case v.strayed.IsZero() || now.Sub(v.strayed) > time.Minute:
		v.strayed = now
		return true, nil
	case now.Sub(v.strayed) < strayWithin:
		return true, nil
	}
	lost, v.relay = v.relay, nil
	return false, lost
}

// divert lets the kernel end the connection. Nil: netstack has to.
func (r *Relay) divert(f *stack.TCPFlow, l *network.Link) program {
	syn := f.Held()
	number, whole := sequence(syn)
	if r.Divert == nil || !whole || r.now.Load() < r.diverted.paused.Load() || !r.Files.AcquireSpare() {
		return nil
	}
	if !r.diverted.add(l.Flow, &diversion{syn: number}) { // before its first segment can come
		r.Files.ReleaseSpare()
		return nil
	}
	c, err := r.Divert(f.Context(), l.Flow, syn)
	if err != nil {
		r.undivert(l.Flow)
		if f.Context().Err() != nil || errors.Is(err, syscall.ECONNABORTED) {
			return nil // the program gave up, as netstack will find out
		}
		r.diverted.paused.Store(r.now.Load() + ticks(divertAgain))
		if r.counts.undiverted.Add(1) == 1 {
			r.log.Warn("a connection is relayed through netstack because the kernel did not end it; status counts them", zap.Stringer("flow", l.Flow), zap.Error(err))
		}
		return nil
	}
	f.Drop()
	return c
}

// undivert forgets a connection that has ended.
func (r *Relay) undivert(f packet.Flow) {
	if r.diverted.remove(f) != nil {
		r.Files.ReleaseSpare()
	}
}

// divertAgain is how long netstack ends all connections after one that the kernel did not end: somebody
// filters what goes over loopback, and each attempt costs the program a second.
const divertAgain = 10 * time.Second

// Strayed reports whether a segment that came to netstack belongs to a connection that the kernel ends:
// it is swallowed then. It may be called on the packet path.
func (r *Relay) Strayed(f packet.Flow) bool {
	lives, lost := r.diverted.stray(f, time.Now())
	if lost != nil {
		r.workers.start(func() { lost.abort("forgotten by connection tracking") })
	}
	return lives
}

// begunBy reports whether f is the SYN of a connection that is diverted, on its way here once more.
func (r *Relay) begunBy(f *stack.TCPFlow) bool {
	number, whole := sequence(f.Held())
	return whole && r.diverted.begunBy(f.Flow(), number)
}
