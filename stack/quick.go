package stack

import "gatun/network/packet"

// Quick is a Handler that can deal at once with connections about which all is known. Those that came
// together are given to it together, and without a goroutine for each.
type Quick interface {
	Handler
	// QuickTCP decides on the connections, or passes them to later: HandleTCP gets those. It waits for
	// nothing but system calls: it may run on the packet path, as long as no connection or datagram
	// is carried there that would have to wait.
	QuickTCP(flows []*TCPFlow, later func(*TCPFlow))
}

// begin has the connections decided that a batch of packets has brought. Only the reader calls it.
func (s *Stack) begin() {
	if len(s.fresh) == 0 {
		return
	}
	if s.carriesNothing() {
		g := group{s: s, flows: s.fresh, here: true}
		s.serve(g.Flow(), func() { g.handle(s.handler) }, g.end)
	} else {
		s.spawn(&group{s: s, flows: append([]*TCPFlow(nil), s.fresh...)})
	}
	clear(s.fresh)
	s.fresh = s.fresh[:0]
}

// carriesNothing reports that no flow is relayed here.
func (s *Stack) carriesNothing() bool {
	return s.nets.draining.Load() == nil && s.nets.current.Load().conns() == 0 && s.udp.len() == 0 && s.pings.len() == 0
}

// group is connections that came together.
type group struct {
	s     *Stack
	flows []*TCPFlow
	here  bool // on the packet path: nothing of it may be handled where it runs
}

// Flow returns the first of them.
func (g *group) Flow() packet.Flow { return g.flows[0].flow }

func (g *group) handle(h Handler) {
	var last *TCPFlow // it needs no other goroutine
	g.s.quick.QuickTCP(g.flows, func(f *TCPFlow) {
		f.later = true // before: then it is another goroutine's
		if !g.here {
			f, last = last, f
		}
		if f != nil {
			g.s.spawn(f)
		}
	})
	if last != nil {
		g.end(false) // the others do not wait for it
		g.s.serve(last.Flow(), func() { last.handle(h) }, last.end)
	}
}

func (g *group) end(panicked bool) {
	for _, f := range g.flows {
		if !f.later {
			f.end(panicked)
		}
	}
}
