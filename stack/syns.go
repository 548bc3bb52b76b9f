package stack

import (
	"context"
	"maps"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// lazyContext is a context that is made when somebody asks for it: a flow that is decided at once
// needs none.
type lazyContext struct {
	mu     sync.Mutex
	ctx    context.Context
	cancel context.CancelCauseFunc
	cause  error // it has ended
}

func (l *lazyContext) get(parent context.Context) context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx == nil {
		l.ctx, l.cancel = context.WithCancelCause(parent)
		if l.cause != nil {
			l.cancel(l.cause)
		}
	}
	return l.ctx
}

func (l *lazyContext) end(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause == nil {
		l.cause = cause
	}
	if l.cancel != nil {
		l.cancel(cause)
	}
}

// over reports whether end was called.
func (l *lazyContext) over() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cause != nil
}

const (
	synAgain = 800 * time.Millisecond // when a SYN is sent again first, less what clocks may be off
	lateSYN  = time.Second            // how long it may be on its way to us
)

// synTable holds the SYNs without a verdict, and those in a handshake.
type synTable struct {
	mu      sync.Mutex
	m       map[stack.TransportEndpointID]*TCPFlow
	refused map[stack.TransportEndpointID]refusal
}

// refusal is a SYN that was answered after so long that the program had sent it again.
type refusal struct {
	seq   uint32
	until time.Time
}

func (t *synTable) init() {
	t.m = make(map[stack.TransportEndpointID]*TCPFlow)
	t.refused = make(map[stack.TransportEndpointID]refusal)
}

// refuse notes that f is about to be refused. Its socket ends with that, while its SYN may be on
// its way to us once more: that one would be a flow of nobody, judged and dialled as such.
func (t *synTable) refuse(f *TCPFlow, now time.Time) {
	if now.Sub(f.first) < synAgain {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refused[f.id] = refusal{seq: f.seq, until: now.Add(lateSYN)}
}

// late reports whether the SYN is one that was refused just now. With another number it is
// another connection's.
func (t *synTable) late(id stack.TransportEndpointID, seq uint32, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.refused[id]
	return ok && r.seq == seq && now.Before(r.until)
}

func (t *synTable) get(id stack.TransportEndpointID) *TCPFlow {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.m[id]
}

func (t *synTable) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.m)
}

func (t *synTable) add(f *TCPFlow, limit int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.m) >= limit {
		return false
	}
	t.m[f.id] = f
	return true
}

func (t *synTable) remove(f *TCPFlow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m[f.id] != f {
		return
	}
	delete(t.m, f.id)
	if len(t.m) == 0 {
		t.m = make(map[stack.TransportEndpointID]*TCPFlow) // a Go map never shrinks
	}
}

// again reports whether the SYN is held.
func (t *synTable) again(id stack.TransportEndpointID, now time.Time) bool {
	f := t.get(id)
	if f == nil {
		return false
	}
	f.lastSYN.Store(now.UnixNano())
	return true
}

func (t *synTable) reset(id stack.TransportEndpointID) {
	if f := t.get(id); f != nil {
		f.ctx.end(ErrProgramGone)
	}
}

func (t *synTable) all() []*TCPFlow {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*TCPFlow, 0, len(t.m))
	for _, f := range t.m {
		all = append(all, f)
	}
	return all
}

// abortAll ends the handshakes that are under way; held flows learn it from their context.
func (t *synTable) abortAll() {
	for _, f := range t.all() {
		f.abortHandshake()
	}
}

// abandon cancels the flows whose program has stopped asking. Systems double the time between
// SYNs, so the next one comes no later than twice the time from the first to the last; Linux
// sends no RST for a connect that was interrupted.
func (t *synTable) abandon(now time.Time) uint64 {
	t.forget(now)
	n := uint64(0)
	for _, f := range t.all() {
		last := time.Unix(0, f.lastSYN.Load())
		if !f.ctx.over() && now.Sub(last) > 6*time.Second+last.Sub(f.first)*3/2 {
			f.ctx.end(ErrProgramGone)
			n++
		}
	}
	return n
}

// forget lets go of the refusals that no SYN can meet any more.
func (t *synTable) forget(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := len(t.refused)
	maps.DeleteFunc(t.refused, func(_ stack.TransportEndpointID, r refusal) bool { return !now.Before(r.until) })
	if before > 0 && len(t.refused) == 0 {
		t.refused = make(map[stack.TransportEndpointID]refusal)
	}
}
