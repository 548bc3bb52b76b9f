package stack

import (
	"bytes"
	"sync/atomic"

	"gatun/network/packet"
)

// OtherFlow is traffic of an IP protocol that is not relayed. While it has no verdict
// its later packets are dropped; after the verdict the next one is a new flow.
type OtherFlow struct {
	s       *Stack
	flow    packet.Flow
	packet  []byte
	decided atomic.Bool
}

// Flow returns the protocol and the two addresses; the ports are 0.
func (f *OtherFlow) Flow() packet.Flow { return f.flow }

// Held returns the whole packet that began the flow, put together where it came in fragments. It must not
// be changed. Somebody else may carry the flow: then Drop ends what is here.
func (f *OtherFlow) Held() []byte { return f.packet }

// Reject answers with the ICMP error e, packet.ProtocolUnreachable for instance.
func (f *OtherFlow) Reject(e *packet.ICMPError) {
	if f.decided.CompareAndSwap(false, true) {
		f.gone() // before: who hears of it may try again at once
		f.s.sendError(e, f.packet[:min(len(f.packet), quoteLen)])
	}
}

// Drop answers nothing.
func (f *OtherFlow) Drop() {
	if f.decided.CompareAndSwap(false, true) {
		f.gone()
	}
}

func (f *OtherFlow) gone() {
	f.s.held.Add(-int64(len(f.packet)))
	f.s.others.remove(&f.flow, f)
}

// other takes a packet of an unknown protocol on the packet path.
func (s *Stack) other(h *packet.Header, b []byte) {
	if s.others.get(&h.Flow) != nil || s.ctx.Err() != nil {
		return
	}
	if s.held.Load()+int64(h.TotalLen) > int64(s.limits.HeldBytes) {
		s.counts.otherLimit.Add(1)
		return
	}
	f := &OtherFlow{s: s, flow: h.Flow, packet: bytes.Clone(b[:h.TotalLen])}
	if !s.others.add(&f.flow, f, s.limits.Others) {
		s.counts.otherLimit.Add(1)
		return
	}
	s.held.Add(int64(len(f.packet)))
	s.spawn(f)
}

func (f *OtherFlow) handle(h Handler) { h.HandleOther(f) }

func (f *OtherFlow) end(bool) {
	if !f.decided.Load() {
		f.s.counts.undecided.Add(1)
	}
	f.Drop()
}
