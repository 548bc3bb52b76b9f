package dns

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
)

// Limits of the connections to one resolver.
const (
	maxLines    = 4   // connections that take queries
	maxInFlight = 100 // queries on one of them

	// Without a word for so long since somebody asked, new queries take another connection: those
	// of the next round do.
	suspectAfter = retryDelay - 100*time.Millisecond
	lineIdle     = 20 * time.Second // then it is closed (RFC 7766, 6.2.3)
	drainIdle    = time.Second      // the same once the resolver is not in use any more
	dialLimit    = askDeadline      // to connect, with all handshakes
)

var (
	errClosed    = errors.New("the nameserver was stopped")
	errLinesBusy = errors.New("all connections to the resolver are busy")
)

// session is one connection to a resolver that carries many queries. It ends all its goroutines
// and closes its socket on close, or by itself when the peer goes away.
type session interface {
	// ask sends one query and waits for its reply. A brokenError says that the connection is at
	// fault, so that the query may be asked again on another one.
	ask(ctx context.Context, q inquiry, p packing) (*mdns.Msg, error)
	// usable reports whether another query may be asked.
	usable() bool
	close()
}

// brokenError means that the connection broke, not that the resolver does not know.
type brokenError struct{ error }

func (e *brokenError) Unwrap() error { return e.error }

// pool keeps the connections to one resolver. A connection is opened when a query needs it,
// serves those that come, and is closed when nobody asked for a while.
type pool struct {
	open    func(context.Context) (session, error)
	suspect time.Duration // suspectAfter

	ctx    context.Context // of the dialling: it outlives the query that began it
	cancel context.CancelFunc

	mu      sync.Mutex
	idle    time.Duration // after which a connection that nobody uses is closed
	lines   []*line
	dialing *dialing
	closed  bool
	opened  int // so far
}

// line is one connection of a pool; its fields are the pool's.
type line struct {
	session
	born    time.Time
	asked   int       // queries so far
	running int       // queries that wait
	silence time.Time // since when queries go unanswered; zero: the last was answered
	retired bool      // takes no more queries; closed when none runs
	idle    *time.Timer
}

// silent reports that whoever asks on the connection now would probably wait in vain.
func (p *pool) silent(l *line, now time.Time) bool {
	return !l.silence.IsZero() && now.Sub(l.silence) > p.suspect
}

// dialing is one attempt to connect that several queries wait for.
type dialing struct {
	done chan struct{}
	err  error
}

func newPool(open func(context.Context) (session, error)) *pool {
	p := &pool{open: open, suspect: suspectAfter, idle: lineIdle}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// ask asks over a connection that is there, or a new one. When one that was used before turns
// out to be dead, which it mostly does only when it is written to, the query is asked once more.
func (p *pool) ask(ctx context.Context, q inquiry, form packing) (*mdns.Msg, error) {
	l, reused, err := p.take(ctx, time.Time{})
	if err != nil {
		return nil, err
	}
	began := time.Now()
	m, err := p.use(ctx, l, q, form)
	var broken *brokenError
	if err == nil || !reused || ctx.Err() != nil || !errors.As(err, &broken) {
		return m, err
	}
	if l, _, err = p.take(ctx, began); err != nil {
		return nil, err
	}
	return p.use(ctx, l, q, form)
}

func (p *pool) use(ctx context.Context, l *line, q inquiry, form packing) (m *mdns.Msg, err error) {
	finished := false
	defer func() {
		if !finished { // a panic over a hostile reply
			err = errPanic
		}
		p.done(ctx, l, err)
	}()
	m, err = l.ask(ctx, q, form)
	finished = true
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return m, err
}

// take returns a connection that was opened after that time, connecting if there is none.
// Everyone who needs a new one waits for the same attempt.
func (p *pool) take(ctx context.Context, after time.Time) (l *line, reused bool, err error) {
	for range maxLines { // a resolver that hangs up at once is not dialled for ever
		var over []*line
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, false, errClosed
		}
		l, over = p.pick(time.Now(), after)
		if l != nil {
			reused = l.asked > 0
			l.asked++
			p.mu.Unlock()
			closeAll(over)
			return l, reused, nil
		}
		d := p.dialing
		switch {
		case d != nil:
		case !p.room(time.Now(), &over):
			err = errLinesBusy
		default:
			d = &dialing{done: make(chan struct{})}
			p.dialing = d
			go p.dial(d)
		}
		p.mu.Unlock()
		closeAll(over)
		if err != nil {
			return nil, false, err
		}
		select {
		case <-d.done:
			if d.err != nil {
				return nil, false, d.err
			}
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		}
	}
	return nil, false, errLostReply
}

