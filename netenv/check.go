package netenv

import (
	"context"
	"net/netip"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Hint is what another part of the program has come across. None of it is about the local
// network.
type Hint uint8

// The hints.
const (
	Connected   Hint = iota // a TCP connection into the Internet was made
	Unconnected             // one was not: unreachable, timed out, refused where no server refuses
	Resolved                // a nameserver answered
	Unresolved              // none did
	hints
)

// trust is for how long a success speaks against failures.
const trust = 30 * time.Second

// hearing is what was heard last. It is written for every connection of the machine.
type hearing struct {
	last   [hints]atomic.Int64 // when, in nanoseconds; 0: never
	wanted atomic.Uint32       // a bit for every Hint that is a reason to look again
	now    func() time.Time    // a test's own
	doubt  chan struct{}       // somebody has such a reason
}

// Hint tells of something that may say more about the network than is known. It is cheap, waits
// for nothing, and may be called from any goroutine.
func (m *Monitor) Hint(h Hint) {
	if h >= hints {
		return
	}
	m.heard.last[h].Store(m.heard.now().UnixNano())
	if m.heard.wanted.Load()&(1<<h) != 0 {
		wake(m.heard.doubt)
	}
}

// about judges by hints alone whether something works: yes is a success and no a failure since
// that time. A success is believed over the failures of a while.
func (h *hearing) about(yes, no Hint, since time.Time) finding {
	good, bad := h.last[yes].Load(), h.last[no].Load()
	start := since.UnixNano()
	switch {
	case good > start && bad-good <= int64(trust):
		return succeeded
	case bad > start:
		return failed
	default:
		return unasked
	}
}

// wanted says which hints do not fit a state: in a portal's network every connection succeeds as
// far as the portal lets it, and while nothing works nothing is new about failures.
func wanted(s OnlineState, names finding) uint32 {
	bits := func(list ...Hint) (b uint32) {
		for _, h := range list {
			b |= 1 << h
		}
		return b
	}
	var more uint32
	if names == failed {
		more = bits(Resolved)
	}
	switch s {
	case Online, SemiOnline:
		return bits(Unconnected, Unresolved) | more
	case Portal:
		return bits(Connected)
	case Limited:
		return bits(Connected) | more
	case Unknown:
		return bits(Connected, Unconnected, Resolved, Unresolved)
	default:
		return 0
	}
}

// pace says when to look again. Whatever the reason, looks that find nothing new come less often.
type pace struct {
	last  time.Time // when the last look ended; zero: none in this network
	same  int       // looks since one that found something new
	asked bool      // a hint does not fit
	quiet bool      // looks send nothing: only hints are weighed

	// Whoever can make a gateway look like another one, again and again, must not make this
	// machine ask as often.
	moves  int       // out of networks that were looked at, without a rest of moveRest
	moved  time.Time // the last one
	before time.Time // the last look in another network
}

const (
	firstGap    = time.Second     // after a look, for a reason
	firstPause  = 2 * time.Second // after a look, without one
	portalGap   = 2 * time.Second
	portalPause = 30 * time.Second
	lostGap     = 30 * time.Second
	lostPause   = 10 * time.Minute
	onlineGap   = 5 * time.Minute
	freeMoves   = 10 // a laptop that looks for its network
	moveRest    = time.Minute
	moveGap     = 5 * time.Second
)

// due returns when to look, and false for not before somebody has a reason.
func (p *pace) due(s OnlineState) (time.Time, bool) {
	gap, pause := lostGap, lostPause
	switch {
	case p.last.IsZero() && p.moves <= freeMoves:
		return time.Time{}, true
	case p.last.IsZero():
		return p.before.Add(moveGap), true
	case p.quiet:
		gap, pause = firstGap, 0
	case s == Portal: // a person waits for it, who may just have logged in
		gap, pause = portalGap, portalPause
	case s == Online:
		gap, pause = onlineGap, 0
	case s == Offline:
		pause = 0
	}
	if p.asked {
		return p.last.Add(doubled(firstGap, p.same, gap)), true
	}
	return p.last.Add(doubled(firstPause, p.same, pause)), pause > 0
}

func doubled(d time.Duration, times int, most time.Duration) time.Duration {
	for range times {
		if d >= most {
			break
		}
		d *= 2
	}
	return min(d, most)
}

// elsewhere begins anew in another network.
func (p *pace) elsewhere(now time.Time, quiet bool) {
	next := pace{quiet: quiet, moved: now, before: p.before}
	if now.Sub(p.moved) < moveRest {
		next.moves = p.moves
	}
	if !p.last.IsZero() {
		next.before = p.last
		next.moves++
	}
	*p = next
}

// ended notes a look.
func (p *pace) ended(now time.Time, news bool) {
	p.last, p.asked = now, false
	if news {
		p.same = 0
	} else {
		p.same++
	}
}

// reachable is what is known beyond what the system says. Monitor.mu guards it.
type reachable struct {
	probe    Probe
	pace     pace
	since    time.Time    // when this network was found
	began    time.Time    // when the last check did
	found    checked      // by it
	known    []netip.Addr // where the page was last found; a portal's own answers are not among them
	state    OnlineState
	checking context.CancelFunc // ends the check under way; nil: none
	round    uint64             // of what a check is about; one of before is void
}

// SetProbe sets how the Internet is looked for; that with another URL makes everything known out
// of date.
func (m *Monitor) SetProbe(p Probe) {
	m.mu.Lock()
	other := p.URL != m.reach.probe.URL
	m.reach.probe = p
	if other {
		m.reach.known = nil
		m.forget()
	}
	m.publish()
	m.mu.Unlock()
	wake(m.rouse)
}

// forget makes the next check the first one. m.mu is held.
func (m *Monitor) forget() {
	r := &m.reach
	_, asks := r.probe.parse()
	r.found, r.since, r.began = checked{}, m.heard.now(), time.Time{}
	r.pace.elsewhere(r.since, !asks)
	r.round++
	if r.checking != nil {
		r.checking()
		r.checking = nil
	}
}

// judge weighs what is known now. m.mu is held.
func (m *Monitor) judge() {
	r := &m.reach
	since := r.since
	if from := r.began.Add(-trust); r.found.page != unasked && from.After(since) {
		since = from
	}
	e := evidence{way: m.network.way(), page: r.found.page, names: r.found.names, conns: m.heard.about(Connected, Unconnected, since)}
	if heard := m.heard.about(Resolved, Unresolved, since); e.names == unasked || e.names == failed && heard == succeeded {
		e.names = heard
	}
	r.state = e.state()
	m.heard.wanted.Store(wanted(r.state, e.names))
}

// explore checks when it is due, until ctx ends.
func (m *Monitor) explore(ctx context.Context) {
	for {
		timer, wait := m.alarm()
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-m.rouse: // another check may be due
		case <-m.heard.doubt:
			m.doubted()
		case <-wait:
			m.check(ctx)
		}
		timer.Stop()
	}
}

