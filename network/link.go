package network

import (
	"strconv"
	"sync/atomic"
	"time"

	"gatun/attribution"
	"gatun/intel"
	"gatun/network/packet"
)

// Direction says who began a flow, seen from this machine.
type Direction uint8

// The directions of product.md.
const (
	Outbound Direction = iota
	Inbound
	Forwarded
)

// String returns the JSON value of the direction.
func (d Direction) String() string {
	switch d {
	case Inbound:
		return "inbound"
	case Forwarded:
		return "forwarded"
	default:
		return "outbound"
	}
}

// Kind separates links from DNS queries, which share one list and one JSON object.
type Kind uint8

// The kinds of product.md.
const (
	KindLink Kind = iota
	KindDNS
)

// String returns the JSON value of the kind.
func (k Kind) String() string {
	if k == KindDNS {
		return "dns"
	}
	return "link"
}

// Communication is one program and one domain, or one address where no name is known. Links
// of the same Communication share it. All but the cached decision is immutable.
type Communication struct {
	Owner     attribution.Owner
	Direction Direction
	Entity    Entity
	Profile   string // name of the profile that judges the program
	Solicited bool   // inbound, and it answers a multicast or broadcast query of this machine

	cached atomic.Pointer[cachedDecision]
	newest atomic.Pointer[Decision] // of its links: they share it as long as it stays the same
}

type cachedDecision struct {
	revision uint64
	decision *Decision
}

// Cached returns the decision that was made on c at that revision of the policy, or nil.
func (c *Communication) Cached(revision uint64) *Decision {
	if e := c.cached.Load(); e != nil && e.revision == revision {
		return e.decision
	}
	return nil
}

// Cache keeps d for the links of c that follow, until the policy has another revision.
func (c *Communication) Cache(revision uint64, d *Decision) {
	c.cached.Store(&cachedDecision{revision: revision, decision: d})
}

// Link is one flow, or one DNS query. Its identity is immutable; what happens to it is kept in
// atomics, so that any goroutine may read it at any time. A machine may have tens of thousands of
// flows that the kernel carries and that cost nothing else here: a Link is 192 bytes.
type Link struct {
	Kind     Kind
	unlisted bool // carried, but not in the monitor
	flags    atomic.Uint32
	Flow     packet.Flow
	started  int64 // nanoseconds since 1970
	id       uint64
	next     *Link // with the same hash; see shard
	comm     atomic.Pointer[Communication]
	decision atomic.Pointer[Decision]
	sent     atomic.Uint64
	received atomic.Uint64
	ended    atomic.Pointer[ending]
	answered atomic.Pointer[Answered]
	abort    atomic.Pointer[Killer]
	stamp    atomic.Pointer[intel.Stamp]
	killed   atomic.Pointer[string] // why it is to end, while nobody carries it
	done     atomic.Pointer[chan struct{}]
}

// The flags of a Link.
const (
	flagBound  = 1 << iota // counted by its Communication
	flagGone               // done is to be closed
	flagKernel             // the system's kernel carries it
)

func (l *Link) has(flag uint32) bool { return l.flags.Load()&flag != 0 }

// Killer ends the effect of a link.
type Killer func(l *Link, cause string)

type ending struct {
	at    time.Time
	cause string
}

// Started is when the link was made.
func (l *Link) Started() time.Time { return time.Unix(0, l.started) }

// ID is unique in one run of the program and never used again.
func (l *Link) ID() string { return strconv.FormatUint(l.id, 10) }

// Comm returns the link's Communication, nil until the owner was looked up.
func (l *Link) Comm() *Communication { return l.comm.Load() }

// SetComm binds the link to its Communication. A link learns it once, before it is decided.
func (l *Link) SetComm(c *Communication) { l.comm.Store(c) }

// Stamp returns what was known of the link's other end when it was decided last, nil where nobody
// asked.
func (l *Link) Stamp() *intel.Stamp { return l.stamp.Load() }

