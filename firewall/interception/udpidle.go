package interception

import (
	"cmp"
	"slices"
)

// sweep ends the pairs that were silent for too long.
func (u *udpRelay) sweep() {
	now := u.r.now.Load()
	for _, s := range u.sockets() {
		for _, p := range s.idle(now) {
			u.end(p, "idle")
		}
	}
}

func (u *udpRelay) sockets() []*udpSocket {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := make([]*udpSocket, 0, len(u.socks))
	for _, s := range u.socks {
		all = append(all, s)
	}
	return all
}

func (s *udpSocket) idle(now uint32) []*pair {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var over []*pair
	for _, p := range s.peers.all() {
		if now-p.lastActive() >= p.idleLimit() {
			over = append(over, p)
		}
	}
	return over
}

func (u *udpRelay) endAll(cause string) {
	for _, s := range u.sockets() {
		for _, p := range s.all() {
			u.end(p, cause)
		}
	}
}

// evictShare is the part of a program's pairs or sockets that makes room at once. Finding the oldest looks
// at all of them; a flood must not pay that for every pair.
const evictShare = 16

// makeRoom chooses the pairs that end so that one more fits; u.mu is held.
func (u *udpRelay) makeRoom(owner OwnerKey) []*pair {
	l := &u.r.Limits
	switch {
	case u.byOwner[owner] >= l.UDPPairsPerProg:
	case u.pairs >= l.UDPPairs:
		owner = u.largest()
	default:
		return nil
	}
	all := u.pairsOf(owner)
	// Pairs that both sides use come last: a flood is one-way as a rule.
	slices.SortFunc(all, func(a, b *pair) int {
		if c := cmp.Compare(min(a.lastIn.Load(), 1), min(b.lastIn.Load(), 1)); c != 0 {
			return c
		}
		return cmp.Compare(a.lastActive(), b.lastActive())
	})
	return all[:(len(all)+evictShare-1)/evictShare]
}

// pairsOf lists the owner's pairs that have not ended; u.mu is held.
func (u *udpRelay) pairsOf(owner OwnerKey) []*pair {
	all := make([]*pair, 0, u.byOwner[owner])
	for _, s := range u.socks {
		if s.owner != owner {
			continue
		}
		for _, p := range s.peers.all() {
			if !p.ended.Load() {
				all = append(all, p)
			}
		}
	}
	return all
}

func (u *udpRelay) largest() (owner OwnerKey) {
	most := 0
	for o, n := range u.byOwner {
		if n > most {
			owner, most = o, n
		}
	}
	return owner
}

// oldestSockets returns the pairs of those of the owner's sockets that were silent longest.
func (u *udpRelay) oldestSockets(owner OwnerKey) (pairs []*pair) {
	u.mu.Lock()
	defer u.mu.Unlock()
	type aged struct {
		s    *udpSocket
		last uint32
	}
	var all []aged
	for _, s := range u.socks {
		if s.owner != owner || !s.isOpen() {
			continue
		}
		a := aged{s: s}
		for _, p := range s.peers.all() {
			a.last = max(a.last, p.lastActive())
		}
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b aged) int { return cmp.Compare(a.last, b.last) })
	for _, a := range all[:(len(all)+evictShare-1)/evictShare] {
		pairs = append(pairs, a.s.all()...)
	}
	return pairs
}
