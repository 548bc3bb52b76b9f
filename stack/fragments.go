package stack

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"gatun/network/packet"
)

const (
	// fragmentTimeout is Linux' ipfrag_time; RFC 8200 allows up to 60 s.
	fragmentTimeout = 30 * time.Second
	// maxPieces is enough for 64 KB over links of 576 bytes; more is an attack on memory.
	maxPieces = 128
	// maxPartial bounds the packets in assembly, so that empty promises cost little.
	maxPartial = 1024
	// pieceOverhead is what a piece costs beside its bytes.
	pieceOverhead = 128
)

// reassembler puts fragments together. It belongs to the reader; it has no lock.
//
// Netstack's own reassembly is not used because what it completes goes on inside netstack:
// pings would be answered there. Packets with overlapping pieces are discarded as a whole
// (RFC 5722, for IPv4 too), and so are their later pieces: there is no honest reason for an
// overlap, and two readers of the same bytes would see two different packets.
type reassembler struct {
	partial map[fragmentKey]*partial
	bytes   int // held
	limit   int
	swept   time.Time
}

type fragmentKey struct {
	src, dst netip.Addr
	proto    packet.Proto // 0 over IPv6, where only the first piece tells it
	id       uint32
}

// partial is a packet in assembly.
type partial struct {
	started time.Time
	pieces  []piece // by offset, without overlaps
	have    int     // bytes in pieces
	total   int     // of the payload, 0 while the last piece is missing
	head    []byte  // IP header of the first piece, ready for the whole packet
	cost    int
	dead    bool // discarded; kept until its time is over to swallow the rest
}

type piece struct {
	off  int
	data []byte
}

func (r *reassembler) init(limit int) {
	r.partial = make(map[fragmentKey]*partial)
	r.limit = limit
}

// add takes the fragment b. It returns the packet that is whole now, if any, and how many
// fragments were dropped.
func (r *reassembler) add(h *packet.Header, b []byte, now time.Time) (whole []byte, dropped int) {
	dropped = r.sweep(now)
	key := fragmentKey{src: h.Flow.Local.Addr(), dst: h.Flow.Remote.Addr(), id: h.FragmentID}
	if !h.Is6() {
		key.proto = h.Flow.Proto
	}
	p := r.partial[key]
	if p == nil {
		if len(r.partial) >= maxPartial {
			return nil, dropped + 1
		}
		p = &partial{started: now, cost: pieceOverhead}
		r.bytes += p.cost
		r.partial[key] = p
	}
	if p.dead {
		return nil, dropped + 1
	}
	data, before := b[h.NetworkLen:h.TotalLen], p.have
	if r.bytes+len(data)+pieceOverhead > r.limit || !p.insert(h, data) {
		return nil, dropped + 1 + r.discard(p)
	}
	if p.have != before { // else a duplicate
		r.account(p, len(data)+pieceOverhead)
	}
	if h.FragmentOffset == 0 && p.head == nil {
		p.head = wholeHead(h, b)
	}
	if p.total == 0 || p.have != p.total || p.head == nil {
		return nil, dropped
	}
	whole = p.join()
	r.bytes -= p.cost
	delete(r.partial, key)
	return whole, dropped
}

func (r *reassembler) account(p *partial, n int) {
	p.cost += n
	r.bytes += n
}

// discard gives up a packet and returns how many of its pieces were held.
func (r *reassembler) discard(p *partial) int {
	n := len(p.pieces)
	r.account(p, pieceOverhead-p.cost)
	p.pieces, p.head, p.dead = nil, nil, true
	return n
}

// sweep forgets packets whose time is over, once a second at most.
func (r *reassembler) sweep(now time.Time) (dropped int) {
	if now.Sub(r.swept) < time.Second {
		return 0
	}
	r.swept = now
	for key, p := range r.partial {
		if now.Sub(p.started) < fragmentTimeout {
			continue
		}
		dropped += len(p.pieces)
		r.bytes -= p.cost
		delete(r.partial, key)
	}
	return dropped
}

// insert adds data; false means that the packet must be discarded. An exact copy of a piece is
// a duplicate of the network and is ignored.
func (p *partial) insert(h *packet.Header, data []byte) bool {
	off, end := h.FragmentOffset, h.FragmentOffset+len(data)
	at, found := slices.BinarySearchFunc(p.pieces, off, func(x piece, off int) int { return x.off - off })
	if found && bytes.Equal(p.pieces[at].data, data) {
		return true
	}
	switch {
	case found, len(p.pieces) >= maxPieces:
		return false
	case at > 0 && p.pieces[at-1].off+len(p.pieces[at-1].data) > off:
		return false
	case at < len(p.pieces) && p.pieces[at].off < end:
		return false
	case p.total != 0 && end > p.total:
		return false
	}
	if !h.MoreFragments {
		if at < len(p.pieces) || p.total != 0 && p.total != end {
			return false
		}
		p.total = end
	}
	p.pieces = slices.Insert(p.pieces, at, piece{off: off, data: bytes.Clone(data)})
	p.have += len(data)
	return true
}

// wholeHead makes the IP header of the whole packet from that of its first piece.
func wholeHead(h *packet.Header, b []byte) []byte {
	if !h.Is6() {
		head := bytes.Clone(b[:h.NetworkLen])
		head[6] &^= 0x20
		return head
	}
	head := bytes.Clone(b[:h.UnfragLen])
	head[h.UnfragNext] = b[h.UnfragLen]
	return head
}

// join returns the whole packet, or an empty one, which no parser takes, where it would be
// longer than an IP packet can be.
func (p *partial) join() []byte {
	size := len(p.head) + p.total
	six := p.head[0]>>4 == 6
	if six && size-40 > 65535 || !six && size > 65535 {
		return []byte{}
	}
	b := append(make([]byte, 0, size), p.head...)
	for _, x := range p.pieces {
		b = append(b, x.data...)
	}
	if six {
		binary.BigEndian.PutUint16(b[4:], uint16(size-40))
		return b
	}
	binary.BigEndian.PutUint16(b[2:], uint16(size))
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], packet.Fold(packet.Sum(b[:len(p.head)], 0)))
	return b
}
