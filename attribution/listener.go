package attribution

import (
	"context"

	"gatun/network/packet"
)

// The causes of owners of inbound flows that are no program.
const (
	CauseNoListener = "nobody waits for it"
	CauseKernel     = "the socket is the kernel's own"
)

// Listener returns who waits for the inbound flow: the process whose socket the kernel would give its
// first packet to. Where nobody does, the answer is of KindUnsolicited. Programs that share the
// socket's address are never told apart by guessing.
func (f *Finder) Listener(ctx context.Context, flow packet.Flow) Owner {
	f.lookups.Add(1)
	if ctx.Err() != nil {
		return Unidentified(CauseTimeout)
	}
	return f.findListener(ctx, flow)
}
