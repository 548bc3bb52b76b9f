package stack

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"gatun/network/packet"
)

// Why the Context of a TCPFlow ended (context.Cause).
var (
	// ErrProgramGone says that the program reset the connection, or stopped asking for it.
	ErrProgramGone = errors.New("the program gave up the connection")
	// ErrDecided says that the flow has a verdict already.
	ErrDecided = errors.New("the flow has a verdict already")
)

// TCPFlow is a connection that a program has asked for: its SYN is held, and its
// retransmissions are absorbed.
//
//	held ──Accept──▶ netstack, handshake ──▶ TCPConn
//	  ├────Reject──▶ RST
//	  ├────Unreachable──▶ ICMP error
//	  └────Drop──▶ silence; the next retransmission is a new TCPFlow
//
// Exactly one of these takes effect, the first; all others do nothing.
type TCPFlow struct {
	s       *Stack
	ns      *netstack // it gets the SYN when there is a verdict that needs it
	flow    packet.Flow
	id      stack.TransportEndpointID
	syn     []byte // the packet
	headers int    // bytes of it that are headers
	seq     uint32
	first   time.Time
	ctx     lazyContext

	lastSYN atomic.Int64 // nanoseconds since 1970
	decided atomic.Bool
	next    atomic.Pointer[[]byte] // the SYN that took this one's place
	passed  atomic.Int32           // how netstack gets the SYN
	req     chan *tcp.ForwarderRequest
	later   bool // QuickTCP has left it to HandleTCP
	kept    any
}

// How netstack gets a SYN that was held.
const (
	passedNot      = iota
	passedToAccept // the forwarder makes a connection of it
	passedToRefuse // nobody wants it: it is answered with RST
)

// Flow returns the connection's name; Local is the program.
func (f *TCPFlow) Flow() packet.Flow { return f.flow }

// TTL returns the hop limit of the SYN, which traceroute -T sets.
func (f *TCPFlow) TTL() uint8 {
	if f.flow.Is6() {
		return f.syn[7]
	}
	return f.syn[8]
}

// TOS returns the traffic class of the SYN.
func (f *TCPFlow) TOS() uint8 {
	if f.flow.Is6() {
		return f.syn[0]<<4 | f.syn[1]>>4
	}
	return f.syn[1]
}

// Held returns the held SYN as a whole packet, or nil where data came with it, which is not
// kept. The caller must not change it.
func (f *TCPFlow) Held() []byte {
	if f.headers != len(f.syn) {
		return nil
	}
	return f.syn
}

// Keep lets QuickTCP leave what it has found out for HandleTCP.
func (f *TCPFlow) Keep(found any) { f.kept = found }

// Kept returns what was kept, or nil.
func (f *TCPFlow) Kept() any { return f.kept }

// Context ends when the program gives up, when the flow got a verdict other than Accept, or
// when the stack ends. It stays alive for an accepted connection until the handler returns; the
// connection may live on.
func (f *TCPFlow) Context() context.Context { return f.ctx.get(f.s.ctx) }

// Accept completes the handshake with the program. It fails where the program went away.
func (f *TCPFlow) Accept() (*TCPConn, error) {
	if !f.decided.CompareAndSwap(false, true) {
		return nil, ErrDecided
	}
	ctx := f.Context()
	if ctx.Err() != nil {
		f.complete()
		return nil, f.goneError(context.Cause(ctx))
	}
	// A program that was killed meanwhile never answers the SYN-ACK. Netstack would hold the
	// endpoint for a long time; the deadline and the context end that.
	deadline := time.AfterFunc(f.s.limits.Handshake, f.abortHandshake)
	defer deadline.Stop()
	unhook := context.AfterFunc(ctx, f.abortHandshake)
	defer unhook()

	req := f.request()
	if req == nil {
		f.complete()
		return nil, f.goneError(ErrProgramGone)
	}
	c := newTCPConn(f)
	ep, terr := req.CreateEndpoint(&c.wq)
	if terr == nil {
		ep.SocketOptions().SetMark(f.seq) // tells a retransmission of this SYN from another one, see makeRoom
	}
	req.Complete(false) // before our table forgets it: a retransmission never finds only one of them
	f.complete()
	if terr != nil {
		return nil, f.goneError(translate(terr))
	}
	c.start(ep)
	return c, nil
}

