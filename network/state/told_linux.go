package state

import (
	"sync"
	"time"
)

// told remembers about which senders of a flow somebody has asked: their packets are dealt
// with, and the next question about the flow is about the next sender.
type told struct {
	mu    sync.Mutex
	young map[flowKey]teller
	old   map[flowKey]teller
}

// teller is one program image that sent through one socket.
type teller struct {
	cookie uint64
	id     ImageID
}

const (
	// maxTold bounds what is remembered to twice as many flows, 96 bytes each.
	maxTold = 4096
	// longDoubt is how long a look-up may wait for its turn.
	longDoubt = 2 * time.Second
	// shortDoubt is how long a packet may be on its way to the look-up after one of the same
	// sender has been asked about.
	shortDoubt = 20 * time.Millisecond
)

// doubt returns how long after its last packet the other sender may still be meant.
func (t *told) doubt(key flowKey, other teller) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	last, found := t.young[key]
	if !found {
		last = t.old[key]
	}
	if last == other {
		return shortDoubt
	}
	return longDoubt
}

// add notes that somebody has asked.
func (t *told) add(key flowKey, of teller) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.young == nil || len(t.young) >= maxTold {
		t.young, t.old = make(map[flowKey]teller, maxTold/16), t.young
	}
	t.young[key] = of
}
