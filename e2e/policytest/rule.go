package policytest

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// truth is what a rule, or a part of it, comes to.
type truth int

const (
	no      truth = iota
	outside       // there is nothing to know: the rule is out, whatever "!" says
	missing       // it needs what the data does not have: the same, unless geoMissing blocks
	unknown       // a fact is not there yet
	yes
)

// facts are what a stage knows.
type facts struct {
	domain     string
	cnames     []string
	addr       netip.Addr
	stamp      *Stamp
	proto      int  // 0 unknown
	port       int  // -1 unknown
	last       bool // nothing more will be known
	geoMissing string
}

// parsed is one rule, taken apart.
type parsed struct {
	verdict string
	entity  node
	protos  []int // nil: any
	ports   [][2]int
	app     string
}

func (r *parsed) takes() bool { return r.verdict == "-" || r.verdict == "--" }

// parse reads a rule that is known to be right.
func parse(text string) *parsed {
	verdict, rest := word(text)
	entity, rest := parseEntity(strings.TrimSpace(rest), false)
	r := &parsed{verdict: verdict, entity: entity}
	for {
		var w string
		w, rest = word(rest)
		switch {
		case w == "" || w[0] == '#':
			return r
		case strings.HasPrefix(w, "app="):
			r.app = w[len("app="):]
		default:
			proto, ports, _ := strings.Cut(w, "/")
			r.protos = parseProto(proto)
			for _, part := range strings.FieldsFunc(ports, func(c rune) bool { return c == ',' }) {
				from, to, ok := strings.Cut(part, "-")
				if !ok {
					to = from
				}
				r.ports = append(r.ports, [2]int{atoi(from), atoi(to)})
			}
		}
	}
}

func word(s string) (first, rest string) {
	s = strings.TrimLeft(s, " \t")
	if i := strings.IndexAny(s, " \t"); i >= 0 {
		return s[:i], s[i:]
	}
	return s, ""
}

func parseProto(name string) []int {
	switch strings.ToUpper(name) {
	case "*":
		return nil
	case "TCP":
		return []int{6}
	case "UDP":
		return []int{17}
	case "ICMP":
		return []int{1, 58}
	case "ICMPV6":
		return []int{58}
	case "GRE":
		return []int{47}
	case "SCTP":
		return []int{132}
	}
	return []int{atoi(name)}
}

func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic("the generator made a bad number: " + s)
	}
	return n
}

// node is one entity: it says whether it is meant by the facts. strict: aliases count.
type node func(f *facts, strict bool) truth

// parseEntity reads one entity from the beginning of s. Inside a set a comma ends it.
func parseEntity(s string, inSet bool) (node, string) {
	switch s[0] {
	case '!':
		of, rest := parseEntity(s[1:], inSet)
		return func(f *facts, strict bool) truth {
			switch t := of(f, !strict); t {
			case yes:
				return no
			case no:
				return yes
			default:
				return t
			}
		}, rest
	case '{':
		return parseSet(s[1:])
	case '/':
		end := 1
		for s[end] != '/' {
			if s[end] == '\\' {
				end++
			}
			end++
		}
		re := regexp.MustCompile("(?i)" + strings.ReplaceAll(s[1:end], `\/`, "/"))
		return names(re.MatchString), s[end+1:]
	}
	stops := " \t"
	if inSet {
		stops = ",}"
	}
	end := strings.IndexAny(s, stops)
	if end < 0 {
		end = len(s)
	}
	return parseToken(s[:end]), s[end:]
}

func parseSet(s string) (node, string) {
	var of []node
	for {
		var n node
		n, s = parseEntity(s, true)
		of = append(of, n)
		end := s[0]
		s = s[1:]
		if end == '}' {
			break
		}
	}
	return func(f *facts, strict bool) truth {
		best := no
		for _, n := range of {
			best = max(best, n(f, strict))
		}
		return best
	}, s
}