// alarm goes off when the next check is due.
func (m *Monitor) alarm() (*time.Timer, <-chan time.Time) {
	m.mu.Lock()
	at, ok := m.reach.pace.due(m.reach.state)
	ok = ok && m.network.way() == out
	m.mu.Unlock()
	timer := time.NewTimer(max(at.Sub(m.heard.now()), 0))
	if !ok {
		return timer, nil
	}
	return timer, timer.C
}

// doubted notes that there is a reason to look again, and asks for no further one. What was heard
// may be enough for another state at once.
func (m *Monitor) doubted() {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.reach.state
	m.reach.pace.asked = true
	m.publish()
	if m.reach.state != before {
		m.reach.pace.same = 0
	}
	m.heard.wanted.Store(0)
}

// check looks once and publishes what it found.
func (m *Monitor) check(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.mu.Lock()
	r := &m.reach
	round, probe, known, before := r.round, r.probe, r.known, r.state
	r.checking, r.began = cancel, m.heard.now()
	m.mu.Unlock()
	found := probe.run(ctx, known)
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() != nil || r.round != round { // the network is another one by now
		return
	}
	r.checking = nil
	if r.found = found; found.page == succeeded {
		r.known = found.addrs
	}
	m.publish()
	r.pace.ended(m.heard.now(), r.state != before)
	if r.state != before {
		m.log.Info("online state", zap.Stringer("state", r.state), zap.String("portal", m.current.Load().PortalURL), zap.NamedError("because", found.err))
	}
}
