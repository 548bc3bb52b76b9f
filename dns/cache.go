package dns

import (
	"sync"
	"time"
)

const (
	cacheEntries = 20_000
	cacheBytes   = 32 << 20
	refreshBelow = 30 * time.Second
)

// key names one cached answer. The scope separates answers of different sets of nameservers,
// so that a change of settings never serves what others had said.
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
	entries map[key]*cached
	bytes   int
	oldest  cached // sentinel of the ring: next is the newest, prev the oldest
}

type cached struct {
	key        key
	answer     *answer
	refreshing bool
	prev, next *cached
}

func newCache(maxEntries, maxBytes int) *cache {
	c := &cache{maxEntries: maxEntries, maxBytes: maxBytes, entries: map[key]*cached{}}
	c.oldest.prev, c.oldest.next = &c.oldest, &c.oldest
	return c
}

// get returns the live answer. refresh is true for the one caller that should renew it in the
// background, because it ends soon.
func (c *cache) get(k key, now time.Time) (a *answer, refresh bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[k]
	if e == nil {
		return nil, false
	}
	left := e.answer.expires.Sub(now)
	if left <= 0 {
		c.drop(e)
		return nil, false
	}
	e.unlink()
	c.push(e)
	if left < refreshBelow && !e.refreshing && e.answer.lifetime >= minTTL {
		e.refreshing, refresh = true, true
	}
	return e.answer, refresh
}

// put stores the answer, whose expiry the caller has set.
func (c *cache) put(k key, a *answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[k]; e != nil {
		c.drop(e)
	}
	e := &cached{key: k, answer: a}
	c.entries[k] = e
	c.bytes += e.weight()
	c.push(e)
	for len(c.entries) > c.maxEntries || c.bytes > c.maxBytes {
		c.drop(c.oldest.prev)
	}
}

// flush forgets everything.
func (c *cache) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
	c.bytes = 0
	c.oldest.prev, c.oldest.next = &c.oldest, &c.oldest
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