// parseToken tries what a token can be, in the order of the grammar.
func parseToken(s string) node {
	if s == "*" {
		return func(*facts, bool) truth { return yes }
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return addresses(func(b netip.Addr) bool { return a.Unmap() == b })
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return addresses(p.Contains)
	}
	if from, to, ok := strings.Cut(s, "-"); ok {
		a, err1 := netip.ParseAddr(from)
		b, err2 := netip.ParseAddr(to)
		if err1 == nil && err2 == nil {
			return addresses(func(x netip.Addr) bool {
				return x.Is4() == a.Is4() && a.Compare(x) <= 0 && x.Compare(b) <= 0
			})
		}
	}
	switch {
	case regexp.MustCompile(`^[A-Z]{2}$`).MatchString(s):
		return geo(func(t *Stamp) string { return t.Country }, s)
	case strings.HasPrefix(s, "C:"):
		return geo(func(t *Stamp) string { return t.Continent }, s[2:])
	case regexp.MustCompile(`^AS[0-9]+$`).MatchString(s):
		return geo(func(t *Stamp) string {
			if t.ASN == 0 {
				return ""
			}
			return strconv.FormatUint(uint64(t.ASN), 10)
		}, strings.TrimLeft(s[2:], "0"))
	case regexp.MustCompile(`^(Localhost|LAN|Internet)(,|$)`).MatchString(s):
		return addresses(func(a netip.Addr) bool { return slices.Contains(strings.Split(s, ","), scope(a)) })
	case strings.HasPrefix(s, "L:"):
		return lists(strings.Split(s[2:], ","))
	}
	return domain(s)
}

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

func addresses(is func(netip.Addr) bool) node {
	return func(f *facts, _ bool) truth {
		if !f.addr.IsValid() {
			return unknown
		}
		return truthOf(is(f.addr.Unmap()))
	}
}

func geo(of func(*Stamp) string, want string) node {
	return func(f *facts, _ bool) truth {
		if !f.last && (f.stamp == nil || !f.addr.IsValid()) {
			return unknown
		}
		if f.stamp == nil || of(f.stamp) == "" {
			if scope(f.addr) != "Internet" {
				return outside
			}
			return missing
		}
		return truthOf(of(f.stamp) == want)
	}
}

func lists(ids []string) node {
	return func(f *facts, _ bool) truth {
		if f.stamp == nil && f.last {
			return outside
		} else if f.stamp == nil {
			return unknown
		}
		for _, l := range f.stamp.Lists {
			for _, name := range append(categories(l.Category), l.ID) {
				if slices.Contains(ids, name) {
					return yes
				}
			}
		}
		return no
	}
}

func domain(s string) node {
	star, end := strings.HasPrefix(s, "*"), strings.HasSuffix(s, "*")
	s = ascii(strings.Trim(s, "*"))
	switch {
	case star && end:
		return names(func(n string) bool { return strings.Contains(n, s) })
	case star:
		return names(func(n string) bool { return strings.HasSuffix(n, s) })
	case end:
		return names(func(n string) bool { return strings.HasPrefix(n, s) })
	case s[0] == '.':
		return names(func(n string) bool { return n == s[1:] || strings.HasSuffix(n, s) })
	default:
		return names(func(n string) bool { return n == s })
	}
}

// ascii spells a name, or the beginning or end of one, as it is on the wire.
func ascii(s string) string {
	labels := strings.Split(strings.ToLower(s), ".")
	for i, l := range labels {
		if a, err := idna.ToASCII(l); err == nil {
			labels[i] = a
		}
	}
	return strings.Join(labels, ".")
}

func names(is func(string) bool) node {
	return func(f *facts, strict bool) truth {
		if f.domain == "" {
			if f.last {
				return no
			}
			return unknown
		}
		return truthOf(is(f.domain) || strict && slices.ContainsFunc(f.cnames, is))
	}
}

// match holds a rule against the facts: every part has to be met, and one that is not settles it.
func (r *parsed) match(f *facts) truth {
	t := min(r.matchProto(f), r.matchPorts(f), r.matchApp(f))
	if t == no {
		return no
	}
	e := r.entity(f, r.takes())
	switch {
	case e == missing && f.geoMissing == "block" && r.takes():
		return t
	case e < unknown:
		return no
	default:
		return min(t, e)
	}
}

func (r *parsed) matchProto(f *facts) truth {
	switch {
	case r.protos == nil:
		return yes
	case f.proto == 0:
		return unknown
	default:
		return truthOf(slices.Contains(r.protos, f.proto))
	}
}

func (r *parsed) matchPorts(f *facts) truth {
	switch {
	case len(r.ports) == 0:
		return yes
	case f.proto != 0 && !hasPorts(f.proto):
		return no
	case f.port < 0:
		return unknown
	default:
		return truthOf(slices.ContainsFunc(r.ports, func(p [2]int) bool { return p[0] <= f.port && f.port <= p[1] }))
	}
}

func (r *parsed) matchApp(f *facts) truth {
	switch {
	case r.app == "":
		return yes
	case f.last:
		return no
	default:
		return unknown
	}
}
