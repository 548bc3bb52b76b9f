package profiles

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"

	"gatun/network"
)

// index finds the rules of a list that may have a say about given facts. Lists of rules are
// numbers in ascending order.
type index struct {
	exact, zones                 map[string]*bucket
	countries, continents, lists map[string]*bucket
	asns                         map[uint32]*bucket
	prefixes                     bart.Table[*prefixRules]
	scopes                       [4]bucket // by network.Scope
	anything                     bucket    // rules about *
	rest                         []int32   // rules that have to be looked at one by one

	// The indexed rules that are unknown while the address, the name, … is not there yet.
	needAddr, needName, needList        needing
	needCountry, needContinent, needASN needing
}

// needing are the rules that need a fact: those that take something away, and the others.
type needing struct{ takes, gives []int32 }

func (n *needing) add(i int32, a Action) {
	if a.restricts() {
		n.takes = appendOnce(n.takes, i)
	} else {
		n.gives = appendOnce(n.gives, i)
	}
}

func (n *needing) empty() bool { return len(n.takes)+len(n.gives) == 0 }

// prefixRules are the rules of one prefix; up leads to the next shorter prefix that has some.
type prefixRules struct {
	bucket
	up *prefixRules
}

// bucket are the rules about one thing, for example one country. Where there are many their
// ports tell them apart.
type bucket struct {
	rules  []int32
	byPort *portIndex // nil: few
}

// portIndex: a rule with ports is under each of them, or under any if it has a long range.
type portIndex struct {
	any   []int32
	ports map[uint16][]int32
	need  needing // those under ports, while the port is not known
}

const (
	fewRules  = 16 // of one thing: are looked at one by one
	wideRange = 32 // ports of one rule: are not listed one by one
)

func (x *index) hasGeo() bool {
	return !x.needCountry.empty() || !x.needContinent.empty() || !x.needASN.empty()
}

func (x *index) build(rules []Rule) {
	x.exact, x.zones, x.asns = map[string]*bucket{}, map[string]*bucket{}, map[uint32]*bucket{}
	x.countries, x.continents, x.lists = map[string]*bucket{}, map[string]*bucket{}, map[string]*bucket{}
	prefixes := map[netip.Prefix]*bucket{}
	for i := range rules {
		x.add(&rules[i], int32(i), prefixes)
	}
	for _, m := range []map[string]*bucket{x.exact, x.zones, x.countries, x.continents, x.lists} {
		splitAll(m, rules)
	}
	splitAll(x.asns, rules)
	splitAll(prefixes, rules)
	for i := range x.scopes {
		x.scopes[i].split(rules)
	}
	x.anything.split(rules)
	x.buildTable(prefixes)
}

// leaves returns what an entity is one of, or nil if it is nothing that can be listed.
func (e *entity) leaves(list []*entity) []*entity {
	switch {
	case e.kind == setEntity:
		for i := range e.of {
			list = e.of[i].leaves(list)
		}
		return list
	default:
		return append(list, e)
	}
}

// indexable reports whether an index finds the leaf.
func (e *entity) indexable() bool {
	return e.kind != notEntity && (!e.kind.isName() || e.kind == exactName || e.zone() != "")
}

// zone returns a zone that all names are in which the leaf can match, "" if there is none: for
// "*s.example.com" it is what begins behind the first dot.
func (e *entity) zone() string {
	switch e.kind {
	case zoneName:
		return e.name
	case suffixName:
		_, zone, _ := strings.Cut(e.name, ".")
		return zone
	default:
		return ""
	}
}

// linear reports whether the rule has to be looked at by itself for every decision.
func (r *Rule) linear() bool {
	return slices.ContainsFunc(r.entity.leaves(nil), func(e *entity) bool { return !e.indexable() })
}

// add files rule i under each of its entities, or under rest if one of them cannot be.
func (x *index) add(r *Rule, i int32, prefixes map[netip.Prefix]*bucket) {
	if r.linear() {
		x.rest = append(x.rest, i)
		return
	}
	for _, e := range r.entity.leaves(nil) {
		switch e.kind {
		case anyEntity:
			x.anything.add(i)
		case exactName:
			file(x.exact, e.name, i)
			x.needName.add(i, r.Action)
		case zoneName, suffixName:
			file(x.zones, e.zone(), i)
			x.needName.add(i, r.Action)
		case countryEntity:
			file(x.countries, e.name, i)
			x.needCountry.add(i, r.Action)
		case continentEntity:
			file(x.continents, e.name, i)
			x.needContinent.add(i, r.Action)
		case asnEntity:
			file(x.asns, e.asn, i)
			x.needASN.add(i, r.Action)
		case listEntity:
			for _, id := range e.ids {
				file(x.lists, id, i)
			}
			x.needList.add(i, r.Action)
		default:
			x.addAddresses(e, i, prefixes)
			x.needAddr.add(i, r.Action)
		}
	}
}

