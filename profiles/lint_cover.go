package profiles

import (
	"net/netip"
	"slices"
	"strings"

	"gatun/network"
	"gatun/network/packet"
)

// The questions of the lint: does one rule leave another one anything to decide? Each answer is
// on the safe side: what cannot be proved is not reported.

// maxCandidates bounds the rules of one kind that a rule is compared with. A list that has more
// is warned of for its length.
const maxCandidates = 256

// covering says what may be taken for granted when two entities are compared.
type covering struct {
	gives bool // the covering rule allows or asks: while it is unknown, nothing behind it decides
	names bool // a name that matches the one matches the other: not so where only one sees aliases
	geo   bool // the same for holes in the geo data
}

// earlier finds for each part of rule j a rule before it that decides in its place. ok is false
// if a part has none; alias says that aliases are left to it.
func earlier(set *RuleSet, j int, geoBlocks bool) (first int, alias, ok bool) {
	r := &set.rules[j]
	first = j
	for _, leaf := range r.entity.leaves(nil) {
		i, onlyAlias := earlierLeaf(set, j, leaf.plain(), geoBlocks)
		if i < 0 {
			return 0, false, false
		}
		first, alias = min(first, i), alias || onlyAlias
	}
	return first, alias, true
}

func earlierLeaf(set *RuleSet, j int, leaf *entity, geoBlocks bool) (i int, alias bool) {
	r, seen := &set.rules[j], -1
	for _, list := range set.index.candidates(leaf) {
		for _, i := range list[:min(len(list), maxCandidates)] {
			if int(i) >= j {
				break
			}
			earlier := &set.rules[i]
			if !earlier.leavesNoPort(r) {
				continue
			}
			c := covering{gives: !earlier.Action.restricts()}
			c.names, c.geo = !c.gives || !r.Action.restricts(), !geoBlocks || !r.Action.restricts()
			if earlier.entity.covers(leaf, c) {
				return int(i), false
			}
			c.names = true
			if seen < 0 && earlier.entity.covers(leaf, c) {
				seen = int(i)
			}
		}
	}
	return seen, true
}

// candidates returns lists of rules among which are all that may cover the leaf.
func (x *index) candidates(leaf *entity) [][]int32 {
	lists := [][]int32{x.anything.rules, x.rest, x.scopes[network.Internet].rules}
	zones := func(name string) {
		for ; name != ""; _, name, _ = strings.Cut(name, ".") {
			lists = append(lists, x.zones[name].all())
		}
	}
	switch leaf.kind {
	case exactName:
		lists = append(lists, x.exact[leaf.name].all())
		zones(leaf.name)
	case zoneName, suffixName:
		zones(leaf.zone())
	case countryEntity:
		lists = append(lists, x.countries[leaf.name].all())
	case continentEntity:
		lists = append(lists, x.continents[leaf.name].all())
	case asnEntity:
		lists = append(lists, x.asns[leaf.asn].all())
	case listEntity:
		lists = append(lists, x.lists[leaf.ids[0]].all())
	case prefixEntity, rangeEntity, scopeEntity:
		lists = append(lists, x.scopes[network.LAN].rules, x.scopes[network.Localhost].rules)
		if leaf.kind != scopeEntity {
			from, _ := leaf.span()
			for found, _ := x.prefixes.Lookup(from); found != nil; found = found.up {
				lists = append(lists, found.rules)
			}
		}
	}
	return lists
}

func (b *bucket) all() []int32 {
	if b == nil {
		return nil
	}
	return b.rules
}

// leavesNoPort reports whether every protocol, port and app= of o is one of r's too.
func (r *Rule) leavesNoPort(o *Rule) bool {
	switch {
	case r.app != "" && r.app != o.app:
		return false
	case r.proto.a != 0 && (o.proto.a == 0 || !r.proto.has(o.proto.a) || o.proto.b != 0 && !r.proto.has(o.proto.b)):
		return false
	case len(r.ports) == 0:
		return true
	}
	return len(o.ports) > 0 && !slices.ContainsFunc(o.ports, func(p portRange) bool { return !r.hasPorts(p) })
}

func (p protocol) has(n packet.Proto) bool { return p.a == n || p.b == n }

// hasPorts reports whether the rule names all ports of the range.
func (r *Rule) hasPorts(p portRange) bool {
	for next := int(p.lo); next <= int(p.hi); {
		i := slices.IndexFunc(r.ports, func(q portRange) bool { return next >= int(q.lo) && next <= int(q.hi) })
		if i < 0 {
			return false
		}
		next = int(r.ports[i].hi) + 1
	}
	return true
}

// plain returns the entity without a double negation, and a negated scope as the other scopes.
func (e *entity) plain() *entity {
	if e.kind != notEntity {
		return e
	}
	switch of := e.of[0].plain(); of.kind {
	case notEntity:
		return &of.of[0]
	case scopeEntity:
		var others entity
		others.kind = scopeEntity
		n := 0
		for _, s := range scopes() {
			if !slices.Contains(of.scopes[:], s) {
				others.scopes[n] = s
				n++
			}
		}
		if n > 0 {
			return &others
		}
	}
	return e
}

