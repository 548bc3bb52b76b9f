package handback

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"gatun/network/packet"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// gone is told of sockets that do not exist any more. A connection that was refused may have lost
// its own address and the remote port by then: such flows are over if they have no socket.
func (t *Table) gone(sockets []socket) {
	flows, left := t.named(sockets)
	if err := t.over(flows, Closed); err != nil {
		t.warn(err)
	}
	if len(left) == 0 {
		return
	}
	if t.o.Begin != nil { // what began by now may have ended already
		t.o.Begin()
	}
	flows, left = t.named(left)
	for i := range left {
		if s := &left[i]; s.known {
			t.o.Others(s.Flow, s.Traffic)
		}
	}
	var doubtful []packet.Flow
	t.mu.Lock()
	for _, s := range left {
		for _, f := range t.ports[portOf(s.Flow)] {
			switch {
			case !mayCarry(s.Flow, f):
			case s.Proto == packet.TCP:
				doubtful = append(doubtful, f)
			default:
				flows = append(flows, f)
			}
		}
	}
	t.mu.Unlock()
	for _, f := range doubtful {
		_ = t.lent(t.diags, func(w *wire) error {
			if _, err := w.find(f); errors.Is(err, unix.ENOENT) {
				flows = append(flows, f)
			}
			return nil
		})
	}
	if err := t.over(flows, Closed); err != nil {
		t.warn(err)
	}
}

// named returns the flows of sockets that are accepted, and the sockets of which none is. What the socket
// has carried is noted. A socket that has ended is not that of another connection with its five values.
func (t *Table) named(sockets []socket) (flows []packet.Flow, left []socket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range sockets {
		f, ok := t.cookies[s.cookie] // it may have lost its name
		if !ok {
			f = s.Flow
		}
		e, accepted := t.flows[f]
		if !accepted || e.closed || e.cookie != 0 && s.cookie != 0 && e.cookie != s.cookie {
			left = append(left, s)
			continue
		}
		if e.closed = true; s.known {
			e.carried, e.told = s.carried, true
		}
		t.flows[f] = e
		flows = append(flows, f)
	}
	return flows, left
}

// mayCarry reports whether the socket s, of f's port, could have sent f. Another socket of the port
// may live on: then its next datagram is decided again.
func mayCarry(s, f packet.Flow) bool {
	may := func(s, f netip.Addr) bool { return s.IsUnspecified() || s == f }
	return may(s.Local.Addr(), f.Local.Addr()) && may(s.Remote.Addr(), f.Remote.Addr()) &&
		(s.Remote.Port() == 0 || s.Remote.Port() == f.Remote.Port())
}

// Run notices the ends of flows, reads the counters from time to time and renews what must not
// expire, until ctx ends.
func (t *Table) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	lost := make(chan struct{}, 1)
	tell := func() {
		select {
		case lost <- struct{}{}:
		default:
		}
	}
	tell() // flows that were adopted may have ended long ago
	for _, e := range []*events{t.tcp, t.udp} {
		g.Go(func() error { return e.run(ctx, t.gone, tell) })
	}
	g.Go(func() error { return t.watch(ctx) })
	g.Go(func() error { return t.settle(ctx) })
	if t.o.Holder != nil {
		g.Go(func() error { return t.keepMarking(ctx) })
	}
	g.Go(func() error {
		tick, young := time.NewTicker(t.o.Sweep), time.NewTicker(orphanAge)
		defer tick.Stop()
		defer young.Stop()
		for {
			var err error
			select {
			case <-ctx.Done():
				return nil
			case <-lost:
				err = t.reconcile()
			case <-tick.C:
				err = t.sweep()
			case <-young.C:
				err = t.orphans()
			}
			if err != nil && !errors.Is(err, ErrClosed) {
				t.warn(err)
			}
		}
	})
	return g.Wait()
}
