package stack

import (
	"errors"
	"net/netip"
	"os"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"

	"gatun/network/packet"
)

// reader is the state of the goroutine that reads the device. Nothing on its path allocates,
// logs or blocks; flows are handed to goroutines of their own.
type reader struct {
	s        *Stack
	bufs     [][]byte
	sizes    []int
	views    []*buffer.View // what bufs are parts of, where large packets have come
	slot     int            // which of bufs holds the packet at hand, or none
	unsummed bool           // the packet at hand has no transport checksum yet
	h        packet.Header
	frags    reassembler
	trains   trains
	source   netip.Addr // the last source that was found to be local, within one batch
	now      time.Time
	looked   time.Time // when the netstacks were looked at
}

// read is the only goroutine that reads the device.
func (s *Stack) read() error {
	r := s.newReader()
	for {
		got, err := s.dev.Read(r.bufs, r.sizes)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		r.batch(got)
	}
}

func (s *Stack) newReader() *reader {
	n := max(s.dev.BatchSize(), 1)
	r := &reader{s: s, bufs: make([][]byte, n), sizes: make([]int, n), views: make([]*buffer.View, n)}
	for i := range r.bufs { // only the pages that were written to take memory
		r.bufs[i] = make([]byte, s.dev.MaxPacket())
	}
	r.frags.init(s.limits.FragmentBytes)
	r.trains.init(n)
	return r
}

// noSlot is where a packet is that was put together here.
const noSlot = -1

// lendFrom is the size of a TCP packet that netstack gets in the buffer that it was read into. To
// clear another buffer costs as much as to copy half of one.
const lendFrom = 24 << 10

// lend takes the buffer that begins with the packet b out of its slot, if it is worth it.
func (r *reader) lend(b []byte) *buffer.View {
	if r.slot == noSlot || len(b) < lendFrom {
		return nil
	}
	v := r.views[r.slot]
	if v == nil { // the first large packet here
		v = buffer.NewViewWithData(b)
	} else {
		v.CapLength(len(b))
	}
	next := buffer.NewViewSize(r.s.dev.MaxPacket())
	r.views[r.slot], r.bufs[r.slot] = next, next.AsSlice()
	return v
}

func (r *reader) batch(n int) {
	r.now = time.Now()
	r.s.now.Store(r.now.UnixNano())
	r.source = netip.Addr{}
	bytes := 0
	for i, size := range r.sizes[:n] {
		bytes += size
		r.slot, r.unsummed = i, r.s.dev.Unsummed(i)
		r.packet(r.bufs[i][:size])
	}
	r.s.nets.flush()
	r.trains.flush()
	r.s.begin()
	if r.now.Sub(r.looked) >= r.s.nets.every {
		r.looked = r.now
		r.s.turnOver()
	}
	r.s.counts.packetsIn.Add(uint64(n))
	r.s.counts.bytesIn.Add(uint64(bytes))
}

// packet checks one packet as it came from the device.
func (r *reader) packet(b []byte) {
	h, c := &r.h, &r.s.counts
	if err := h.Parse(b); err != nil {
		if errors.Is(err, packet.ErrFragment) {
			c.fragments.Add(1)
		} else {
			c.malformed.Add(1)
		}
		return
	}
	switch {
	case h.SourceRoute:
		c.sourceRoute.Add(1)
	case forbidden(h.Flow.Remote.Addr()):
		c.destination.Add(1)
	case !r.isLocal(h.Flow.Local.Addr()):
		c.spoofed.Add(1)
	case !h.HeaderChecksumOK(b):
		c.checksum.Add(1)
	case h.Fragment:
		r.fragment(b)
	default:
		r.whole(b[:h.TotalLen])
	}
}

func (r *reader) isLocal(src netip.Addr) bool {
	if src == r.source {
		return true
	}
	if !r.s.local(src) {
		return false
	}
	r.source = src
	return true
}

// broadcast4 reaches every host of the link, like a multicast.
func broadcast4() netip.Addr { return netip.AddrFrom4([4]byte{255, 255, 255, 255}) }

// forbidden reports whether no relayed packet may go to dst: it names no host, or this one.
func forbidden(dst netip.Addr) bool {
	return dst.IsMulticast() || dst.IsLoopback() || dst.IsUnspecified() || dst == broadcast4()
}

// fragment adds a piece; the packet that it completes goes through every check again.
func (r *reader) fragment(b []byte) {
	h, c := &r.h, &r.s.counts
	whole, dropped := r.frags.add(h, b, r.now)
	c.fragments.Add(uint64(dropped))
	if whole == nil {
		return
	}
	if err := h.Parse(whole); err != nil || h.Fragment {
		c.malformed.Add(1)
		return
	}
	if h.SourceRoute {
		c.sourceRoute.Add(1)
		return
	}
	r.slot, r.unsummed = noSlot, false
	c.reassembled.Add(1)
	h.DontFragment = false // whoever sent fragments allows them
	r.whole(whole[:h.TotalLen])
	r.trains.flush() // its buffer is used again
}

// whole hands a checked packet to its protocol.
func (r *reader) whole(b []byte) {
	h, s := &r.h, r.s
	if !r.unsummed && !h.TransportChecksumOK(b) {
		s.counts.checksum.Add(1)
		return
	}
	switch {
	case h.Flow.Proto == packet.TCP:
		if v := r.lend(b); v != nil {
			s.netOf(tuple(h.Flow)).link.injectLarge(v, h.HeaderLen, h.Is6())
			return
		}
		s.tcp(h, b)
	case h.Flow.Proto == packet.UDP:
		r.datagram(h, b)
	case h.IsEcho():
		s.echo(h, b)
	case h.Flow.Proto.IsICMP():
		s.counts.icmp.Add(1)
	default:
		s.other(h, b)
	}
}
