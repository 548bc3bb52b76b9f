package dns

import (
	"context"
	"crypto/x509"
	"errors"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/zap"
)

const (
	failuresKept  = 6 // more than 5 failures
	failureWindow = 50 * time.Second
	silentFor     = 5 * time.Second // a slow server that answered so recently is not dead

	standardRetryRate = 5 * time.Minute
	maxKnown          = 512 // resolvers that are remembered
)

var errSilent = errors.New("no answer")

// upstream is what is known about one nameserver, with the connections to it.
type upstream struct {
	Resolver
	transport *transport
	pool      *pool
	replies   sync.Pool // of *[maxReplyUDP]byte

	mu       sync.Mutex
	failures [failuresKept]time.Time // ring
	next     int
	answered time.Time
	failed   time.Time // the last failure
	since    time.Time // it is failing; zero: it is not
	probed   time.Time // or when it began to fail
	probing  bool
	latency  time.Duration
	err      error // of the last failure
}

// health is what may be told of a nameserver.
type health struct {
	failing  bool
	failures int           // in the last 50 s
	latency  time.Duration // of its answers, smoothed; 0: it has not answered yet
	err      error         // of the last failure since the last answer
}

// fail notes a failure and reports whether the server is failing from now on: more than 5
// failures in 50 s.
func (u *upstream) fail(now time.Time, err error) (begins bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.failures[u.next] = now
	u.next = (u.next + 1) % failuresKept
	u.failed, u.err = now, err
	oldest := u.failures[u.next]
	if !u.since.IsZero() || oldest.IsZero() || now.Sub(oldest) >= failureWindow {
		return false
	}
	u.since, u.probed = now, now
	return true
}

// succeed notes an answer and reports whether the server was failing.
func (u *upstream) succeed(now time.Time, took time.Duration) (ends bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	ends = !u.since.IsZero()
	u.failures, u.answered, u.since, u.err = [failuresKept]time.Time{}, now, time.Time{}, nil
	if u.latency == 0 {
		u.latency = took
	}
	u.latency += (took - u.latency) / 8
	return ends
}

// quiet reports that the server has not answered anything for a while.
func (u *upstream) quiet(now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return now.Sub(u.answered) > silentFor
}

// failing reports whether the server is asked after the others. It lasts until it answers. Where
// nobody looks after it in the background, it is tried again by itself.
func (u *upstream) failing(now time.Time, rate time.Duration) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	last := u.failed
	if u.probed.After(last) {
		last = u.probed
	}
	return !u.since.IsZero() && now.Sub(last) < 2*rate+askDeadline
}

func (u *upstream) health(now time.Time, rate time.Duration) health {
	h := health{failing: u.failing(now, rate)}
	u.mu.Lock()
	defer u.mu.Unlock()
	h.latency, h.err = u.latency, u.err
	for _, t := range u.failures {
		if !t.IsZero() && now.Sub(t) < failureWindow {
			h.failures++
		}
	}
	return h
}

// due returns how long it is until the server is to be probed; ok is false if it is not failing,
// or being probed.
func (u *upstream) due(now time.Time, rate time.Duration) (left time.Duration, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.probed.Add(rate).Sub(now), !u.since.IsZero() && !u.probing
}

func (u *upstream) probeBegins(now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.probed, u.probing = now, true
}

func (u *upstream) probeEnds(now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.probed, u.probing = now, false
}

// client asks upstreams.
type client struct {
	dialer Dialer
	clock  func() time.Time
	log    *zap.Logger
	sent   func()         // counts one exchange, may be nil
	roots  *x509.CertPool // nil: the system's

	wake chan struct{} // a server begins to fail

	mu     sync.Mutex
	rate   time.Duration // of probes
	known  map[Resolver]*upstream
	closed bool
}

func newClient(d Dialer, clock func() time.Time, log *zap.Logger, sent func()) *client {
	return &client{
		dialer: d, clock: clock, log: log, sent: sent,
		wake: make(chan struct{}, 1), rate: standardRetryRate, known: map[Resolver]*upstream{},
	}
}

// renew forgets all servers: the settings or the network changed, and who is not in use any more
// must not be asked in the background. What is under way goes on. The rate is how often failing
// servers are probed; 0 is the standard.
func (c *client) renew(rate time.Duration) {
	if rate <= 0 {
		rate = standardRetryRate
	}
	c.mu.Lock()
	old := c.known
	c.rate, c.known = rate, map[Resolver]*upstream{}
	c.mu.Unlock()
	for _, u := range old {
		u.pool.drain()
	}
}

