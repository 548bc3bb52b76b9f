package interception

import (
	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
	"gatun/stack"
)

// Witness is an Owners that knows some owners at once: it does not search.
type Witness interface {
	Seen(packet.Flow) (o attribution.Owner, found bool)
}

// begun is what QuickTCP leaves of a connection for HandleTCP.
type begun struct {
	link     *network.Link
	owner    attribution.Owner
	decision network.Decision // undecided: it asks, or the policy has changed
	relay    bool             // it is permitted, and the kernel did not take it
}

// handing is connections on their way to the kernel.
type handing struct {
	held    []*stack.TCPFlow
	links   []*network.Link
	owners  []attribution.Owner
	flows   []packet.Flow
	packets [][]byte
	permits []func() // nil: connections like it are not permitted ahead
}

// QuickTCP hands connections back to the kernel that are permitted for good, whose program the kernel
// saw and that nobody has to be asked about. All others are left to HandleTCP.
func (g *Gate) QuickTCP(flows []*stack.TCPFlow, later func(*stack.TCPFlow)) {
	witness, _ := g.Owners.(Witness)
	var h handing
	for _, f := range flows {
		if witness == nil || g.Kernel == nil || !g.quick(f, witness, &h) {
			later(f)
		}
	}
	if len(h.flows) == 0 {
		return
	}
	g.Kernel.AcceptAll(h.flows, h.packets, func(i int, err error) {
		if g.taken(h.links[i], err) {
			h.held[i].Drop()
			if h.permits[i] != nil && err == nil {
				h.permits[i]()
			}
			return
		}
		h.held[i].Keep(&begun{link: h.links[i], owner: h.owners[i], relay: true})
		later(h.held[i])
	})
}

// quick decides on a connection. False: it is to be handled in a goroutine of its own.
func (g *Gate) quick(f *stack.TCPFlow, w Witness, h *handing) (done bool) {
	done = true // also after a panic
	defer g.survive("new connection")
	packet := f.Held()
	if packet == nil || g.kernel.late.has(f, g.Clock()) {
		return false
	}
	owner, found := w.Seen(f.Flow())
	if !found {
		return false
	}
	l, known := g.Table.Link(f.Flow())
	if known {
		return false
	}
	permit := g.consider(owner, l.Flow)
	c, revision := g.bind(l, owner), g.Firewall.Settings(owner).Revision
	l.SetStamp(g.Firewall.Stamp(c, l.Flow))
	d := g.Firewall.Decide(c, l.Flow)
	left := &begun{link: l, owner: owner}
	if !d.Asks() {
		if g.Table.Decide(l, d); g.Firewall.Settings(owner).Revision == revision { // see decide
			g.count(owner, d)
			left.decision = d
		}
	}
	if left.decision.Verdict != network.PermanentAccept {
		f.Keep(left)
		return false
	}
	l.SetHandedBack() // before: a short flow may end before it is told that it is accepted
	h.held, h.links, h.owners = append(h.held, f), append(h.links, l), append(h.owners, owner)
	h.flows, h.packets, h.permits = append(h.flows, l.Flow), append(h.packets, packet), append(h.permits, permit)
	return true
}

// goOn handles a connection that QuickTCP has left.
func (g *Gate) goOn(f *stack.TCPFlow, b *begun) {
	switch {
	case b.relay:
		g.relayTCP(f, b.link)
	case b.decision.Decided():
		g.carryOutTCP(f, b.link, b.decision, b.owner)
	default:
		g.carryOutTCP(f, b.link, g.decide(f.Context(), b.link, b.owner), b.owner)
	}
}
