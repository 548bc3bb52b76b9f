package handback

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"gatun/network/packet"

	"github.com/google/nftables"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

func (t *Table) warn(err error) { t.o.Logger.Warn("handback", zap.Error(err)) }

// read passes all accepted flows as the kernel has them.
func (t *Table) read(each func(packet.Flow, found)) error {
	return t.lent(t.lists, func(w *wire) error {
		for _, set := range []string{setAccept + "4", setAccept + "6"} {
			w.element(getElement, unix.NLM_F_DUMP, nftables.TableFamilyINet, t.o.Table, set, nil, 0)
			err := w.dump(func(body []byte) {
				eachElement(body, func(e found) {
					if f, ok := flowOf(e.key); ok {
						each(f, e)
					}
				})
			})
			if err != nil {
				return fmt.Errorf("read set %s: %w", set, err)
			}
		}
		return nil
	})
}

// adopt writes down what is in the sets already.
func (t *Table) adopt() error {
	now := time.Now()
	return t.read(func(f packet.Flow, e found) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if _, ok := t.flows[f]; !ok {
			t.keep(f, entry{until: now.Add(e.expires), sent: e.sent})
		}
	})
}

// Counters reads what every accepted flow has sent, all of them at once, and passes it to each,
// which may call the table.
func (t *Table) Counters(each func(packet.Flow, Counter)) error {
	type line struct {
		f packet.Flow
		c Counter
	}
	lines := make([]line, 0, t.Len())
	err := t.read(func(f packet.Flow, e found) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if known, ok := t.flows[f]; ok {
			known.sent = sum(known.base, e.sent)
			t.flows[f] = known
			lines = append(lines, line{f, known.sent})
		}
	})
	for _, l := range lines {
		each(l.f, l.c)
	}
	return err
}

func sum(a, b Counter) Counter {
	return Counter{Packets: a.Packets + b.Packets, Bytes: a.Bytes + b.Bytes}
}

// ending is an End that is about to be told.
type ending struct {
	End
	base Counter
}

// lastCounters reads the counters of flows that end.
func (t *Table) lastCounters(ended []ending) error {
	return t.lent(t.lists, func(w *wire) error {
		for i := range ended {
			k := keyOf(ended[i].Flow)
			w.element(getElement, unix.NLM_F_ACK, nftables.TableFamilyINet, t.o.Table, setAccept+suffix(ended[i].Flow), &k, 0)
		}
		first, last := w.seq-uint32(len(ended))+1, w.seq
		if err := w.send(); err != nil {
			return err
		}
		for done := false; !done; {
			var err error
			if done, err = w.receive(func(m message) bool {
				if m.typ != unix.NLMSG_ERROR && m.seq >= first && m.seq <= last {
					eachElement(m.body, func(e found) {
						ended[m.seq-first].Sent = sum(ended[m.seq-first].base, e.sent)
					})
				}
				return m.seq == last && m.typ == unix.NLMSG_ERROR
			}); err != nil {
				return err
			}
		}
		return nil
	})
}

// sweep reads the counters, renews what lives and would expire before the sweep after the next,
// and ends what the kernel does not have any more.
func (t *Table) sweep() error {
	start := time.Now()
	seen := make(map[packet.Flow]struct{}, t.Len())
	var renew []packet.Flow
	err := t.read(func(f packet.Flow, e found) {
		t.mu.Lock()
		defer t.mu.Unlock()
		known, ok := t.flows[f]
		if !ok {
			return
		}
		seen[f] = struct{}{}
		now := sum(known.base, e.sent)
		moved := now != known.sent
		known.sent, known.until = now, start.Add(e.expires)
		t.flows[f] = known
		if (moved || f.Proto == packet.TCP) && e.expires < t.o.timeout(f.Proto)/2 {
			renew = append(renew, f)
		}
	})
	if errors.Is(err, unix.ENOENT) {
		t.o.Logger.Warn("handback: somebody took the rules away")
		return t.Restore()
	}
	if err != nil {
		return err
	}
	if slices.ContainsFunc(renew, func(f packet.Flow) bool { return f.Proto == packet.TCP }) {
		// A connection whose end was missed must not be renewed for ever.
		if err := t.reconcile(); err != nil {
			return err
		}
	}
	return errors.Join(t.renew(renew), t.over(t.missing(start, seen), Expired))
}

