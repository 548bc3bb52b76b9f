package stack

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"gatun/network/packet"
)

// strictDevice fails where two write at a time, and where a flow's packets come out of order. The
// first four bytes of a payload are a number.
type strictDevice struct {
	*nullDevice
	t       *testing.T
	busy    atomic.Bool
	last    map[uint16]uint32 // by the program's port
	packets int
	errors  int
}

func (d *strictDevice) Write(bufs [][]byte) (int, error) {
	if !d.busy.CompareAndSwap(false, true) {
		d.t.Error("two writers at a time")
	}
	defer d.busy.Store(false)
	runtime.Gosched() // others come to the queue meanwhile
	for _, b := range bufs {
		d.packets++
		h, err := packet.Parse(b)
		if err != nil {
			d.t.Errorf("malformed packet: %v", err)
			continue
		}
		if h.Flow.Proto != packet.UDP {
			d.errors++
			continue
		}
		port, number := h.Flow.Remote.Port(), binary.BigEndian.Uint32(b[h.HeaderLen:])
		if number != d.last[port]+1 {
			d.t.Errorf("port %d: %d comes behind %d", port, number, d.last[port])
		}
		d.last[port] = number
	}
	return len(bufs), nil
}

// TestRepliesKeepTheirOrder: a reply is written by who sends it or by the writer, and in either
// case by one at a time and in the order of its flow, also between packets that only the writer
// writes.
func TestRepliesKeepTheirOrder(t *testing.T) {
	const flows, each = 6, 3000
	dev := &strictDevice{nullDevice: newNullDevice(), t: t, last: map[uint16]uint32{}}
	s, err := New(Options{Device: dev, Handler: &handler{t: t}, Local: func(netip.Addr) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	s.ctx = t.Context()
	var writer, senders sync.WaitGroup
	writer.Go(func() { s.write() })
	for i := range flows {
		f := &UDPFlow{datagrams{s: s, flow: packet.Flow{Proto: packet.UDP, Local: at(families[0].prog, uint16(1000+i)), Remote: at(families[0].peer, 7)}}}
		f.packet(&packet.Header{}, udpPacket(f.flow.Local, f.flow.Remote, []byte("x")))
		senders.Go(func() {
			for n := range each {
				payload := binary.BigEndian.AppendUint32(nil, uint32(n+1))
				if err := f.Reply(payload, 0); err != nil {
					t.Error(err)
				}
				if n%10 == 9 {
					f.Error(packet.PortUnreachable(f.flow.Remote.Addr()))
				}
			}
		})
	}
	senders.Wait()
	s.out.close()
	writer.Wait()
	if dev.packets != flows*each+flows*each/10 || dev.errors != flows*each/10 {
		t.Errorf("%d packets, %d of them errors; want %d and %d", dev.packets, dev.errors, flows*each*11/10, flows*each/10)
	}
	if n := s.Counters().PacketsOut; int(n) != dev.packets {
		t.Errorf("%d packets counted, %d written", n, dev.packets)
	}
	f := &UDPFlow{datagrams{s: s}}
	f.flow = packet.Flow{Proto: packet.UDP, Local: at(families[0].prog, 1), Remote: at(families[0].peer, 7)}
	if err := f.Reply([]byte("late"), 0); err != ErrStopped {
		t.Errorf("a reply behind the end: %v, want ErrStopped", err)
	}
}

// TestAReplyNeedsNobody: where nothing waits, a reply is on the device when Reply returns.
func TestAReplyNeedsNobody(t *testing.T) {
	dev := &strictDevice{nullDevice: newNullDevice(), t: t, last: map[uint16]uint32{}}
	s, err := New(Options{Device: dev, Handler: &handler{t: t}, Local: func(netip.Addr) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	f := &UDPFlow{datagrams{s: s, flow: packet.Flow{Proto: packet.UDP, Local: at(families[0].prog, 1000), Remote: at(families[0].peer, 7)}}}
	if err := f.Reply([]byte{0, 0, 0, 1}, 0); err != nil || dev.packets != 1 {
		t.Errorf("%d packets on the device, %v", dev.packets, err)
	}
}
