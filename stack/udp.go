package stack

import (
	"syscall"

	"gatun/network/packet"
)

// Datagram is one UDP datagram from a program.
type Datagram struct {
	Payload      []byte
	TTL, TOS     uint8
	DontFragment bool
}

// Train is one or more datagrams of a flow, in order, that differ in nothing but their payload:
// whoever sends them may do it at once.
type Train struct {
	Payloads     [][]byte
	TTL, TOS     uint8
	DontFragment bool
}

// UDPSink takes the datagrams of accepted flows. It is called in order, on the packet path: it
// must not block and must not keep t.Payloads.
type UDPSink interface {
	Datagrams(f *UDPFlow, t Train)
}

// UDPFlow is one (socket, peer) pair of a program. Its datagrams are held, in a bounded queue,
// until Accept, Reject or Drop. An idle flow has no goroutine and less than 1 KiB of memory.
//
//	held ──Accept──▶ flushing ──▶ accepted ──Reject, Drop──▶ …
//	  ├────Reject──▶ each datagram is answered
//	  └────Drop──▶ silence
//
// A flow stays in the table, with its verdict, until Forget. The zero value is of no use.
type UDPFlow struct{ datagrams }

// First returns the first held datagram. It is there until the handler returns; its Payload is
// nil where Limits left no room to hold it.
func (f *UDPFlow) First() Datagram {
	b, h := f.firstPacket()
	if b == nil {
		return Datagram{}
	}
	return datagramOf(&h, b)
}

func datagramOf(h *packet.Header, b []byte) Datagram {
	return Datagram{Payload: b[h.HeaderLen:h.TotalLen], TTL: h.TTL, TOS: h.TOS, DontFragment: h.DontFragment}
}

// Accept sends the held datagrams to sink, in order, and every later one. Only the first call
// on a held flow has an effect.
func (f *UDPFlow) Accept(sink UDPSink) {
	f.accept(payloadOnly, func(h *packet.Header, payloads [][]byte) {
		sink.Datagrams(f, Train{Payloads: payloads, TTL: h.TTL, TOS: h.TOS, DontFragment: h.DontFragment})
	})
}

// FirstPacket returns the first held datagram whole, with its IP header, or nil where there was
// no room to hold it. It is there until the handler returns.
func (f *UDPFlow) FirstPacket() []byte {
	b, _ := f.firstPacket()
	return b
}

// AcceptPackets is Accept for whole packets: sink must not block and must not keep b.
func (f *UDPFlow) AcceptPackets(sink func(b []byte)) {
	f.accept(wholePacket, func(_ *packet.Header, packets [][]byte) {
		for _, b := range packets {
			sink(b)
		}
	})
}

// Reply sends a datagram from Flow().Remote to the program, fragmented where it is longer than
// the MTU. Any goroutine may call it; payload is not kept.
func (f *UDPFlow) Reply(payload []byte, tos uint8) error {
	if len(payload) > maxDatagram(f.flow) {
		return syscall.EMSGSIZE
	}
	f.touch()
	ip := f.s.replyIP(&f.flow, packet.DefaultTTL, tos)
	p := f.s.out.raw()
	p.b = packet.AppendUDP(p.b, &ip, f.flow.Remote.Port(), f.flow.Local.Port(), payload)
	return f.s.send(p)
}

// maxDatagram is the longest payload of UDP or an echo that one IP packet carries.
func maxDatagram(f packet.Flow) int {
	if f.Is6() {
		return 65535 - 8
	}
	return 65535 - 20 - 8
}

// Error sends the ICMP error e about the last datagram to the program.
func (f *UDPFlow) Error(e *packet.ICMPError) {
	var quote [quoteLen]byte
	f.s.sendError(e, f.lastQuote(&quote))
}

// datagram takes a UDP packet on the packet path.
func (r *reader) datagram(h *packet.Header, b []byte) {
	s := r.s
	f := s.udp.get(&h.Flow)
	if f != nil {
		if f.packet(h, b) {
			r.trains.add(f, h, f.part.of(h, b))
		}
		return
	}
	if s.ctx.Err() != nil {
		return
	}
	f = &UDPFlow{datagrams{s: s, flow: h.Flow}}
	f.forget = func() { s.udp.remove(&f.flow, f) }
	if !s.udp.add(&f.flow, f, s.limits.UDPFlows) {
		s.counts.udpLimit.Add(1)
		return
	}
	f.packet(h, b)
	s.spawn(f)
}

func (f *UDPFlow) handle(h Handler) { h.HandleUDP(f) }
