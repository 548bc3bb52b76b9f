package handback

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"gatun/network/packet"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// settleEvery is how often connections that began ahead and last enter the set of accepted flows: each is
// looked at once, after one to two of these times. Most are over by then, and cost no transaction.
const settleEvery = 50 * time.Millisecond

// settleFor is how long that is tried where the kernel refuses it. Then the connection ends: it would be
// forgotten with its destination.
const settleFor = aheadTimeout / 3

// fresh are connections that began ahead and are not in the set yet.
type fresh struct {
	mu         sync.Mutex
	young, old []Began
	wake       chan struct{} // one place
}

func (n *fresh) add(b Began) {
	n.mu.Lock()
	first := len(n.young)+len(n.old) == 0
	n.young = append(n.young, b)
	n.mu.Unlock()
	if !first {
		return
	}
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// take returns those that are old enough, and whether there are more.
func (n *fresh) take() (due []Began, more bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	due, n.old, n.young = n.old, n.young, nil
	return due, len(n.old) > 0
}

// Ahead says why no connection can begin ahead; nil: it can.
func (t *Table) Ahead() error {
	switch {
	case t.opening != nil:
		return nil
	case t.closedAhead != nil:
		return t.closedAhead
	default:
		return fmt.Errorf("%w: nobody was to begin ahead", ErrUnsupported)
	}
}

// Admit lets sockets that carry Options.SocketMark begin connections to the destinations. It holds for
// fifteen seconds, and is to be repeated. Somebody has to keep all other SYNs with that mark from leaving.
func (t *Table) Admit(proto packet.Proto, to ...netip.AddrPort) error {
	if err := t.Ahead(); err != nil {
		return err
	}
	errs := []error{t.opening.admit(proto, to)}
	for len(to) > 0 {
		n := min(len(to), batchLimit)
		changes := make([]*change, n)
		for i, d := range to[:n] {
			changes[i] = &change{k: destinationKey(proto, d), family: nftables.TableFamilyINet, add: setAhead, suffix: suffixOf(d), timeout: aheadTimeout}
			if t.admitted(d) { // older kernels do not change an element's time
				changes[i].del = setAhead
			}
		}
		if err := t.w.do(changes...); err != nil {
			errs = append(errs, fmt.Errorf("permit destinations ahead: %w", err))
		}
		to = to[n:]
	}
	return errors.Join(errs...)
}

// admitted notes a destination, and reports whether the kernel may have it already.
func (t *Table) admitted(d netip.AddrPort) bool {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	before, ok := t.ahead[d]
	if len(t.ahead) >= 2*aheadLimit {
		clear(t.ahead)
	}
	t.ahead[d] = now
	return ok && now.Sub(before) < aheadTimeout
}

func suffixOf(d netip.AddrPort) string {
	if d.Addr().Is4() {
		return "4"
	}
	return "6"
}

// EndAhead lets no connection begin ahead any more. Whoever gives sockets the mark calls it before he stops
// to keep others' SYNs from leaving.
func (t *Table) EndAhead() {
	if t.opening != nil {
		t.opening.close()
	}
}

// Carry takes over a connection that began ahead. From now on it is as if Accept had been called, but that
// it costs no transaction unless it lasts. What was known of another socket with its five values is over.
func (t *Table) Carry(b Began) error {
	if err := check(b.Flow); err != nil {
		return err
	}
	if t.accepted(b.Flow) {
		if err := t.over([]packet.Flow{b.Flow}, Closed); err != nil {
			t.warn(err)
		}
	}
	if err := t.carry(b); err != nil {
		return err
	}
	t.fresh.add(b)
	return nil
}

func (t *Table) carry(b Began) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return ErrClosed
	case len(t.flows) >= t.o.Limit:
		return fmt.Errorf("%s: %w (%d)", b.Flow, ErrFull, t.o.Limit)
	}
	if _, ok := t.flows[b.Flow]; !ok {
		t.keep(b.Flow, entry{since: time.Now(), cookie: b.Cookie, ahead: true})
		t.cookies[b.Cookie] = b.Flow
	}
	return nil
}

// adoptBegun accepts the connections that an earlier process has let begin and that had not lasted for long enough
// to be in the set.
func (t *Table) adoptBegun() error {
	var flows []packet.Flow
	err := t.eachMarked(t.o.SocketMark, func(k key) {
		if f, ok := flowOf(k.b[:k.len]); ok && f.Proto == packet.TCP && !t.accepted(f) && check(f) == nil {
			flows = append(flows, f)
		}
	})
	if err != nil {
		return err
	}
	var begun []entering
	now := time.Now()
	for _, f := range flows {
		if t.lent(t.diags, func(w *wire) error { _, err := w.find(f); return err }) != nil {
			continue // it has no socket any more
		}
		if fresh, err := t.reserve(f, entry{since: now}); err == nil && fresh {
			c := changeOf(f, "", setAccept, t.o.timeout(f.Proto))
			begun = append(begun, entering{change: *c, f: f, fresh: true})
		}
	}
	for len(begun) > 0 {
		n := min(len(begun), batchLimit)
		t.enter(begun[:n]) // what finds no room ends as it would have
		begun = begun[n:]
	}
	return nil
}

