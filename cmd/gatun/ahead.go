package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"gatun/attribution"
	"gatun/firewall/interception"
	"gatun/network/packet"
	"gatun/network/state"
	"gatun/profiles"
	"gatun/tun/handback"
)

const (
	// aheadWithin is how soon a second connection of a program to a destination has to come for others to
	// be permitted ahead.
	aheadWithin = 5 * time.Second
	// aheadFor is how long a permission holds without being renewed, aheadEvery how often it is. What was
	// not used for aheadFor is not.
	aheadFor   = 10 * time.Second
	aheadEvery = 3 * time.Second
	// aheadGather is how long connections that began wait for others, so that one wake-up is for many. The
	// ends of sockets do not wait: what began is entered before.
	aheadGather = 10 * time.Millisecond
	// aheadSeen bounds the connections that are remembered as the first of their kind.
	aheadSeen = 4096
)

// ahead permits connections at connect(2): the glue between the hooks, which give sockets the mark, the
// rules, which let it out, and the Gate, which decides and enters what has begun. The nil ahead permits none.
type ahead struct {
	table  *handback.Table
	owners *witnesses
	log    *zap.Logger

	finder *attribution.Finder
	gate   func() *interception.Gate
	store  *profiles.Store

	permits atomic.Pointer[state.Permits] // nil: not yet, or not any more
	absent  atomic.Pointer[error]
	turn    chan struct{} // one place: whoever has put something there enters what began
	failed  atomic.Uint64

	mu   sync.Mutex
	seen map[pair]time.Time
}

// pair is a program image and where it connects to.
type pair struct {
	program *attribution.Process
	remote  netip.AddrPort
}

func newAhead(t *handback.Table, w *witnesses, f *attribution.Finder, log *zap.Logger) *ahead {
	return &ahead{table: t, owners: w, finder: f, log: log, turn: make(chan struct{}, 1), seen: map[pair]time.Time{}}
}

// attach names the engine whose decisions are permitted ahead.
func (a *ahead) attach(e *engine) {
	if a == nil {
		return
	}
	a.gate, a.store = func() *interception.Gate { return e.gate }, e.opt.store
	e.gate.Ahead = a
	e.opt.store.OnMove(a.moved)
}

// run permits ahead until ctx ends, which o ends as well.
func (a *ahead) run(ctx context.Context, o *state.Owners) error {
	p, err := o.Permits()
	if err == nil {
		err = a.table.Ahead()
	}
	if err == nil {
		err = p.Renew()
	}
	if err != nil {
		a.absent.Store(&err)
		a.log.Info("no connection is permitted ahead", zap.Error(err))
		<-ctx.Done()
		return nil
	}
	a.permits.Store(p)
	defer a.table.EndAhead()
	defer a.permits.Store(nil)
	outer := ctx
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.listen(ctx, p) })
	g.Go(func() error { return a.keep(ctx, p) })
	if err = g.Wait(); err == nil {
		return nil
	}
	a.permits.Store(nil) // it can be done without
	a.table.EndAhead()
	err = errors.Join(err, p.Close())
	a.absent.Store(&err)
	a.log.Error("no connection is permitted ahead any more", zap.Error(err))
	<-outer.Done()
	return nil
}

// listen enters what begins.
func (a *ahead) listen(ctx context.Context, p *state.Permits) error {
	gather := time.NewTimer(aheadGather)
	defer gather.Stop()
	for {
		if err := p.Wait(ctx); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return fmt.Errorf("wait for connections that begin: %w", err)
		}
		gather.Reset(aheadGather)
		select {
		case <-ctx.Done():
			return nil
		case <-gather.C:
		}
		a.enter()
	}
}

// keep renews what is used.
func (a *ahead) keep(ctx context.Context, p *state.Permits) error {
	tick := time.NewTicker(aheadEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			a.enter()
			left, err := p.Extend(now.Add(-aheadFor), a.until(now))
			if err = errors.Join(err, a.table.Admit(packet.TCP, left...)); err != nil {
				a.fail(err)
			}
		}
	}
}