// request gives the SYN to netstack, whose forwarder asks for a connection in a goroutine of its own.
// It returns nil if netstack did not take it.
func (f *TCPFlow) request() *tcp.ForwarderRequest {
	f.req = make(chan *tcp.ForwarderRequest, 1)
	f.passed.Store(passedToAccept)
	f.ns.link.injectAlone(f.syn, f.flow.Is6())
	gone := time.NewTimer(f.s.limits.Handshake)
	defer gone.Stop()
	if f.passed.Load() == passedToAccept {
		select {
		case req := <-f.req:
			return req
		case <-f.Context().Done():
		case <-gone.C: // a connection that ended this moment had the SYN in its queue
		}
	}
	f.passed.Store(passedNot)
	f.spare()
	return nil
}

// spare completes a request for which nobody waits any more.
func (f *TCPFlow) spare() {
	select {
	case req := <-f.req:
		req.Complete(false)
	default:
	}
}

func (f *TCPFlow) goneError(err error) error {
	return &net.OpError{Op: "accept", Net: "tcp", Source: net.TCPAddrFromAddrPort(f.flow.Local),
		Addr: net.TCPAddrFromAddrPort(f.flow.Remote), Err: err}
}

// Reject answers with RST: the program sees ECONNREFUSED at once.
func (f *TCPFlow) Reject() {
	if f.decided.CompareAndSwap(false, true) {
		f.s.syns.refuse(f, time.Now())
		f.passed.Store(passedToRefuse)
		f.ns.link.injectAlone(f.syn, f.flow.Is6())
		f.complete()
		f.ctx.end(ErrDecided)
	}
}

// Unreachable answers with an ICMP error that quotes the SYN: the program sees the errno of e.
func (f *TCPFlow) Unreachable(e *packet.ICMPError) {
	if f.decided.CompareAndSwap(false, true) {
		f.s.syns.refuse(f, time.Now())
		f.s.sendError(e, f.syn[:f.headers])
		f.complete()
		f.ctx.end(ErrDecided)
	}
}

// Drop answers nothing. The program tries again: each retransmission is a new flow.
func (f *TCPFlow) Drop() {
	if f.decided.CompareAndSwap(false, true) {
		f.complete()
		f.ctx.end(ErrDecided)
	}
}

// complete ends the hold.
func (f *TCPFlow) complete() {
	f.s.syns.remove(f)
	if next := f.next.Swap(nil); next != nil {
		f.s.again(*next)
	}
	f.ns.flows.Add(-1) // last: until then the netstack stays
}

// abortHandshake ends an Accept that waits for the program's ACK. Shutdown, unlike Abort,
// wakes the waiter of an endpoint that is still connecting; on a connection it would do harm.
func (f *TCPFlow) abortHandshake() {
	ep := f.ns.endpoint(f.id)
	if ep == nil || ep.EndpointState() != tcp.StateSynRecv {
		return
	}
	ep.Shutdown(tcpip.ShutdownRead | tcpip.ShutdownWrite)
}

// unmatchedTCP is called on the packet path for a segment that belongs to no connection. False
// lets netstack answer it with RST, which is the truth: the program's connection is gone. One
// that is carried elsewhere lives, and its segment will be sent again.
func (s *Stack) unmatchedTCP(ns *netstack, id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	flags := h.Flags()
	switch {
	case flags&header.TCPFlagRst != 0:
		s.syns.reset(id)
		return true
	case flags&(header.TCPFlagSyn|header.TCPFlagAck) == header.TCPFlagSyn:
		return s.passedSYN(ns, id, pkt)
	default:
		s.counts.straySegments.Add(1)
		return s.elsewhere(flowOf(id))
	}
}

