package stack

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"gatun/network/packet"
)

// quoteLen is what is kept of the last packet for a late ICMP error: the headers, and some
// payload, which tracepath wants back.
const quoteLen = 96

// The states of a flow of datagrams.
const (
	stateHeld     = iota // queue until the verdict
	stateFlushing        // accepted; the queue is being delivered, later ones still queue
	stateAccepted        // straight to the sink
	stateRejected        // each is answered with an ICMP error
	stateDropped         // silence
)

// datagrams is what UDPFlow and PingFlow have in common.
//
// The packet path takes mu for the queue and the quote only; an accepted flow's datagrams go to
// the sink without it. deliver is set once, before the state says accepted. Its header is that of
// each of the packets; echo requests come one at a time, because each has its own.
type datagrams struct {
	s       *Stack
	flow    packet.Flow
	state   atomic.Int32
	last    atomic.Int64 // nanoseconds since 1970
	deliver func(h *packet.Header, parts [][]byte)
	part    part
	forget  func()

	mu       sync.Mutex
	queue    [][]byte // whole packets, nil after the verdict
	first    []byte   // the first packet, until the handler returns
	rejected *packet.ICMPError
	denied   uint64 // packets since it was rejected or dropped
	quoted   int
	quote    [quoteLen]byte
	user     any
}

// part is what of a packet is delivered.
type part uint8

const (
	payloadOnly part = iota
	wholePacket
)

func (p part) of(h *packet.Header, b []byte) []byte {
	if p == wholePacket {
		return b
	}
	return b[h.HeaderLen:h.TotalLen]
}

// Flow returns the flow's name; Local is the program.
func (d *datagrams) Flow() packet.Flow { return d.flow }

// Context ends when the stack ends.
func (d *datagrams) Context() context.Context { return d.s.ctx }

// LastActive returns when the last packet of either direction passed, exact to a second.
func (d *datagrams) LastActive() time.Time { return time.Unix(0, d.last.Load()) }

// Denied returns how many packets came after Reject or Drop.
func (d *datagrams) Denied() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.denied
}

// Forget takes the flow out of the table: the next packet is a new flow.
func (d *datagrams) Forget() {
	d.forget()
	d.verdict(stateDropped)
}

// SetUserData hangs a value of the caller on the flow.
func (d *datagrams) SetUserData(v any) {
	d.mu.Lock()
	d.user = v
	d.mu.Unlock()
}

// UserData returns what SetUserData has set, or nil.
func (d *datagrams) UserData() any {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.user
}

// Drop is the verdict of silence, for what is held and what comes later.
func (d *datagrams) Drop() { d.verdict(stateDropped) }

// Reject is the verdict to answer each packet, held ones included, with the ICMP error e. Its
// source is e.From, or the address that was asked where that is invalid or of the other family.
// It may be called again, and on an accepted flow.
func (d *datagrams) Reject(e *packet.ICMPError) {
	d.mu.Lock()
	d.rejected = e
	d.mu.Unlock()
	for _, b := range d.verdict(stateRejected) {
		d.s.sendError(e, b)
	}
}

// verdict enters a final state and returns what was held.
func (d *datagrams) verdict(state int32) [][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state.Store(state)
	return d.takeQueue()
}

func (d *datagrams) takeQueue() [][]byte {
	q := d.queue
	d.queue = nil
	n := 0
	for _, b := range q {
		n += len(b)
	}
	d.s.held.Add(-int64(n))
	return q
}

// accept delivers the held packets in order. Packets that arrive meanwhile queue behind them,
// so the sink sees all of them once, in order, and never two at a time.
func (d *datagrams) accept(p part, deliver func(h *packet.Header, parts [][]byte)) {
	d.mu.Lock()
	if d.state.Load() != stateHeld {
		d.mu.Unlock()
		return
	}
	d.deliver, d.part = deliver, p
	d.state.Store(stateFlushing)
	for d.state.Load() == stateFlushing {
		q := d.takeQueue()
		if len(q) == 0 {
			d.state.Store(stateAccepted)
			break
		}
		d.mu.Unlock()
		for _, b := range q {
			d.deliverHeld(b)
		}
		d.mu.Lock()
	}
	d.mu.Unlock()
}

func (d *datagrams) deliverHeld(b []byte) {
	if h, err := d.parse(b); err == nil {
		d.deliver(&h, [][]byte{d.part.of(&h, b)})
	}
}

