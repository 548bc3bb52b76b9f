package stack

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"gatun/network/packet"
)

// outDepth bounds the packets that wait for the device. A producer that finds the queue full
// waits; the writer never waits for a producer, so that cannot deadlock. Where outWaiters wait
// already, the packet is lost, as on any full link: when thousands of flows are busy together, the
// goroutine of each would wait with a stack of 8 KiB.
const (
	outDepth   = 1024
	outWaiters = 256
)

// rawSize is the capacity of a pooled packet; longer ones are not pooled.
const rawSize = 2048

// rawPacket is a packet that was built here.
type rawPacket struct{ b []byte }

// outItem is one packet for the device: either netstack's or ours.
type outItem struct {
	pkt *stack.PacketBuffer
	raw *rawPacket
}

// outQueue decouples producers from the device. Writes are asynchronous because netstack's TCP
// processor spins on the endpoint's lock while a SYN-ACK is written under it.
//
// Who holds no lock may write a packet itself while nobody else writes and none waits (begin,
// done): the order stays, and the packet needs no other goroutine to wake up.
type outQueue struct {
	mu       sync.Mutex
	notEmpty sync.Cond
	notFull  sync.Cond
	items    []outItem
	closed   bool
	writing  bool // somebody writes to the device,
	taken    bool // which is the writer
	direct   [1][]byte
	waiters  int
	lost     *atomic.Uint64
	pool     sync.Pool
	mtu      int
}

func (q *outQueue) init(mtu int, lost *atomic.Uint64) {
	q.lost = lost
	q.notEmpty.L, q.notFull.L = &q.mu, &q.mu
	q.items = make([]outItem, 0, outDepth)
	q.mtu = mtu
}

// raw returns an empty packet to build into; put or release takes it back.
func (q *outQueue) raw() *rawPacket {
	if p, ok := q.pool.Get().(*rawPacket); ok {
		return p
	}
	return &rawPacket{b: make([]byte, 0, rawSize)}
}

func (q *outQueue) release(p *rawPacket) {
	if cap(p.b) <= rawSize {
		p.b = p.b[:0]
		q.pool.Put(p)
	}
}

// put queues one packet, or loses it, and reports whether the queue is open. It owns the packet
// either way.
func (q *outQueue) put(it outItem) bool {
	q.mu.Lock()
	if !q.closed && len(q.items) >= outDepth && q.waiters >= outWaiters {
		q.mu.Unlock()
		q.drop(it)
		q.lost.Add(1)
		return true
	}
	for len(q.items) >= outDepth && !q.closed {
		q.waiters++
		q.notFull.Wait()
		q.waiters--
	}
	if q.closed {
		q.mu.Unlock()
		q.drop(it)
		return false
	}
	wake := len(q.items) == 0 && !q.writing // else who writes looks, or wakes the writer
	q.items = append(q.items, it)
	q.mu.Unlock()
	if wake {
		q.notEmpty.Signal()
	}
	return true
}

func (q *outQueue) drop(it outItem) {
	if it.pkt != nil {
		it.pkt.DecRef()
		return
	}
	q.release(it.raw)
}

// take waits for packets and swaps all of them against the empty slice spare. It returns none
// when the queue is closed and empty. Only the writer calls it, which is done with what it took
// before.
func (q *outQueue) take(spare []outItem) []outItem {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.writing = q.writing && !q.taken
	q.taken = false
	for len(q.items) == 0 && !q.closed || q.writing {
		q.notEmpty.Wait()
	}
	items := q.items
	q.items = spare
	q.writing, q.taken = true, true
	q.notFull.Broadcast()
	return items
}

// begin reports whether the caller may write one packet to the device now, and nobody else until
// done.
func (q *outQueue) begin() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.writing || q.closed || len(q.items) > 0 {
		return false
	}
	q.writing = true
	return true
}

func (q *outQueue) done() {
	q.mu.Lock()
	q.writing = false
	wake := len(q.items) > 0 || q.closed
	q.mu.Unlock()
	if wake {
		q.notEmpty.Signal()
	}
}

func (q *outQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.notEmpty.Broadcast()
	q.notFull.Broadcast()
}

// writer collects packets into batches for the device.
type writer struct {
	s       *Stack
	bufs    [][]byte // the batch
	scratch [][]byte // one buffer per slot, for packets that netstack scattered
	raws    []*rawPacket
	head    [120]byte // IP and TCP header of a super-packet
	pieces  [][]byte  // of a super-packet for the device
}

// write is the only goroutine that writes to the device.
func (s *Stack) write() error {
	n := max(s.dev.BatchSize(), 1)
	w := &writer{s: s, bufs: make([][]byte, 0, n), scratch: make([][]byte, n)}
	for i := range w.scratch {
		w.scratch[i] = make([]byte, s.mtu)
	}
	spare := make([]outItem, 0, outDepth)
	for {
		items := s.out.take(spare)
		if len(items) == 0 {
			return nil
		}
		err := w.writeAll(items)
		clear(items)
		spare = items[:0]
		if err != nil {
			s.out.close()
			return err
		}
	}
}

func (w *writer) writeAll(items []outItem) error {
	for i, it := range items {
		err := w.add(it)
		if err != nil {
			for _, rest := range items[i+1:] {
				w.s.out.drop(rest)
			}
			return err
		}
	}
	return w.flush()
}

