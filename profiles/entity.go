package profiles

import (
	"net/netip"
	"regexp"
	"strings"

	"gatun/network"
)

// entityKind says which fields of an entity count.
type entityKind uint8

const (
	anyEntity    entityKind = iota
	prefixEntity            // prefix
	rangeEntity             // from, to
	scopeEntity             // scopes
	exactName               // name
	zoneName                // name
	suffixName              // name
	prefixName              // name
	containsName            // name
	regexName               // regex
	setEntity               // of
	notEntity               // of[0]
)

// entity is the other end that a rule speaks about.
type entity struct {
	kind     entityKind
	single   bool // a prefix written as an address
	scopes   [3]network.Scope
	prefix   netip.Prefix
	from, to netip.Addr
	name     string // lower-case, punycode
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

// match holds the entity against the facts. aliases says whether the names that the name is
// an alias of count: they may only ever make the decision stricter.
func (e *entity) match(f *Facts, aliases bool) Match {
	switch e.kind {
	case anyEntity:
		return Matched
	case prefixEntity, rangeEntity, scopeEntity:
		return e.matchAddr(f.Entity.Addr)
	case setEntity:
		m := NoMatch
		for i := range e.of {
			switch e.of[i].match(f, aliases) {
			case Matched:
				return Matched
			case Unknown:
				m = Unknown
			}
		}
		return m
	case notEntity:
		switch e.of[0].match(f, !aliases) {
		case Matched:
			return NoMatch
		case NoMatch:
			return Matched
		default:
			return Unknown
		}
	default:
		return e.matchNames(f, aliases)
	}
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
