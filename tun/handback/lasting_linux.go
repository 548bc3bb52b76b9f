package handback

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"gatun/network/packet"

	"golang.org/x/sys/unix"
)

// To find a flow in the set is a fifth of what the rules and connection tracking cost a small datagram. A flow
// that lasts, whose socket carries the mark, is marked in connection tracking instead, which has found the
// flow by then. It stays in the set, which has the word as soon as connection tracking forgets the flow; and
// whoever takes it out of the set takes the mark away. What passes meanwhile is counted by connection tracking,
// but for a packet that leaves while the mark is set and the first count is read.

// lasting is what has passed of a flow beside the set.
type lasting struct {
	from Counter // what connection tracking had counted when it began
	sent Counter // since then, when last read
}

// tracked is what connection tracking says of a flow.
type tracked struct {
	mark           uint32
	counts         bool
	sent, received Counter
}

// last lets those of flows, whose sockets carry the mark, pass without being looked up that connection tracking knows as handed back, and
// counts where nobody else does.
func (t *Table) last(flows []packet.Flow) error {
	if t.o.LastingMark == 0 {
		return nil
	}
	return t.eachPart(flows, func(w *wire, part []packet.Flow) error {
		entries, err := w.entries(part)
		if err != nil {
			return err
		}
		var chosen []packet.Flow
		t.mu.Lock()
		for i, f := range part {
			e, ok := t.flows[f]
			_, already := t.lasting[f]
			if ok && !already && !e.ahead && entries[i].mark&t.o.Mask == t.o.SocketMark && (entries[i].counts || f.Proto == packet.TCP) {
				t.lasting[f] = lasting{} // who ends it from now on takes the mark away, after us
				chosen = append(chosen, f)
			}
		}
		t.mu.Unlock()
		if len(chosen) == 0 {
			return nil
		}
		if entries, err = w.marked(chosen, t.o.LastingMark, t.o.Mask); err != nil {
			return errors.Join(err, t.unmark(w, chosen))
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		for i, f := range chosen {
			if _, ok := t.lasting[f]; ok {
				t.lasting[f] = lasting{from: entries[i].sent}
			}
		}
		return nil
	})
}

// unmark has the flows looked up again.
func (t *Table) unmark(w *wire, flows []packet.Flow) error {
	_, err := w.marked(flows, t.o.SocketMark, t.o.Mask)
	return err
}

// outlast has flows that have ended looked up from now on, as far as they were not.
func (t *Table) outlast(ended []ending) error {
	var flows []packet.Flow
	for i := range ended {
		if ended[i].lasted {
			flows = append(flows, ended[i].Flow)
		}
	}
	return t.eachPart(flows, t.unmark)
}

// count reads what connection tracking has counted: of those of flows that last, what has passed beside the set,
// and what all but TCP has received.
func (t *Table) count(flows []packet.Flow) error {
	var counted []packet.Flow
	t.mu.Lock()
	for _, f := range flows {
		if _, ok := t.lasting[f]; ok || f.Proto != packet.TCP {
			counted = append(counted, f)
		}
	}
	t.mu.Unlock()
	return t.eachPart(counted, func(w *wire, part []packet.Flow) error {
		entries, err := w.entries(part)
		if err != nil {
			return err
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		for i, f := range part {
			t.counted(f, entries[i])
		}
		return nil
	})
}

// counted notes what connection tracking says of a flow. What it has forgotten is looked up again, and counted
// from nothing. t.mu is held.
func (t *Table) counted(f packet.Flow, now tracked) {
	e, ok := t.flows[f]
	if !ok {
		return
	}
	if f.Proto != packet.TCP && now.counts {
		reply := now.received.payload(f)
		if reply < e.reply {
			e.reply = 0
		}
		e.Received += reply - e.reply
		e.reply = reply
		t.flows[f] = e
	}
	l, ok := t.lasting[f]
	if !ok {
		return
	}
	if now.mark&t.o.Mask == t.o.LastingMark {
		l.sent = now.sent.since(l.from)
		t.lasting[f] = l
		return
	}
	e.base = sum(e.base, l.sent)
	t.flows[f] = e
	delete(t.lasting, f)
	t.lasts(f)
}

// total is what a flow has sent, of which the set has counted a part since it was renewed. t.mu is held.
func (t *Table) total(f packet.Flow, e entry, inSet Counter) Counter {
	return sum(sum(e.base, inSet), t.lasting[f].sent)
}

func (c Counter) since(before Counter) Counter {
	return Counter{Packets: c.Packets - min(c.Packets, before.Packets), Bytes: c.Bytes - min(c.Bytes, before.Bytes)}
}

// eachPart passes flows in parts to use, together with the one socket to connection tracking.
func (t *Table) eachPart(flows []packet.Flow, use func(w *wire, part []packet.Flow) error) error {
	for len(flows) > 0 {
		n := min(len(flows), batchLimit)
		if err := t.lent(t.tracks, func(w *wire) error { return use(w, flows[:n]) }); err != nil {
			return fmt.Errorf("flows that last: %w", err)
		}
		flows = flows[n:]
	}
	return nil
}

// entries asks connection tracking for flows.
func (w *wire) entries(flows []packet.Flow) ([]tracked, error) {
	return w.tracking(flows, func(k *key) { w.track(k) })
}

// marked changes the mark of flows in connection tracking, and returns what that says of them then.
func (w *wire) marked(flows []packet.Flow, mark, mask uint32) ([]tracked, error) {
	return w.tracking(flows, func(k *key) {
		w.mark(k, mark, mask)
		w.track(k)
	})
}

// tracking sends what ask writes for each flow, and returns the entries that come back. What has none, also
// because the kernel does not let us ask, comes back as zero.
func (w *wire) tracking(flows []packet.Flow, ask func(*key)) ([]tracked, error) {
	found := make([]tracked, len(flows))
	first := w.seq + 1
	for _, f := range flows {
		k := tupleOf(f)
		ask(&k)
	}
	each := (w.seq - first + 1) / uint32(len(flows))
	if err := w.send(); err != nil {
		return nil, err
	}
	return found, w.answers(func(m message) {
		if i := (m.seq - first) / each; m.typ == ctNew && i < uint32(len(found)) {
			found[i] = parseTracked(m.body)
		}
	})
}

// parseTracked reads an entry of connection tracking.
func parseTracked(body []byte) (e tracked) {
	if len(body) < 4 {
		return e
	}
	eachAttr(body[4:], func(typ uint16, v []byte) {
		switch {
		case typ == ctMark && len(v) == 4:
			e.mark = binary.BigEndian.Uint32(v)
		case typ == ctSent:
			e.counts, e.sent = true, parseCounter(v)
		case typ == ctReceived:
			e.received = parseCounter(v)
		}
	})
	return e
}

func parseCounter(b []byte) (c Counter) {
	eachAttr(b, func(typ uint16, v []byte) {
		switch {
		case typ == ctPackets && len(v) == 8:
			c.Packets = binary.BigEndian.Uint64(v)
		case typ == ctBytes && len(v) == 8:
			c.Bytes = binary.BigEndian.Uint64(v)
		}
	})
	return c
}

// forgetLasting has everything looked up again that an earlier process has left: nobody would take it back.
func (t *Table) forgetLasting() error {
	if t.o.LastingMark == 0 {
		return nil
	}
	var left []change
	err := t.eachMarked(t.o.LastingMark, func(k key) { left = append(left, change{k: k}) })
	for len(left) > 0 && err == nil {
		n := min(len(left), batchLimit)
		err = t.lent(t.tracks, func(w *wire) error {
			for i := range left[:n] {
				w.mark(&left[i].k, t.o.SocketMark, t.o.Mask)
			}
			return errors.Join(w.send(), w.answers(func(message) {})) // what is gone meanwhile is as good
		})
		left = left[n:]
	}
	if err != nil {
		return fmt.Errorf("flows that an earlier process has left: %w", err)
	}
	return nil
}

// eachMarked passes what connection tracking knows with a mark, from where it began. Who cannot ask has not set
// marks either.
func (t *Table) eachMarked(mark uint32, each func(key)) error {
	err := t.lent(t.lists, func(w *wire) error {
		at := w.begin(ctGet, unix.NLM_F_DUMP, [4]byte{unix.AF_UNSPEC})
		w.attr(ctMark, binary.BigEndian.AppendUint32(nil, mark)...)
		w.attr(ctMarkMask, binary.BigEndian.AppendUint32(nil, t.o.Mask)...)
		w.end(at)
		return w.dump(func(body []byte) {
			if k, ok := keyOfEntry(body); ok {
				each(k)
			}
		})
	})
	if errno := unix.Errno(0); errors.As(err, &errno) {
		return nil
	}
	return err
}

// keyOfEntry is the flow of an entry of connection tracking as the sets hold it.
func keyOfEntry(body []byte) (k key, ok bool) {
	if len(body) < 4 {
		return k, false
	}
	var from, to, proto, source, target []byte
	eachAttr(body[4:], func(typ uint16, v []byte) {
		if typ != ctTupleOrig {
			return
		}
		eachAttr(v, func(part uint16, v []byte) {
			eachAttr(v, func(typ uint16, v []byte) {
				switch {
				case part == ctTupleIP && (typ == ctSource4 || typ == ctSource6):
					from = v
				case part == ctTupleIP:
					to = v
				case part == ctTupleProto && typ == ctProto:
					proto = v
				case part == ctTupleProto && typ == ctSourcePort:
					source = v
				case part == ctTupleProto && typ == ctTargetPort:
					target = v
				}
			})
		})
	})
	local, okLocal := netip.AddrFromSlice(from)
	remote, okRemote := netip.AddrFromSlice(to)
	if !okLocal || !okRemote || len(from) != len(to) || len(proto) != 1 || len(source) != 2 || len(target) != 2 {
		return k, false
	}
	return tupleOf(packet.Flow{Proto: packet.Proto(proto[0]), Local: netip.AddrPortFrom(local, binary.BigEndian.Uint16(source)),
		Remote: netip.AddrPortFrom(remote, binary.BigEndian.Uint16(target))}), true
}
