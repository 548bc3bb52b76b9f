package stack

import "gatun/network/packet"

// maxTrains is how many flows a batch of the device is sorted into. Beyond that it costs more to
// find the flow than its train saves.
const maxTrains = 8

// trains gathers the datagrams of accepted flows within one batch of the device, so that what
// waits for one flow leaves together. They lie in the reader's buffers, which is why every
// batch ends with flush. The order within a flow stays.
type trains struct {
	n   int
	all [maxTrains]train
}

type train struct {
	flow  *UDPFlow
	h     packet.Header // of the first
	parts [][]byte
}

// init makes room for trains of length datagrams.
func (t *trains) init(length int) {
	for i := range t.all {
		t.all[i].parts = make([][]byte, 0, length)
	}
}

// add puts one datagram to the others of its flow.
func (t *trains) add(f *UDPFlow, h *packet.Header, part []byte) {
	for i := range t.all[:t.n] {
		if t.all[i].flow != f {
			continue
		}
		if !t.all[i].takes(h) {
			t.all[i].leave()
			t.all[i].begin(f, h)
		}
		t.all[i].parts = append(t.all[i].parts, part)
		return
	}
	if t.n == maxTrains {
		t.flush()
	}
	t.all[t.n].begin(f, h)
	t.all[t.n].parts = append(t.all[t.n].parts, part)
	t.n++
}

// flush delivers everything.
func (t *trains) flush() {
	for i := range t.all[:t.n] {
		t.all[i].leave()
	}
	t.n = 0
}

func (t *train) begin(f *UDPFlow, h *packet.Header) { t.flow, t.h = f, *h }

// takes reports whether a datagram with that header differs from the others only in its payload.
func (t *train) takes(h *packet.Header) bool {
	return t.h.TTL == h.TTL && t.h.TOS == h.TOS && t.h.DontFragment == h.DontFragment
}

func (t *train) leave() {
	t.flow.deliver(&t.h, t.parts)
	clear(t.parts)
	t.flow, t.parts = nil, t.parts[:0]
}
