package interception

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"gatun/attribution"
	"gatun/firewall"
	"gatun/network"
	"gatun/network/packet"
	"gatun/profiles"
	"gatun/stack"
)

// Owners finds the program behind a flow. The Process it returns is never nil.
type Owners interface {
	Find(context.Context, packet.Flow) attribution.Owner
}

// Names knows under which name a program resolved an address.
type Names interface {
	Entity(attribution.Owner, netip.Addr) network.Entity
}

// Nameserver answers what is rerouted to it.
type Nameserver interface {
	// ServeUDP returns the answer to one query, or nil where silence is the answer.
	ServeUDP(ctx context.Context, f packet.Flow, o attribution.Owner, query []byte) []byte
	// ServeConn answers a stream until it ends; an error says why it was cut.
	ServeConn(ctx context.Context, f packet.Flow, o attribution.Owner, c net.Conn) error
}

// maxQueries bounds the DNS queries over UDP that are answered at the same time; more are
// dropped and asked again by the resolver library. maxQueriesOfOne are those of one program.
const (
	maxQueries      = 8192
	maxQueriesOfOne = 2048
)

// Gate carries verdicts out: hold, look up, decide, and one switch. It implements
// stack.Handler. All fields but the unexported ones are set by cmd before Run.
type Gate struct {
	Table      *network.Table
	Firewall   *firewall.Master
	Prompts    *firewall.Prompts
	Owners     Owners
	Names      Names
	Nameserver Nameserver
	Relay      *Relay
	Kernel     Kernel // nil: no flow is handed back
	Ahead      Ahead  // nil: no connection is permitted before it begins
	Log        *zap.Logger
	Clock      func() time.Time

	ctx     context.Context // of Run: ends what outlives a handler
	queries atomic.Int64
	decided atomic.Uint64
	denied  atomic.Uint64
	panics  atomic.Uint64
	causes  causes
	parked  parked
	sockets sockets
	askers  shares // of maxQueries
	kernel  handedBack
}

// Attach gives the Gate the context in which everything it carries lives. cmd calls it once,
// before the first packet.
func (g *Gate) Attach(ctx context.Context) {
	g.ctx = ctx
	g.kernel.init(g.Ahead)
}

// Run looks after flows that nobody relays any more until ctx ends.
func (g *Gate) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			g.sweep()
		case <-g.kernel.wake:
			g.revoke()
		}
	}
}

// judge finds out who wants what, decides, and writes it into the table.
func (g *Gate) judge(ctx context.Context, l *network.Link) (network.Decision, attribution.Owner) {
	owner := g.Owners.Find(ctx, l.Flow)
	return g.decide(ctx, l, owner), owner
}

func (g *Gate) bind(l *network.Link, owner attribution.Owner) *network.Communication {
	return g.Table.Bind(l, &network.Communication{
		Owner: owner, Entity: g.Names.Entity(owner, l.Flow.Remote.Addr()), Profile: g.Firewall.Settings(owner).ProfileName,
	})
}

// decide decides and writes it into the table. A policy that changed meanwhile has passed over
// this link, which had no verdict yet: then the new one decides.
func (g *Gate) decide(ctx context.Context, l *network.Link, owner attribution.Owner) network.Decision {
	c := l.Comm()
	if c == nil {
		c = g.bind(l, owner)
	}
	for {
		revision := g.Firewall.Settings(owner).Revision
		l.SetStamp(g.Firewall.Stamp(c, l.Flow))
		d := g.Firewall.Decide(c, l.Flow)
		if d.Asks() {
			d = g.Firewall.ForGood(c, l.Flow, g.ask(ctx.Done(), l, d))
		}
		g.Table.Decide(l, d)
		if d.Stage == network.StagePrompt || g.Firewall.Settings(owner).Revision == revision {
			g.count(owner, d)
			return d
		}
	}
}

