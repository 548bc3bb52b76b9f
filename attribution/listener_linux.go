package attribution

import (
	"context"
	"slices"
	"time"

	"gatun/network/packet"
	"gatun/network/state"
)

// listening finds the TCP sockets that wait for connections. *state.Table is the real one.
type listening interface {
	Listeners(dst []state.Socket, f packet.Flow) ([]state.Socket, error)
}

// findListener is Listener on Linux.
func (f *Finder) findListener(ctx context.Context, flow packet.Flow) Owner {
	tables, ok := f.state.(listening)
	if !ok {
		return Unidentified(CauseFailed)
	}
	o := f.listener(ctx, tables, flow)
	if o.Cause == CauseClosed || o.Cause == CauseEnded {
		o = f.listener(ctx, tables, flow) // its holder may have been born, or replaced, while we looked
	}
	return o
}

func (f *Finder) listener(ctx context.Context, tables listening, flow packet.Flow) Owner {
	find := f.state.Find
	if flow.Proto == packet.TCP {
		find = tables.Listeners
	}
	sockets, err := find(nil, flow)
	if err != nil {
		return f.failed(err)
	}
	sockets = receivers(sockets, flow)
	switch {
	case len(sockets) == 0:
		return Owner{Process: &Process{Kind: KindUnsolicited, Name: "unsolicited"}, Cause: CauseNoListener}
	case len(sockets) > maxListeners:
		return ambiguous(CauseManySockets)
	case slices.ContainsFunc(sockets, func(s state.Socket) bool { return s.Inode == 0 }):
		if len(sockets) > 1 {
			return ambiguous(CauseManySockets)
		}
		return Owner{Process: &Process{Kind: KindSystem, Name: "system"}, Confidence: Exact, Cause: CauseKernel}
	}
	return f.ownerOf(ctx, time.Now(), flow, sockets)
}

// maxListeners is how many sockets of one address are looked at.
const maxListeners = 16

// receivers keeps the sockets among which the kernel would choose: a connected one comes before one
// that is bound to the address, that before one for all addresses, and of these one of the flow's own
// family comes first.
func receivers(sockets []state.Socket, flow packet.Flow) []state.Socket {
	best, kept := 0, sockets[:0]
	for _, s := range sockets {
		rank := rankOf(s, flow)
		if rank == 0 || rank < best {
			continue
		}
		if rank > best {
			best, kept = rank, kept[:0]
		}
		kept = append(kept, s)
	}
	return kept
}

// rankOf is 0 for a socket that does not receive the flow's packets.
func rankOf(s state.Socket, flow packet.Flow) int {
	local, remote := s.Local.Addr(), s.Remote
	connected := remote.Addr().IsValid() && !remote.Addr().IsUnspecified()
	switch {
	case !local.IsUnspecified() && local != flow.Local.Addr(), connected && remote != flow.Remote:
		return 0
	case connected:
		return 4
	case !local.IsUnspecified():
		return 3
	case local.Is4() == flow.Local.Addr().Is4():
		return 2
	}
	return 1
}
