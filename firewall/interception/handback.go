package interception

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"gatun/network"
	"gatun/network/packet"
	"gatun/stack"
)

// Kernel carries flows that are permitted for good. All its methods may be called from any
// goroutine.
type Kernel interface {
	// Accept gives the flow to the system's kernel, and the held packet first. After an error the
	// flow is as it was.
	Accept(f packet.Flow, held []byte) error
	// AcceptAll is Accept for flows that came together. each is told what became of every one.
	AcceptAll(flows []packet.Flow, held [][]byte, each func(i int, err error))
	// Send sends a packet that was held behind the first, also where its flow is over meanwhile.
	Send(f packet.Flow, held []byte) error
	// Follow sends a packet that came here all the same. It fails where the flow is not accepted any
	// more.
	Follow(f packet.Flow, held []byte) error
	// Revoke takes the flow back and ends the program's socket.
	Revoke(f packet.Flow) error
	// Forget takes the flow back and leaves the socket that has its tuple now alone.
	Forget(f packet.Flow) error
	// Relayed says that the flow is carried here: nothing of one before it, with the same five values,
	// may let its packets pass.
	Relayed(f packet.Flow) error
	// Silence lets the kernel swallow, for so long, the datagrams of denied flows: of those of dropped all,
	// of those of blocked nearly all, so that some are still answered. It fails where the kernel cannot.
	Silence(blocked, dropped []packet.Flow, d time.Duration) error
	// Hear takes Silence back.
	Hear(f packet.Flow) error
}

// handedBack is what the Gate knows of links that the kernel carries.
type handedBack struct {
	refused atomic.Uint64 // flows that are relayed because the kernel did not take them
	late    lateSYNs
	// cannotSilence is Run's: denied flows stay here.
	cannotSilence bool

	mu     sync.Mutex
	revoke []revocation
	wake   chan struct{}
	killer network.Killer // of all these links
	ahead  Ahead
}

type revocation struct {
	link  *network.Link
	cause string
}

func (h *handedBack) init(a Ahead) { h.wake, h.killer, h.ahead = make(chan struct{}, 1), h.add, a }

// add lets Run revoke the link soon. None like it begins from now on without being decided.
func (h *handedBack) add(l *network.Link, cause string) {
	if h.ahead != nil {
		h.ahead.Forget(l.Flow.Remote)
	}
	h.mu.Lock()
	h.revoke = append(h.revoke, revocation{l, cause})
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *handedBack) take() []revocation {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := h.revoke
	h.revoke = nil
	return all
}

// handBackTCP gives a held connection to the kernel. False: it has to be relayed.
func (g *Gate) handBackTCP(f *stack.TCPFlow, l *network.Link) bool {
	if g.Kernel == nil || !g.handBack(l, f.Held()) {
		return false
	}
	f.Drop()
	return true
}

// handedBackTCP deals with a SYN of a connection that the kernel carries: it was sent again, or
// was on its way here, when the kernel took over. False: the connection is over and this is a new one.
func (g *Gate) handedBackTCP(f *stack.TCPFlow, l *network.Link) bool {
	held := f.Held()
	if !handedBackOut(l) || held == nil || g.Kernel.Follow(l.Flow, held) != nil {
		return false
	}
	f.Drop()
	return true
}

// handBackUDP gives a pair to the kernel, with all its datagrams that are held. False: it has to
// be relayed.
func (g *Gate) handBackUDP(f *stack.UDPFlow, l *network.Link) bool {
	if g.Kernel == nil || !g.handBack(l, f.FirstPacket()) {
		return false
	}
	first := true
	f.AcceptPackets(func(b []byte) {
		if !first {
			_ = g.Kernel.Send(l.Flow, b) // datagrams may get lost
		}
		first = false
	})
	f.Forget()
	if g.sockets.settle(l) { // its closing came too early for the kernel's side to see it
		g.forget(l, causeSocketClosed)
	}
	g.sockets.remove(l)
	return true
}

// follow sends the datagrams of a flow that the kernel carries and that strayed in here. False: the kernel
// has given the flow up meanwhile, which was silent for long, and this is a new one.
func (g *Gate) follow(f *stack.UDPFlow) bool {
	flow := f.Flow()
	l := g.Table.Find(flow)
	if l == nil || !handedBackOut(l) {
		return false
	}
	first := f.FirstPacket()
	if first != nil && g.Kernel.Follow(flow, first) != nil {
		g.forget(l, "idle")
		return false
	}
	f.AcceptPackets(func(b []byte) {
		if first == nil {
			_ = g.Kernel.Follow(flow, b)
		}
		first = nil
	})
	f.Forget()
	return true
}

// handBack gives the flow of l to the kernel.
func (g *Gate) handBack(l *network.Link, held []byte) bool {
	if held == nil {
		return false
	}
	l.SetHandedBack() // before: a short flow may end before Accept returns
	return g.taken(l, g.Kernel.Accept(l.Flow, held))
}

