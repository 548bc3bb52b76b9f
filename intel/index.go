package intel

import (
	"hash/maphash"
	"math/bits"
	"strings"
)

// index finds the records of a name in the arenas of all lists: a hash table with open
// addressing. A slot has the upper bits of the hash, the number of the list and the offset in
// its arena, plus one because an empty slot is 0. The hash has a secret seed: who writes a list
// cannot choose names that fall together.
type index struct {
	seed   maphash.Seed
	slots  []uint64
	mask   uint64
	used   int
	arenas [][]byte
}

const (
	offsetBits = 32
	listBits   = 12
	maxLists   = 1<<listBits - 1
	tagBits    = 64 - offsetBits - listBits
)

// newIndex makes an index with room for n names; it grows where there are more. It has one
// arena, which the caller sets.
func newIndex(seed maphash.Seed, n int) *index {
	size := uint64(1) << max(4, bits.Len(uint(n+n/2)))
	return &index{seed: seed, slots: make([]uint64, size), mask: size - 1, arenas: make([][]byte, 1)}
}

// mergeIndex makes the index of all lists.
func mergeIndex(seed maphash.Seed, lists []*entries) *index {
	n := 0
	for _, e := range lists {
		n += e.names + e.exceptions
	}
	x := newIndex(seed, n)
	x.arenas = make([][]byte, len(lists))
	for i, e := range lists {
		x.arenas[i] = e.arena
		for offset := uint32(0); int(offset) < len(e.arena); {
			r := readRecord(e.arena, offset)
			x.add(maphash.Bytes(seed, r.name), i, offset)
			offset = r.next
		}
	}
	return x
}

func (x *index) add(hash uint64, list int, offset uint32) {
	if 4*(x.used+1) > 3*len(x.slots) {
		x.grow()
	}
	x.insert(hash, list, offset)
	x.used++
}

func (x *index) insert(hash uint64, list int, offset uint32) {
	i := hash & x.mask
	for x.slots[i] != 0 {
		i = (i + 1) & x.mask
	}
	x.slots[i] = hash>>(64-tagBits)<<(64-tagBits) | uint64(list)<<offsetBits | (uint64(offset)+1)&(1<<offsetBits-1)
}

func (x *index) grow() {
	old := x.slots
	x.slots = make([]uint64, 2*len(old))
	x.mask = uint64(len(x.slots) - 1)
	for _, slot := range old {
		if slot != 0 {
			list, offset := unpack(slot)
			x.insert(maphash.Bytes(x.seed, readRecord(x.arenas[list], offset).name), list, offset)
		}
	}
}

func unpack(slot uint64) (list int, offset uint32) {
	return int(slot >> offsetBits & (1<<listBits - 1)), uint32(slot&(1<<offsetBits-1)) - 1
}

// first returns the first slot whose record may have that hash.
func (x *index) first(hash uint64) (slot uint64, ok bool) { return x.scan(hash&x.mask, hash) }

// next returns the one after slot.
func (x *index) next(slot, hash uint64) (uint64, bool) { return x.scan((slot+1)&x.mask, hash) }

func (x *index) scan(i, hash uint64) (uint64, bool) {
	for ; x.slots[i] != 0; i = (i + 1) & x.mask {
		if (x.slots[i]^hash)>>(64-tagBits) == 0 {
			return i, true
		}
	}
	return 0, false
}

func (x *index) at(slot uint64) (list int, offset uint32) { return unpack(x.slots[slot]) }

// hit is a record that a name is under.
type hit struct {
	list  int
	line  int
	name  string // part of the name that was asked
	flags byte
}

// find appends the records of a name and of all names above it, the nearest first. It allocates
// nothing where there are none.
func (x *index) find(hits []hit, name string) []hit {
	for rest := name; rest != ""; {
		hash := maphash.String(x.seed, rest)
		for at, ok := x.first(hash); ok; at, ok = x.next(at, hash) {
			list, offset := x.at(at)
			if r := readRecord(x.arenas[list], offset); string(r.name) == rest {
				hits = append(hits, hit{list, r.line, rest, r.flags})
			}
		}
		dot := strings.IndexByte(rest, '.')
		if dot < 0 {
			break
		}
		rest = rest[dot+1:]
	}
	return hits
}
