package network

import (
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gatun/network/packet"
)

const (
	shardCount  = 64   // power of two; keeps set-up of new flows from meeting at one lock
	endedKept   = 4096 // newest ended links kept for `flows`; about 0.7 KiB each
	eventsKept  = 4096 // newest events kept for watchers that come back with a sequence number
	watchBuffer = 8192 // events a watcher may lag behind before it loses some
)

// EventType says what happened to a link.
type EventType uint8

// The events of product.md.
const (
	EventDecided EventType = iota
	EventUpdated
	EventEnded
	EventDNS
	EventPrompt
	EventState
)

// String returns the JSON value of the event.
func (t EventType) String() string {
	switch t {
	case EventUpdated:
		return "updated"
	case EventEnded:
		return "ended"
	case EventDNS:
		return "dns"
	case EventPrompt:
		return "prompt"
	case EventState:
		return "state"
	default:
		return "decided"
	}
}

// Event is one thing that happened. Seq grows by one per event, from 1.
type Event struct {
	Seq  uint64
	Type EventType
	Link *Link
}

// Table finds links by flow and remembers what happened. All methods may be called from any
// goroutine; no lock is held while another package is called.
type Table struct {
	seed   maphash.Seed
	shards [shardCount]shard
	nextID atomic.Uint64
	clock  func() time.Time

	commMu sync.Mutex
	comms  map[commKey]*commEntry

	mu       sync.Mutex
	ended    []*Link // ring
	endedPos int
	seq      uint64
	events   []Event // ring
	watchers map[*Watcher]struct{}
}

// NewTable returns an empty table that reads the time from clock (time.Now outside tests).
func NewTable(clock func() time.Time) *Table {
	t := &Table{seed: maphash.MakeSeed(), clock: clock, watchers: map[*Watcher]struct{}{}, comms: map[commKey]*commEntry{}}
	for i := range t.shards {
		t.shards[i].links = map[uint64]*Link{}
	}
	return t
}

// place returns the shard of a flow and its hash.
func (t *Table) place(f *packet.Flow) (*shard, uint64) {
	h := maphash.Comparable(t.seed, *f)
	return &t.shards[h&(shardCount-1)], h
}

// Link returns the live link of a flow. Where there is none it makes one, and known is false:
// the caller then owns the link's decision.
func (t *Table) Link(f packet.Flow) (l *Link, known bool) {
	s, h := t.place(&f)
	s.mu.Lock()
	defer s.mu.Unlock()
	if l = s.find(h, &f); l != nil {
		return l, true
	}
	l = &Link{Flow: f, started: t.clock().UnixNano(), id: t.nextID.Add(1)}
	s.add(h, l)
	return l, false
}

// Find returns the live link of a flow, or nil.
func (t *Table) Find(f packet.Flow) *Link {
	s, h := t.place(&f)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.find(h, &f)
}

// NewQuery returns a link of kind DNS. It is not found by flow, because many queries share
// one; it appears in the list once it is decided and ended.
func (t *Table) NewQuery(f packet.Flow) *Link {
	return &Link{Kind: KindDNS, Flow: f, started: t.clock().UnixNano(), id: t.nextID.Add(1)}
}

// Unlisted returns a link that never appears in the list and causes no event: for what is
// relayed but not decided one by one (policy.md, fast track).
func (t *Table) Unlisted(f packet.Flow) *Link {
	return &Link{Flow: f, started: t.clock().UnixNano(), id: t.nextID.Add(1), unlisted: true}
}

// Decide stores d as the link's decision and tells the watchers.
func (t *Table) Decide(l *Link, d Decision) {
	old := l.decision.Swap(l.shared(&d))
	switch {
	case l.Kind == KindDNS, l.unlisted:
		return // a query has one event, when it ended: the answer is part of it
	case d.Asks():
		t.publish(EventPrompt, l)
	case old == nil || !old.Decided():
		t.publish(EventDecided, l)
	default:
		t.publish(EventUpdated, l)
	}
}

// shared returns d as the decision of l: that of the link before it with the same Communication
// where it is the same one, as it mostly is.
func (l *Link) shared(d *Decision) *Decision {
	c := l.Comm()
	if c == nil {
		own := *d
		return &own
	}
	newest := c.newest.Load()
	if newest == nil || *newest != *d {
		own := *d
		newest = &own
		c.newest.Store(newest)
	}
	return newest
}

// End takes the link out of the live ones and keeps it among the newest ended. The cause is
// for people ("server closed", "idle", "blocked"). Only the first End counts.
func (t *Table) End(l *Link, cause string) {
	if !l.ended.CompareAndSwap(nil, &ending{at: t.clock(), cause: cause}) {
		return
	}
	defer l.finish()
	l.abort.Store(nil)
	t.unbind(l)
	if l.unlisted {
		return
	}
	typ := EventDNS
	if l.Kind == KindLink {
		typ = EventEnded
		s, h := t.place(&l.Flow)
		s.mu.Lock()
		s.remove(h, l)
		s.mu.Unlock()
	}
	t.mu.Lock()
	if len(t.ended) < endedKept {
		t.ended = append(t.ended, l)
	} else {
		t.ended[t.endedPos] = l
		t.endedPos = (t.endedPos + 1) % endedKept
	}
	t.mu.Unlock()
	t.publish(typ, l)
}

// Live returns all live links, oldest first.
func (t *Table) Live() []*Link {
	var all []*Link
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		all = s.all(all)
		s.mu.RUnlock()
	}
	sortByID(all)
	return all
}

// LiveCount returns the number of live links.
func (t *Table) LiveCount() int {
	n := 0
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		n += s.count
		s.mu.RUnlock()
	}
	return n
}

// All returns the ended links that are still kept and all live ones, oldest first.
func (t *Table) All() []*Link {
	all := t.Live()
	t.mu.Lock()
	all = append(all, t.ended...)
	t.mu.Unlock()
	sortByID(all)
	return slices.Compact(all) // a link may end between the two looks
}

// Get returns the link with that ID, live or still kept, or nil.
func (t *Table) Get(id string) *Link {
	for _, l := range t.All() {
		if l.ID() == id {
			return l
		}
	}
	return nil
}

func sortByID(links []*Link) {
	slices.SortFunc(links, func(a, b *Link) int {
		switch {
		case a.id < b.id:
			return -1
		case a.id > b.id:
			return 1
		default:
			return 0
		}
	})
}
