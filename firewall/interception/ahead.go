package interception

import (
	"net/netip"

	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
)

// Ahead lets connections of a program to a destination begin before they are decided, once one like them
// was. All its methods may be called from any goroutine, and none blocks.
type Ahead interface {
	// Consider is asked before a connection is decided of which the kernel has named the owner. permit
	// is to be called once the connection was handed back by a decision that holds for every other one of the
	// program image to the destination; it does nothing if the policy, or what is known of the address,
	// has changed since. nil: it is not worth it.
	Consider(o attribution.Owner, f packet.Flow) (permit func())
	// Forget ends what was permitted for a destination.
	Forget(to netip.AddrPort)
}

func (g *Gate) consider(o attribution.Owner, f packet.Flow) (permit func()) {
	if g.Ahead == nil {
		return nil
	}
	return g.Ahead.Consider(o, f)
}

// Began enters a connection that was permitted ahead, and that the kernel carries. It is decided now, by
// the policy of this moment, as if its SYN were held: permitted is false, and the connection ends, where that
// does not permit it.
func (g *Gate) Began(f packet.Flow, owner attribution.Owner) (permitted bool) {
	defer g.survive("connection that was permitted ahead")
	l, known := g.Table.Link(f)
	if known {
		g.Ended(l, "replaced by a new connection")
		l, _ = g.Table.Link(f)
	}
	l.SetHandedBack()
	c := g.bind(l, owner)
	var d network.Decision
	for settled := false; !settled; { // see decide
		revision := g.Firewall.Settings(owner).Revision
		l.SetStamp(g.Firewall.Stamp(c, f))
		if d = g.Firewall.Decide(c, f); d.Asks() {
			d = askedAgain(network.Decision{}, d)
		}
		g.Table.Decide(l, d)
		settled = g.Firewall.Settings(owner).Revision == revision
	}
	g.count(owner, d)
	g.onKill(l)
	if !d.Verdict.Permits() {
		l.Kill("the policy does not permit it any more")
	}
	return d.Verdict == network.PermanentAccept
}
