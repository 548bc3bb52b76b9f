package intel

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"net/netip"
)

// Flags of a name in the arena.
const (
	flagZone   = 1 << iota // the list itself means the names below as well
	flagExcept             // the list takes back what it says of the name elsewhere
	flagBits   = 2
)

// entries is what one list says, compact and never changed after it was made.
//
// arena has one record for each name: its length, the number of its line with the flags below
// it as a varint, and the name.
type entries struct {
	arena []byte
	names int
	addrs []addrEntry
	tally
}

// addrEntry is one prefix of a list.
type addrEntry struct {
	prefix netip.Prefix
	line   uint32
}

// tally counts the lines of a list by what became of them.
type tally struct {
	exceptions int // names that the list takes back
	skipped    int // rules of kinds that say nothing of a name or address as such
	broad      int // names and networks that no list may block
	invalid    int
}

func (e *entries) size() int { return e.names + len(e.addrs) }

// record is one name of an arena.
type record struct {
	name  []byte
	line  int
	flags byte
	next  uint32 // offset behind it
}

func readRecord(arena []byte, offset uint32) record {
	length := uint32(arena[offset])
	info, n := binary.Uvarint(arena[offset+1:])
	start := offset + 1 + uint32(n)
	return record{name: arena[start : start+length], line: int(info >> flagBits), flags: byte(info & (1<<flagBits - 1)), next: start + length}
}

// builder makes entries; a name counts where the list has it first.
type builder struct {
	entries
	seen  *index
	addrs map[netip.Prefix]struct{}
	max   int // of names and prefixes together
	full  bool
}

func newBuilder(lines, limit int) *builder {
	return &builder{seen: newIndex(maphash.MakeSeed(), min(lines, limit, 1<<20)), addrs: map[netip.Prefix]struct{}{}, max: limit}
}

func (b *builder) room() bool {
	b.full = b.full || b.size() >= b.max
	return !b.full
}

func (b *builder) addName(name []byte, line int, flags byte) {
	hash := maphash.Bytes(b.seen.seed, name)
	for at, found := b.seen.first(hash); found; at, found = b.seen.next(at, hash) {
		_, offset := b.seen.at(at)
		if r := readRecord(b.arena, offset); bytes.Equal(r.name, name) && (r.flags^flags)&flagExcept == 0 {
			b.arena[offset+1] |= flags & flagZone // a varint begins with its lowest bits
			return
		}
	}
	if !b.room() {
		return
	}
	offset := uint32(len(b.arena))
	b.arena = append(b.arena, byte(len(name)))
	b.arena = binary.AppendUvarint(b.arena, uint64(line)<<flagBits|uint64(flags))
	b.arena = append(b.arena, name...)
	if flags&flagExcept != 0 {
		b.exceptions++
	} else {
		b.names++
	}
	b.seen.arenas[0] = b.arena
	b.seen.add(hash, 0, offset)
}

func (b *builder) addPrefix(p netip.Prefix, line int) {
	if _, known := b.addrs[p]; known || !b.room() {
		return
	}
	b.addrs[p] = struct{}{}
	b.entries.addrs = append(b.entries.addrs, addrEntry{p, uint32(line)})
}

// finish returns the entries in memory of their size.
func (b *builder) finish() *entries {
	e := b.entries
	e.arena = bytes.Clone(e.arena)
	return &e
}
