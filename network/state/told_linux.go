package state

import (
	"hash/maphash"
	"sync"
	"time"
)

// told remembers about which senders of a flow somebody has asked: their packets are dealt
// with, and the next question about the flow is about the next sender. Flows and senders are kept
// as hashes, a quarter of what they are: the seed is random, so nobody can make two look alike.
type told struct {
	once  sync.Once
	seed  maphash.Seed
	mu    sync.Mutex
	young map[uint64]asked
	old   map[uint64]asked
}

// asked is about whom, and when on the clock of the hooks.
type asked struct{ about, at uint64 }

// teller is one program image that sent through one socket.
type teller struct {
	cookie uint64
	id     ImageID
}

const (
	// maxTold bounds what is remembered to twice as many flows, 24 bytes each.
	maxTold = 4096
	// longDoubt is how long a look-up may wait for its turn.
	longDoubt = 2 * time.Second
	// shortDoubt is how long a packet may be on its way to the look-up after one of the same
	// sender has been asked about.
	shortDoubt = 20 * time.Millisecond
)

// doubt returns how long after the last packet of r's other sender that one may still be meant.
func (t *told) doubt(key flowKey, r *flowRecord) time.Duration {
	flow, other := hashOf(t, key), hashOf(t, teller{r.OtherCookie, r.OtherID})
	t.mu.Lock()
	defer t.mu.Unlock()
	last, found := t.young[flow]
	if !found {
		last = t.old[flow]
	}
	sent := r.Other
	if r.OtherMany != 0 {
		sent += hookSlack
	}
	if last.about == other && last.at >= sent {
		return shortDoubt
	}
	return longDoubt
}

// add notes that somebody asked at that time.
func (t *told) add(key flowKey, about teller, at uint64) {
	flow, who := hashOf(t, key), hashOf(t, about)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.young == nil || len(t.young) >= maxTold {
		t.young, t.old = make(map[uint64]asked, maxTold/16), t.young
	}
	t.young[flow] = asked{who, at}
}

func hashOf[T comparable](t *told, v T) uint64 {
	t.once.Do(func() { t.seed = maphash.MakeSeed() })
	return maphash.Comparable(t.seed, v)
}
