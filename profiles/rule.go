package profiles

import (
	"strconv"
	"strings"

	"gatun/network"
	"gatun/network/packet"
)

// Action is what a rule, or the default, wants. The zero value blocks.
type Action uint8

// The actions: refuse at once, be silent, let through, ask a person.
const (
	Block Action = iota
	Drop
	Allow
	Ask
)

// String returns the verdict sign of the action, as rules spell it.
func (a Action) String() string {
	switch a {
	case Allow:
		return "+"
	case Drop:
		return "--"
	case Ask:
		return "?"
	default:
		return "-"
	}
}

// restricts reports whether the action takes something away.
func (a Action) restricts() bool { return a == Block || a == Drop }

// Match is the result of holding a rule against facts.
type Match uint8

// The results. Unknown: a fact that the rule needs is not there yet.
const (
	NoMatch Match = iota
	Matched
	Unknown
)

// String returns the result for people.
func (m Match) String() string {
	switch m {
	case Matched:
		return "match"
	case Unknown:
		return "unknown yet"
	default:
		return "no match"
	}
}

// Facts are what is known of the other end at a stage. An invalid Addr, Proto 0, PortKnown
// false, App "" and a Stamp that is nil are not known *yet*: what needs them is Unknown. Where
// Final is set there will be no name, no App and no Stamp any more: what needs them does not
// match.
type Facts struct {
	Entity    network.Entity
	Proto     packet.Proto
	Port      uint16 // of the remote end; of this machine's end where it is inbound
	PortKnown bool
	App       string
	Final     bool

	// GeoMissingBlocks is filter/geoMissing: a rule that takes something away matches where the
	// country or ASN that it needs is missing in the data. Other rules never do.
	GeoMissingBlocks bool
}

// Rule is one parsed rule. It is immutable.
type Rule struct {
	Action Action
	Ref    network.RuleRef // where it was written

	entity entity
	proto  protocol
	ports  []portRange // none: any
	app    string      // "": any
}

// protocol is the protocol of a rule: none for "*", two for the name ICMP.
type protocol struct {
	text string // as String prints it; "" for any that was left out
	a, b packet.Proto
}

type portRange struct{ lo, hi uint16 }

// String formats the rule in its canonical spelling, without the comment. Parsing it again
// gives the same rule.
func (r *Rule) String() string {
	var b strings.Builder
	b.WriteString(r.Action.String() + " ")
	r.entity.write(&b)
	if r.proto.text != "" {
		b.WriteString(" " + r.proto.text)
	}
	for i, p := range r.ports {
		b.WriteByte("/,"[min(i, 1)])
		b.WriteString(strconv.Itoa(int(p.lo)))
		if p.hi != p.lo {
			b.WriteString("-" + strconv.Itoa(int(p.hi)))
		}
	}
	if r.app != "" {
		b.WriteString(" app=" + r.app)
	}
	return b.String()
}

// App returns the protocol that app= names, "" if the rule has none.
func (r *Rule) App() string { return r.app }

// Match holds the rule against the facts: every part of it has to match.
func (r *Rule) Match(f *Facts) Match {
	m := and(r.proto.match(f), r.matchPorts(f))
	if m == NoMatch {
		return NoMatch
	}
	if m = and(m, r.matchApp(f)); m == NoMatch {
		return NoMatch
	}
	return and(m, r.matchEntity(f))
}

func (r *Rule) matchEntity(f *Facts) Match {
	switch m := r.entity.match(f, r.Action.restricts()); m {
	case noData:
		return matched(f.GeoMissingBlocks && r.Action.restricts())
	case inapplicable:
		return NoMatch
	default:
		return m
	}
}

// and joins two three-valued results: one that does not match settles it.
func and(a, b Match) Match {
	switch {
	case a == NoMatch || b == NoMatch:
		return NoMatch
	case a == Unknown || b == Unknown:
		return Unknown
	default:
		return Matched
	}
}

func (p protocol) match(f *Facts) Match {
	switch {
	case p.a == 0:
		return Matched
	case f.Proto == 0:
		return Unknown
	case f.Proto == p.a || f.Proto == p.b:
		return Matched
	default:
		return NoMatch
	}
}

func (r *Rule) matchPorts(f *Facts) Match {
	switch {
	case len(r.ports) == 0:
		return Matched
	case f.Proto != 0 && !hasPorts(f.Proto):
		return NoMatch
	case !f.PortKnown || f.Proto == 0:
		if f.PortKnown && !r.hasPort(f.Port) {
			return NoMatch
		}
		return Unknown
	case r.hasPort(f.Port):
		return Matched
	default:
		return NoMatch
	}
}

func (r *Rule) hasPort(port uint16) bool {
	for _, p := range r.ports {
		if port >= p.lo && port <= p.hi {
			return true
		}
	}
	return false
}

func (r *Rule) matchApp(f *Facts) Match {
	switch {
	case r.app == "":
		return Matched
	case f.App == "" && f.Final:
		return NoMatch
	case f.App == "":
		return Unknown
	case f.App == r.app:
		return Matched
	default:
		return NoMatch
	}
}

// hasPorts reports whether the protocol has ports: TCP, UDP, DCCP, SCTP and UDP-Lite.
func hasPorts(p packet.Proto) bool {
	switch p {
	case packet.TCP, packet.UDP, 33, 132, 136:
		return true
	default:
		return false
	}
}
