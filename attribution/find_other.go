//go:build !linux

package attribution

import (
	"context"
	"net/netip"
	"time"

	"gatun/network/packet"
	"gatun/network/state"
)

// osFinder is empty: this system has the portable source only.
type osFinder struct{}

func newOSFinder(Options) osFinder { return osFinder{} }

func (osFinder) close() {}

func (osFinder) compact() {}

func (osFinder) closed(netip.AddrPort) {}

func (osFinder) environ(p *Process) []string { return portableEnviron(p) }

func (osFinder) alive(pid int, started time.Time) bool { return portableAlive(pid, started) }

func (f *Finder) find(ctx context.Context, flow, _ packet.Flow) Owner {
	return f.findPortable(ctx, flow)
}

// Run waits until ctx ends: the portable source keeps nothing that grows old.
func (f *Finder) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// findListener finds nobody: inbound flows are not held on this system.
func (f *Finder) findListener(context.Context, packet.Flow) Owner { return Unidentified(CauseFailed) }

// Sent finds nobody: no hooks see who sends on this system.
func (f *Finder) Sent(state.Sender) (o Owner, found bool) { return o, false }
