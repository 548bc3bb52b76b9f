package interception

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"gatun/network"
	"gatun/network/packet"
	"gatun/stack"
)

// heldTCP is a program's connection before the verdict took effect. *stack.TCPFlow is one.
type heldTCP interface {
	Flow() packet.Flow
	TTL() uint8
	Context() context.Context
	Reject()
	Unreachable(*packet.ICMPError)
	Drop()
}

// Why a permitted connection was not made or did not last, where no server is the reason.
const (
	causeGaveUp      = "program gave up"
	causeStopped     = "gatun stopped"
	causeServerReset = "server reset"
	causeClientReset = "client reset"
)

// inVain is for how long a program has to wait before that says something about the network: three
// SYNs have been sent by then.
const inVain = 3 * time.Second

// killedError ends a dial because somebody asked for it.
type killedError string

func (e killedError) Error() string { return string(e) }

// errProgramGone ends a dial because the program waits no more.
var errProgramGone = errors.New(causeGaveUp)

// TCP dials, accepts when the server did, and copies until both sides have closed; then the end
// is reported. When ctx ends while it dials, when Run ends, or when the link is killed, both sides
// see a reset. TCP returns when the connection ends or falls idle; an idle one has no goroutine.
func (r *Relay) TCP(ctx context.Context, f *stack.TCPFlow, l *network.Link) {
	r.connectAndCopy(ctx, f, l, func() (program, error) {
		if c := r.divert(f, l); c != nil {
			return c, nil
		}
		c, err := f.Accept()
		if err != nil {
			return nil, err // not a nil pointer in an interface
		}
		return c, nil
	})
}

func (r *Relay) connectAndCopy(ctx context.Context, f heldTCP, l *network.Link, accept func() (program, error)) {
	owner := ownerOf(l)
	if err := r.Files.Acquire(owner); err != nil {
		r.counts.tcpRefused.Add(1)
		r.log.Debug("connection refused", zap.Stringer("flow", f.Flow()), zap.Error(err))
		f.Reject()
		r.ended(l, err.Error())
		return
	}
	t, cause := r.establish(ctx, f, l, accept)
	if t == nil {
		r.Files.Release(owner)
		r.ended(l, cause)
		return
	}
	t.owner = owner
	t.begin()
}

// establish dials, then accepts. It returns nil and the close cause where that came to nothing.
// Its frame is large; it is a function of its own so that an idle connection does not hold it.
func (r *Relay) establish(ctx context.Context, f heldTCP, l *network.Link, accept func() (program, error)) (*tcpRelay, string) {
	dialing, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var made atomic.Pointer[tcpRelay]
	l.OnKill(func(cause string) {
		cancel(killedError(cause))
		if t := made.Load(); t != nil { // it was called when there was only a dial, and comes to run now
			t.abort(cause)
		}
	})
	up, err := r.connect(dialing, cancel, f)
	if err != nil {
		return nil, r.refuse(f, err, accept)
	}
	prog, err := accept()
	if err != nil {
		up.Abort()
		return nil, causeGaveUp
	}
	t := &tcpRelay{r: r, prog: prog, up: up, link: l}
	t.carryBulk()
	t.diverted = r.diverted.carried(l.Flow, t)
	made.Store(t)
	l.OnKill(t.abort)
	if dialing.Err() != nil { // killed between the two
		t.abort(causeOf(dialing))
	}
	return t, ""
}

// connect dials for as long as the program waits. How long a silent host is tried is the
// kernel's affair.
func (r *Relay) connect(ctx context.Context, cancel context.CancelCauseFunc, f heldTCP) (Upstream, error) {
	defer context.AfterFunc(f.Context(), func() { cancel(errProgramGone) })()
	flow, began := f.Flow(), time.Now()
	up, err := r.up.tcp(ctx, flow.Local.Addr(), r.destination(flow.Remote), f.TTL())
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	r.tell(flow.Remote, err, time.Since(began))
	if err != nil {
		return nil, err
	}
	return up, nil
}

