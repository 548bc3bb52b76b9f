package network

import (
	"sync"

	"gatun/network/packet"
)

// shard holds the live links whose flows hash to it. A map by the hash takes a fifth of the memory of
// one by the flow, and hashes once; links with the same hash, which chance makes rare and nobody
// can choose because the seed is random, are chained by Link.next. Its methods want mu held.
type shard struct {
	mu    sync.RWMutex
	links map[uint64]*Link
	count int
}

func (s *shard) find(h uint64, f *packet.Flow) *Link {
	l := s.links[h]
	for l != nil && l.Flow != *f {
		l = l.next
	}
	return l
}

// add puts in a link whose flow is not there.
func (s *shard) add(h uint64, l *Link) {
	l.next = s.links[h]
	s.links[h] = l
	s.count++
}

// remove takes out l, if it is there.
func (s *shard) remove(h uint64, l *Link) {
	head := s.links[h]
	for at := &head; *at != nil; at = &(*at).next {
		if *at != l {
			continue
		}
		*at, l.next = l.next, nil
		s.count--
		break
	}
	switch {
	case s.count == 0:
		s.links = map[uint64]*Link{} // a Go map never shrinks
	case head == nil:
		delete(s.links, h)
	default:
		s.links[h] = head
	}
}

// all appends every link to list.
func (s *shard) all(list []*Link) []*Link {
	for _, l := range s.links {
		for ; l != nil; l = l.next {
			list = append(list, l)
		}
	}
	return list
}
