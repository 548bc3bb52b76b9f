package netenv

import (
	"context"
	"net/netip"
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
	// System returns the system's nameservers and search domains as they are now. It is asked
	// with every look; nil: nothing is known of them.
	System func() (nameservers []netip.Addr, suffixes []string)
	// Probe is how the Internet is looked for, until SetProbe says otherwise.
	Probe Probe
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
	system  func() ([]netip.Addr, []string)
	current atomic.Pointer[Snapshot]
	changed chan struct{}
	kick    chan struct{} // look again
	rouse   chan struct{} // when the next check is due has changed
	heard   hearing
	closing sync.Once

	mu      sync.Mutex
	network Snapshot // what the system says
	reach   reachable
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
	m := &Monitor{src: src, log: o.Logger, system: o.System, changed: make(chan struct{}, 1), kick: make(chan struct{}, 1), rouse: make(chan struct{}, 1),
		heard: hearing{now: time.Now, doubt: make(chan struct{}, 1)}, reach: reachable{probe: o.Probe}}
	if m.log == nil {
		m.log = zap.NewNop()
	}
	s, err := m.look()
	if err != nil {
		src.close()
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.network = s
	m.forget()
	m.judge()
	s.Online = m.reach.state
	m.current.Store(&s)
	return m, nil
}

// Run follows the changes until ctx ends, and then closes the Monitor. An error means that the
// system tells no more: the last Snapshot is then out of date.
func (m *Monitor) Run(ctx context.Context) error {
	defer m.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.src.watch(ctx, m.Look) })
	g.Go(func() error { m.follow(ctx, m.kick); return nil })
	g.Go(func() error { m.explore(ctx); return nil })
	return g.Wait()
}

// Look makes Run look again soon: something changed that the system does not notify of, such as
// the file with its nameservers.
func (m *Monitor) Look() { wake(m.kick) }

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

// look reads everything that the system says.
func (m *Monitor) look() (Snapshot, error) {
	s, err := m.src.look()
	if err == nil && m.system != nil {
		s.Nameservers, s.DNSSuffixes = m.system()
	}
	return s, err
}

// refresh looks, and publishes what is new.
func (m *Monitor) refresh() error {
	s, err := m.look()
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.sameNetwork(m.network) {
		return nil
	}
	other, vpn := s.elsewhere(m.network), s.VPN != m.network.VPN
	m.network = s
	switch {
	case other:
		m.forget()
	case vpn: // but no container that came, and no MAC that was learnt
		m.reach.pace.asked = true
	}
	m.publish()
	wake(m.rouse)
	return nil
}

// publish judges again and makes known what is new. m.mu is held.
func (m *Monitor) publish() {
	m.judge()
	s := m.network
	if s.Online = m.reach.state; s.Online == Portal {
		s.PortalURL = m.reach.found.portal
	}
	if s.Equal(*m.current.Load()) {
		return
	}
	m.current.Store(&s)
	wake(m.changed)
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
