package interception

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
)

// Listeners finds the program that waits for an inbound flow. The Process it returns is never nil.
type Listeners interface {
	Listener(context.Context, packet.Flow) attribution.Owner
}

// Arrival is a packet that came in and waits in the system's kernel for its verdict.
type Arrival interface {
	// Flow has this machine's side as Local.
	Flow() packet.Flow
	// Opens reports whether it may begin a flow: a datagram, or a SYN.
	Opens() bool
	// Solicited reports whether it answers what this machine has asked everybody on the link.
	Solicited() bool
	// Accept lets it and its flow in; Drop is silence; Reject tells the sender.
	Accept()
	Drop()
	Reject()
}

// InboundFlows knows what was let in.
type InboundFlows interface {
	// Look reports whether the flow lives, and its bytes as far as they are counted.
	Look(packet.Flow) (sent, received uint64, lives bool)
	// End ends it: no packet of it passes any more without a new verdict.
	End(packet.Flow) error
}

// The bounds of what waits. A flood fills its share of the places and is dropped; whoever means it
// tries again.
const (
	maxWaiting   = 1024 // flows that are being decided
	maxOfOne     = 256  // of these, of one address
	maxDatagrams = 16   // of one flow, in order
	maxDenied    = 4096 // remembered denials
	maxLooks     = 2000 // flows that one sweep asks the kernel about
	deciders     = 4    // goroutines
)

// Inbound decides what comes in. The kernel holds the first packet of each flow; once it is accepted
// the kernel carries the flow, and no more packets of it come here. The fields are set by cmd before
// Run.
type Inbound struct {
	Gate      *Gate
	Listeners Listeners
	Flows     InboundFlows

	init sync.Once
	work chan *arrivals
	wake chan struct{}

	mu      sync.Mutex
	waiting map[packet.Flow]*arrivals
	from    map[netip.Addr]int // waiting flows by the other end
	live    []admitted         // a ring for sweeps
	denied  []*network.Link    // remembered, the oldest first
	ending  []revocation

	counts inboundCounts
}

// arrivals are the packets of one flow that wait for its verdict.
type arrivals struct {
	link      *network.Link
	solicited bool // the first of them
	held      []Arrival
}

// admitted is a flow that was let in.
type admitted struct {
	link *network.Link
	over bool // the last sweep did not find it any more
}

type inboundCounts struct{ crowded, stray, repeated atomic.Uint64 }

// InboundCounters say what was not decided one by one.
type InboundCounters struct {
	Crowded  uint64 // dropped: too many flows waited
	Stray    uint64 // dropped: of no flow that anybody knows
	Repeated uint64 // the same packet again while its flow was being decided
	Live     int    // flows that were let in
}

// Counters returns what happened so far.
func (in *Inbound) Counters() InboundCounters {
	in.mu.Lock()
	defer in.mu.Unlock()
	return InboundCounters{Crowded: in.counts.crowded.Load(), Stray: in.counts.stray.Load(), Repeated: in.counts.repeated.Load(), Live: len(in.live)}
}

func (in *Inbound) prepare() {
	in.init.Do(func() {
		in.work, in.wake = make(chan *arrivals, maxWaiting), make(chan struct{}, 1)
		in.waiting, in.from = map[packet.Flow]*arrivals{}, map[netip.Addr]int{}
	})
}

// Run decides until ctx ends. What waits then is dropped.
func (in *Inbound) Run(ctx context.Context) error {
	in.prepare()
	var workers sync.WaitGroup
	for range deciders {
		workers.Go(func() { in.decideAll(ctx, &workers) })
	}
	defer workers.Wait()
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			in.sweep()
		case <-in.wake:
			in.endAll()
		}
	}
}

// Handle takes one held packet. It returns soon: what has to be found out is done elsewhere.
func (in *Inbound) Handle(a Arrival) {
	in.prepare()
	f := a.Flow()
	if !a.Opens() {
		in.resume(a)
		return
	}
	if in.again(a) {
		return
	}
	l, known := in.Gate.Table.Link(f)
	if known && l.Comm() != nil && l.Comm().Direction != network.Inbound {
		// The program speaks over the same addresses the other way: its link is its own.
		l = in.Gate.Table.Unlisted(f)
	} else if known {
		if l = in.known(l, a); l == nil {
			return
		}
	}
	in.hold(l, a)
}

// resume deals with the middle of a connection that connection tracking does not know: it was let in
// before, and connection tracking has been emptied, or it is nobody's.
func (in *Inbound) resume(a Arrival) {
	if _, _, lives := in.Flows.Look(a.Flow()); lives {
		a.Accept()
		return
	}
	in.counts.stray.Add(1)
	a.Drop()
}

