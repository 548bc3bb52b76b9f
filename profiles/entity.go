package profiles

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gatun/intel"
	"gatun/network"
)

// entityKind says which fields of an entity count.
type entityKind uint8

const (
	anyEntity       entityKind = iota
	prefixEntity               // prefix
	rangeEntity                // from, to
	scopeEntity                // scopes
	countryEntity              // name
	continentEntity            // name
	asnEntity                  // asn
	listEntity                 // ids
	exactName                  // name
	zoneName                   // name
	suffixName                 // name
	prefixName                 // name
	containsName               // name
	regexName                  // regex
	setEntity                  // of
	notEntity                  // of[0]
)

// isName reports whether the kind speaks about names.
func (k entityKind) isName() bool { return k >= exactName && k <= regexName }

// isGeo reports whether the kind speaks about where an address is.
func (k entityKind) isGeo() bool { return k >= countryEntity && k <= asnEntity }

// entity is the other end that a rule speaks about.
type entity struct {
	kind     entityKind
	single   bool // a prefix written as an address
	scopes   [3]network.Scope
	prefix   netip.Prefix
	from, to netip.Addr
	name     string // lower-case, punycode; of a country or continent: its code
	asn      uint32
	ids      []string // of lists or categories, once each
	regex    *regexp.Regexp
	of       []entity
}

func (e *entity) write(b *strings.Builder) {
	switch e.kind {
	case anyEntity:
		b.WriteByte('*')
	case prefixEntity:
		if e.single {
			b.WriteString(e.prefix.Addr().String())
		} else {
			b.WriteString(e.prefix.String())
		}
	case rangeEntity:
		b.WriteString(e.from.String() + "-" + e.to.String())
	case scopeEntity:
		for i, s := range e.scopes {
			if s == network.ScopeUnknown {
				break
			}
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(s.String())
		}
	case countryEntity:
		b.WriteString(e.name)
	case continentEntity:
		b.WriteString("C:" + e.name)
	case asnEntity:
		b.WriteString("AS" + strconv.FormatUint(uint64(e.asn), 10))
	case listEntity:
		b.WriteString("L:" + strings.Join(e.ids, ","))
	case setEntity:
		b.WriteByte('{')
		for i := range e.of {
			if i > 0 {
				b.WriteByte(',')
			}
			e.of[i].write(b)
		}
		b.WriteByte('}')
	case notEntity:
		b.WriteByte('!')
		e.of[0].write(b)
	default:
		e.writeName(b)
	}
}

func (e *entity) writeName(b *strings.Builder) {
	switch e.kind {
	case zoneName:
		b.WriteString("." + e.name)
	case suffixName:
		b.WriteString("*" + e.name)
	case prefixName:
		b.WriteString(e.name + "*")
	case containsName:
		b.WriteString("*" + e.name + "*")
	case regexName:
		b.WriteString("/" + e.name + "/")
	default:
		b.WriteString(e.name)
	}
}

// Results of an entity beside those of a rule. Both survive a "!": what is not known can be
// no reason to allow, whichever way the rule is put.
const (
	noData       Match = Unknown + 1 + iota // the country or ASN is not in the data
	inapplicable                            // nothing to know: no address, a local one, no lists
)

// firmer orders the results of the parts of a set: one that matches settles it, one that
// does not leaves it to the others.
func (m Match) firmer() int {
	return [...]int{NoMatch: 0, inapplicable: 1, noData: 2, Unknown: 3, Matched: 4}[m]
}

// match holds the entity against the facts. aliases says whether the names that the name is
// an alias of count: they may only ever make the decision stricter.
func (e *entity) match(f *Facts, aliases bool) Match {
	switch e.kind {
	case anyEntity:
		return Matched
	case prefixEntity, rangeEntity, scopeEntity:
		return e.matchAddr(f.Entity.Addr)
	case countryEntity, continentEntity, asnEntity:
		return e.matchGeo(f)
	case listEntity:
		return e.matchLists(f)
	case setEntity:
		m := NoMatch
		for i := range e.of {
			if of := e.of[i].match(f, aliases); of.firmer() > m.firmer() {
				m = of
			}
			if m == Matched {
				break
			}
		}
		return m
	case notEntity:
		switch m := e.of[0].match(f, !aliases); m {
		case Matched:
			return NoMatch
		case NoMatch:
			return Matched
		default:
			return m
		}
	default:
		return e.matchNames(f, aliases)
	}
}

// matchGeo needs the address as well as what is known of it: the links of one name lead to
// many countries, so that no decision on the name may rest on one of them.
func (e *entity) matchGeo(f *Facts) Match {
	stamp := f.Entity.Stamp
	if !f.Final && !geoKnown(f) {
		return Unknown
	}
	if stamp != nil {
		switch {
		case e.kind == countryEntity && stamp.Country != "":
			return matched(stamp.Country == e.name)
		case e.kind == continentEntity && stamp.Continent != "":
			return matched(stamp.Continent == e.name)
		case e.kind == asnEntity && stamp.ASN != 0:
			return matched(stamp.ASN == e.asn)
		}
	}
	if !geoApplies(f) {
		return inapplicable
	}
	return noData
}

// geoKnown reports whether the facts are there that rules about countries and ASNs need.
func geoKnown(f *Facts) bool { return f.Entity.Stamp != nil && f.Entity.Addr.IsValid() }

// geoApplies reports whether data is missing where there is none. Without an address, and for
// a local one, there is no country to be known.
func geoApplies(f *Facts) bool { return f.Entity.Scope() == network.Internet }

func (e *entity) matchLists(f *Facts) Match {
	stamp := f.Entity.Stamp
	switch {
	case stamp == nil && f.Final:
		return inapplicable
	case stamp == nil:
		return Unknown
	}
	for i := range stamp.Lists {
		m := &stamp.Lists[i]
		if slices.Contains(e.ids, m.ID) || slices.Contains(e.ids, m.Category) || slices.Contains(e.ids, intel.PartOf(m.Category)) {
			return Matched
		}
	}
	return NoMatch
}

func (e *entity) matchAddr(a netip.Addr) Match {
	if !a.IsValid() {
		return Unknown
	}
	a = a.Unmap().WithZone("")
	switch e.kind {
	case prefixEntity:
		return matched(e.prefix.Contains(a))
	case rangeEntity:
		return matched(a.BitLen() == e.from.BitLen() && e.from.Compare(a) <= 0 && a.Compare(e.to) <= 0)
	default:
		s := network.ScopeOf(a)
		return matched(s == e.scopes[0] || s == e.scopes[1] || s == e.scopes[2])
	}
}

func (e *entity) matchNames(f *Facts, aliases bool) Match {
	name := f.Entity.Domain
	if name == "" {
		if f.Final {
			return NoMatch
		}
		return Unknown
	}
	if e.matchName(name) {
		return Matched
	}
	if aliases {
		for _, alias := range f.Entity.CNAMEs {
			if e.matchName(alias) {
				return Matched
			}
		}
	}
	return NoMatch
}

func (e *entity) matchName(name string) bool {
	switch e.kind {
	case exactName:
		return name == e.name
	case zoneName:
		rest, ok := strings.CutSuffix(name, e.name)
		return ok && (rest == "" || strings.HasSuffix(rest, "."))
	case suffixName:
		return strings.HasSuffix(name, e.name)
	case prefixName:
		return strings.HasPrefix(name, e.name)
	case containsName:
		return strings.Contains(name, e.name)
	default:
		return e.regex.MatchString(name)
	}
}

func matched(b bool) Match {
	if b {
		return Matched
	}
	return NoMatch
}