// settle puts connections that began ahead and last into the set, until ctx ends.
func (t *Table) settle(ctx context.Context) error {
	timer := time.NewTimer(settleEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.fresh.wake:
		}
		for more := true; more; {
			timer.Reset(settleEvery)
			select {
			case <-ctx.Done():
				return nil
			case <-timer.C:
			}
			var due []Began
			due, more = t.fresh.take()
			t.accept(due)
		}
	}
}

// accept puts those connections into the set that still live.
func (t *Table) accept(due []Began) {
	var flows []packet.Flow
	t.mu.Lock()
	for _, b := range due {
		if e, ok := t.flows[b.Flow]; ok && e.ahead && e.cookie == b.Cookie {
			e.ahead = false // who ends it from now on deletes it
			t.flows[b.Flow] = e
			delete(t.cookies, b.Cookie) // many may last: they are found by their names, as all others
			flows = append(flows, b.Flow)
		}
	}
	t.mu.Unlock()
	for len(flows) > 0 {
		n := min(len(flows), batchLimit)
		t.acceptBegun(flows[:n])
		flows = flows[n:]
	}
}

func (t *Table) acceptBegun(flows []packet.Flow) {
	changes := make([]*change, len(flows))
	for i, f := range flows {
		changes[i] = changeOf(f, "", setAccept, t.o.timeout(f.Proto))
	}
	whole := t.w.apply(changes)
	err := whole
	var late []*change // whose end came first
	var failed []packet.Flow
	t.mu.Lock()
	for i, f := range flows {
		e, ok := t.flows[f]
		switch {
		case ok && e.cookie != 0 && (whole != nil || changes[i].err != nil):
			err = errors.Join(err, changes[i].err)
			if time.Since(e.since) > settleFor {
				failed = append(failed, f)
				continue
			}
			e.ahead = true // its destination lets it go on for a while
			t.flows[f] = e
			t.fresh.add(Began{Flow: f, Cookie: e.cookie})
		case !ok:
			late = append(late, changeOf(f, setAccept, "", 0))
		default:
			t.young = append(t.young, f)
			t.lasts(f)
		}
	}
	t.mu.Unlock()
	if len(late) > 0 {
		err = errors.Join(err, t.w.do(late...))
	}
	for _, f := range failed {
		err = errors.Join(err, t.Revoke(f))
	}
	if err != nil && !errors.Is(err, ErrClosed) {
		t.warn(err)
	}
}

// aheadTable adds the set and the chain for what is permitted ahead.
func (obj objects) aheadTable(o Options, c *nftables.Conn) error {
	if err := obj.destinations(c, true); err != nil {
		return err
	}
	ahead := c.AddChain(&nftables.Chain{Table: obj.table, Name: aheadName})
	for _, family := range []string{"4", "6"} {
		obj.rule(c, ahead, "permitted ahead", obj.destination(family), accepts())
	}
	obj.rule(c, ahead, "socket with the mark", sets(o, 0))
	return nil
}

// destinations adds the sets of destinations, empty.
func (obj objects) destinations(c *nftables.Conn, timeout bool) error {
	for i, addr := range []nftables.SetDatatype{nftables.TypeIPAddr, nftables.TypeIP6Addr} {
		name := setAhead + []string{"4", "6"}[i]
		s := &nftables.Set{Table: obj.table, Name: name, KeyByteOrder: binaryutil.BigEndian, Concatenation: true, HasTimeout: timeout, Size: aheadLimit,
			KeyType: nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService)}
		if err := c.AddSet(s, nil); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
		c.FlushSet(s)
		obj.sets[name] = s
	}
	return nil
}

// destination ends the rule unless the packet's is in the set.
func (obj objects) destination(family string) []expr.Any {
	s := obj.sets[setAhead+family]
	lookup := &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}
	proto, port, offset, size := uint32(9), uint32(10), uint32(offDestination4), uint32(4)
	if family == "6" {
		proto, port, offset, size = 2, 13, offDestination6, 16
	}
	return append(obj.familyIs(family), payload(expr.PayloadBaseNetworkHeader, offset, size, 1), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: proto},
		payload(expr.PayloadBaseTransportHeader, offTargetPort, 2, port), lookup)
}