// again keeps or drops a packet whose flow is being decided.
func (in *Inbound) again(a Arrival) bool {
	in.mu.Lock()
	w := in.waiting[a.Flow()]
	keep := w != nil && a.Flow().Proto == packet.UDP && len(w.held) < maxDatagrams
	if keep {
		w.held = append(w.held, a)
	}
	in.mu.Unlock()
	if w != nil && !keep {
		in.counts.repeated.Add(1)
		a.Drop()
	}
	return w != nil
}

// abandon drops what waits for a verdict that nobody finds.
func (in *Inbound) abandon(w *arrivals) {
	for _, a := range in.settle(w) {
		a.Drop()
	}
	in.Gate.Table.End(w.link, "could not be decided")
}

// known deals with a packet of a link that has its verdict. What it returns is to be decided.
func (in *Inbound) known(l *network.Link, a Arrival) *network.Link {
	d := l.Decision()
	switch {
	case !d.Decided():
		a.Drop() // its verdict comes this moment, and the packet again
	case !d.Verdict.Permits():
		in.Gate.parked.touch(l, in.Gate.Clock())
		refuse(a, l, d.Verdict)
	case a.Flow().Proto == packet.UDP:
		a.Accept() // silent for so long that connection tracking forgot it
	default:
		in.finish(l, "replaced by a new connection")
		l, _ = in.Gate.Table.Link(a.Flow())
		return l
	}
	return nil
}

// hold lets the packet wait, if there is room.
func (in *Inbound) hold(l *network.Link, a Arrival) {
	w := &arrivals{link: l, solicited: a.Solicited(), held: []Arrival{a}}
	from := l.Flow.Remote.Addr()
	in.mu.Lock()
	room := len(in.waiting) < maxWaiting && in.from[from] < maxOfOne
	if room {
		in.waiting[l.Flow] = w
		in.from[from]++
	}
	in.mu.Unlock()
	if !room {
		in.counts.crowded.Add(1)
		a.Drop()
		in.Gate.Table.End(l, "too many wait")
		return
	}
	in.work <- w // never blocks: there is a place for every one that waits
}

// settle ends the waiting and returns the packets that waited, in their order.
func (in *Inbound) settle(w *arrivals) []Arrival {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.waiting[w.link.Flow] != w {
		return nil
	}
	from := w.link.Flow.Remote.Addr()
	delete(in.waiting, w.link.Flow)
	if in.from[from]--; in.from[from] <= 0 {
		delete(in.from, from)
	}
	if len(in.waiting) == 0 {
		in.waiting, in.from = map[packet.Flow]*arrivals{}, map[netip.Addr]int{} // a Go map never shrinks
	}
	held := w.held
	w.held = nil
	return held
}

func (in *Inbound) decideAll(ctx context.Context, asking *sync.WaitGroup) {
	for {
		select {
		case <-ctx.Done():
			return
		case w := <-in.work:
			in.decide(ctx, w, asking)
		}
	}
}

// decide finds out who waits for the flow and decides. Asking a person takes a goroutine of its own:
// those who only wait must not keep others waiting.
func (in *Inbound) decide(ctx context.Context, w *arrivals, asking *sync.WaitGroup) {
	g := in.Gate
	defer g.survive("inbound flow")
	settled := false
	defer func() {
		if !settled { // a panic: its packets must not wait for good, nor the flow's next ones
			in.abandon(w)
		}
	}()
	l := w.link
	owner := in.Listeners.Listener(ctx, l.Flow)
	c := &network.Communication{
		Owner: owner, Direction: network.Inbound, Entity: network.Entity{Addr: l.Flow.Remote.Addr()},
		Profile: g.Firewall.Settings(owner).ProfileName, Solicited: w.solicited && isLAN(l.Flow.Remote.Addr()),
	}
	if c.Solicited {
		l.SetComm(c) // shared with nobody: what is not solicited must not inherit it
	} else {
		c = g.Table.Bind(l, c)
	}
	d, known := in.verdict(l, c)
	if known {
		in.carryOut(w, d)
		settled = true
		return
	}
	settled = true // by who asks
	asking.Go(func() {
		defer g.survive("inbound flow that asks")
		d := g.ask(ctx.Done(), l, d)
		d = g.Firewall.ForGood(c, l.Flow, d)
		g.Table.Decide(l, d)
		in.carryOut(w, d)
	})
}

func isLAN(a netip.Addr) bool { return network.Entity{Addr: a}.Scope() == network.LAN }

// verdict decides with the settings of one revision. known is false where a person is asked.
func (in *Inbound) verdict(l *network.Link, c *network.Communication) (d network.Decision, known bool) {
	g := in.Gate
	for {
		revision := g.Firewall.Settings(c.Owner).Revision
		l.SetStamp(g.Firewall.Stamp(c, l.Flow))
		if d = g.Firewall.Decide(c, l.Flow); d.Asks() {
			return d, false
		}
		g.Table.Decide(l, d)
		if g.Firewall.Settings(c.Owner).Revision == revision {
			return d, true
		}
	}
}