// pick chooses the least busy connection and counts the query on it. It passes over one that is
// silent, which may still answer those who wait, and sorts out the dead; over are to be closed.
func (p *pool) pick(now, after time.Time) (best *line, over []*line) {
	for _, l := range slices.Clone(p.lines) {
		fit := l.usable() && !p.silent(l, now)
		switch {
		case l.born.Before(after), !fit && l.running == 0:
			over = append(over, p.retire(l)...)
		case fit && l.running < maxInFlight && (best == nil || l.running < best.running):
			best = l
		}
	}
	if best == nil {
		return nil, over
	}
	if best.silence.IsZero() {
		best.silence = now
	}
	best.idle.Stop()
	best.running++
	return best, over
}

// room reports whether one more connection may be opened, which takes the place of a silent one
// if there is one.
func (p *pool) room(now time.Time, over *[]*line) bool {
	if len(p.lines) < maxLines {
		return true
	}
	i := slices.IndexFunc(p.lines, func(l *line) bool { return p.silent(l, now) })
	if i < 0 {
		return false
	}
	*over = append(*over, p.retire(p.lines[i])...)
	return true
}

// retire takes a connection out of use and returns it if it is to be closed now.
func (p *pool) retire(l *line) []*line {
	p.lines = slices.DeleteFunc(p.lines, func(other *line) bool { return other == l })
	l.retired = true
	l.idle.Stop()
	if l.running > 0 {
		return nil
	}
	return []*line{l}
}

func closeAll(lines []*line) {
	for _, l := range lines {
		l.close()
	}
}

// dial connects, for all who wait for it, until its own deadline.
func (p *pool) dial(d *dialing) {
	ctx, cancel := context.WithTimeoutCause(p.ctx, dialLimit, errors.New("no connection within 4.5 s"))
	defer cancel()
	s, err := p.open(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	p.mu.Lock()
	p.dialing, d.err = nil, err
	stopped := p.closed
	if err == nil && !stopped {
		l := &line{session: s, born: time.Now()}
		l.idle = time.AfterFunc(p.idle, func() { p.expire(l) })
		p.lines = append(p.lines, l)
		p.opened++
	}
	p.mu.Unlock()
	close(d.done)
	if err == nil && stopped {
		s.close()
	}
}

// done ends one query on a connection.
func (p *pool) done(ctx context.Context, l *line, err error) {
	now := time.Now()
	var broken *brokenError
	var over []*line
	p.mu.Lock()
	l.running--
	gaveUp, dead := ctx.Err() != nil, errors.As(err, &broken)
	switch {
	case !gaveUp && l.running > 0:
		l.silence = now
	case !gaveUp, now.Sub(l.silence) < p.suspect/8:
		l.silence = time.Time{} // it was answered, or not waited for
	}
	switch {
	case l.retired && l.running == 0:
		over = []*line{l}
	case !l.retired && dead:
		over = p.retire(l)
	case !l.retired && l.running == 0:
		l.idle.Reset(p.idle)
	}
	p.mu.Unlock()
	closeAll(over)
}

// expire closes a connection that nobody used for a while.
func (p *pool) expire(l *line) {
	var over []*line
	p.mu.Lock()
	if !l.retired && l.running == 0 {
		over = p.retire(l)
	}
	p.mu.Unlock()
	closeAll(over)
}

// drain lets what is under way end and keeps no connection after it.
func (p *pool) drain() {
	var over []*line
	p.mu.Lock()
	p.idle = drainIdle
	for _, l := range slices.Clone(p.lines) {
		over = append(over, p.retire(l)...)
	}
	p.mu.Unlock()
	closeAll(over)
}

// close ends everything for good.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	lines := slices.Clone(p.lines)
	for _, l := range lines {
		p.retire(l)
	}
	p.mu.Unlock()
	p.cancel()
	closeAll(lines)
}