func (x *index) addAddresses(e *entity, i int32, prefixes map[netip.Prefix]*bucket) {
	switch e.kind {
	case scopeEntity:
		for _, s := range e.scopes {
			if s != network.ScopeUnknown {
				x.scopes[s].add(i)
			}
		}
	case rangeEntity:
		for _, p := range prefixesOf(e.from, e.to) {
			file(prefixes, p, i)
		}
	default:
		file(prefixes, e.prefix, i)
	}
}

func file[K comparable](m map[K]*bucket, key K, i int32) {
	b := m[key]
	if b == nil {
		b = &bucket{}
		m[key] = b
	}
	b.add(i)
}

func (b *bucket) add(i int32) { b.rules = appendOnce(b.rules, i) }

// appendOnce appends i, which is at least as great as all before it.
func appendOnce(list []int32, i int32) []int32 {
	if len(list) > 0 && list[len(list)-1] == i {
		return list
	}
	return append(list, i)
}

func splitAll[K comparable](m map[K]*bucket, rules []Rule) {
	for _, b := range m {
		b.split(rules)
	}
}

// split tells the rules of a large bucket apart by their ports. Of rules that say the same
// only the first stays: the others never decide.
func (b *bucket) split(rules []Rule) {
	if len(b.rules) <= fewRules {
		return
	}
	p := &portIndex{ports: map[uint16][]int32{}}
	seen := make(map[string]bool, len(b.rules))
	for _, i := range b.rules {
		r := &rules[i]
		if same := r.condition(); seen[same] {
			continue
		} else {
			seen[same] = true
		}
		if n := r.portCount(); n == 0 || n > wideRange {
			p.any = append(p.any, i)
			continue
		}
		for _, ports := range r.ports {
			for port := int(ports.lo); port <= int(ports.hi); port++ {
				p.ports[uint16(port)] = appendOnce(p.ports[uint16(port)], i)
			}
		}
		p.need.add(i, r.Action)
	}
	b.byPort = p
}

// condition is everything of a rule that decides when it matches.
func (r *Rule) condition() string {
	plain := *r
	plain.Action = Allow
	if r.Action.restricts() { // aliases and missing data count
		plain.Action = Block
	}
	return plain.String()
}

func (r *Rule) portCount() int {
	n := 0
	for _, p := range r.ports {
		n += int(p.hi) - int(p.lo) + 1
	}
	return n
}

// buildTable inserts short prefixes first: the longest match at that time is then the next
// prefix above.
func (x *index) buildTable(prefixes map[netip.Prefix]*bucket) {
	order := make([]netip.Prefix, 0, len(prefixes))
	for p := range prefixes {
		order = append(order, p)
	}
	slices.SortFunc(order, func(a, b netip.Prefix) int { return cmp.Compare(a.Bits(), b.Bits()) })
	for _, p := range order {
		up, _ := x.prefixes.LookupPrefix(p)
		x.prefixes.Insert(p, &prefixRules{bucket: *prefixes[p], up: up})
	}
}

// prefixesOf returns the fewest prefixes that make up a range of addresses of one family.
func prefixesOf(from, to netip.Addr) []netip.Prefix {
	var list []netip.Prefix
	width := from.BitLen()
	a, z := numberOf(from), numberOf(to)
	for {
		// The largest block that begins at a is as long as a has zeros at its end, and is
		// halved until it ends before z does.
		free := min(a.trailingZeros(), width)
		for a.or(ones(free)).cmp(z) > 0 {
			free--
		}
		list = append(list, netip.PrefixFrom(a.addr(width), width-free))
		last := a.or(ones(free))
		if last.cmp(z) >= 0 {
			return list
		}
		a = last.next()
	}
}

// number is an address as 128 bits.
type number struct{ hi, lo uint64 }

func numberOf(a netip.Addr) number {
	if a.Is4() {
		b := a.As4()
		return number{lo: uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return number{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (n number) addr(width int) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n.hi)
	binary.BigEndian.PutUint64(b[8:], n.lo)
	if width == 32 {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return netip.AddrFrom16(b)
}

func (n number) or(o number) number { return number{n.hi | o.hi, n.lo | o.lo} }

func (n number) cmp(o number) int {
	return cmp.Or(cmp.Compare(n.hi, o.hi), cmp.Compare(n.lo, o.lo))
}

func (n number) next() number {
	lo, carry := bits.Add64(n.lo, 1, 0)
	return number{n.hi + carry, lo}
}

func (n number) trailingZeros() int {
	if n.lo != 0 {
		return bits.TrailingZeros64(n.lo)
	}
	return 64 + bits.TrailingZeros64(n.hi)
}

// ones are n bits that are set, from the lowest.
func ones(n int) number {
	switch {
	case n >= 128:
		return number{^uint64(0), ^uint64(0)}
	case n >= 64:
		return number{1<<(n-64) - 1, ^uint64(0)}
	default:
		return number{0, 1<<n - 1}
	}
}