// until is how long a permission holds that is decided now: what is in force for a time ends it.
func (a *ahead) until(now time.Time) time.Time {
	t := now.Add(aheadFor)
	if end := a.store.NextExpiry(); !end.IsZero() && end.Before(t) {
		return end
	}
	return t
}

// enter enters what has begun since it was called last.
func (a *ahead) enter() {
	if a == nil {
		return
	}
	p := a.permits.Load()
	if p == nil {
		return
	}
	a.turn <- struct{}{}
	defer func() { <-a.turn }()
	p.Begun(func(b state.Begun) { a.began(p, b) })
}

func (a *ahead) began(p *state.Permits, b state.Begun) {
	if b.Stale { // its SYN was stopped, and would be for ever
		a.revoke(b.Flow)
		return
	}
	if err := a.table.Carry(handback.Began{Flow: b.Flow, Cookie: b.Sender.Cookie}); err != nil {
		a.fail(err)
		a.revoke(b.Flow)
		return
	}
	owner, found := a.finder.Sent(b.Sender)
	if !found {
		owner = attribution.Unidentified(attribution.CauseEnded)
	}
	if !a.gate().Began(b.Flow, owner) {
		a.forget(p, b.Flow.Remote)
	}
}

func (a *ahead) revoke(f packet.Flow) {
	if err := a.table.Revoke(f); err != nil {
		a.fail(err)
	}
}

// fail says what is wrong, the first time.
func (a *ahead) fail(err error) {
	if a.failed.Add(1) == 1 {
		a.log.Warn("connections that were permitted ahead", zap.Error(err))
	}
}

// Consider implements interception.Ahead.
func (a *ahead) Consider(o attribution.Owner, f packet.Flow) (permit func()) {
	p := a.permits.Load()
	if p == nil || f.Proto != packet.TCP || !a.again(pair{o.Process, f.Remote}, time.Now()) {
		return nil
	}
	at := p.Now()
	return func() {
		s, found := a.owners.Sender(f)
		if !found || !s.Certain || int(s.PID) != o.Process.PID || s.UID != o.Process.UID {
			return
		}
		err := a.table.Admit(packet.TCP, f.Remote)
		if err == nil {
			err = p.Permit(state.Permission{ImageID: s.ImageID, UID: s.UID, Proto: f.Proto, Remote: f.Remote}, at, a.until(time.Now()))
		}
		if err != nil && !errors.Is(err, state.ErrOutdated) && !errors.Is(err, state.ErrNoPermits) {
			a.fail(err)
		}
	}
}

// again reports whether there was one like it a moment ago, and remembers it.
func (a *ahead) again(k pair, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	before, found := a.seen[k]
	if !found && len(a.seen) >= aheadSeen {
		clear(a.seen)
	}
	a.seen[k] = now
	return found && now.Sub(before) < aheadWithin
}

// Forget implements interception.Ahead.
func (a *ahead) Forget(to netip.AddrPort) {
	if p := a.permits.Load(); p != nil {
		a.forget(p, to)
	}
}

func (a *ahead) forget(p *state.Permits, to netip.AddrPort) {
	if err := p.Forget(to); err != nil {
		a.fail(err)
	}
}

// moved ends every permission: the policy changes.
func (a *ahead) moved() {
	if p := a.permits.Load(); p != nil {
		if err := p.Renew(); err != nil {
			a.fail(err)
		}
	}
}

// answered ends what rests on the names of an address: they are others now.
func (a *ahead) answered(addr netip.Addr) {
	if a == nil {
		return
	}
	if p := a.permits.Load(); p != nil {
		if err := p.ForgetAddr(addr); err != nil {
			a.fail(err)
		}
	}
}

// text says in `status` whether connections are permitted ahead.
func (a *ahead) text() string {
	switch {
	case a == nil:
		return ""
	case a.absent.Load() != nil:
		return "; each connection is decided with its first packet: " + (*a.absent.Load()).Error()
	case a.permits.Load() == nil:
		return ""
	default:
		return fmt.Sprintf("; %d destinations of programs permitted at connect", a.permits.Load().Len())
	}
}