// missing is what should be in the sets and is not. A list that is read while it changes may lack
// entries, so only those that are past their time, or are not found one by one, are missing.
func (t *Table) missing(start time.Time, seen map[packet.Flow]struct{}) (flows []packet.Flow) {
	var doubtful []packet.Flow
	t.mu.Lock()
	for f, e := range t.flows {
		if _, ok := seen[f]; ok {
			continue
		}
		if e.until.Before(start) {
			flows = append(flows, f)
		} else if e.until.Add(-t.o.timeout(f.Proto)).Before(start) {
			doubtful = append(doubtful, f)
		}
	}
	t.mu.Unlock()
	for _, f := range doubtful {
		if !t.has(f) {
			flows = append(flows, f)
		}
	}
	return flows
}

// has asks the kernel for one accepted flow.
func (t *Table) has(f packet.Flow) (ok bool) {
	err := t.lent(t.lists, func(w *wire) error {
		k := keyOf(f)
		w.element(getElement, unix.NLM_F_ACK, nftables.TableFamilyINet, t.o.Table, setAccept+suffix(f), &k, 0)
		_, err := w.ask(f.Proto)
		return err
	})
	return !errors.Is(err, unix.ENOENT)
}

// renew gives flows their whole time again. Older kernels do not change an element's time, so it is
// replaced, at one instant, and its counter begins anew.
func (t *Table) renew(flows []packet.Flow) error {
	var errs []error
	for len(flows) > 0 {
		n := min(len(flows), batchLimit)
		changes := make([]*change, 0, n)
		t.mu.Lock()
		for _, f := range flows[:n] {
			if known, ok := t.flows[f]; ok {
				known.base, known.until = known.sent, time.Now().Add(t.o.timeout(f.Proto))
				t.flows[f] = known
				c := changeOf(f, setAccept, setAccept, t.o.timeout(f.Proto))
				c.replace = true
				changes = append(changes, c)
			}
		}
		t.mu.Unlock()
		if len(changes) > 0 {
			errs = append(errs, t.w.do(changes...))
		}
		flows = flows[n:]
	}
	return errors.Join(errs...)
}

// Restore puts everything back that somebody else took away, as `nft flush ruleset` does: the rules,
// and the flows that are accepted. Run does so when it reads the counters; whoever restores the guard
// should not wait for that. Flows that send meanwhile are undecided.
func (t *Table) Restore() error {
	if _, err := install(t.o); err != nil {
		return err
	}
	t.mu.Lock()
	flows := make([]packet.Flow, 0, len(t.flows))
	for f := range t.flows {
		flows = append(flows, f)
	}
	t.mu.Unlock()
	var errs []error
	for _, f := range flows {
		if err := t.enter(f, false); err != nil && !errors.Is(err, errEnded) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// reconcile compares what is accepted with the sockets that there are.
func (t *Table) reconcile() error {
	t.mu.Lock()
	orphans := make(map[packet.Flow]struct{}, len(t.flows))
	for f := range t.flows {
		orphans[f] = struct{}{}
	}
	t.mu.Unlock()
	if len(orphans) == 0 {
		return nil
	}
	err := t.lent(t.diags, func(w *wire) error {
		if err := w.sockets(packet.TCP, func(s packet.Flow) { delete(orphans, s) }); err != nil {
			return err
		}
		return w.sockets(packet.UDP, func(s packet.Flow) {
			t.mu.Lock()
			defer t.mu.Unlock()
			for _, f := range t.ports[portOf(s)] {
				if mayCarry(s, f) {
					delete(orphans, f)
				}
			}
		})
	})
	if err != nil {
		return err
	}
	flows := make([]packet.Flow, 0, len(orphans))
	for f := range orphans {
		flows = append(flows, f)
	}
	return t.over(flows, Closed)
}
