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

// list passes what is in the sets, whoever put it there. The kernel begins a long list anew for each
// part that it sends, so this is for once.
func (t *Table) list(each func(packet.Flow, found)) error {
	return t.lent(t.lists, func(w *wire) error {
		for _, set := range []string{setAccept + "4", setAccept + "6", setOther + "4", setOther + "6"} {
			w.element(getElement, unix.NLM_F_DUMP, nftables.TableFamilyINet, t.o.Table, set, "", nil, 0)
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
	return t.list(func(f packet.Flow, e found) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if _, ok := t.flows[f]; !ok {
			t.keep(f, entry{since: now, sent: e.sent})
			if !isOther(f.Proto) {
				t.lasts(f)
			}
		}
	})
}

// all returns the flows that are in the set.
func (t *Table) all() []packet.Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	flows := make([]packet.Flow, 0, len(t.flows))
	for f, e := range t.flows {
		if !e.ahead {
			flows = append(flows, f)
		}
	}
	return flows
}

// get asks the kernel for flows of a set, and passes those that it has, by their position.
func (t *Table) get(set string, flows []packet.Flow, each func(i int, e found)) error {
	for at := 0; at < len(flows); at += batchLimit {
		part := flows[at:min(at+batchLimit, len(flows))]
		err := t.lent(t.lists, func(w *wire) error {
			for _, f := range part {
				k := keyOf(f)
				w.element(getElement, 0, nftables.TableFamilyINet, t.o.Table, setOf(set, f), suffix(f), &k, 0)
			}
			last := w.seq
			first := last - uint32(len(part)) + 1
			if err := w.send(); err != nil {
				return err
			}
			for done := false; !done; { // each is answered, by what it has or by an error
				var err error
				if done, err = w.receive(func(m message) bool {
					if m.typ != unix.NLMSG_ERROR && m.seq >= first && m.seq <= last {
						eachElement(m.body, func(e found) { each(at+int(m.seq-first), e) })
					}
					return m.seq == last
				}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("read accepted flows: %w", err)
		}
	}
	return nil
}

// Counters reads what every accepted flow has sent, all of them at once, and passes it to each,
// which may call the table.
func (t *Table) Counters(each func(packet.Flow, Counter)) error {
	select {
	case <-t.done:
		return ErrClosed
	default:
	}
	flows := t.all()
	if err := t.count(flows); err != nil {
		return err
	}
	sent := make([]*Counter, len(flows))
	err := t.get(setAccept, flows, func(i int, e found) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if known, ok := t.flows[flows[i]]; ok {
			known.sent = t.total(flows[i], known, e.sent)
			t.flows[flows[i]] = known
			sent[i] = &known.sent
		}
	})
	for i, c := range sent {
		if c != nil {
			each(flows[i], *c)
		}
	}
	return err
}

// Traffic passes what every accepted flow has carried to each: TCP as the sockets have counted it, all others as the
// set and connection tracking have.
func (t *Table) Traffic(each func(packet.Flow, Traffic)) error {
	err := t.Counters(func(f packet.Flow, c Counter) {
		if f.Proto != packet.TCP {
			each(f, Traffic{Sent: c.payload(f), Received: t.received(f)})
		}
	})
	return errors.Join(err, t.lent(t.diags, func(w *wire) error {
		return w.sockets(packet.TCP, func(s socket) {
			if s.known && t.accepted(s.Flow) {
				each(s.Flow, s.Traffic)
			}
		})
	}))
}

// received is what a flow that is not TCP has received, when last read.
func (t *Table) received(f packet.Flow) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.flows[f].Received
}

func sum(a, b Counter) Counter {
	return Counter{Packets: a.Packets + b.Packets, Bytes: a.Bytes + b.Bytes}
}

// ending is an End that is about to be told.
type ending struct {
	End
	entry
}

// attempts is Attempts: a SYN that is sent again is as long as the first one, and an ACK shorter.
func (e *ending) attempts() uint64 {
	if e.cookie != 0 && !e.answered {
		return attemptsAhead(time.Since(e.since))
	}
	if e.Flow.Proto != packet.TCP || e.answered || e.first == 0 || e.Sent.Bytes != e.Sent.Packets*uint64(e.first) {
		return 0
	}
	return e.Sent.Packets
}

// lastCounters reads the counters of flows that end. A connection that was answered, and that the program has
// closed, has told what it has carried: of these the counters stay as they were read last.
func (t *Table) lastCounters(ended []ending) error {
	var flows []packet.Flow
	var at []int
	for i, e := range ended {
		if (!e.answered || e.Cause == Revoked) && !e.ahead {
			flows, at = append(flows, e.Flow), append(at, i)
		}
	}
	return t.get(setAccept, flows, func(i int, e found) { ended[at[i]].Sent = sum(ended[at[i]].base, e.sent) })
}

// sweep reads the counters, renews what lives and is past half its time, and ends what the kernel
// does not have any more.
func (t *Table) sweep() error {
	if err := t.mend(); err != nil {
		return err
	}
	t.pardon()
	start, flows, restored := time.Now(), t.all(), t.restored.Load()
	if err := t.count(flows); err != nil {
		return err
	}
	there := make([]bool, len(flows))
	var renew []packet.Flow
	err := t.get(setAccept, flows, func(i int, e found) {
		there[i] = true
		f := flows[i]
		t.mu.Lock()
		defer t.mu.Unlock()
		known, ok := t.flows[f]
		if !ok {
			return
		}
		now := t.total(f, known, e.sent)
		moved := now != known.sent
		known.sent = now
		t.flows[f] = known
		if (moved || f.Proto == packet.TCP) && e.expires < t.o.timeout(f.Proto)/2 {
			renew = append(renew, f)
		}
	})
	if err != nil {
		return err
	}
	if slices.ContainsFunc(renew, func(f packet.Flow) bool { return f.Proto == packet.TCP }) {
		// A connection whose end was missed must not be renewed for ever.
		if err := t.reconcile(); err != nil {
			return err
		}
	}
	missing := t.missing(start, flows, there)
	if len(missing) > 0 {
		if whole, err := t.whole(); err != nil || !whole || t.restored.Load() != restored {
			missing = nil // somebody took them all away while they were read: they come back
		}
	}
	return errors.Join(t.renew(renew), t.over(missing, Expired))
}

// missing is what is not there, and was not on its way into the set or back when it was looked for.
func (t *Table) missing(start time.Time, flows []packet.Flow, there []bool) (missing []packet.Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, f := range flows {
		if e, ok := t.flows[f]; ok && !there[i] && e.since.Before(start.Add(-arrival)) {
			missing = append(missing, f)
		}
	}
	return missing
}

// arrival is longer than any transaction takes.
const arrival = 2 * time.Second

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
				t.flows[f] = t.anew(f, known)
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

// anew is a flow that enters the set again, which begins to count anew. t.mu is held.
func (t *Table) anew(f packet.Flow, e entry) entry {
	e.base, e.since = e.sent.since(t.lasting[f].sent), time.Now()
	return e
}

// Restore puts everything back that somebody else took away, as `nft flush ruleset` does: the rules,
// and the flows that are accepted. Run does so as soon as it is told. Flows that send meanwhile are
// undecided.
func (t *Table) Restore() error {
	if err := t.reinstall(); err != nil {
		return err
	}
	flows := t.all()
	var errs []error
	for len(flows) > 0 {
		n := min(len(flows), batchLimit)
		again := make([]entering, n)
		for i, f := range flows[:n] {
			again[i] = entering{change: t.entry(f, false, nil), f: f}
		}
		t.enter(again)
		for i := range again {
			if err := again[i].err; err != nil && !errors.Is(err, errEnded) {
				errs = append(errs, fmt.Errorf("%s: %w", again[i].f, err))
			}
		}
		flows = flows[n:]
	}
	return errors.Join(errs...)
}

// reinstall puts the rules back, unless the table is closed.
func (t *Table) reinstall() error {
	t.rules.Lock()
	defer t.rules.Unlock()
	select {
	case <-t.done:
		return ErrClosed
	default:
	}
	t.restored.Add(1)
	_, err := install(t.o)
	return err
}

// orphanAge is how long a flow lives at most whose socket was closed just before it was accepted:
// the end of that socket was told when nobody waited for it.
const orphanAge = time.Second

// orphans ends the flows accepted since the last look that have no socket.
func (t *Table) orphans() error {
	t.mu.Lock()
	young := t.young
	t.young = nil
	t.mu.Unlock()
	var over []packet.Flow
	for _, f := range young {
		if !t.accepted(f) {
			continue
		}
		err := t.lent(t.diags, func(w *wire) error { _, err := w.find(f); return err })
		switch {
		case errors.Is(err, unix.ENOENT):
			over = append(over, f)
		case err != nil:
			return fmt.Errorf("look for sockets of accepted flows: %w", err)
		}
	}
	return t.overdue(over)
}

// overdue ends flows that have no socket, after the word of their ends has had the time to come: it
// says what they have carried.
func (t *Table) overdue(flows []packet.Flow) error {
	if len(flows) == 0 {
		return nil
	}
	since := make(map[packet.Flow]time.Time, len(flows))
	t.mu.Lock()
	for _, f := range flows {
		since[f] = t.flows[f].since
	}
	t.mu.Unlock()
	wait := time.NewTimer(4 * gathering)
	defer wait.Stop()
	select {
	case <-t.done:
	case <-wait.C:
	}
	t.mu.Lock()
	flows = slices.DeleteFunc(flows, func(f packet.Flow) bool { return t.flows[f].since != since[f] }) // another one by now
	t.mu.Unlock()
	return t.over(flows, Closed)
}

// reconcile compares what is accepted with the sockets that there are.
func (t *Table) reconcile() error {
	t.mu.Lock()
	orphans := make(map[packet.Flow]struct{}, len(t.flows))
	for f := range t.flows {
		if !isOther(f.Proto) { // of their sockets nobody tells
			orphans[f] = struct{}{}
		}
	}
	t.mu.Unlock()
	if len(orphans) == 0 {
		return nil
	}
	err := t.lent(t.diags, func(w *wire) error {
		if err := w.sockets(packet.TCP, func(s socket) { delete(orphans, s.Flow) }); err != nil {
			return err
		}
		return w.sockets(packet.UDP, func(s socket) {
			t.mu.Lock()
			defer t.mu.Unlock()
			for _, f := range t.ports[portOf(s.Flow)] {
				if mayCarry(s.Flow, f) {
					delete(orphans, f)
				}
			}
		})
	})
	if err != nil {
		return err
	}
	flows := make([]packet.Flow, 0, len(orphans))
	err = t.lent(t.diags, func(w *wire) error {
		for f := range orphans { // a list that is read while it changes proves nothing
			if _, err := w.find(f); errors.Is(err, unix.ENOENT) {
				flows = append(flows, f)
			}
		}
		return nil
	})
	return errors.Join(err, t.overdue(flows))
}
