package dns

import (
	"context"
	"errors"
	"sync"

	"gatun/attribution"
)

// ErrBusy means that a program has more queries waiting than it may.
var ErrBusy = errors.New("the program has too many unanswered queries")

// program is the identity under which names are remembered and queries are counted: the
// binary and the user, not the process, because browsers resolve in one process and connect in
// another. Everyone whose process is not certain is the one unidentified program.
type program struct {
	path string
	uid  uint32
	kind attribution.Kind
}

func programOf(o attribution.Owner) program {
	p := o.Process
	switch {
	case p.Kind == attribution.KindProgram && (o.Confidence == attribution.Exact || o.Confidence == attribution.Inherited) && p.Path != "":
		return program{path: p.Path, uid: p.UID, kind: p.Kind}
	case p.Kind == attribution.KindProgram:
		return program{kind: attribution.KindUnidentified}
	}
	return program{kind: p.Kind}
}

// Limits bounds the queries under way. The zero value takes the defaults.
type Limits struct {
	Total      int // upstream inquiries at a time, default 384: each is a file or two
	PerProgram int // of one program, default 128
	Reserve    int // the last places are for programs with few inquiries, default 96
	Waiting    int // queries of one program that wait for a place, default 1024
}

// smallShare is how many inquiries a program may have and still use the reserve.
const smallShare = 8

func (l Limits) withDefaults() Limits {
	set := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	set(&l.Total, 384)
	set(&l.PerProgram, 128)
	set(&l.Reserve, 96)
	set(&l.Waiting, 1024)
	return l
}

// limiter gives out places so that a flood by one program cannot starve another.
type limiter struct {
	Limits
	mu     sync.Mutex
	total  int
	shares map[program]*share
}

type share struct {
	running int
	waiting []chan struct{} // first come, first served; closed when the place is given
}

func newLimiter(l Limits) *limiter {
	return &limiter{Limits: l.withDefaults(), shares: map[program]*share{}}
}

// try takes a place if one is free. Every success needs one release.
func (l *limiter) try(p program) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.take(l.share(p))
}

// share returns that of a program. mu is held.
func (l *limiter) share(p program) *share {
	s := l.shares[p]
	if s == nil {
		s = &share{}
		l.shares[p] = s
	}
	return s
}

// take takes a place if one is free and nobody waits for it. mu is held.
func (l *limiter) take(s *share) bool {
	if len(s.waiting) > 0 || !l.free(s) {
		return false
	}
	l.total++
	s.running++
	return true
}

// acquire waits for a place. Every success needs one release.
func (l *limiter) acquire(ctx context.Context, p program) error {
	l.mu.Lock()
	s := l.share(p)
	if l.take(s) {
		l.mu.Unlock()
		return nil
	}
	if len(s.waiting) >= l.Waiting {
		l.mu.Unlock()
		return ErrBusy
	}
	turn := make(chan struct{})
	s.waiting = append(s.waiting, turn)
	l.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		l.leave(p, s, turn)
		return context.Cause(ctx)
	}
}

// leave takes a waiter out of the queue, or gives back the place it was given meanwhile.
func (l *limiter) leave(p program, s *share, turn chan struct{}) {
	l.mu.Lock()
	for i, w := range s.waiting {
		if w == turn {
			s.waiting = append(s.waiting[:i], s.waiting[i+1:]...)
			l.forget(p, s)
			l.mu.Unlock()
			return
		}
	}
	l.mu.Unlock()
	l.release(p)
}

// release gives the place to the waiting program that has the fewest.
func (l *limiter) release(p program) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.shares[p]
	s.running--
	l.total--
	l.forget(p, s)
	var next *share
	for _, s := range l.shares {
		if len(s.waiting) > 0 && l.free(s) && (next == nil || s.running < next.running) {
			next = s
		}
	}
	if next != nil {
		l.total++
		next.running++
		close(next.waiting[0])
		next.waiting = next.waiting[1:]
	}
}

func (l *limiter) forget(p program, s *share) {
	if s.running == 0 && len(s.waiting) == 0 {
		delete(l.shares, p)
	}
}

// free reports whether s may have one more place.
func (l *limiter) free(s *share) bool {
	return l.total < l.Total && s.running < l.PerProgram && (l.total < l.Total-l.Reserve || s.running < smallShare)
}
