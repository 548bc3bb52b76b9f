package stack

import (
	"encoding/binary"
	"syscall"

	"gatun/network/packet"
)

// Echo is one echo request from a program.
type Echo struct {
	Seq      uint16
	Payload  []byte
	TTL, TOS uint8
}

// PingSink takes the echo requests of accepted flows, under the rules of UDPSink.
type PingSink interface {
	Echo(f *PingFlow, e Echo)
}

// PingFlow is one (source, id, destination) of echo requests. It has the states of a UDPFlow.
// The stack never answers an echo by itself: a dead host must stay silent.
type PingFlow struct{ datagrams }

// ID returns the identifier of the echo requests.
func (f *PingFlow) ID() uint16 { return f.flow.Local.Port() }

// First returns the first held request. It is there until the handler returns.
func (f *PingFlow) First() Echo {
	b, h := f.firstPacket()
	if b == nil {
		return Echo{}
	}
	return echoOf(&h, b)
}

func echoOf(h *packet.Header, b []byte) Echo {
	return Echo{Seq: h.ICMPSeq, Payload: b[h.HeaderLen:h.TotalLen], TTL: h.TTL, TOS: h.TOS}
}

// Accept sends the held requests to sink, in order, and every later one.
func (f *PingFlow) Accept(sink PingSink) {
	f.accept(payloadOnly, func(h *packet.Header, payloads [][]byte) {
		sink.Echo(f, Echo{Seq: h.ICMPSeq, Payload: payloads[0], TTL: h.TTL, TOS: h.TOS})
	})
}

// Reply sends an echo reply to the program. ttl is what the program shall see.
func (f *PingFlow) Reply(seq uint16, payload []byte, ttl uint8) error {
	if len(payload) > maxDatagram(f.flow) {
		return syscall.EMSGSIZE
	}
	f.touch()
	ip := f.s.replyIP(&f.flow, ttl, 0)
	p := f.s.out.raw()
	p.b = packet.AppendEchoReply(p.b, &ip, f.ID(), seq, payload)
	return f.s.send(p)
}

// Error sends the ICMP error e about the request seq to the program. Programs match errors by
// the sequence number in the quoted request, and traceroute has many under way.
func (f *PingFlow) Error(seq uint16, e *packet.ICMPError) {
	var quote [quoteLen]byte
	b := f.lastQuote(&quote)
	if at := echoOffset(b); at+8 <= len(b) {
		patchSeq(b[at:], seq)
	}
	f.s.sendError(e, b)
}

// echoOffset returns where the echo request starts in the quote b, beyond its end where that
// is not known.
func echoOffset(b []byte) int {
	switch {
	case len(b) > 40 && b[0]>>4 == 6 && packet.Proto(b[6]) == packet.ICMPv6:
		return 40
	case len(b) > 20 && b[0]>>4 == 4:
		return int(b[0]&15) * 4
	default:
		return len(b)
	}
}

// patchSeq replaces the sequence number of an echo and adjusts its checksum (RFC 1624).
func patchSeq(icmp []byte, seq uint16) {
	old := binary.BigEndian.Uint16(icmp[6:])
	sum := ^binary.BigEndian.Uint16(icmp[2:])
	binary.BigEndian.PutUint16(icmp[6:], seq)
	binary.BigEndian.PutUint16(icmp[2:], packet.Fold(uint64(sum)+uint64(^old)+uint64(seq)))
}

// echo takes an echo request on the packet path.
func (s *Stack) echo(h *packet.Header, b []byte) {
	f := s.pings.get(&h.Flow)
	if f != nil {
		if f.packet(h, b) {
			f.deliver(h, [][]byte{f.part.of(h, b)})
		}
		return
	}
	if s.ctx.Err() != nil {
		return
	}
	f = &PingFlow{datagrams{s: s, flow: h.Flow}}
	f.forget = func() { s.pings.remove(&f.flow, f) }
	if !s.pings.add(&f.flow, f, s.limits.Pings) {
		s.counts.pingLimit.Add(1)
		return
	}
	f.packet(h, b)
	s.spawn(f)
}

func (f *PingFlow) handle(h Handler) { h.HandlePing(f) }
