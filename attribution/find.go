package attribution

import (
	"context"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"gatun/network/packet"
	"gatun/network/state"
)

// The causes: the closed set of phrases that Owner.Cause (owner_cause in JSON) can have. The
// first four name a process, the others do not.
const (
	CauseSeen      = "the kernel saw the process send"
	CauseOne       = "one process holds the socket"
	CauseInherited = "a process and its descendants of the same program share the socket"
	CauseSelf      = "the socket is gatun's own"

	CauseShared      = "several processes share the socket"
	CauseManySockets = "sockets of several processes share the address"
	CauseNoSocket    = "no socket with this address"
	CauseClosed      = "socket closed before look-up"
	CauseNoHolder    = "no process holds the socket"
	CauseHidden      = "the owner may not be inspected by this user"
	CauseEnded       = "process ended before look-up"
	CauseExec        = "the process is changing its program"
	CauseTimeout     = "look-up timed out"
	CauseFailed      = "socket look-up failed"
)

// Sockets finds the sockets that may own a flow. *state.Table is the real one.
type Sockets interface {
	// Find appends to dst the sockets that may have sent the packets of f. It returns
	// state.ErrUnsupported where the system has no such look-up.
	Find(dst []state.Socket, f packet.Flow) ([]state.Socket, error)
}

// Senders know who sent the packets of a flow, because the kernel saw it. *state.Owners is the
// real one.
type Senders interface {
	// Sender returns who was seen; found is false if nobody was, or more than one.
	Sender(packet.Flow) (s state.Sender, found bool)
	// Image returns what was noted of a program image while it sent.
	Image(state.ImageID) (*state.Image, bool)
}

// Options configure a Finder. The zero value looks at this machine through the portable,
// slow source only.
type Options struct {
	// State is asked for the sockets of a flow. nil: the portable source.
	State Sockets
	// Senders is asked first. nil: nobody sees who sends (no root, no cgroup hooks). Only
	// Linux has it.
	Senders Senders
	// Proc is the mount point of the proc file system, "/proc" if empty.
	Proc string
	// Self is the process whose flows are KindSelf; 0 is this process.
	Self int
	// Root is the process whose descendants are looked at first; `run` gives the first
	// process of its sandbox. 0: none.
	Root int
	// Logger gets failures of the look-up itself, never addresses. nil: none.
	Logger *zap.Logger
}

// Finder names the owners of flows. Its methods may be called from any goroutine.
//
// A name is given only if it was confirmed after the call began: the process, pinned by a
// handle on its /proc directory so that its PID cannot stand for another one, still runs the
// same program and still holds the socket, and none of the processes that could have got the
// socket by fork does. Caches only save the search.
type Finder struct {
	state   Sockets
	self    int
	log     *zap.Logger
	lookups atomic.Uint64 // of sockets
	os      osFinder
}

// New makes a Finder. It opens nothing but a few files of proc.
func New(o Options) *Finder {
	if o.Proc == "" {
		o.Proc = "/proc"
	}
	if o.Self == 0 {
		o.Self = os.Getpid()
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	f := &Finder{state: o.State, self: o.Self, log: o.Logger}
	f.os = newOSFinder(o)
	return f
}

// Find returns the owner of the flow: the process whose socket sent its packets. It blocks for
// microseconds if the process is known and for milliseconds if all of them must be searched;
// a search that is longer than ctx is given up. The Process of the answer is never nil; without a name it is the
// unidentified one, with the cause why.
func (f *Finder) Find(ctx context.Context, flow packet.Flow) Owner {
	return f.FindAs(ctx, flow, flow)
}

// FindAs is Find for a flow whose packets the kernel has given other addresses on their way: sent is how they
// left. Who was seen to send is asked for by that name, sockets by the flow's own.
func (f *Finder) FindAs(ctx context.Context, flow, sent packet.Flow) Owner {
	if ctx.Err() != nil {
		return Unidentified(CauseTimeout)
	}
	return f.find(ctx, flow, sent)
}

// Environ returns the environment that the program of p was started with, nil if p has ended,
// runs another program by now, or may not be read.
func (f *Finder) Environ(p *Process) []string { return f.os.environ(p) }

// Alive reports whether the process of that number and start, as Process has them, still runs.
func (f *Finder) Alive(pid int, started time.Time) bool { return f.os.alive(pid, started) }

// Compact forgets where sockets were seen: after a flood these places are most of what f keeps.
// Whoever asks next reads the descriptors of a program once more.
func (f *Finder) Compact() { f.os.compact() }

// Closed may be told of each UDP socket that was closed, by its local address: f then knows where the next
// one of that program will be. It only saves the search.
func (f *Finder) Closed(p packet.Proto, local netip.AddrPort) {
	if p == packet.UDP {
		f.os.closed(local)
	}
}

// Close gives back the files that f keeps. Find must not be called after it.
func (f *Finder) Close() error {
	f.os.close()
	return nil
}

// failed is the answer to an error of the socket table.
func (f *Finder) failed(err error) Owner {
	f.log.Warn("cannot ask the system for the socket of a flow; its owner counts as unidentified", zap.Error(err))
	return Unidentified(CauseFailed)
}
