package intel

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/gaissmai/bart"
)

// snapshot answers all questions. It is never changed after it was made.
type snapshot struct {
	lists    []*list // by the number that the index has
	names    *index
	prefixes *bart.Table[uint32] // -> the first row, from 1
	rows     []row
	geo      *geo

	seed maphash.Seed
	hot  []atomic.Pointer[hotStamp]
}

// hotStamp is what is known of a name and an address that are on lists: programs ask for the same
// ones again and again, and what they get need not be made anew.
type hotStamp struct {
	domain string
	addr   netip.Addr
	stamp  *Stamp
}

const hotStamps = 1 << 12

// row is one list that has a prefix.
type row struct {
	list int
	line uint32
	next uint32 // the next row of the prefix, from 1; 0: none
}

// newSnapshot merges the entries of the lists; old, which may be nil, lends what has not
// changed.
func newSnapshot(seed maphash.Seed, lists []*list, g *geo, old *snapshot) *snapshot {
	s := &snapshot{lists: lists, geo: g, seed: seed, hot: make([]atomic.Pointer[hotStamp], hotStamps)}
	if old != nil && slices.EqualFunc(old.lists, lists, func(a, b *list) bool { return a.entries == b.entries }) {
		s.names, s.prefixes, s.rows = old.names, old.prefixes, old.rows
		return s
	}
	all := make([]*entries, len(lists))
	s.prefixes = &bart.Table[uint32]{}
	for i, l := range lists {
		all[i] = l.entries
		for _, e := range l.entries.addrs {
			head, _ := s.prefixes.Get(e.prefix)
			s.rows = append(s.rows, row{i, e.line, head})
			s.prefixes.Insert(e.prefix, uint32(len(s.rows)))
		}
	}
	s.names = mergeIndex(seed, all)
	return s
}

// stamp returns what is known of a name, its aliases and an address.
func (s *snapshot) stamp(domain string, cnames []string, addr netip.Addr) *Stamp {
	addr = addr.Unmap().WithZone("")
	known := s.geo.stamp(addr)
	switch {
	case s.names.used == 0 && s.prefixes.Size() == 0:
		return known
	case !addr.IsValid() && s.prefixes.Size() > 0:
		known = s.geo.nowhere
	}
	var slot *atomic.Pointer[hotStamp]
	if len(cnames) == 0 {
		slot = &s.hot[maphash.String(s.seed, domain)&(hotStamps-1)]
		if h := slot.Load(); h != nil && h.domain == domain && h.addr == addr {
			return h.stamp
		}
	}
	found := s.nameMatches(nil, domain, false)
	for _, name := range cnames {
		found = s.nameMatches(found, name, true)
	}
	found = s.addrMatches(found, addr)
	if len(found) == 0 {
		return known
	}
	full := *known
	full.Lists = found
	if slot != nil {
		slot.Store(&hotStamp{domain, addr, &full})
	}
	return &full
}

// nameMatches appends the lists that a name is on. A list that takes a name back is not one.
func (s *snapshot) nameMatches(found []Match, name string, alias bool) []Match {
	if !normal(name) {
		clean, ok := cleanName(nil, []byte(name))
		if !ok {
			return found
		}
		name = string(clean)
	}
	var space [8]hit
	hits := s.names.find(space[:0], name)
	for _, h := range hits {
		except := func(o hit) bool { return o.list == h.list && o.flags&flagExcept != 0 }
		if h.flags&flagExcept == 0 && !slices.ContainsFunc(hits, except) {
			l := s.lists[h.list]
			found = append(found, Match{
				ID: l.spec.ID, Category: l.spec.Category, Source: l.place, Line: h.line,
				Name: h.name, Above: len(h.name) < len(name) && h.flags&flagZone == 0, Alias: alias,
			})
		}
	}
	return found
}

func (s *snapshot) addrMatches(found []Match, addr netip.Addr) []Match {
	if !addr.IsValid() || s.prefixes.Size() == 0 {
		return found
	}
	if _, ok := s.prefixes.Lookup(addr); !ok {
		return found
	}
	for prefix, at := range s.prefixes.Supernets(netip.PrefixFrom(addr, addr.BitLen())) {
		for ; at != 0; at = s.rows[at-1].next {
			r := s.rows[at-1]
			l := s.lists[r.list]
			found = append(found, Match{ID: l.spec.ID, Category: l.spec.Category, Source: l.place, Line: int(r.line), Name: prefix.String()})
		}
	}
	return found
}
