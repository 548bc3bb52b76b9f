package stack

import (
	"sync"
	"sync/atomic"

	"gatun/network/packet"
)

const tableShards = 16

// table finds the flow of a packet. The reader inserts and looks up, anybody deletes.
type table[T any] struct {
	count  atomic.Int64
	shards [tableShards]tableShard[T]
}

type tableShard[T any] struct {
	mu sync.Mutex
	m  map[packet.Flow]*T
}

func (t *table[T]) init() {
	for i := range t.shards {
		t.shards[i].m = make(map[packet.Flow]*T)
	}
}

func (t *table[T]) shard(f *packet.Flow) *tableShard[T] {
	return &t.shards[(f.Local.Port()^f.Remote.Port())%tableShards]
}

func (t *table[T]) get(f *packet.Flow) *T {
	s := t.shard(f)
	s.mu.Lock()
	v := s.m[*f]
	s.mu.Unlock()
	return v
}

// add inserts v unless the table holds limit flows.
func (t *table[T]) add(f *packet.Flow, v *T, limit int) bool {
	if t.count.Load() >= int64(limit) {
		return false
	}
	s := t.shard(f)
	s.mu.Lock()
	s.m[*f] = v
	s.mu.Unlock()
	t.count.Add(1)
	return true
}

// remove deletes f if it still belongs to v. A shard that ran empty gives its memory back: a
// Go map never shrinks.
func (t *table[T]) remove(f *packet.Flow, v *T) {
	s := t.shard(f)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m[*f] != v {
		return
	}
	delete(s.m, *f)
	if len(s.m) == 0 {
		s.m = make(map[packet.Flow]*T)
	}
	t.count.Add(-1)
}

func (t *table[T]) len() int { return int(t.count.Load()) }
