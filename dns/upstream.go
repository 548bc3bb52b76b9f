package dns

import (
	"context"
	"errors"
	"fmt"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/zap"
)

// Timing of one inquiry. The whole must end before the 5 s after which a libc asks again.
const (
	hedgeDelay  = 150 * time.Millisecond // before the next server is asked as well
	retryDelay  = time.Second            // before the next round
	askDeadline = 4500 * time.Millisecond
	askRounds   = 3
	patience    = 4900 * time.Millisecond // of a query, with the wait for its turn

)

// ErrNoNameserver means that there is nobody to ask.
var ErrNoNameserver = errors.New("no nameserver configured")

var errNoAnswer = errors.New("no answer within 4.5 s")

// BlockedUpstreamError means that the resolver says, in the form of its blockedif, that it blocks
// the name. No other one is asked: that would undo what the resolver was chosen for.
type BlockedUpstreamError struct{ Resolver Resolver }

// Error implements error.
func (e *BlockedUpstreamError) Error() string { return "blocked by the resolver " + e.Resolver.Label() }

// attempt is one step of a plan: ask that server, after that pause if nobody answered so far.
type attempt struct {
	server *upstream
	after  time.Duration
}

// plan orders the attempts: the servers of a group as given, failing ones last, in rounds. The
// second group stands in when the first has had two rounds, or one if all of it is failing.
func (c *client) plan(groups [][]Resolver) []attempt {
	var steps []attempt
	pause := time.Duration(0) // before the next group's first step
	for i, g := range groups {
		servers, failing := c.byHealth(g)
		rounds := askRounds
		if i < len(groups)-1 {
			rounds--
			if failing {
				rounds = 1
			}
		}
		for range rounds {
			for j, s := range servers {
				if j > 0 {
					pause = hedgeDelay
				}
				steps = append(steps, attempt{server: s, after: pause})
			}
			pause = retryDelay
		}
		if failing {
			pause = hedgeDelay
		}
	}
	return steps
}

// outcome is how one attempt ended.
type outcome struct {
	server *upstream
	msg    *mdns.Msg
	err    error
	took   time.Duration
}

// race is one inquiry on its way through the plan.
type race struct {
	client  *client
	inquiry inquiry
	steps   []attempt
	results chan outcome
	running map[*upstream]int
	out     map[*upstream]bool // refused or answered with an error: not asked again
	soft    outcome            // the first error reply, for when nobody does better
	errs    []error
}

// ask runs the plan until the first good answer and says whose it is. All that it began ends when
// it returns.
func (c *client) ask(ctx context.Context, q inquiry, groups [][]Resolver) (*mdns.Msg, Resolver, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askDeadline, errNoAnswer)
	defer cancel()
	return c.race(ctx, q, groups)
}

// race is ask for a ctx that ends in time and that the caller ends when race has returned: those
// who lost it go on until then.
func (c *client) race(ctx context.Context, q inquiry, groups [][]Resolver) (*mdns.Msg, Resolver, error) {
	r := &race{client: c, inquiry: q, steps: c.plan(groups), running: map[*upstream]int{}, out: map[*upstream]bool{}}
	if len(r.steps) == 0 {
		return nil, Resolver{}, ErrNoNameserver
	}
	r.results = make(chan outcome, len(r.steps)) // nobody blocks when the race is over
	return r.run(ctx)
}

func (r *race) run(ctx context.Context) (*mdns.Msg, Resolver, error) {
	timer := time.NewTimer(askDeadline)
	defer timer.Stop()
	r.start(ctx)
	r.arm(timer)
	for {
		select {
		case <-timer.C:
			r.start(ctx)
			r.arm(timer)
		case o := <-r.results:
			m := r.finish(o)
			if blocks(o.server.BlockedIf, o.msg) {
				return nil, o.server.Resolver, &BlockedUpstreamError{o.server.Resolver}
			}
			if m != nil {
				return m, o.server.Resolver, nil
			}
			if len(r.running) == 0 {
				r.skip()
				if len(r.steps) == 0 {
					return r.result()
				}
			}
			if len(r.steps) > 0 && r.running[r.steps[0].server] == 0 {
				timer.Reset(0) // the next server at once
			}
		case <-ctx.Done():
			r.blame(ctx)
			return r.result()
		}
	}
}

// start begins the next step.
func (r *race) start(ctx context.Context) {
	r.skip()
	if len(r.steps) == 0 {
		return
	}
	u := r.steps[0].server
	r.steps = r.steps[1:]
	r.running[u]++
	if r.client.sent != nil {
		r.client.sent()
	}
	go func() {
		began, o := time.Now(), outcome{server: u, err: errPanic}
		defer func() {
			if p := recover(); p != nil {
				r.client.log.Error("an upstream exchange panicked", zap.Any("panic", p), zap.Stack("stack"))
			}
			o.took = time.Since(began)
			r.results <- o
		}()
		o.msg, o.err = u.exchange(ctx, r.inquiry)
	}()
}

// skip drops steps to servers that have given their error already.
func (r *race) skip() {
	for len(r.steps) > 0 && r.out[r.steps[0].server] {
		r.steps = r.steps[1:]
	}
}

func (r *race) arm(t *time.Timer) {
	r.skip()
	if len(r.steps) > 0 {
		t.Reset(r.steps[0].after)
	}
}

// finish takes the end of one attempt and returns the answer if it is one. An error reply
// says something about the name, not about the server's health.
func (r *race) finish(o outcome) *mdns.Msg {
	if r.running[o.server]--; r.running[o.server] <= 0 {
		delete(r.running, o.server)
	}
	now := r.client.clock()
	if o.err != nil {
		r.client.failed(o.server, o.err)
		r.note(o.server, o.err)
		return nil
	}
	r.client.succeeded(o.server, o.took)
	if o.msg.Rcode != mdns.RcodeSuccess && o.msg.Rcode != mdns.RcodeNameError {
		r.out[o.server] = true
		if r.soft.msg == nil {
			r.soft = o
		}
		return nil
	}
	for u := range r.running {
		if u.quiet(now) {
			r.client.failed(u, errSilent)
		}
	}
	return o.msg
}

// blame counts a failure for every server that let the time pass. That the program went away
// is nobody's failure.
func (r *race) blame(ctx context.Context) {
	for u := range r.running {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			r.client.failed(u, errSilent)
		}
		r.note(u, context.Cause(ctx))
	}
}

// note keeps the first error of each server and asks it no more.
func (r *race) note(u *upstream, err error) {
	if !r.out[u] {
		r.out[u] = true
		r.errs = append(r.errs, fmt.Errorf("%s: %w", u.Resolver, err))
	}
}

func (r *race) result() (*mdns.Msg, Resolver, error) {
	if r.soft.msg != nil {
		return r.soft.msg, r.soft.server.Resolver, nil
	}
	return nil, Resolver{}, errors.Join(r.errs...)
}