// taken looks at what became of handing l back, and reports whether it is out of our hands.
func (g *Gate) taken(l *network.Link, err error) bool {
	switch {
	case err == nil:
		g.onKill(l)
		return true
	case l.Ended():
		return true // its program closed the socket
	}
	l.SetRelayed()
	if g.kernel.refused.Add(1) == 1 {
		g.Log.Warn("a flow is relayed because the kernel does not take it; status counts them", zap.Error(err))
	}
	return false
}

// relayTCP carries a connection here.
func (g *Gate) relayTCP(f *stack.TCPFlow, l *network.Link) {
	if g.Kernel != nil {
		if err := g.Kernel.Relayed(l.Flow); err != nil {
			g.Log.Warn("what is left of a handed-back flow may carry packets of a relayed one", zap.Stringer("flow", l.Flow), zap.Error(err))
		}
	}
	g.Relay.TCP(g.ctx, f, l)
}

func (g *Gate) onKill(l *network.Link) {
	l.OnKillBy(&g.kernel.killer)
}

// forget ends the link of a flow whose socket is not its own any more.
func (g *Gate) forget(l *network.Link, cause string) {
	if err := g.Kernel.Forget(l.Flow); err != nil {
		g.Log.Warn("handed-back flow", zap.Stringer("flow", l.Flow), zap.Error(err))
	}
	g.Ended(l, cause)
}

// revokers is how many flows are taken back at the same time.
const revokers = 4

// revoke takes back what was killed.
func (g *Gate) revoke() {
	work := make(chan revocation)
	var wg sync.WaitGroup
	all := g.kernel.take()
	for range min(revokers, len(all)) {
		wg.Go(func() {
			for r := range work {
				if err := g.Kernel.Revoke(r.link.Flow); err != nil {
					g.Log.Error("a handed-back flow could not be taken back", zap.Stringer("flow", r.link.Flow), zap.Error(err))
				}
				g.Ended(r.link, r.cause)
			}
		})
	}
	for _, r := range all {
		work <- r
	}
	close(work)
	wg.Wait()
}

// KernelEnd is the end of a flow that the kernel carried.
type KernelEnd struct {
	Flow           packet.Flow
	Sent, Received uint64 // payload
	Cause          string // "": whoever revoked the flow ends its link
	Unanswered     bool   // a connection of which only SYNs were sent
	SYN            uint32 // the number that they had; 0: not known
}

// KernelEnded enters the end of a flow that the kernel carried.
func (g *Gate) KernelEnded(e KernelEnd) {
	l := g.Table.Find(e.Flow)
	if l == nil || !l.HandedBack() {
		return
	}
	l.SetBytes(e.Sent, e.Received)
	if e.Received > 0 && g.Relay.Dialed != nil {
		g.Relay.Dialed(e.Flow.Remote, nil)
	}
	if e.Unanswered && e.SYN != 0 {
		g.kernel.late.add(e.Flow, e.SYN, g.Clock())
	}
	if e.Cause != "" {
		g.Ended(l, e.Cause)
	}
}

// KernelCounted enters the payload bytes of a flow that the kernel carries.
func (g *Gate) KernelCounted(f packet.Flow, sent, received uint64) {
	if l := g.Table.Find(f); l != nil && l.HandedBack() {
		l.SetBytes(sent, received)
	}
}

// Elsewhere reports whether a segment that netstack got belongs to a connection that it does not end.
func (g *Gate) Elsewhere(f packet.Flow) bool { return g.CarriedElsewhere(f) || g.Relay.Strayed(f) }

// CarriedElsewhere reports whether the kernel carries the flow.
func (g *Gate) CarriedElsewhere(f packet.Flow) bool {
	l := g.Table.Find(f)
	return l != nil && handedBackOut(l)
}

// handedBackOut reports whether the kernel carries a flow that began on this machine. One that came in
// has a way of its own there: a packet of its tuple on the TUN device belongs to another flow.
func handedBackOut(l *network.Link) bool {
	c := l.Comm()
	return l.HandedBack() && (c == nil || c.Direction != network.Inbound)
}

// Refused returns how many flows are or were relayed because the kernel did not take them.
func (g *Gate) Refused() uint64 { return g.kernel.refused.Load() }

// Adopt decides on flows that the kernel carries since before this process. What the policy no
// longer permits is taken back. It returns when all are decided, or ctx ends.
func (g *Gate) Adopt(ctx context.Context, flows []packet.Flow) {
	for _, f := range flows {
		if ctx.Err() != nil {
			return
		}
		l, known := g.Table.Link(f)
		if known {
			continue
		}
		owner := g.Owners.Find(ctx, f)
		c := g.bind(l, owner)
		l.SetStamp(g.Firewall.Stamp(c, f))
		d := g.Firewall.Decide(c, f)
		if d.Asks() {
			d = askedAgain(network.Decision{}, d)
		}
		l.SetHandedBack()
		g.onKill(l)
		g.Table.Decide(l, d)
		g.count(owner, d)
		if !d.Verdict.Permits() {
			l.Kill("the policy does not permit it any more")
		}
	}
}
