package route

import (
	"context"
	"errors"
	"slices"
	"time"

	"gatun/network/packet"

	"go.uber.org/zap"
)

// How fast Run reacts. The guard and deleted rules are put back at once; changes of the network
// come in bursts, of which the first is looked at once and the others after a short wait; the polls
// are the net below lost notifications.
const (
	debounce         = 20 * time.Millisecond
	guardPause       = 5 * time.Millisecond // between two looks at the guard, if somebody keeps removing it
	pollInterval     = 2 * time.Second
	snapshotInterval = 4 * time.Second
)

// change is what a notification is about.
type change uint8

const (
	guardChanged change = 1 << iota
	routesChanged
	addressesChanged
	captureDamaged // one of our rules or routes was deleted: no time to wait
)

// Run watches the kernel and puts back what foreign hands remove, follows the changes of the
// network, and lets snapshot entries go when their flows end. It returns nil when ctx ends.
// Reacting to its own changes ends after one look: a reconciliation that finds nothing to do
// changes nothing and so causes no further notification.
func (m *Manager) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := make(chan change, 64)
	watching := make(chan error, 1)
	go func() {
		err := watch(ctx, m.opts.Names, changes, m.opts.Logger)
		if err != nil {
			m.opts.Logger.Error("no notifications from the kernel, only the poll is left", zap.Error(err))
		}
		watching <- err
	}()
	forgetting := make(chan struct{})
	go func() {
		defer close(forgetting)
		m.keepForgetting(ctx)
	}()
	m.loop(ctx, changes)
	<-watching
	<-forgetting
	return nil
}

// loop is Run's body. Timers with a nil channel are not armed.
func (m *Manager) loop(ctx context.Context, changes <-chan change) {
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	snapshot := time.NewTicker(snapshotInterval)
	defer snapshot.Stop()
	var routesDue, guardDue <-chan time.Time
	var guardSeen, routesSeen, since time.Time
	m.check(time.Now()) // what happened between Up and Run
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-changes:
			c |= drain(changes)
			if c&addressesChanged != 0 {
				m.readLocals()
			}
			if c&captureDamaged != 0 {
				m.check(time.Now()) // looks at the guard too
				continue
			}
			if c&(routesChanged|addressesChanged) != 0 && routesDue == nil {
				since = time.Now()
				routesDue = time.After(routesWait(since, routesSeen))
			}
			if c&guardChanged == 0 {
				continue
			}
			if wait := guardPause - time.Since(guardSeen); wait > 0 {
				guardDue = time.After(wait)
				continue
			}
			m.checkGuard(time.Now())
			guardSeen = time.Now()
		case <-guardDue:
			guardDue = nil
			m.checkGuard(time.Now())
			guardSeen = time.Now()
		case <-routesDue:
			routesDue = nil
			m.check(since)
			routesSeen = time.Now()
		case <-m.wishes:
			m.fulfil()
		case <-poll.C:
			m.check(time.Now())
		case <-snapshot.C:
			m.endFlows()
		}
	}
}

// routesWait is how long a change of the network waits for its look. The first of a burst does not:
// until our table follows, what begins leaves with the source address of the network that is gone,
// and no answer finds it. Those behind it share a look.
func routesWait(now, seen time.Time) time.Duration {
	return max(0, debounce-now.Sub(seen))
}

// drain takes what is waiting already: one look serves for all of it.
func drain(changes <-chan change) (c change) {
	for {
		select {
		case next := <-changes:
			c |= next
		default:
			return c
		}
	}
}

// check compares everything with what is wanted and repairs the difference.
func (m *Manager) check(since time.Time) {
	m.checkGuard(since)
	host, err := readHost()
	if err == nil {
		m.setLocals(host)
		err = m.reconcileSince(host, since)
	}
	if err != nil {
		m.fail(err)
		return
	}
	if _, ok := host.link(m.opts.Names.Device); !ok {
		if m.Status().State != Degraded {
			m.opts.OnEvent(Event{Kind: DeviceGone, Detail: m.opts.Names.Device})
		}
		m.step(Degraded, m.opts.Names.Device+" is gone: everything is blocked until it is opened again")
		return
	}
	if m.Status().GuardOK {
		m.step(On, "")
	}
}

func (m *Manager) fail(err error) {
	m.opts.Logger.Error("cannot repair, traffic stays blocked", zap.Error(err))
	m.opts.OnEvent(Event{Kind: Failed, Detail: err.Error()})
	m.step(Degraded, err.Error())
}

