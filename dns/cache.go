package dns

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	cacheEntries = 20_000
	cacheBytes   = 32 << 20
	refreshBelow = 30 * time.Second

	// An expired answer that is served while it is renewed (RFC 8767) has a short TTL, so that
	// programs come back for the fresh one, and a name that has been gone for a day is gone.
	staleTTL = 30 * time.Second
	maxStale = 24 * time.Hour

	renewAgain = errorTTL // before an answer whose renewal failed is renewed again
)

// key names one cached answer. The scope separates answers of different sets of nameservers,
// so that neither a change of settings nor another profile serves what others had said.
type key struct {
	name  string
	qtype uint16
	do    bool
	cd    bool
	scope uint64
}

// cache keeps answers until they expire, the least recently used going first.
type cache struct {
	maxEntries, maxBytes int

	mu      sync.Mutex
	stale   time.Duration // how long an expired answer is still served
	entries map[key]*cached
	bytes   int
	oldest  cached // sentinel of the ring: next is the newest, prev the oldest
}

type cached struct {
	key        key
	answer     *answer
	renew      time.Time // when the next to ask shall renew it
	prev, next *cached
}

// found is an answer with what is to be known of it now.
type found struct {
	answer  *answer
	ttl     time.Duration // how long it still lives
	cached  bool
	stale   bool // it has expired, and is served until there is a fresh one
	refresh bool // whoever got this shall renew it; only one is told
}

func newCache(maxEntries, maxBytes int) *cache {
	c := &cache{maxEntries: maxEntries, maxBytes: maxBytes, entries: map[key]*cached{}}
	c.oldest.prev, c.oldest.next = &c.oldest, &c.oldest
	return c
}

// keepStale sets how long answers are served after they have expired.
func (c *cache) keepStale(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stale = d
}

// get returns the answer, if it lives or may be served stale.
func (c *cache) get(k key, now time.Time) (f found, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[k]
	if e == nil {
		return found{}, false
	}
	f = found{answer: e.answer, ttl: e.answer.expires.Sub(now), cached: true}
	if f.ttl <= 0 {
		if !e.answer.positive() || -f.ttl >= c.stale {
			c.drop(e)
			return found{}, false
		}
		f.stale, f.ttl = true, staleTTL
	}
	e.unlink()
	c.push(e)
	if !now.Before(e.renew) {
		e.renew, f.refresh = now.Add(renewAgain), true
	}
	return f, true
}

// put stores the answer, whose expiry the caller has set.
func (c *cache) put(k key, a *answer) {
	e := &cached{key: k, answer: a, renew: a.expires}
	if a.lifetime >= minTTL {
		e.renew = a.expires.Add(-refreshBelow).Add(time.Nanosecond)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.entries[k]; old != nil {
		c.drop(old)
	}
	c.entries[k] = e
	c.bytes += e.weight()
	c.push(e)
	for len(c.entries) > c.maxEntries || c.bytes > c.maxBytes {
		c.drop(c.oldest.prev)
	}
}

// flush forgets everything and returns how much that was.
func (c *cache) flush() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.entries)
	clear(c.entries)
	c.bytes = 0
	c.oldest.prev, c.oldest.next = &c.oldest, &c.oldest
	return n
}

// flushName forgets what is known of a name and the names below it.
func (c *cache) flushName(name string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, e := range c.entries {
		if above, ok := strings.CutSuffix(k.name, name); ok && (above == "" || strings.HasSuffix(above, ".")) {
			c.drop(e)
			n++
		}
	}
	return n
}

// list returns the entries whose name begins so, in no order.
func (c *cache) list(prefix string) (list []cached) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, e := range c.entries {
		if strings.HasPrefix(k.name, prefix) {
			list = append(list, cached{key: k, answer: e.answer})
		}
	}
	return list
}

func (c *cache) len() (entries, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries), c.bytes
}

func (c *cache) drop(e *cached) {
	delete(c.entries, e.key)
	c.bytes -= e.weight()
	e.unlink()
}

func (c *cache) push(e *cached) {
	e.prev, e.next = &c.oldest, c.oldest.next
	e.prev.next, e.next.prev = e, e
}

func (e *cached) unlink() { e.prev.next, e.next.prev = e.next, e.prev }

func (e *cached) weight() int { return e.answer.weight() + len(e.key.name) }

// CacheEntry is one cached answer, for people.
type CacheEntry struct {
	Name, Type string
	Rcode      string
	Records    []string // in presentation form, with the TTLs of now; none for a negative answer
	Expires    time.Time
	Stale      bool   // it has expired, and is served until there is a fresh one
	Resolver   string // who answered
	Scope      string // why that one was asked: "configured", "network", "multicast", "search"
	Shared     bool   // by all programs but those whose profile has nameservers of its own
}

// Cached returns the cached answers to names that begin with prefix, sorted by name and type.
func (s *Server) Cached(prefix string) []CacheEntry {
	now := s.o.Clock()
	found := s.resolver.cache.list(bareName(prefix))
	list := make([]CacheEntry, 0, len(found))
	for _, e := range found {
		left := e.answer.expires.Sub(now)
		list = append(list, CacheEntry{
			Name: e.key.name, Type: typeName(e.key.qtype), Rcode: rcodeName(e.answer.rcode), Records: e.answer.texts(max(left, 0)),
			Expires: e.answer.expires, Stale: left <= 0, Resolver: e.answer.from, Scope: route(e.key.scope & scopeRoute).String(),
			Shared: e.key.scope>>scopeList&scopeLists == 0,
		})
	}
	slices.SortFunc(list, func(a, b CacheEntry) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type), cmp.Compare(a.Scope, b.Scope), cmp.Compare(a.Resolver, b.Resolver))
	})
	return list
}

// Flush empties the cache and returns how many answers it held.
func (s *Server) Flush() int { return s.resolver.cache.flush() }

// FlushName forgets the answers to a name and to the names below it, and returns how many there
// were.
func (s *Server) FlushName(name string) int { return s.resolver.cache.flushName(bareName(name)) }

func typeName(qtype uint16) string { return mdns.Type(qtype).String() }

func rcodeName(rcode int) string { return mdns.RcodeToString[rcode] }
