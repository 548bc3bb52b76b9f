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
	var flows, doubtful []packet.Flow
	t.mu.Lock()
	for _, s := range sockets {
		if e, ok := t.flows[s.Flow]; ok {
			if s.known {
				e.carried = s.carried
				t.flows[s.Flow] = e
			}
			flows = append(flows, s.Flow)
			continue
		}
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
