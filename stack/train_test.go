package stack

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"gatun/network/packet"
)

// trainLab is a stack whose flows are all accepted, each by a recorder of its own.
func trainLab(t *testing.T, f family, flows int) (r *reader, sinks []*recorder) {
	for range flows {
		sinks = append(sinks, &recorder{})
	}
	s, r := pathLab(t, &handler{udp: func(u *UDPFlow) { u.Accept(sinks[u.Flow().Remote.Port()-1]) }})
	for i := range flows {
		r.load(udpPacket(at(f.prog, 5000), at(f.peer, uint16(i+1)), []byte("first")))
		r.batch(1)
	}
	eventually(t, "all flows are accepted", func() bool {
		for i := range flows {
			u := s.udp.get(&packet.Flow{Proto: packet.UDP, Local: at(f.prog, 5000), Remote: at(f.peer, uint16(i+1))})
			if u.state.Load() != stateAccepted {
				return false
			}
		}
		return true
	})
	for _, sink := range sinks {
		sink.got, sink.trains = nil, nil
	}
	return r, sinks
}

func (r *reader) take(pkts ...[]byte) {
	r.load(pkts...)
	r.batch(len(pkts))
}

// TestTrains: what a batch brings for a flow leaves at once, in order, although other flows came
// in between.
func TestTrains(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		r, sinks := trainLab(t, f, 3)
		var pkts [][]byte
		var want [3][]string
		for i := range 30 {
			payload := fmt.Sprint(i)
			pkts = append(pkts, udpPacket(at(f.prog, 5000), at(f.peer, uint16(i%3+1)), []byte(payload)))
			want[i%3] = append(want[i%3], payload)
		}
		r.take(pkts...)
		for i, sink := range sinks {
			if !slices.Equal(sink.got, want[i]) || !slices.Equal(sink.trains, []int{10}) {
				t.Errorf("flow %d: %q in trains of %v, want %q in one", i, sink.got, sink.trains, want[i])
			}
		}
	})
}

// TestTrainsOfOneKind: datagrams that differ in more than the payload are never in one train.
func TestTrainsOfOneKind(t *testing.T) {
	f := families[0]
	r, sinks := trainLab(t, f, 1)
	var pkts [][]byte
	for i, ip := range []packet.IP{{TTL: 64}, {TTL: 64}, {TTL: 63}, {TTL: 63, TOS: 8}, {TTL: 63, TOS: 8}} {
		ip.Src, ip.Dst = f.prog, f.peer
		pkts = append(pkts, packet.AppendUDP(nil, &ip, 5000, 1, []byte{byte('a' + i)}))
	}
	r.take(pkts...)
	if s := sinks[0]; !slices.Equal(s.got, []string{"a", "b", "c", "d", "e"}) || !slices.Equal(s.trains, []int{2, 1, 2}) {
		t.Errorf("%q in trains of %v", s.got, s.trains)
	}
	if last := sinks[0].last; last.TTL != 63 || last.TOS != 8 {
		t.Errorf("the last train has TTL %d, TOS %d", last.TTL, last.TOS)
	}
}

// TestTrainsWithFragments: a reassembled datagram lies in a buffer that is used again; it keeps
// its place among the others, and its bytes.
func TestTrainsWithFragments(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		r, sinks := trainLab(t, f, 1)
		to := at(f.peer, 1)
		var pkts [][]byte
		var want []string
		for i := range 4 {
			large := bytes.Repeat([]byte{byte('A' + i)}, 3000)
			want = append(want, fmt.Sprint(i), string(large))
			pkts = append(pkts, udpPacket(at(f.prog, 5000), to, []byte(fmt.Sprint(i))))
			whole := udpPacket(at(f.prog, 5000), to, large)
			for range i {
				bump(f, whole) // an identification of its own
			}
			pkts = append(pkts, pieces(whole, 1280)...)
		}
		r.take(pkts...)
		if !slices.Equal(sinks[0].got, want) {
			t.Errorf("%d datagrams, want %d in order", len(sinks[0].got), len(want))
		}
	})
}

// TestTrainsKeepEverything: whatever the mixture, each flow sees its datagrams once and in order.
func TestTrainsKeepEverything(t *testing.T) {
	const flows = 2*maxTrains + 1
	f := families[0]
	r, sinks := trainLab(t, f, flows)
	random := rand.New(rand.NewPCG(1, 2))
	var want [flows][]string
	for range 200 {
		var pkts [][]byte
		for i := range 1 + random.IntN(64) {
			flow := random.IntN(flows)
			payload := fmt.Sprint(len(want[flow]))
			want[flow] = append(want[flow], payload)
			ip := packet.IP{Src: f.prog, Dst: f.peer, TTL: uint8(64 - random.IntN(2)), ID: uint16(i)}
			pkts = append(pkts, packet.AppendUDP(nil, &ip, 5000, uint16(flow+1), []byte(payload)))
		}
		r.take(pkts...)
	}
	for i, sink := range sinks {
		if !slices.Equal(sink.got, want[i]) {
			t.Errorf("flow %d: %d datagrams, want %d in order", i, len(sink.got), len(want[i]))
		}
	}
}

// TestTrainAfterForget: a flow that was forgotten while a train was under way gets no more.
func TestTrainAfterForget(t *testing.T) {
	f := families[0]
	r, sinks := trainLab(t, f, 1)
	p := udpPacket(at(f.prog, 5000), at(f.peer, 1), []byte("x"))
	r.take(p, p)
	u := r.s.udp.get(&packet.Flow{Proto: packet.UDP, Local: at(f.prog, 5000), Remote: at(f.peer, 1)})
	u.Reject(packet.PortUnreachable(netip.Addr{}))
	r.take(p, p)
	if !slices.Equal(sinks[0].trains, []int{2}) {
		t.Errorf("trains of %v, want one of 2", sinks[0].trains)
	}
}
