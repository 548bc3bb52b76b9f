package dns

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/zap"
)

// unreachable is the reason given for the time in which a failure is remembered.
const unreachable = "no nameserver answered"

var errPanic = errors.New("internal error; see the log")

// refreshQueue is how many renewals may wait; one that does not fit is left to the next miss.
const refreshQueue = 256

// refreshWorkers renew cached answers at the same time.
const refreshWorkers = 4

// resolution finds the answer to a question: in the cache, in an inquiry that is under way, or
// by asking.
type resolution struct {
	client    *client
	multicast *multicast // nil: nothing is asked by multicast
	cache     *cache
	limiter   *limiter
	clock     func() time.Time
	renew     chan renewal

	told     func(error)   // how an inquiry ended: nil, or nobody answered; may be nil
	patience time.Duration // for the whole of a query: its program asks again after 5 s

	mu      sync.Mutex
	flights map[key]*flight

	hits, misses, joined, stales atomic.Uint64
}

type renewal struct {
	key    key
	choice choice
}

// flight is one inquiry that several queries wait for. It is given up when nobody waits.
type flight struct {
	done    chan struct{}
	waiters int
	cancel  context.CancelFunc
	answer  *answer
	err     error
}

// resolve returns the answer: the cached one, or what an inquiry brings.
func (r *resolution) resolve(ctx context.Context, p program, k key, c choice) (found, error) {
	if f, ok := r.cached(k, c); ok {
		return f, nil
	}
	waits(ctx)
	if !r.limiter.try(p) {
		turn, cancel := context.WithTimeoutCause(ctx, r.patience, ErrBusy)
		defer cancel()
		ctx = turn // the inquiry itself ends sooner than that
		if err := r.limiter.acquire(ctx, p); err != nil {
			return found{}, err
		}
	}
	defer r.limiter.release(p)
	flight, f := r.board(k, c)
	if flight == nil {
		return f, nil
	}
	a, err := r.wait(ctx, k, flight)
	if err != nil {
		return found{}, err
	}
	return found{answer: a, ttl: a.lifetime}, nil
}

// cached looks into the cache and has the answer renewed if it is time.
func (r *resolution) cached(k key, c choice) (found, bool) {
	if c.uncached {
		return found{}, false
	}
	f, ok := r.cache.get(k, r.clock())
	if !ok {
		return f, false
	}
	r.hits.Add(1)
	if f.stale {
		r.stales.Add(1)
	}
	if f.refresh {
		select {
		case r.renew <- renewal{k, c}:
		default: // the next to ask does it
		}
	}
	return f, true
}

// board returns the flight for k, beginning one if there is none, or the answer, if one has
// landed since the cache was looked into: an answer is cached before its flight ends.
func (r *resolution) board(k key, c choice) (*flight, found) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.flights[k] == nil {
		if f, ok := r.cached(k, c); ok {
			return nil, f
		}
	}
	return r.join(k, c), found{}
}

// join returns the flight for k, beginning one if there is none. mu is held.
func (r *resolution) join(k key, c choice) *flight {
	if f := r.flights[k]; f != nil {
		f.waiters++
		r.joined.Add(1)
		return f
	}
	r.misses.Add(1)
	// The flight outlives the query that began it: others may have joined.
	ctx, cancel := context.WithTimeoutCause(context.Background(), askDeadline, errNoAnswer)
	f := &flight{done: make(chan struct{}), waiters: 1, cancel: cancel}
	r.flights[k] = f
	go r.fly(ctx, k, f, c)
	return f
}

func (r *resolution) wait(ctx context.Context, k key, f *flight) (*answer, error) {
	select {
	case <-f.done:
		f.cancel()
		return f.answer, f.err
	case <-ctx.Done():
		r.mu.Lock()
		if f.waiters--; f.waiters == 0 {
			f.cancel()
			if r.flights[k] == f {
				delete(r.flights, k) // a newcomer must not wait for a cancelled one
			}
		}
		r.mu.Unlock()
		return nil, context.Cause(ctx)
	}
}

// fly runs the inquiry. It ends for its waiters in any case: a panic over a hostile reply costs
// this one question.
func (r *resolution) fly(ctx context.Context, k key, f *flight, c choice) {
	f.err = errPanic
	defer func() {
		if p := recover(); p != nil {
			r.client.log.Error("an inquiry panicked", zap.Any("panic", p), zap.Stack("stack"))
		}
		r.mu.Lock()
		if r.flights[k] == f {
			delete(r.flights, k)
		}
		r.mu.Unlock()
		close(f.done)
	}()
	defer f.cancel()
	f.answer, f.err = r.fetch(ctx, k, c)
}

// fetch asks and caches what came.
func (r *resolution) fetch(ctx context.Context, k key, c choice) (*answer, error) {
	q := inquiry{name: k.name, qtype: k.qtype, do: k.do, cd: k.cd}
	a, err := r.inquire(ctx, q, c)
	if err != nil {
		if !abandoned(ctx) && !errors.Is(err, ErrNoNameserver) {
			r.keep(k, c, &answer{rcode: mdns.RcodeServerFailure, lifetime: errorTTL, note: unreachable})
		}
		return nil, err
	}
	r.keep(k, c, a)
	return a, nil
}

// inquire asks whom the choice names.
func (r *resolution) inquire(ctx context.Context, q inquiry, c choice) (*answer, error) {
	if c.multicast && r.multicast != nil {
		if a := r.multicast.ask(ctx, q); a != nil {
			return a, nil
		}
	}
	if len(c.groups) == 0 {
		f, err := nobody(c.where)
		return f.answer, err
	}
	m, from, err := r.client.race(ctx, q, c.groups)
	if r.told != nil && !abandoned(ctx) {
		r.told(err)
	}
	if blocked := (*BlockedUpstreamError)(nil); errors.As(err, &blocked) {
		a := &answer{rcode: mdns.RcodeNameError, lifetime: minTTL, blockedBy: blocked.Resolver.Label()}
		a.answeredBy(blocked.Resolver.String(), q.qtype)
		return a, nil
	}
	if err != nil {
		return nil, err
	}
	a, err := clean(m, q)
	if err != nil {
		return nil, err
	}
	a.answeredBy(from.String(), q.qtype)
	return a, nil
}

// abandoned reports that nobody waits for the inquiry any more, which says nothing about the
// nameservers.
func abandoned(ctx context.Context) bool { return errors.Is(ctx.Err(), context.Canceled) }

// keep caches the answer. An error never takes the place of an answer that still lives.
func (r *resolution) keep(k key, c choice, a *answer) {
	if c.uncached {
		a.lifetime = 0
	}
	if a.lifetime <= 0 {
		return
	}
	now := r.clock()
	if a.failed() {
		if old, ok := r.cache.get(k, now); ok && !old.answer.failed() {
			return
		}
	}
	a.expires = now.Add(a.lifetime)
	r.cache.put(k, a)
}

// run renews answers that are about to end until ctx does.
func (r *resolution) run(ctx context.Context) {
	var wg sync.WaitGroup
	for range refreshWorkers {
		wg.Go(func() {
			for {
				select {
				case n := <-r.renew:
					r.again(ctx, n)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	wg.Wait()
}

// again asks for what is cached. If it fails a later query tries again.
func (r *resolution) again(ctx context.Context, n renewal) {
	r.mu.Lock()
	f := r.join(n.key, n.choice)
	r.mu.Unlock()
	_, _ = r.wait(ctx, n.key, f)
}