// checkGuard puts the guard back if it is not as it was.
func (m *Manager) checkGuard(since time.Time) {
	found := verifyGuard(m.guard)
	if found == nil {
		m.update(func(s *Status) { s.GuardOK = true })
		return
	}
	m.update(func(s *Status) { s.GuardOK = false })
	if err := m.install(); err != nil {
		m.fail(err)
		return
	}
	m.update(func(s *Status) { s.GuardOK = true })
	m.mayBeStale() // what was asked meanwhile
	m.repaired(GuardRepaired, found.Error(), since)
}

// repaired counts and reports a repair.
func (m *Manager) repaired(kind EventKind, detail string, since time.Time) {
	m.update(func(s *Status) { s.Repairs++ })
	took := time.Since(since)
	m.opts.Logger.Warn(string(kind), zap.String("found", detail), zap.Duration("took", took))
	m.opts.OnEvent(Event{Kind: kind, Detail: detail, Took: took})
}

// reconcile makes device, sysctls, table and rules what they have to be on this host.
func (m *Manager) reconcile(host HostState) error { return m.reconcileSince(host, time.Now()) }

func (m *Manager) reconcileSince(host HostState, since time.Time) error {
	n := m.opts.Names
	want := lastPlan{routes: routes(n, host), rules: rules(n, host)}
	same := slices.Equal(want.routes, m.last.routes) && slices.Equal(want.rules, m.last.rules)
	running := m.Status().State != Starting
	if !same && running {
		m.step(Reconfiguring, "")
	}
	errs := []error{m.keepSettings(host, since)}
	routeChanges, err := syncRoutes(n, want.routes)
	errs = append(errs, err)
	ruleChanges, conflicts, err := syncRules(n, want.rules)
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		m.update(func(s *Status) { s.RulesOK = false })
		return err
	}
	m.last = want
	m.update(func(s *Status) { s.RulesOK, s.Conflicts, s.Forwarded = true, conflicts, forwardedText(host) })
	switch {
	case !running:
	case !same:
		for _, c := range slices.Concat(routeChanges, ruleChanges) {
			m.opts.Logger.Info("network changed", zap.String("now", c))
		}
		m.opts.OnEvent(Event{Kind: Reconfigured, Took: time.Since(since)})
	default:
		if len(routeChanges) > 0 {
			m.repaired(RoutesRepaired, routeChanges[0], since)
		}
		if len(ruleChanges) > 0 {
			m.repaired(RulesRepaired, ruleChanges[0], since)
		}
	}
	return nil
}

// forwardedText is what status says on a machine that forwards: its containers have no network, and nothing
// else tells why.
func forwardedText(h HostState) string {
	if !h.Forwards {
		return ""
	}
	return "this machine forwards packets: what containers, virtual machines and LAN hosts send through it is dropped"
}

// keepSettings repairs the device's flags and the sysctls.
func (m *Manager) keepSettings(host HostState, since time.Time) error {
	p := Compute(m.opts.Names, HostState{}, m.opts.Policy)
	for _, op := range p.Ops {
		switch op := op.(type) {
		case LinkSetup:
			if _, ok := host.link(op.Link); !ok || linkReady(op) {
				continue
			}
			if err := setupLink(op); err != nil {
				return err
			}
			m.repaired(DeviceRepaired, op.Link+" was down or changed", since)
		case Sysctl:
			if now, err := getSysctl(op.Key); err != nil || now == op.Value {
				continue
			}
			if err := setSysctl(op.Key, op.Value); err != nil {
				return err
			}
			m.repaired(SysctlRepaired, op.Key, since)
		}
	}
	return nil
}

func (m *Manager) readLocals() {
	if host, err := readHost(); err == nil {
		m.setLocals(host)
	}
}

// endFlows takes the flows that have ended out of the snapshot.
func (m *Manager) endFlows() {
	if len(m.flows) == 0 {
		return
	}
	open, err := openFlows(packet.TCP, packet.UDP)
	if err != nil {
		m.opts.Logger.Warn("cannot list sockets, the snapshot stays as it is", zap.Error(err))
		return
	}
	var ended []packet.Flow
	for f := range m.flows {
		if _, ok := open[f]; !ok {
			ended = append(ended, f)
		}
	}
	for _, f := range ended {
		delete(m.flows, f)
	}
	if err := changeFlows(m.opts.Names.NftTable, nil, ended); err != nil {
		// Somebody has emptied the set: what is left goes in again, whole.
		if err := m.install(); err != nil {
			m.fail(err)
		}
	}
	m.update(func(s *Status) { s.Snapshot = len(m.flows) })
}