// add puts one item into the batch and takes it over.
func (w *writer) add(it outItem) error {
	if it.raw != nil {
		w.bufs = append(w.bufs, it.raw.b)
		w.raws = append(w.raws, it.raw)
		return w.flushFull()
	}
	defer it.pkt.DecRef()
	if it.pkt.GSOOptions.Type != stack.GSONone {
		if w.s.large {
			return w.whole(it.pkt)
		}
		return w.segment(it.pkt)
	}
	slot := w.slot()
	if it.pkt.Size() > len(slot) {
		w.s.counts.writeErrors.Add(1)
		return nil
	}
	return w.done(slot[:gather(it.pkt, 0, slot)])
}

func (w *writer) slot() []byte { return w.scratch[len(w.bufs)] }

func (w *writer) done(b []byte) error {
	w.bufs = append(w.bufs, b)
	return w.flushFull()
}

func (w *writer) flushFull() error {
	if len(w.bufs) < cap(w.bufs) {
		return nil
	}
	return w.flush()
}

func (w *writer) flush() error {
	if len(w.bufs) == 0 {
		return nil
	}
	n, err := w.s.dev.Write(w.bufs)
	c, size := &w.s.counts, 0
	for _, b := range w.bufs {
		size += len(b)
	}
	c.packetsOut.Add(uint64(n))
	c.bytesOut.Add(uint64(size))
	c.writeErrors.Add(uint64(len(w.bufs) - n))
	for _, r := range w.raws {
		w.s.out.release(r)
	}
	clear(w.raws)
	clear(w.bufs)
	w.raws, w.bufs = w.raws[:0], w.bufs[:0]
	return err
}

// gather copies the bytes of pkt from offset on into b, as many as fit.
func gather(pkt *stack.PacketBuffer, offset int, b []byte) int {
	views, skip := pkt.AsViewList()
	skip += offset
	n := 0
	for v := views.Front(); v != nil && n < len(b); v = v.Next() {
		n += copyView(v, &skip, b[n:])
	}
	return n
}

func copyView(v *buffer.View, skip *int, b []byte) int {
	s := v.AsSlice()
	if *skip >= len(s) {
		*skip -= len(s)
		return 0
	}
	s = s[*skip:]
	*skip = 0
	return copy(b, s)
}

// whole leaves it to the device to cut a TCP super-packet, without a copy.
func (w *writer) whole(pkt *stack.PacketBuffer) error {
	if err := w.flush(); err != nil { // the order of packets stays
		return err
	}
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		w.pieces = append(w.pieces, b[skip:])
		skip = 0
	}
	l3, mss := int(pkt.GSOOptions.L3HdrLen), int(pkt.GSOOptions.MSS)
	if pkt.Data().Size() <= mss {
		mss = 0
	}
	taken, err := w.s.dev.WriteLarge(w.pieces, l3, l3+len(pkt.TransportHeader().Slice()), mss)
	clear(w.pieces)
	w.pieces = w.pieces[:0]
	c := &w.s.counts
	c.bytesOut.Add(uint64(pkt.Size()))
	if taken {
		c.packetsOut.Add(1)
	} else {
		c.writeErrors.Add(1)
	}
	return err
}

// segment cuts a TCP super-packet into packets for the wire. Netstack hands over up to 64 KB
// at once, so its cost per segment is paid once; the copy into the batch happens anyway.
func (w *writer) segment(pkt *stack.PacketBuffer) error {
	l3 := int(pkt.GSOOptions.L3HdrLen)
	size, mss := pkt.Size(), int(pkt.GSOOptions.MSS)
	hl := gather(pkt, 0, w.head[:min(size, len(w.head))])
	if hl < l3+20 {
		w.s.counts.writeErrors.Add(1)
		return nil
	}
	hl = l3 + int(w.head[l3+12]>>4)*4
	body := size - hl
	if mss <= 0 || hl+mss > w.s.mtu {
		mss = w.s.mtu - hl
	}
	for off := 0; ; off += mss {
		slot := w.slot()
		n := min(mss, body-off)
		copy(slot, w.head[:hl])
		gather(pkt, hl+off, slot[hl:hl+n])
		finishSegment(slot[:hl+n], l3, off, off+n == body)
		if err := w.done(slot[:hl+n]); err != nil {
			return err
		}
		if off+n >= body {
			return nil
		}
	}
}

// finishSegment turns the copied header of a super-packet into that of the segment b that
// starts off bytes into its payload.
func finishSegment(b []byte, l3, off int, last bool) {
	tcp := b[l3:]
	binary.BigEndian.PutUint32(tcp[4:], binary.BigEndian.Uint32(tcp[4:])+uint32(off))
	if !last {
		tcp[13] &^= packet.TCPFin | packet.TCPPsh
	}
	tcp[16], tcp[17] = 0, 0
	var sum uint64
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], packet.Fold(packet.Sum(b[:l3], 0)))
		sum = packet.Sum(b[12:20], uint64(packet.TCP)+uint64(len(tcp)))
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(len(tcp)))
		sum = packet.Sum(b[8:40], uint64(packet.TCP)+uint64(len(tcp)))
	}
	binary.BigEndian.PutUint16(tcp[16:], packet.Fold(packet.Sum(tcp, sum)))
}
