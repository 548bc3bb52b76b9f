package interception

import (
	"errors"
	"fmt"
	"net/netip"

	"go.uber.org/zap"

	"gatun/network"
	"gatun/network/packet"
	"gatun/stack"
)

// HandleOther decides on a flow that is neither TCP, UDP nor ICMP. Nobody relays it: what is permitted the
// kernel carries, whole. Where it does not, the sender learns that the protocol goes nowhere, as it does
// of every denial but silence.
func (g *Gate) HandleOther(f *stack.OtherFlow) {
	l, known := g.Table.Link(f.Flow())
	if known && handedBackOut(l) {
		if g.Kernel.Follow(l.Flow, f.Held()) == nil {
			f.Drop()
			return
		}
		g.forget(l, "idle")
		l, known = g.Table.Link(f.Flow())
	}
	d := l.Decision()
	if !known {
		d, _ = g.judge(g.ctx, l)
		if d.Verdict.Permits() {
			err := g.handBackOther(f, l)
			if err == nil {
				f.Drop()
				return
			}
			d = notCarried(l.Flow, d, err)
			g.Table.Decide(l, d)
		}
		g.parked.add(l, nil, g.Clock().Add(dropRemembered))
	}
	switch d.Verdict {
	case network.Drop, network.PermanentDrop:
		f.Drop()
	default:
		f.Reject(packet.ProtocolUnreachable(netip.Addr{}))
	}
}

// handBackOther gives the flow to the kernel. An error says why nobody carries it.
func (g *Gate) handBackOther(f *stack.OtherFlow, l *network.Link) error {
	if g.Kernel == nil {
		return errOnlyKernel
	}
	l.SetHandedBack() // before: it may be taken back before Accept returns
	err := g.Kernel.Accept(l.Flow, f.Held())
	if err == nil {
		g.onKill(l)
		return nil
	}
	l.SetRelayed()
	g.Log.Info("a permitted flow is refused: the kernel does not carry it", zap.Stringer("flow", l.Flow), zap.Error(err))
	return err
}

// errOnlyKernel is why nothing carries other protocols in `run`, and where the kernel lacks what that needs.
var errOnlyKernel = errors.New("only the kernel can, in `gatun up` with nftables")

// notCarried is what becomes of a permission that nobody can carry out.
func notCarried(f packet.Flow, d network.Decision, err error) network.Decision {
	d.Verdict, d.Code = network.Block, network.CodeNotCarried
	d.Reason = fmt.Sprintf("permitted, but nothing here carries IP protocol %s: %v", f.Proto, err)
	return d
}

// standsStill reports whether a new look at the policy changes nothing for a link, although the verdict is
// another one: the policy permits it still, and nobody carries it still.
func standsStill(old, now network.Decision) bool {
	return old.Code == network.CodeNotCarried && now.Verdict.Effect() == network.Accept
}