// SetStamp keeps what is known of the other end. Whoever decides on the link sets it first.
func (l *Link) SetStamp(s *intel.Stamp) { l.stamp.Store(s) }

// Decision returns the link's newest decision; the zero Decision while it is held.
func (l *Link) Decision() Decision {
	if d := l.decision.Load(); d != nil {
		return *d
	}
	return Decision{}
}

// Answered is what became of a DNS query. It is immutable, and shared by queries that were
// answered alike.
type Answered struct {
	Type     string // of the records that were asked for: A, HTTPS, …
	Resolver string // who answered, "" where nobody was asked
	Rcode    string // what the program was told: NOERROR, NXDOMAIN, …; "" is silence
}

// SetAnswered notes how the query was answered. The nameserver does it once, before the end.
func (l *Link) SetAnswered(a *Answered) { l.answered.Store(a) }

// AddSent counts n bytes of payload from the program to the other side.
func (l *Link) AddSent(n int) { l.sent.Add(uint64(n)) }

// AddReceived counts n bytes of payload from the other side to the program.
func (l *Link) AddReceived(n int) { l.received.Add(uint64(n)) }

// Sent implements the relay's meter: n more bytes went out.
func (l *Link) Sent(n int) { l.AddSent(n) }

// Received implements the relay's meter: n more bytes came in.
func (l *Link) Received(n int) { l.AddReceived(n) }

// Bytes returns the payload bytes counted so far.
func (l *Link) Bytes() (sent, received uint64) { return l.sent.Load(), l.received.Load() }

// Ended reports whether the link is over.
func (l *Link) Ended() bool { return l.ended.Load() != nil }

// SetHandedBack notes that the system's kernel carries the link from now on.
func (l *Link) SetHandedBack() { l.flags.Or(flagKernel) }

// SetRelayed notes that the kernel did not take the link after all.
func (l *Link) SetRelayed() { l.flags.And(^uint32(flagKernel)) }

// HandedBack reports whether the system's kernel carries the link.
func (l *Link) HandedBack() bool { return l.has(flagKernel) }

// SetBytes sets the payload bytes of a link that somebody else counts. What was counted never
// becomes less.
func (l *Link) SetBytes(sent, received uint64) {
	raise(&l.sent, sent)
	raise(&l.received, received)
}

func raise(n *atomic.Uint64, to uint64) {
	for old := n.Load(); old < to && !n.CompareAndSwap(old, to); old = n.Load() {
	}
}

// Done returns a channel that is closed when the link is over and its flow may be a new one.
func (l *Link) Done() <-chan struct{} {
	for {
		if c := l.done.Load(); c != nil {
			return *c
		}
		c := make(chan struct{})
		if !l.done.CompareAndSwap(nil, &c) {
			continue
		}
		if l.has(flagGone) {
			l.finish()
		}
		return c
	}
}

// finish closes what Done has returned, and what it returns from now on.
func (l *Link) finish() {
	l.flags.Or(flagGone)
	if c := l.done.Swap(nil); c != nil {
		close(*c)
	}
}

// OnKill names the function that ends the link's effect; it is called at most once per Kill
// and must not block. Whoever carries the link out sets it. A link that was killed before is
// ended at once.
func (l *Link) OnKill(f func(cause string)) {
	k := Killer(func(_ *Link, cause string) { f(cause) })
	l.OnKillBy(&k)
}

// OnKillBy is OnKill with a function that many links share, so that none has one of its own.
func (l *Link) OnKillBy(k *Killer) {
	l.abort.Store(k)
	if cause := l.killed.Load(); cause != nil {
		l.Kill(*cause)
	}
}

// Kill asks whoever carries the link to end it, and reports whether anybody does now.
func (l *Link) Kill(cause string) bool {
	k := l.abort.Swap(nil)
	if k == nil {
		l.killed.Store(&cause)
		if k = l.abort.Swap(nil); k == nil {
			return false
		}
	}
	(*k)(l, cause)
	return true
}
