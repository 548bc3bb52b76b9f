package netenv

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

const (
	// settle is how long a first notification waits for those that belong to the same change:
	// an interface that comes up brings addresses and routes.
	settle = 10 * time.Millisecond
	// restFactor bounds the work on a network that never rests: after a look, at least that
	// many times as long as it took passes until the next one.
	restFactor = 4
	// retry is when a look that failed is repeated.
	retry = time.Second
)

// Options are what a Monitor needs.
type Options struct {
	// Ignore names our own devices: what leads into them says nothing about the network.
	Ignore []string
	// Logger may be nil.
	Logger *zap.Logger
}

// source is what one operating system brings.
type source interface {
	// look reads everything there is at this moment. Only one goroutine calls it.
	look() (Snapshot, error)
	// watch calls changed whenever a look may find something new, until ctx ends.
	watch(ctx context.Context, changed func()) error
	close()
}

// Monitor follows the networks of the network namespace in which it was made.
type Monitor struct {
	src     source
	log     *zap.Logger
	current atomic.Pointer[Snapshot]
	changed chan struct{}
	closing sync.Once
}

// New looks once, so that Snapshot is true from the beginning. What happens until Run begins
// is found by Run. It needs no privilege.
func New(o Options) (*Monitor, error) {
	src, err := open(o)
	if err != nil {
		return nil, err
	}
	return start(src, o)
}

// start makes a Monitor of a source.
func start(src source, o Options) (*Monitor, error) {
	m := &Monitor{src: src, log: o.Logger, changed: make(chan struct{}, 1)}
	if m.log == nil {
		m.log = zap.NewNop()
	}
	s, err := src.look()
	if err != nil {
		src.close()
		return nil, err
	}
	m.current.Store(&s)
	return m, nil
}

// Run follows the changes until ctx ends, and then closes the Monitor. An error means that the
// system tells no more: the last Snapshot is then out of date.
func (m *Monitor) Run(ctx context.Context) error {
	defer m.Close()
	g, ctx := errgroup.WithContext(ctx)
	kick := make(chan struct{}, 1)
	g.Go(func() error { return m.src.watch(ctx, func() { wake(kick) }) })
	g.Go(func() error { m.follow(ctx, kick); return nil })
	return g.Wait()
}

// Close releases a Monitor that was never run.
func (m *Monitor) Close() { m.closing.Do(m.src.close) }

// Snapshot returns what is known now. The caller must not change it.
func (m *Monitor) Snapshot() Snapshot { return *m.current.Load() }

// Changed delivers after a Snapshot that differs from the one before. Several changes may be
// delivered as one; the last is never lost. It has one reader and is never closed.
func (m *Monitor) Changed() <-chan struct{} { return m.changed }

// follow looks again after every kick, not more often than the cost of looking allows.
func (m *Monitor) follow(ctx context.Context, kick chan struct{}) {
	var next time.Time // not before
	for {
		select {
		case <-ctx.Done():
			return
		case <-kick:
		}
		if !pause(ctx, max(settle, time.Until(next))) {
			return
		}
		select { // what came meanwhile is seen by this look
		case <-kick:
		default:
		}
		began := time.Now()
		err := m.refresh()
		next = time.Now().Add(restFactor * time.Since(began))
		if err != nil {
			m.log.Warn("cannot read the state of the network, the last known one stays; will try again", zap.Error(err))
			next = time.Now().Add(retry)
			wake(kick)
		}
	}
}

// refresh looks, and publishes what is new.
func (m *Monitor) refresh() error {
	s, err := m.src.look()
	if err != nil || s.Equal(*m.current.Load()) {
		return err
	}
	m.current.Store(&s)
	wake(m.changed)
	return nil
}

// pause waits for d and reports whether ctx still lives.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// wake sends what is not yet waiting to be received.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