// covers reports whether the entity matches whenever the leaf does.
func (e *entity) covers(leaf *entity, c covering) bool {
	return slices.ContainsFunc(e.leaves(nil), func(l *entity) bool { return l.plain().coversLeaf(leaf, c) })
}

func (e *entity) coversLeaf(leaf *entity, c covering) bool {
	switch {
	case e.kind == anyEntity, c.gives && e.allScopes():
		return true
	case leaf.speaksOf(entityKind.isName) && !c.names, leaf.speaksOf(entityKind.isGeo) && !c.geo:
		return false
	case leaf.kind == prefixEntity, leaf.kind == rangeEntity:
		return e.coversAddresses(leaf.span())
	case leaf.kind == scopeEntity && e.kind == scopeEntity:
		return !slices.ContainsFunc(leaf.scopes[:], func(s network.Scope) bool { return !slices.Contains(e.scopes[:], s) && s != network.ScopeUnknown })
	case leaf.kind == listEntity && e.kind == listEntity:
		return !slices.ContainsFunc(leaf.ids, func(id string) bool { return !slices.Contains(e.ids, id) })
	case leaf.kind.isName() && e.kind.isName():
		return e.coversNames(leaf)
	default:
		return e.String() == leaf.String()
	}
}

func (e *entity) allScopes() bool {
	return e.kind == scopeEntity && e.scopes[2] != network.ScopeUnknown
}

// speaksOf reports whether a leaf, negated or not, has a part of such a kind.
func (e *entity) speaksOf(is func(entityKind) bool) bool {
	return is(e.kind) || slices.ContainsFunc(e.of, func(o entity) bool { return o.speaksOf(is) })
}

// String formats the entity in its canonical spelling.
func (e *entity) String() string {
	var b strings.Builder
	e.write(&b)
	return b.String()
}

// span returns the first and the last address of a prefix or range.
func (e *entity) span() (from, to netip.Addr) {
	if e.kind == rangeEntity {
		return e.from, e.to
	}
	from = e.prefix.Addr()
	width := from.BitLen()
	return from, numberOf(from).or(ones(width - e.prefix.Bits())).addr(width)
}

func (e *entity) coversAddresses(from, to netip.Addr) bool {
	switch e.kind {
	case prefixEntity, rangeEntity:
		lo, hi := e.span()
		return lo.BitLen() == from.BitLen() && !from.Less(lo) && !hi.Less(to)
	case scopeEntity:
		return !slices.ContainsFunc(scopesOf(from, to), func(s network.Scope) bool { return !slices.Contains(e.scopes[:], s) })
	default:
		return false
	}
}

// localRanges are the addresses that are not of the Internet, in their order. All of one range
// have one scope.
const localRanges = "0.0.0.0-0.0.0.0 0.0.0.1-0.255.255.255 10.0.0.0-10.255.255.255 100.64.0.0-100.127.255.255 127.0.0.0-127.255.255.255 " +
	"169.254.0.0-169.254.255.255 172.16.0.0-172.31.255.255 192.168.0.0-192.168.255.255 224.0.0.0-239.255.255.255 255.255.255.255-255.255.255.255 " +
	"::-:: ::1-::1 fc00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff fe80::-febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff ff00::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"

// scopesOf returns the scopes of the addresses of a range.
func scopesOf(from, to netip.Addr) []network.Scope {
	var found []network.Scope
	for text := range strings.FieldsSeq(localRanges) {
		first, last, _ := strings.Cut(text, "-")
		lo, hi := netip.MustParseAddr(first), netip.MustParseAddr(last)
		if lo.BitLen() != from.BitLen() || hi.Less(from) {
			continue
		}
		if from.Less(lo) { // what is between two of them
			found = append(found, network.Internet)
		}
		if to.Less(lo) {
			return found
		}
		found = append(found, network.ScopeOf(lo))
		if !hi.Less(to) {
			return found
		}
		from = hi.Next()
	}
	return append(found, network.Internet)
}

// coversNames reports whether all names that the leaf matches are matched by e.
func (e *entity) coversNames(leaf *entity) bool {
	within := func(name, zone string) bool { return name == zone || strings.HasSuffix(name, "."+zone) }
	same := e.kind == leaf.kind && e.name == leaf.name
	switch {
	case leaf.kind == regexName || same:
		return same
	case leaf.kind == exactName:
		return e.matchName(leaf.name)
	case e.kind == containsName:
		return strings.Contains(leaf.name, e.name)
	}
	switch leaf.kind {
	case zoneName:
		return e.kind == zoneName && within(leaf.name, e.name) || e.kind == suffixName && strings.HasSuffix(leaf.name, e.name)
	case suffixName:
		return e.kind == zoneName && strings.HasSuffix(leaf.name, "."+e.name) || e.kind == suffixName && strings.HasSuffix(leaf.name, e.name)
	case prefixName:
		return e.kind == prefixName && strings.HasPrefix(leaf.name, e.name)
	default:
		return false
	}
}
