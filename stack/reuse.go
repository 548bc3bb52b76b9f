package stack

import (
	"bytes"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/ports"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"gatun/network/packet"
)

// tuple names the endpoint of a program's TCP packet: its local side is the address asked for.
func tuple(f packet.Flow) stack.TransportEndpointID {
	return stack.TransportEndpointID{
		LocalAddress: address(f.Remote.Addr()), LocalPort: f.Remote.Port(),
		RemoteAddress: address(f.Local.Addr()), RemotePort: f.Local.Port(),
	}
}

func address(a netip.Addr) tcpip.Address {
	if a.Is4() {
		return tcpip.AddrFrom4(a.As4())
	}
	return tcpip.AddrFrom16(a.As16())
}

// tcp hands one TCP packet to netstack, or holds the connection that it begins. Only the reader calls
// it.
func (s *Stack) tcp(h *packet.Header, b []byte) {
	if h.TCPFlags&(packet.TCPSyn|packet.TCPAck|packet.TCPRst) == packet.TCPSyn {
		f := s.syn(h, b, (*link).inject)
		switch {
		case f == nil:
		case s.quick == nil:
			s.spawn(f)
		default:
			s.fresh = append(s.fresh, f)
		}
		return
	}
	s.netOf(tuple(h.Flow)).link.inject(b, h.Is6())
}

// again delivers a SYN that has waited for the end of the flow before it.
func (s *Stack) again(b []byte) {
	var h packet.Header
	if err := h.Parse(b); err == nil && s.ctx.Err() == nil {
		if f := s.syn(&h, b, (*link).injectAlone); f != nil {
			s.spawn(f)
		}
	}
}

// syn sorts a SYN: netstack gets it if it has its connection, all others are held. It
// returns a connection that is new.
func (s *Stack) syn(h *packet.Header, b []byte, inject func(*link, []byte, bool)) *TCPFlow {
	known, room := s.makeRoom(h, b)
	switch {
	case !room:
	case known:
		inject(s.netOf(tuple(h.Flow)).link, b, h.Is6())
	default:
		return s.hold(h, b)
	}
	return nil
}

// makeRoom ends the connection whose place a new SYN takes, and reports whether the SYN may go
// on, and whether netstack has its connection. The program's own kernel sends it, so that kernel has forgotten the old connection: it
// reuses a port at once when the server closed first, within milliseconds when the others are in
// TIME_WAIT, and after a reset that may still wait in the endpoint's queue. Netstack has no
// listener that could take such a SYN. It would swallow it, which costs the program a second, or
// refuse it when the endpoint ends while the SYN is in its queue.
func (s *Stack) makeRoom(h *packet.Header, b []byte) (known, room bool) {
	id := tuple(h.Flow)
	if f := s.syns.get(id); f != nil {
		if f.seq == h.TCPSeq {
			return f.passed.Load() == passedToAccept, true
		}
		return false, !s.syns.replace(f, b)
	}
	ns := s.netOf(id)
	ep := ns.endpoint(id)
	if ep == nil {
		return false, true
	}
	if ep.SocketOptions().GetMark() == h.TCPSeq {
		return true, true // a retransmission
	}
	s.counts.reusedTuples.Add(1)
	if settled(ep) != tcp.StateTimeWait {
		ep.Abort() // its RST has an old sequence number: no harm to the new connection
		return false, true
	}
	// Everything is said and acknowledged. Whoever still reads the last bytes may go on.
	ns.net.StartTransportEndpointCleanup([]tcpip.NetworkProtocolNumber{netProto(id)}, tcp.ProtocolNumber, id, ep, ports.Flags{}, 0)
	return false, true
}

// settled is the state of the endpoint when nobody is changing it: netstack acknowledges a FIN before
// it enters TIME_WAIT, and a program may reuse its port as soon as it has the acknowledgement.
func settled(ep *tcp.Endpoint) tcp.EndpointState {
	ep.LockUser()
	defer ep.UnlockUser()
	return ep.EndpointState()
}

// replace keeps the SYN b until the flow f is over, and asks for that: the program has given up
// its connection. It returns false if f is over already.
func (t *synTable) replace(f *TCPFlow, b []byte) bool {
	next := bytes.Clone(b)
	f.next.Store(&next)
	f.ctx.end(ErrProgramGone)
	return t.get(f.id) == f || !f.next.CompareAndSwap(&next, nil)
}