// HandleTCP decides on a held SYN and carries the verdict out. The Relay reports the end.
func (g *Gate) HandleTCP(f *stack.TCPFlow) {
	if b, _ := f.Kept().(*begun); b != nil {
		g.goOn(f, b)
		return
	}
	if g.kernel.late.has(f, g.Clock()) {
		f.Drop()
		return
	}
	l, known := g.Table.Link(f.Flow())
	if known {
		if d := l.Decision(); d.Decided() && !d.Verdict.Permits() {
			g.parked.touch(l, g.Clock())
			refuseTCP(f, d.Verdict)
			return
		}
		if g.handedBackTCP(f, l) {
			return
		}
		if g.Relay.begunBy(f) {
			f.Drop()
			return
		}
		g.replace(l, f.Context().Done())
		if g.kernel.late.has(f, g.Clock()) {
			f.Drop()
			return
		}
		l, _ = g.Table.Link(f.Flow())
	}
	d, owner := g.judge(f.Context(), l)
	g.carryOutTCP(f, l, d, owner)
}

func (g *Gate) carryOutTCP(f *stack.TCPFlow, l *network.Link, d network.Decision, owner attribution.Owner) {
	switch d.Verdict {
	case network.PermanentAccept:
		if !g.handBackTCP(f, l) {
			g.relayTCP(f, l)
		}
	case network.Accept:
		g.relayTCP(f, l)
	case network.RerouteToNameserver:
		g.Table.End(l, g.nameserverTCP(f, l, owner))
	case network.Drop, network.PermanentDrop:
		f.Drop()
		g.parked.add(l, nil, g.Clock().Add(dropRemembered))
	default: // Block, PermanentBlock, and everything that nobody decided
		f.Reject()
		g.end(l, d)
	}
}

// replaceWithin is how long the last bytes of a connection may hold up the next one on its
// tuple: what it would cost if the SYN were lost.
const replaceWithin = time.Second

// replace ends l, whose tuple a new SYN has and which netstack has forgotten. Mostly l is over in
// a moment: the program closed, and its last bytes are on their way to the server.
func (g *Gate) replace(l *network.Link, gone <-chan struct{}) {
	t := time.NewTimer(replaceWithin)
	defer t.Stop()
	select {
	case <-l.Done():
	case <-gone:
	case <-t.C:
	}
	const cause = "replaced by a new connection"
	if handedBackOut(l) {
		g.forget(l, cause) // to end its socket would be to end the new one
		return
	}
	l.Kill(cause)
	g.Table.End(l, cause)
}

func refuseTCP(f *stack.TCPFlow, v network.Verdict) {
	switch v {
	case network.Drop, network.PermanentDrop:
		f.Drop()
	default:
		f.Reject()
	}
}

// end finishes a denied link: at once, or after a while where the verdict is to be remembered.
func (g *Gate) end(l *network.Link, d network.Decision) {
	if d.Verdict.Permanent() {
		g.parked.add(l, nil, g.Clock().Add(dropRemembered))
		return
	}
	g.Table.End(l, "blocked")
}

func (g *Gate) nameserverTCP(f *stack.TCPFlow, l *network.Link, o attribution.Owner) string {
	c, err := f.Accept()
	if err != nil {
		return "program gave up"
	}
	l.OnKill(func(string) { c.Abort() })
	return g.serveStream(f.Flow(), l, o, c)
}

// HandleUDP decides on the first datagram of a (socket, peer) pair. After that datagrams pass
// without a goroutine of ours.
func (g *Gate) HandleUDP(f *stack.UDPFlow) {
	if g.follow(f) {
		return
	}
	l := g.fresh(f.Flow())
	g.sockets.add(l, f)
	d, owner := g.judge(g.ctx, l)
	if d.Verdict == network.RerouteToNameserver {
		g.park(l, f)
		f.Accept(&querySink{gate: g, link: l, owner: owner})
	} else {
		g.carryOut(d, l, f, packet.PortUnreachable(f.Flow().Remote.Addr()), func() {
			if d.Verdict != network.PermanentAccept || !g.handBackUDP(f, l) {
				g.Relay.UDP(f, l)
			}
		})
	}
	if g.sockets.settle(l) {
		g.retire(l, f, causeSocketClosed)
	}
}

