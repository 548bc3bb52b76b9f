package handback

import (
	"errors"
	"fmt"
	"time"

	"gatun/network/packet"
	"gatun/tun/resend"

	"golang.org/x/sys/unix"
)

// Accept hands the flow back: from now on the kernel carries it, and the held packet first, which
// began it, is sent again. first is not kept, and its transport checksum need not be complete. On
// an error nothing is left behind, the packet was not sent, and the flow stays where it was;
// errors.Is tells ErrFull and ErrUnsupported. A flow that is accepted already may be accepted again.
func (t *Table) Accept(f packet.Flow, first []byte) (err error) {
	t.AcceptAll([]packet.Flow{f}, [][]byte{first}, func(_ int, e error) { err = e })
	return err
}

// AcceptAll is Accept for flows that begin at the same time, which share what the kernel is asked.
// each is told what became of every one.
func (t *Table) AcceptAll(flows []packet.Flow, first [][]byte, each func(i int, err error)) {
	for at := 0; at < len(flows); at += batchLimit {
		end := min(at+batchLimit, len(flows))
		t.acceptBatch(flows[at:end], first[at:end], func(i int, err error) { each(at+i, err) })
	}
}

// entering is a flow on its way into the set.
type entering struct {
	change
	f      packet.Flow
	packet []byte
	at     int  // its position in what the caller gave
	fresh  bool // it was not accepted before
}

func (t *Table) acceptBatch(flows []packet.Flow, first [][]byte, each func(i int, err error)) {
	all := make([]entering, 0, len(flows))
	now := time.Now()
	for i, f := range flows {
		b, err := []byte(nil), checkAny(f)
		if err == nil {
			b, err = resend.Whole(f, first[i])
		}
		fresh := false
		if err == nil {
			fresh, err = t.reserve(f, entry{since: now, first: len(b), syn: sequence(f, b)})
		}
		if err != nil {
			each(i, err)
			continue
		}
		all = append(all, entering{change: t.entry(f, fresh, b), f: f, packet: b, at: i, fresh: fresh})
	}
	t.enter(all)
	for i := range all {
		e := &all[i]
		if e.err == nil {
			e.err = t.begin(e)
		} else {
			e.err = fmt.Errorf("%s: %w", e.f, e.err)
		}
		each(e.at, e.err)
	}
}

// entry is the change that accepts f, which b began. One that was known is in the set already, or has expired
// since.
func (t *Table) entry(f packet.Flow, fresh bool, b []byte) change {
	c := changeOf(f, "", setAccept, t.o.timeout(f.Proto))
	c.forget, c.exclusive = fresh, !fresh
	if c.tracked = c.k; fresh && isOther(f.Proto) {
		c.tracked, c.unnamed = tupleIn(f, b), f.Proto == protoGRE // of version 1 connection tracking makes up a name
	}
	return *c
}

// begin sends the packet that began an accepted flow.
func (t *Table) begin(e *entering) error {
	err := t.raw.Send(e.f, e.packet)
	if isOther(e.f.Proto) && errors.Is(err, unix.EMSGSIZE) {
		return nil // it came in fragments, and is too large to leave as one packet: such a one may get lost
	}
	if err != nil && e.fresh {
		err = errors.Join(err, t.w.do(changeOf(e.f, setAccept, "", 0)))
		t.unreserve(e.f)
	}
	return err
}

// errEnded says that the end of the flow was noticed before it was accepted.
var errEnded = errors.New("its socket was closed meanwhile")

// enter puts flows that are reserved into the set.
func (t *Table) enter(all []entering) {
	if len(all) == 0 {
		return
	}
	changes := make([]*change, len(all))
	for i := range all {
		changes[i] = &all[i].change
	}
	err := t.w.apply(changes)
	var late []*change // whose end came first and found nothing to delete, or that cannot be carried
	t.mu.Lock()
	for i := range all {
		e := &all[i]
		if err != nil {
			e.err = err
		}
		there := errors.Is(e.err, unix.EEXIST)
		if there {
			e.err = nil
		}
		known, ok := t.flows[e.f]
		switch {
		case errors.Is(e.err, errTranslated):
			t.take(e.f)
			late = append(late, changeOf(e.f, setAccept, "", 0))
		case e.err != nil && e.fresh:
			t.take(e.f)
		case e.err != nil || there:
		case !ok:
			e.err = errEnded
			late = append(late, changeOf(e.f, setAccept, "", 0))
		case e.fresh:
			t.expect(e.f)
		default:
			t.flows[e.f] = t.anew(e.f, known)
		}
	}
	t.mu.Unlock()
	if len(late) > 0 {
		if err := t.w.do(late...); err != nil {
			t.warn(err)
		}
	}
}

// reserve writes the flow down, so that its end is noticed even if it comes before Accept returns.
func (t *Table) reserve(f packet.Flow, e entry) (fresh bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false, ErrClosed
	}
	if known, ok := t.flows[f]; ok {
		known.syn = e.syn
		t.flows[f] = known
		return false, nil
	}
	if _, ok := t.returned[f]; ok {
		return false, comesBack(f)
	}
	if len(t.flows) >= t.o.Limit {
		return false, fmt.Errorf("%s: %w (%d)", f, ErrFull, t.o.Limit)
	}
	t.keep(f, e)
	return true, nil
}

// keep adds f. t.mu is held.
func (t *Table) keep(f packet.Flow, e entry) {
	t.flows[f] = e
	if !isOther(f.Proto) {
		t.ports[portOf(f)] = append(t.ports[portOf(f)], f)
	}
}

// expect has the socket of f, which is new in the set, looked for: that it is gone, or may carry the mark.
// t.mu is held.
func (t *Table) expect(f packet.Flow) {
	if isOther(f.Proto) {
		return
	}
	t.young = append(t.young, f)
	t.lasts(f)
}
