package profiles

import (
	"slices"
	"strings"
	"sync/atomic"

	"gatun/intel"
	"gatun/network"
)

// RuleSet is a list of rules in which the first match wins. It is immutable but for a counter
// and may be read by any number of goroutines.
//
// Rules about exact names, zones and names below them, addresses, prefixes, ranges, scopes, countries, continents,
// ASNs and lists are found through an index, and so are the ports of many rules about one
// thing: their number does not matter. All others are looked at one by one.
type RuleSet struct {
	rules      []Rule
	index      index
	geoMissing atomic.Uint64
}

// NewRuleSet returns the set of these rules, in their order. The slice is not kept.
func NewRuleSet(rules []Rule) *RuleSet {
	s := &RuleSet{rules: slices.Clone(rules)}
	s.index.build(s.rules)
	return s
}

// Len returns the number of rules.
func (s *RuleSet) Len() int { return len(s.rules) }

// Rules returns the rules in their order; the caller must not change them.
func (s *RuleSet) Rules() []Rule { return s.rules }

// GeoMissing returns how many decisions a rule about a country, continent or ASN had no part
// in, or blocked by filter/geoMissing, because the data says nothing about the address.
func (s *RuleSet) GeoMissing() uint64 { return s.geoMissing.Load() }

// First returns the first rule that matches. A rule that takes something away and is unknown
// is passed over, and skipped tells of it: a later stage sees it again. A rule that gives
// something and is unknown ends the list with Unknown: nothing behind it may decide yet.
//
// visit, which may be nil, is told each rule that was looked at and what came of it, up to the
// one that is returned. Without it only the rules are looked at that can matter.
func (s *RuleSet) First(f *Facts, visit func(*Rule, Match)) (rule *Rule, m Match, skipped bool) {
	none := int32(len(s.rules))
	l := lookup{set: s, facts: f, best: none, skipped: none, noData: none}
	if visit != nil {
		l.all(visit)
	} else {
		l.indexed()
		if l.noData < none && l.noData <= l.best { // "why" is no decision and does not count
			s.geoMissing.Add(1)
		}
	}
	if l.match == NoMatch {
		return nil, NoMatch, l.skipped < none
	}
	return &s.rules[l.best], l.match, l.skipped < l.best
}

// lookup is the state of one First: the best rule so far, the first one that was passed over
// and the first one without data.
type lookup struct {
	set     *RuleSet
	facts   *Facts
	best    int32
	match   Match
	skipped int32
	noData  int32
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
	l.address()
	l.names()
	l.geo()
	l.lists()
	l.bucket(&l.set.index.anything)
	l.list(l.set.index.rest)
}

func (l *lookup) address() {
	x, a := &l.set.index, l.facts.Entity.Addr
	if !a.IsValid() {
		l.missing(&x.needAddr)
		return
	}
	a = a.Unmap().WithZone("")
	for found, _ := x.prefixes.Lookup(a); found != nil; found = found.up {
		l.bucket(&found.bucket)
	}
	l.bucket(&x.scopes[network.ScopeOf(a)])
}

func (l *lookup) names() {
	x, e := &l.set.index, &l.facts.Entity
	switch {
	case e.Domain != "":
		l.name(e.Domain)
		for _, alias := range e.CNAMEs {
			l.name(alias)
		}
	case !l.facts.Final:
		l.missing(&x.needName)
	}
}

func (l *lookup) name(name string) {
	x := &l.set.index
	if len(x.exact) > 0 {
		l.bucket(x.exact[name])
	}
	for len(x.zones) > 0 {
		l.bucket(x.zones[name])
		i := strings.IndexByte(name, '.')
		if i < 0 {
			return
		}
		name = name[i+1:]
	}
}

func (l *lookup) geo() {
	x, f := &l.set.index, l.facts
	if !x.hasGeo() {
		return
	}
	if !f.Final && !geoKnown(f) {
		l.missing(&x.needCountry)
		l.missing(&x.needContinent)
		l.missing(&x.needASN)
		return
	}
	if stamp := f.Entity.Stamp; stamp != nil {
		l.bucket(x.countries[stamp.Country])
		l.bucket(x.continents[stamp.Continent])
		l.bucket(x.asns[stamp.ASN])
	}
	if !geoApplies(f) {
		return
	}
	stamp := f.Entity.Stamp
	if stamp == nil || stamp.Country == "" {
		l.without(&x.needCountry)
	}
	if stamp == nil || stamp.Continent == "" {
		l.without(&x.needContinent)
	}
	if stamp == nil || stamp.ASN == 0 {
		l.without(&x.needASN)
	}
}

func (l *lookup) lists() {
	x := &l.set.index
	switch stamp := l.facts.Entity.Stamp; {
	case len(x.lists) == 0:
	case stamp != nil:
		for i := range stamp.Lists {
			m := &stamp.Lists[i]
			l.bucket(x.lists[m.ID])
			if m.Category != m.ID {
				l.bucket(x.lists[m.Category])
			}
			if whole := intel.PartOf(m.Category); whole != "" && whole != m.ID {
				l.bucket(x.lists[whole])
			}
		}
	case !l.facts.Final:
		l.missing(&x.needList)
	}
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

// bucket tries the rules about one thing.
func (l *lookup) bucket(b *bucket) {
	switch {
	case b == nil:
	case b.byPort == nil:
		l.list(b.rules)
	default:
		l.list(b.byPort.any)
		if l.facts.PortKnown {
			l.list(b.byPort.ports[l.facts.Port])
		} else {
			l.missing(&b.byPort.need)
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

// without is for rules that need a country or ASN which the data does not have.
func (l *lookup) without(rules *needing) {
	for _, list := range [][]int32{rules.gives, rules.takes} {
		if len(list) > 0 {
			l.noData = min(l.noData, list[0])
		}
	}
	if l.facts.GeoMissingBlocks {
		l.list(rules.takes)
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
