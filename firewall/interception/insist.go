package interception

import (
	"time"

	"go.uber.org/zap"

	"gatun/network"
	"gatun/network/packet"
)

const (
	// insists is how many datagrams of a denied flow within sweepEvery make its verdict permanent.
	insists = 64
	// quietFor is how long the kernel then swallows what it sends. It ends before a denied flow counts as
	// idle, so that one that goes on sending stays the link that it is.
	quietFor = deniedIdle - 5*time.Second
)

// insistent is a flow that counts what comes after it was denied.
type insistent interface{ Denied() uint64 }

// insisting returns the denied flows of UDP whose programs send on and on and may be silenced, and notes
// that they are quiet from now on.
func (p *parked) insisting(now time.Time, may func(*network.Link) bool) (all []*network.Link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l, at := range p.links {
		f, counts := at.flow.(insistent)
		if !counts || l.Flow.Proto != packet.UDP || l.Decision().Verdict.Permits() {
			continue
		}
		denied := f.Denied()
		came := denied - at.denied
		if at.denied = denied; came >= insists && !now.Before(at.quiet) && may(l) {
			at.quiet = now.Add(quietFor)
			all = append(all, l)
		}
	}
	return all
}

// silence makes the verdict of insisting flows permanent: the kernel enforces it, and userspace has no
// more work with them. What is denied stays denied without it.
func (g *Gate) silence() {
	if g.Kernel == nil || g.kernel.cannotSilence {
		return
	}
	insisting := g.parked.insisting(g.Clock(), func(l *network.Link) bool {
		c := l.Comm()
		return c != nil && g.Firewall.Settings(c.Owner).PermanentVerdicts
	})
	if len(insisting) == 0 {
		return
	}
	var blocked, dropped []packet.Flow
	permanent := make([]network.Verdict, len(insisting))
	for i, l := range insisting {
		if l.Decision().Verdict.Effect() == network.Drop {
			dropped, permanent[i] = append(dropped, l.Flow), network.PermanentDrop
		} else {
			blocked, permanent[i] = append(blocked, l.Flow), network.PermanentBlock
		}
	}
	if err := g.Kernel.Silence(blocked, dropped, quietFor); err != nil {
		g.kernel.cannotSilence = true
		g.Log.Warn("what denied programs go on sending is denied packet by packet", zap.Error(err))
		return
	}
	for i, l := range insisting {
		if d := l.Decision(); d.Verdict != permanent[i] {
			d.Verdict = permanent[i]
			g.Table.Decide(l, d)
		}
	}
}

// hear lets the next packet of a denied flow come here again: its link is over.
func (g *Gate) hear(l *network.Link, at *place) {
	if at == nil || !g.Clock().Before(at.quiet) {
		return
	}
	if err := g.Kernel.Hear(l.Flow); err != nil {
		g.Log.Warn("a flow that is decided anew is swallowed by the kernel for a while", zap.Stringer("flow", l.Flow), zap.Error(err))
	}
}