// HandlePing decides on an echo request. With filter/ping: permit it is relayed and does not
// appear in the monitor; only what we sent ourselves is cut, so that it cannot loop.
func (g *Gate) HandlePing(f *stack.PingFlow) {
	owner := g.Owners.Find(g.ctx, f.Flow())
	if g.Firewall.Settings(owner).Ping == profiles.PingPermit {
		if owner.Process.Kind == attribution.KindSelf {
			f.Drop()
			return
		}
		l := g.Table.Unlisted(f.Flow())
		g.bind(l, owner)
		g.Relay.Ping(f, l)
		return
	}
	l := g.fresh(f.Flow())
	g.carryOut(g.decide(g.ctx, l, owner), l, f, packet.AdminProhibited(f.Flow().Remote.Addr()), func() { g.Relay.Ping(f, l) })
}

// fresh returns a new link for a flow that the stack has handed over as new. If the table still
// has one, the stack forgot the flow just before the table did.
func (g *Gate) fresh(f packet.Flow) *network.Link {
	l, known := g.Table.Link(f)
	if known {
		g.Ended(l, "idle")
		l, _ = g.Table.Link(f)
	}
	return l
}

// remembered is a flow to which the stack applies one verdict until it is told to forget it.
type remembered interface {
	forgettable
	Drop()
	Reject(*packet.ICMPError)
}

// carryOut is the switch for datagrams and echo requests.
func (g *Gate) carryOut(d network.Decision, l *network.Link, f remembered, refusal *packet.ICMPError, relay func()) {
	switch d.Verdict {
	case network.Accept, network.PermanentAccept:
		relay()
	case network.Drop, network.PermanentDrop:
		g.park(l, f)
		f.Drop()
	default: // Block, PermanentBlock, and everything that nobody decided
		g.park(l, f)
		f.Reject(refusal)
	}
}

// Reevaluate decides every live link again and ends those whose verdict is another one now. It
// returns how many connections it closed; the others lose no byte. What waits for a person is
// decided again as well.
func (g *Gate) Reevaluate() (closed int) {
	g.Prompts.PolicyChanged()
	for _, l := range g.Table.Live() {
		c := l.Comm()
		if c == nil || !l.Decision().Decided() {
			continue // still being decided, with the new settings
		}
		if !g.Firewall.Settings(c.Owner).Reevaluate {
			continue
		}
		l.SetStamp(g.Firewall.Stamp(c, l.Flow))
		old, now := l.Decision(), g.Firewall.Decide(c, l.Flow)
		if now.Asks() {
			now = askedAgain(old, now)
		}
		if now.Verdict.Effect() == old.Verdict.Effect() || standsStill(old, now) {
			continue
		}
		g.Table.Decide(l, now)
		if l.Kill("the policy changed") {
			closed++
		} else {
			g.parked.expire(l) // a remembered denial: the next packet is decided anew
		}
	}
	return closed
}

// askedAgain is what becomes of a live link about which a person would be asked now. The answer
// that it lives by stays; what was permitted otherwise is closed, and asked when it comes back.
func askedAgain(old, now network.Decision) network.Decision {
	if old.Stage == network.StagePrompt {
		return old
	}
	now.Verdict, now.Code, now.Reason = network.Block, "asks-now", "the policy asks now: closed, a new connection is asked about"
	return now
}

// survive keeps a panic in one query from ending the firewall for everybody.
func (g *Gate) survive(what string) {
	if r := recover(); r != nil {
		g.panics.Add(1)
		g.Log.Error("panic", zap.String("in", what), zap.Any("panic", r), zap.Stack("stack"))
	}
}

// Counts returns how many links were decided and how many of them were denied.
func (g *Gate) Counts() (decided, denied uint64) { return g.decided.Load(), g.denied.Load() }

// Causes returns how many links had each owner_cause.
func (g *Gate) Causes() map[string]uint64 { return g.causes.copy() }

func (g *Gate) count(o attribution.Owner, d network.Decision) {
	g.decided.Add(1)
	if !d.Verdict.Permits() {
		g.denied.Add(1)
	}
	g.causes.add(o.Cause)
}

// causes counts links by owner_cause, which is a small set of phrases.
type causes struct {
	mu sync.Mutex
	n  map[string]uint64
}

func (c *causes) add(cause string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]uint64{}
	}
	c.n[cause]++
}

func (c *causes) copy() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := make(map[string]uint64, len(c.n))
	for k, v := range c.n {
		m[k] = v
	}
	return m
}
