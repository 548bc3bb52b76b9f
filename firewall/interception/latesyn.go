package interception

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"gatun/network/packet"
	"gatun/stack"
)

// lateWithin is how long a SYN may be on its way to us.
const lateWithin = time.Second

// lateSYNs are connections that the kernel carried and that nobody answered, until their last SYN
// cannot come any more: programs send it again just when their connect fails, and it would be taken
// for a connection of nobody.
type lateSYNs struct {
	any atomic.Bool

	mu sync.Mutex
	of map[packet.Flow]lateSYN
}

type lateSYN struct {
	number uint32
	until  time.Time
}

// add remembers the SYN of a connection that is over.
func (s *lateSYNs) add(f packet.Flow, number uint32, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = map[packet.Flow]lateSYN{}
	}
	s.of[f] = lateSYN{number, now.Add(lateWithin)}
	s.any.Store(true)
}

// has reports whether f is held by a SYN that comes too late. With another number it is a new
// connection.
func (s *lateSYNs) has(f *stack.TCPFlow, now time.Time) bool {
	if !s.any.Load() {
		return false
	}
	number, ok := sequence(f.Held())
	if !ok {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	late, known := s.of[f.Flow()]
	return known && late.number == number && now.Before(late.until)
}

// forget forgets what cannot come any more.
func (s *lateSYNs) forget(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f, late := range s.of {
		if !now.Before(late.until) {
			delete(s.of, f)
		}
	}
	if len(s.of) == 0 {
		s.of = nil // a Go map never shrinks
		s.any.Store(false)
	}
}

// sequence returns the sequence number of a whole SYN.
func sequence(syn []byte) (uint32, bool) {
	if len(syn) == 0 {
		return 0, false
	}
	at := 40
	if syn[0]>>4 == 4 {
		at = int(syn[0]&15) * 4
	}
	if len(syn) < at+8 {
		return 0, false
	}
	return binary.BigEndian.Uint32(syn[at+4:]), true
}