// server returns what is known about r, which is known from now on.
func (c *client) server(r Resolver, now time.Time) *upstream {
	c.mu.Lock()
	u, full := c.known[r], len(c.known) >= maxKnown
	rate := c.rate
	c.mu.Unlock()
	if u != nil {
		return u
	}
	if full {
		c.renew(rate)
	}
	t := &transport{dialer: c.dialer, resolver: r, roots: c.roots}
	u = &upstream{Resolver: r, transport: t, pool: newPool(t.open), answered: now}
	c.mu.Lock()
	defer c.mu.Unlock()
	if other := c.known[r]; other != nil {
		return other
	}
	if u.pool.closed = c.closed; !c.closed {
		c.known[r] = u
	}
	return u
}

// byHealth returns the servers with the failing ones last, and whether all are failing.
func (c *client) byHealth(list []Resolver) (ordered []*upstream, failing bool) {
	now, rate := c.clock(), c.retryRate()
	var good, bad []*upstream
	for _, r := range list {
		if u := c.server(r, now); u.failing(now, rate) {
			bad = append(bad, u)
		} else {
			good = append(good, u)
		}
	}
	return append(good, bad...), len(good) == 0
}

func (c *client) retryRate() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rate
}

// health says how r does; of a server that was never asked nothing bad is known.
func (c *client) health(r Resolver, now time.Time) health {
	c.mu.Lock()
	u, rate := c.known[r], c.rate
	c.mu.Unlock()
	if u == nil {
		return health{}
	}
	return u.health(now, rate)
}

// failing reports whether r is failing; a server that was never asked is not.
func (c *client) failing(r Resolver, now time.Time) bool { return c.health(r, now).failing }

func (c *client) failed(u *upstream, err error) {
	if !u.fail(c.clock(), err) {
		return
	}
	c.log.Warn("a resolver is failing and asked after the others", zap.Stringer("resolver", u.Resolver), zap.Error(err))
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *client) succeeded(u *upstream, took time.Duration) {
	if u.succeed(c.clock(), took) {
		c.log.Info("a resolver answers again", zap.Stringer("resolver", u.Resolver))
	}
}

// run probes failing servers until ctx ends, and then closes all connections for good.
func (c *client) run(ctx context.Context) {
	var probes sync.WaitGroup
	defer probes.Wait()
	defer c.close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer.C:
		}
		next, due := c.agenda()
		for _, u := range due {
			probes.Go(func() { c.probe(ctx, u) })
		}
		timer.Reset(next)
	}
}

// agenda returns the servers to probe now, and when to look again.
func (c *client) agenda() (next time.Duration, due []*upstream) {
	now := c.clock()
	c.mu.Lock()
	rate := c.rate
	all := make([]*upstream, 0, len(c.known))
	for _, u := range c.known {
		all = append(all, u)
	}
	c.mu.Unlock()
	next = rate
	for _, u := range all {
		switch left, failing := u.due(now, rate); {
		case !failing:
		case left <= 0:
			u.probeBegins(now)
			due = append(due, u)
		default:
			next = min(next, left)
		}
	}
	return max(next, time.Millisecond), due
}

// probe asks for the nameservers of the root, which tells nobody anything. Whatever is answered,
// the server lives.
func (c *client) probe(ctx context.Context, u *upstream) {
	ctx, cancel := context.WithTimeoutCause(ctx, askDeadline, errSilent)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			c.log.Error("a probe panicked", zap.Any("panic", p), zap.Stack("stack"))
		}
	}()
	if c.sent != nil {
		c.sent()
	}
	defer func() { u.probeEnds(c.clock()) }()
	began := time.Now()
	_, err := u.exchange(ctx, inquiry{qtype: mdns.TypeNS})
	switch {
	case err == nil:
		c.succeeded(u, time.Since(began))
	case !errors.Is(err, context.Canceled):
		c.failed(u, err)
	}
}

// close ends all connections; nothing but plain UDP can be asked any more.
func (c *client) close() {
	c.mu.Lock()
	c.closed = true
	known := c.known
	c.known = map[Resolver]*upstream{}
	c.mu.Unlock()
	for _, u := range known {
		u.pool.close()
	}
}