// carryOut is the switch. The link has its verdict before its packets stop waiting: one that comes
// then finds it there.
func (in *Inbound) carryOut(w *arrivals, d network.Decision) {
	l := w.link
	in.Gate.count(l.Comm().Owner, d)
	permits := d.Verdict == network.Accept || d.Verdict == network.PermanentAccept
	if permits {
		l.SetHandedBack()
	}
	for i, a := range in.settle(w) {
		switch {
		case permits:
			a.Accept()
		case i > 0:
			a.Drop()
		default:
			refuse(a, l, d.Verdict)
		}
	}
	if permits { // the kernel knows the flow now: it can be asked about, and told
		in.mu.Lock()
		in.live = append(in.live, admitted{link: l})
		in.mu.Unlock()
		l.OnKill(func(cause string) { in.revoke(l, cause) })
		return
	}
	in.remember(l)
}

// refuse carries out a denial. Sockets of our own are silent: nobody is to learn of them.
func refuse(a Arrival, l *network.Link, v network.Verdict) {
	c := l.Comm()
	if (v == network.Block || v == network.PermanentBlock) && (c == nil || c.Owner.Process.Kind != attribution.KindSelf) {
		a.Reject()
		return
	}
	a.Drop()
}

// remember keeps a denial for packets that come again, and lets the oldest go where there are many.
func (in *Inbound) remember(l *network.Link) {
	g := in.Gate
	g.parked.add(l, nil, g.Clock().Add(dropRemembered))
	in.mu.Lock()
	in.denied = append(in.denied, l)
	var old *network.Link
	if len(in.denied) > maxDenied {
		old, in.denied = in.denied[0], in.denied[1:]
	}
	in.mu.Unlock()
	if old != nil {
		g.parked.take(old)
		g.Table.End(old, "blocked")
	}
}

// revoke has Run end the link soon.
func (in *Inbound) revoke(l *network.Link, cause string) {
	in.mu.Lock()
	in.ending = append(in.ending, revocation{l, cause})
	in.mu.Unlock()
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

func (in *Inbound) endAll() {
	in.mu.Lock()
	all := in.ending
	in.ending = nil
	in.mu.Unlock()
	for _, r := range all {
		if err := in.Flows.End(r.link.Flow); err != nil {
			in.Gate.Log.Warn("an inbound flow could not be ended", zap.Error(err))
		}
		in.finish(r.link, r.cause)
	}
}

// finish enters the end of a link; a sweep forgets it.
func (in *Inbound) finish(l *network.Link, cause string) { in.Gate.Table.End(l, cause) }

// Closed enters what a connection has carried whose socket is gone, and its end, if it is one that was let
// in: a sweep would come too late for the bytes of a short one. It may be called for any other.
func (in *Inbound) Closed(f packet.Flow, sent, received uint64) {
	l := in.Gate.Table.Find(f)
	if l == nil || !l.HandedBack() || handedBackOut(l) || l.Ended() {
		return
	}
	l.SetBytes(sent, received)
	if !in.lives(l) { // else it is the next one of this name already
		in.over(l)
	}
}

// sweep asks the kernel about flows that were let in, those first that were not asked about for the
// longest, and enters their bytes and ends.
func (in *Inbound) sweep() {
	in.mu.Lock()
	n := min(len(in.live), maxLooks)
	some := append([]admitted(nil), in.live[:n]...)
	in.live = append(in.live[:0:0], in.live[n:]...)
	in.mu.Unlock()
	still := some[:0]
	for _, a := range some {
		if in.stays(&a) {
			still = append(still, a)
		}
	}
	in.mu.Lock()
	in.live = append(in.live, still...)
	in.mu.Unlock()
}

// stays looks at one flow. A connection that is over has a moment longer: whoever calls Closed knows what it
// has carried.
func (in *Inbound) stays(a *admitted) bool {
	switch {
	case a.link.Ended():
		return false
	case in.lives(a.link):
		a.over = false
		return true
	case a.link.Flow.Proto == packet.TCP && !a.over:
		a.over = true
		return true
	}
	in.over(a.link)
	return false
}

// lives asks the kernel about a flow, and enters its bytes.
func (in *Inbound) lives(l *network.Link) bool {
	sent, received, lives := in.Flows.Look(l.Flow)
	if lives {
		l.SetBytes(sent, received)
	}
	return lives
}

func (in *Inbound) over(l *network.Link) {
	cause := "closed"
	if l.Flow.Proto == packet.UDP {
		cause = "idle"
	}
	in.finish(l, cause)
}