// passedSYN takes a SYN that netstack has for nobody: one that was held, and has its verdict, or one
// whose connection has ended since it was read.
func (s *Stack) passedSYN(ns *netstack, id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	f := s.syns.get(id)
	if f == nil {
		b := pkt.ToBuffer()
		defer b.Release()
		var h packet.Header
		if whole := b.Flatten(); h.Parse(whole) == nil {
			if f := s.hold(&h, whole); f != nil {
				s.spawn(f)
			}
		}
		return true
	}
	switch f.passed.Load() {
	case passedToAccept:
		if !ns.fwd.HandlePacket(id, pkt) {
			f.passed.Store(passedNot)
		}
		return true
	case passedToRefuse:
		return false
	default:
		return true
	}
}

// hold absorbs a SYN that is held already, or holds a new one, which it returns.
func (s *Stack) hold(h *packet.Header, b []byte) *TCPFlow {
	now, id := time.Unix(0, s.now.Load()), tuple(h.Flow)
	if s.ctx.Err() != nil || s.syns.again(id, now) || s.syns.late(id, h.TCPSeq, now) {
		return nil
	}
	f := &TCPFlow{s: s, ns: s.netOf(id), flow: h.Flow, id: id, seq: h.TCPSeq, first: now, syn: bytes.Clone(b[:h.TotalLen]), headers: h.HeaderLen}
	f.lastSYN.Store(now.UnixNano())
	if !s.syns.add(f, s.limits.HeldTCP) {
		s.counts.heldTCPLimit.Add(1)
		return nil
	}
	f.ns.flows.Add(1)
	return f
}

// flowOf names a connection: netstack speaks for the remote side.
func flowOf(id stack.TransportEndpointID) packet.Flow {
	return packet.Flow{
		Proto:  packet.TCP,
		Local:  netip.AddrPortFrom(addr(id.RemoteAddress), id.RemotePort),
		Remote: netip.AddrPortFrom(addr(id.LocalAddress), id.LocalPort),
	}
}

func addr(a tcpip.Address) netip.Addr {
	if a.Len() == 4 {
		return netip.AddrFrom4(a.As4())
	}
	return netip.AddrFrom16(a.As16())
}

// serveTCP brings the forwarder's request to who waits for it in Accept. The forwarder calls it in a
// goroutine of its own.
func (s *Stack) serveTCP(req *tcp.ForwarderRequest) {
	if f := s.syns.get(req.ID()); f != nil && f.passed.Load() == passedToAccept {
		select {
		case f.req <- req:
			if f.passed.Load() != passedToAccept {
				f.spare()
			}
			return
		default: // it has one
		}
	}
	req.Complete(false)
}

func (f *TCPFlow) handle(h Handler) { h.HandleTCP(f) }

func (f *TCPFlow) end(bool) {
	if !f.decided.Load() {
		f.s.counts.undecided.Add(1)
	}
	f.Drop()
	f.ctx.end(net.ErrClosed)
}

// translate turns netstack's error into the errno that a kernel socket would give.
func translate(err tcpip.Error) error {
	switch err.(type) {
	case nil:
		return nil
	case *tcpip.ErrConnectionReset:
		return syscall.ECONNRESET
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionAborted, *tcpip.ErrAborted:
		return syscall.ECONNABORTED
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrClosedForSend:
		return syscall.EPIPE
	case *tcpip.ErrHostUnreachable, *tcpip.ErrHostDown:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH
	case *tcpip.ErrNotConnected, *tcpip.ErrInvalidEndpointState:
		return syscall.ENOTCONN
	case *tcpip.ErrNoBufferSpace:
		return syscall.ENOBUFS
	default:
		return errors.New("tcp: " + err.String())
	}
}
