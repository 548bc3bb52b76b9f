package profiles

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"

	"gatun/network"
)

// RuleSet is a list of rules in which the first match wins. It is immutable and may be read
// by any number of goroutines.
//
// Rules about exact names, zones, addresses and prefixes are found through maps and a prefix
// table, so that their number does not matter; all others are looked at one by one.
type RuleSet struct {
	rules []Rule
	exact map[string][]int32
	zones map[string][]int32
	table bart.Table[*prefixRules]
	rest  []int32 // rules that no index covers
	// The indexed rules that are unknown while the address or the name is not there yet.
	needAddr, needName needing
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

// prefixRules are the rules of one prefix; up leads to the next shorter prefix that has some.
type prefixRules struct {
	rules []int32
	up    *prefixRules
}

// NewRuleSet returns the set of these rules, in their order. The slice is not kept.
func NewRuleSet(rules []Rule) *RuleSet {
	s := &RuleSet{rules: slices.Clone(rules), exact: map[string][]int32{}, zones: map[string][]int32{}}
	prefixes := map[netip.Prefix][]int32{}
	for i := range s.rules {
		s.index(int32(i), prefixes)
	}
	s.buildTable(prefixes)
	return s
}

// index files rule i under each of its entities, or under rest if one of them cannot be.
func (s *RuleSet) index(i int32, prefixes map[netip.Prefix][]int32) {
	e := &s.rules[i].entity
	entities := []entity{*e}
	if e.kind == setEntity {
		entities = e.of
	}
	if slices.ContainsFunc(entities, func(e entity) bool {
		return e.kind != prefixEntity && e.kind != exactName && e.kind != zoneName
	}) {
		s.rest = append(s.rest, i)
		return
	}
	for _, e := range entities {
		switch e.kind {
		case exactName:
			s.exact[e.name] = appendOnce(s.exact[e.name], i)
			s.needName.add(i, s.rules[i].Action)
		case zoneName:
			s.zones[e.name] = appendOnce(s.zones[e.name], i)
			s.needName.add(i, s.rules[i].Action)
		default:
			prefixes[e.prefix] = appendOnce(prefixes[e.prefix], i)
			s.needAddr.add(i, s.rules[i].Action)
		}
	}
}

func appendOnce(list []int32, i int32) []int32 {
	if len(list) > 0 && list[len(list)-1] == i {
		return list
	}
	return append(list, i)
}

// buildTable inserts short prefixes first: the longest match at that time is then the next
// prefix above.
func (s *RuleSet) buildTable(prefixes map[netip.Prefix][]int32) {
	order := make([]netip.Prefix, 0, len(prefixes))
	for p := range prefixes {
		order = append(order, p)
	}
	slices.SortFunc(order, func(a, b netip.Prefix) int { return cmp.Compare(a.Bits(), b.Bits()) })
	for _, p := range order {
		up, _ := s.table.LookupPrefix(p)
		s.table.Insert(p, &prefixRules{rules: prefixes[p], up: up})
	}
}

// Len returns the number of rules.
func (s *RuleSet) Len() int { return len(s.rules) }

// Rules returns the rules in their order; the caller must not change them.
func (s *RuleSet) Rules() []Rule { return s.rules }

// First returns the first rule that matches. A rule that takes something away and is unknown
// is passed over, and skipped tells of it: a later stage sees it again. A rule that gives
// something and is unknown ends the list with Unknown: nothing behind it may decide yet.
//
// visit, which may be nil, is told each rule that was looked at and what came of it, up to the
// one that is returned. Without it only the rules are looked at that can matter.
func (s *RuleSet) First(f *Facts, visit func(*Rule, Match)) (rule *Rule, m Match, skipped bool) {
	l := lookup{set: s, facts: f, best: int32(len(s.rules)), skipped: int32(len(s.rules))}
	if visit != nil {
		l.all(visit)
	} else {
		l.indexed()
	}
	if l.match == NoMatch {
		return nil, NoMatch, l.skipped < int32(len(s.rules))
	}
	return &s.rules[l.best], l.match, l.skipped < l.best
}

// lookup is the state of one First: the best rule so far, and the first one passed over.
type lookup struct {
	set     *RuleSet
	facts   *Facts
	best    int32
	match   Match
	skipped int32
}

// try looks at rule i and reports whether it ends the list.
func (l *lookup) try(i int32) (Match, bool) {
	r := &l.set.rules[i]
	m := r.Match(l.facts)
	switch {
	case m == NoMatch:
		return m, false
	case m == Unknown && r.Action.restricts():
		l.skipped = min(l.skipped, i)
		return m, false
	default:
		l.best, l.match = i, m
		return m, true
	}
}

func (l *lookup) all(visit func(*Rule, Match)) {
	for i := range l.set.rules {
		m, ends := l.try(int32(i))
		visit(&l.set.rules[i], m)
		if ends {
			return
		}
	}
}

func (l *lookup) indexed() {
	s, e := l.set, &l.facts.Entity
	if a := e.Addr; a.IsValid() {
		found, _ := s.table.Lookup(a.Unmap().WithZone(""))
		for ; found != nil; found = found.up {
			l.list(found.rules)
		}
	} else {
		l.missing(&s.needAddr)
	}
	switch {
	case e.Domain != "":
		l.name(e.Domain)
		for _, alias := range e.CNAMEs {
			l.name(alias)
		}
	case !l.facts.Final:
		l.missing(&s.needName)
	}
	l.list(s.rest)
}

// list tries the rules of one ascending list as far as they can still be the first.
func (l *lookup) list(rules []int32) {
	for _, i := range rules {
		if i >= l.best {
			return
		}
		if _, ends := l.try(i); ends {
			return
		}
	}
}

// missing tries the rules that need a fact which is not there: none of them can match, but
// each may be unknown. Of those that are passed over the first is enough.
func (l *lookup) missing(rules *needing) {
	l.list(rules.gives)
	for _, i := range rules.takes {
		if i >= min(l.best, l.skipped) {
			return
		}
		l.try(i)
	}
}

func (l *lookup) name(name string) {
	l.list(l.set.exact[name])
	for {
		l.list(l.set.zones[name])
		i := strings.IndexByte(name, '.')
		if i < 0 {
			return
		}
		name = name[i+1:]
	}
}

// Layer is one layer's list: the profile whose list it is, "" for the global one.
type Layer struct {
	Profile string
	Rules   *RuleSet
}

// refOf makes the reference of a rule that was written at a place.
func refOf(text, file string, line, col int) network.RuleRef {
	return network.RuleRef{Text: text, File: file, Line: line, Col: col}
}
