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

// asked is about whom, and until when on the clock of the hooks all that it sent was noted by then.
type asked struct{ about, until uint64 }

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

// doubt returns how long after r.Other that other sender may still be meant.
func (t *told) doubt(key flowKey, r *flowRecord) time.Duration {
	flow, other := hashOf(t, key), hashOf(t, teller{r.OtherCookie, r.OtherID})
	t.mu.Lock()
	defer t.mu.Unlock()
	last, found := t.young[flow]
	if !found {
		last = t.old[flow]
	}
	var slack uint64
	if r.OtherMany != 0 {
		slack = hookSlack
	}
	if last.about == other && last.until >= r.Other+slack {
		return shortDoubt + time.Duration(slack)
	}
	return longDoubt
}

// add notes that somebody asked about r's sender at that time. A packet that was sent before, but
// is noted only after r was read, has not been asked about.
func (t *told) add(key flowKey, r *flowRecord, at uint64) {
	until := r.Last
	if r.Many != 0 && at >= r.Last+hookSlack {
		until += hookSlack
	}
	flow, who := hashOf(t, key), hashOf(t, teller{r.Cookie, r.ID})
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.young == nil || len(t.young) >= maxTold {
		t.young, t.old = make(map[uint64]asked, maxTold/16), t.young
	}
	t.young[flow] = asked{who, until}
}

func hashOf[T comparable](t *told, v T) uint64 {
	t.once.Do(func() { t.seed = maphash.MakeSeed() })
	return maphash.Comparable(t.seed, v)
}
