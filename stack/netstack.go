package stack

import (
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// netstack is one gVisor stack with its link and its hold of SYNs.
type netstack struct {
	net  *stack.Stack
	link *link
	fwd  *tcp.Forwarder

	// flows counts the SYNs that are held or in a handshake, and those that wait for one of them
	// to end. Only the reader raises it from 0.
	flows   atomic.Int64
	highest uint64 // connections; the reader's
}

// netstacks are the netstack for new connections and, after a flood, the one before it, which
// keeps its connections until the last has ended. The tables of a netstack never shrink and cannot
// be replaced: after 18 000 connections they hold 3 MiB.
type netstacks struct {
	current  atomic.Pointer[netstack]
	draining atomic.Pointer[netstack]
	retiring sync.WaitGroup

	every time.Duration // between two looks at them
	many  uint64        // connections of a flood
	ebb   uint64        // it is over when one in so many is left
}

func (n *netstacks) init() { n.every, n.many, n.ebb = lookEvery, manyConns, ebbOf }

const (
	lookEvery = time.Second
	manyConns = 1000 // below that there is not enough to give back
	ebbOf     = 4
)

func netProto(id stack.TransportEndpointID) tcpip.NetworkProtocolNumber {
	if id.LocalAddress.Len() == header.IPv6AddressSize {
		return header.IPv6ProtocolNumber
	}
	return header.IPv4ProtocolNumber
}

// endpoint returns the endpoint of a connection, or nil.
func (n *netstack) endpoint(id stack.TransportEndpointID) *tcp.Endpoint {
	ep, _ := n.net.FindTransportEndpoint(netProto(id), tcp.ProtocolNumber, id, nicID).(*tcp.Endpoint)
	return ep
}

// conns counts the established connections, up to the end of TIME_WAIT.
func (n *netstack) conns() uint64 { return n.net.Stats().TCP.CurrentConnected.Value() }

// ebbed reports the end of a flood. Only the reader calls it.
func (n *netstack) ebbed(many, ebb uint64) bool {
	now := n.conns()
	n.highest = max(n.highest, now)
	return n.highest >= many && now <= n.highest/ebb
}

// idle reports that nothing is left in a netstack, and that nothing can come: its last flow has
// ended and the reader, which calls this, sends new ones to another netstack.
func (n *netstack) idle() bool {
	return n.flows.Load() == 0 && n.conns() == 0 &&
		len(n.net.RegisteredEndpoints()) == 0 && len(n.net.CleanupEndpoints()) == 0
}

// netOf returns the netstack that a packet of the connection id belongs to. A flow that is held in
// the draining netstack has no endpoint: the other one may have its packets, because the table of
// held flows is common to both. The reader calls it, and whoever ends a held flow of that name.
func (s *Stack) netOf(id stack.TransportEndpointID) *netstack {
	if old := s.nets.draining.Load(); old != nil && old.endpoint(id) != nil {
		return old
	}
	return s.nets.current.Load()
}

// renew makes a netstack for new connections; the one before it drains.
func (s *Stack) renew() error {
	n, err := s.newNetstack()
	if err != nil {
		return err
	}
	s.nets.draining.Store(s.nets.current.Load()) // before the next line: no connection is without its netstack
	s.nets.current.Store(n)
	return nil
}

// turnOver replaces the netstack after a flood, and ends the one before when it is empty. Only the
// reader calls it, between two batches.
func (s *Stack) turnOver() {
	if s.ctx.Err() != nil {
		return
	}
	if old := s.nets.draining.Load(); old != nil {
		if old.idle() {
			s.nets.draining.Store(nil)
			s.nets.retiring.Go(old.net.Destroy)
		}
		return
	}
	if !s.nets.current.Load().ebbed(s.nets.many, s.nets.ebb) {
		return
	}
	if err := s.renew(); err != nil {
		s.log.Warn("the packet stack keeps the memory of a flood", zap.Error(err))
	}
}

// flush delivers what the links have kept back. Only the reader calls it.
func (n *netstacks) flush() {
	n.current.Load().link.flush()
	if old := n.draining.Load(); old != nil {
		old.link.flush()
	}
}

// each calls f for every netstack that exists.
func (n *netstacks) each(f func(*stack.Stack)) {
	for _, p := range []*netstack{n.draining.Load(), n.current.Load()} {
		if p != nil {
			f(p.net)
		}
	}
}

// close resets every connection.
func (n *netstacks) close() { n.each((*stack.Stack).Close) }

// destroy ends the netstacks. The reader must have ended.
func (n *netstacks) destroy() {
	n.each((*stack.Stack).Destroy)
	n.retiring.Wait()
}