// parse reads a held packet again. One that is longer than the device takes came in fragments,
// and whoever sent fragments allows them, which only the fragments' own headers said over IPv6.
func (d *datagrams) parse(b []byte) (packet.Header, error) {
	h, err := packet.Parse(b)
	h.DontFragment = h.DontFragment && len(b) <= d.s.mtu
	return h, err
}

// packet takes one packet on the packet path, and reports whether it is to be delivered.
func (d *datagrams) packet(h *packet.Header, b []byte) (accepted bool) {
	d.last.Store(d.s.now.Load())
	d.mu.Lock()
	d.quoted = copy(d.quote[:], b)
	switch d.state.Load() {
	case stateHeld, stateFlushing:
		d.hold(b)
		d.mu.Unlock()
	case stateAccepted:
		d.mu.Unlock()
		return true
	case stateRejected:
		d.denied++
		e := d.rejected
		d.mu.Unlock()
		d.s.sendError(e, b)
	default:
		d.denied++
		d.mu.Unlock()
	}
	return false
}

// hold queues a copy of b. When the queue is full the newest is lost: a program's first
// datagram is the one that everything later depends on.
func (d *datagrams) hold(b []byte) {
	s := d.s
	if len(d.queue) >= s.limits.HeldDatagrams || s.held.Load()+int64(len(b)) > int64(s.limits.HeldBytes) {
		s.counts.holdOverflow.Add(1)
		return
	}
	s.held.Add(int64(len(b)))
	c := append(make([]byte, 0, len(b)), b...)
	d.queue = append(d.queue, c)
	if d.first == nil {
		d.first = c
	}
}

// firstPacket returns the first held packet; nil when there was no room to hold it.
func (d *datagrams) firstPacket() ([]byte, packet.Header) {
	d.mu.Lock()
	b := d.first
	d.mu.Unlock()
	h, err := d.parse(b)
	if err != nil {
		return nil, packet.Header{}
	}
	return b, h
}

// lastQuote copies what is kept of the last packet into b.
func (d *datagrams) lastQuote(b *[quoteLen]byte) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return b[:copy(b[:], d.quote[:d.quoted])]
}

// end is called when the handler returned: a flow without a verdict is dropped and forgotten,
// so that the program's next try is decided anew.
func (d *datagrams) end(panicked bool) {
	d.mu.Lock()
	d.first = nil
	d.mu.Unlock()
	undecided := d.state.Load() == stateHeld
	if undecided && !panicked {
		d.s.counts.undecided.Add(1)
	}
	if undecided || panicked {
		d.Forget()
	}
}

// touch notes a packet to the program.
func (d *datagrams) touch() { d.last.Store(d.s.now.Load()) }

// sendError queues an ICMP error that quotes the packet b for its sender.
func (s *Stack) sendError(e *packet.ICMPError, b []byte) {
	p := s.out.raw()
	p.b = packet.AppendICMPError(p.b, e, b)
	if len(p.b) == 0 {
		s.out.release(p)
		return
	}
	s.out.put(outItem{raw: p})
}

// replyIP is the IP header of a packet to the program.
func (s *Stack) replyIP(f *packet.Flow, ttl, tos uint8) packet.IP {
	return packet.IP{Src: f.Remote.Addr(), Dst: f.Local.Addr(), TTL: ttl, TOS: tos, ID: uint16(s.ipID.Add(1))}
}

// writeNow writes one packet between begin and done. That the device is gone is for the writer and
// the reader to find.
func (s *Stack) writeNow(p *rawPacket) {
	q := &s.out
	q.direct[0] = p.b
	n, _ := s.dev.Write(q.direct[:])
	q.direct[0] = nil
	q.done()
	c := &s.counts
	c.packetsOut.Add(uint64(n))
	c.bytesOut.Add(uint64(len(p.b)))
	c.writeErrors.Add(uint64(1 - n))
	q.release(p)
}

// send sends a packet that was built, in fragments where it is longer than the MTU.
func (s *Stack) send(p *rawPacket) error {
	if len(p.b) <= s.mtu {
		if s.out.begin() {
			s.writeNow(p)
			return nil
		}
		if !s.out.put(outItem{raw: p}) {
			return ErrStopped
		}
		return nil
	}
	ok := true
	packet.Split(p.b, s.mtu, s.ipID.Add(1), func(b []byte) {
		piece := s.out.raw()
		piece.b = append(piece.b, b...)
		ok = s.out.put(outItem{raw: piece}) && ok
	})
	s.out.release(p)
	if !ok {
		return ErrStopped
	}
	return nil
}