// tell reports what the network did, and not what the program or a person changed their mind
// about.
func (r *Relay) tell(remote netip.AddrPort, err error, took time.Duration) {
	var killed killedError
	switch {
	case r.Dialed == nil, errors.Is(err, context.Canceled), errors.As(err, &killed):
		return
	case errors.Is(err, errProgramGone):
		if took < inVain {
			return
		}
		err = syscall.ETIMEDOUT
	}
	r.Dialed(remote, err)
}

// refuse tells the program what became of the dial, as the kernel would have told it, and
// returns the close cause.
func (r *Relay) refuse(f heldTCP, err error, accept func() (program, error)) string {
	var icmp *packet.ICMPError
	var killed killedError
	switch {
	case errors.As(err, &killed):
		f.Reject()
		return killed.Error()
	case errors.Is(err, errProgramGone):
		f.Drop()
		return causeGaveUp
	case errors.Is(err, context.Canceled):
		f.Drop()
		return causeStopped
	case errors.As(err, &icmp):
		f.Unreachable(r.asSeen(icmp, f.Flow().Remote))
		return icmp.Error()
	case isErrno(err, syscall.ECONNREFUSED, wsaECONNREFUSED):
		f.Reject()
		return "connection refused"
	case isErrno(err, syscall.ECONNRESET, wsaECONNRESET):
		// The server took the connection and reset it before we looked.
		if prog, err := accept(); err == nil {
			prog.Abort()
			r.undivert(f.Flow())
		}
		return causeServerReset
	case isErrno(err, syscall.ETIMEDOUT, wsaETIMEDOUT):
		f.Drop() // the program's own time-out comes at about the same time
		return "connection timed out"
	}
	if icmp := localError(err); icmp != nil {
		f.Unreachable(icmp)
		return icmp.Error()
	}
	r.counts.tcpRefused.Add(1)
	r.log.Warn("cannot dial", zap.Stringer("flow", f.Flow()), zap.Error(err))
	f.Reject()
	return err.Error()
}

// asSeen undoes Translate in the sender of an ICMP error.
func (r *Relay) asSeen(e *packet.ICMPError, remote netip.AddrPort) *packet.ICMPError {
	if to := r.destination(remote).Addr(); to == remote.Addr() || e.From != to {
		return e
	}
	seen := e.For(remote.Addr())
	seen.From = remote.Addr()
	return &seen
}

// Winsock has error numbers of its own; none of them is an errno elsewhere.
const (
	wsaEACCES, wsaEMSGSIZE, wsaENETUNREACH, wsaECONNRESET syscall.Errno = 10013, 10040, 10051, 10054
	wsaETIMEDOUT, wsaECONNREFUSED, wsaEHOSTUNREACH        syscall.Errno = 10060, 10061, 10065
)

func isErrno(err error, unix, winsock syscall.Errno) bool {
	return errors.Is(err, unix) || errors.Is(err, winsock)
}

// localError says as an ICMP error what our own kernel has refused, nil for anything that has
// no such form.
func localError(err error) *packet.ICMPError {
	var icmp *packet.ICMPError
	switch {
	case errors.As(err, &icmp):
		return icmp
	case isErrno(err, syscall.ENETUNREACH, wsaENETUNREACH):
		return packet.NetUnreachable(netip.Addr{})
	case isErrno(err, syscall.EHOSTUNREACH, wsaEHOSTUNREACH), errors.Is(err, syscall.EHOSTDOWN):
		return packet.HostUnreachable(netip.Addr{})
	case isErrno(err, syscall.EACCES, wsaEACCES), errors.Is(err, syscall.EPERM):
		return packet.AdminProhibited(netip.Addr{})
	default:
		return nil
	}
}

// causeOf is why ctx ended, as a close cause.
func causeOf(ctx context.Context) string {
	err := context.Cause(ctx)
	var killed killedError
	switch {
	case errors.As(err, &killed):
		return killed.Error()
	case err == nil, errors.Is(err, context.Canceled):
		return causeStopped
	default:
		return fmt.Sprintf("ended: %v", err)
	}
}
