package profiles

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"gatun/intel"
	"gatun/network"
	"gatun/network/packet"
)

// A second, slow evaluator, written from policy.md sections 3 and 4 alone: it judges what the
// generator meant, never what the parser understood.

type wanted struct {
	verdict string
	entity  wantedEntity
	proto   string // "", "*", "TCP", …
	ports   []int  // pairs of first and last
	app     string
}

type wantedEntity struct {
	kind, text string
	of         []wantedEntity
}

func (w wanted) String() string {
	s := w.verdict + " " + w.entity.String()
	if w.proto != "" {
		s += " " + w.proto
	}
	for i := 0; i < len(w.ports); i += 2 {
		s += "/,"[min(i, 1):][:1] + strconv.Itoa(w.ports[i])
		if w.ports[i] != w.ports[i+1] {
			s += "-" + strconv.Itoa(w.ports[i+1])
		}
	}
	if w.app != "" {
		s += " app=" + w.app
	}
	return s
}

func (e wantedEntity) String() string {
	var of []string
	for _, o := range e.of {
		of = append(of, o.String())
	}
	switch e.kind {
	case "set":
		return "{" + strings.Join(of, ",") + "}"
	case "not":
		return "!" + of[0]
	default:
		return e.text
	}
}

// The five answers. "missing" is a hole in the geo data, "void" a question without an answer.
func (e wantedEntity) holds(f *Facts, takes, aliases bool) string {
	switch e.kind {
	case "any":
		return "yes"
	case "set":
		best := "no"
		for _, answer := range []string{"void", "missing", "unknown", "yes"} {
			if slices.ContainsFunc(e.of, func(o wantedEntity) bool { return o.holds(f, takes, aliases) == answer }) {
				best = answer
			}
		}
		return best
	case "not":
		turned := map[string]string{"yes": "no", "no": "yes"}
		answer := e.of[0].holds(f, takes, !aliases)
		if t := turned[answer]; t != "" {
			return t
		}
		return answer
	case "address", "scope":
		if !f.Entity.Addr.IsValid() {
			return "unknown"
		}
		return yesNo(e.contains(f.Entity.Addr.Unmap()))
	case "country", "continent", "asn":
		return e.place(f)
	case "list":
		return e.listed(f)
	default:
		return e.named(f, aliases)
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func (e wantedEntity) contains(a netip.Addr) bool {
	if e.kind == "scope" {
		return slices.Contains(strings.Split(e.text, ","), network.ScopeOf(a).String())
	}
	if from, to, ok := strings.Cut(e.text, "-"); ok {
		lo, hi := addr(from), addr(to)
		return lo.Is4() == a.Is4() && !a.Less(lo) && !hi.Less(a)
	}
	if strings.Contains(e.text, "/") {
		return netip.MustParsePrefix(e.text).Contains(a)
	}
	return addr(e.text) == a
}

func (e wantedEntity) place(f *Facts) string {
	s := f.Entity.Stamp
	if (s == nil || !f.Entity.Addr.IsValid()) && !f.Final {
		return "unknown"
	}
	if s != nil {
		known := map[string]string{"country": s.Country, "continent": "C:" + s.Continent, "asn": "AS" + strconv.Itoa(int(s.ASN))}[e.kind]
		if known != "" && known != "C:" && known != "AS0" {
			return yesNo(known == e.text)
		}
	}
	if network.ScopeOf(f.Entity.Addr) == network.Internet {
		return "missing"
	}
	return "void"
}

func (e wantedEntity) listed(f *Facts) string {
	if f.Entity.Stamp == nil {
		if f.Final {
			return "void"
		}
		return "unknown"
	}
	ids := strings.Split(strings.TrimPrefix(e.text, "L:"), ",")
	return yesNo(slices.ContainsFunc(f.Entity.Stamp.Lists, func(m intel.Match) bool {
		return slices.Contains(ids, m.ID) || slices.Contains(ids, m.Category)
	}))
}

func (e wantedEntity) named(f *Facts, aliases bool) string {
	if f.Entity.Domain == "" {
		if f.Final {
			return "no"
		}
		return "unknown"
	}
	names := []string{f.Entity.Domain}
	if aliases {
		names = append(names, f.Entity.CNAMEs...)
	}
	bare := strings.Trim(e.text, ".*/")
	pattern := map[string]string{
		"exact": "^" + regexp.QuoteMeta(bare) + "$", "zone": `(^|\.)` + regexp.QuoteMeta(bare) + "$",
		"suffix": regexp.QuoteMeta(e.text[min(1, len(e.text)):]) + "$", "prefix": "^" + regexp.QuoteMeta(strings.TrimSuffix(e.text, "*")),
		"contains": regexp.QuoteMeta(strings.Trim(e.text, "*")), "regex": strings.Trim(e.text, "/"),
	}[e.kind]
	return yesNo(slices.ContainsFunc(names, regexp.MustCompile(pattern).MatchString))
}

// match is one rule: "yes", "no" or "unknown".
func (w wanted) match(f *Facts) string {
	takes := w.verdict == "-" || w.verdict == "--"
	answers := []string{w.protoHolds(f), w.portHolds(f), "yes", w.entity.holds(f, takes, takes)}
	if w.app != "" {
		answers[2] = yesNo(f.App == w.app)
		if f.App == "" && !f.Final {
			answers[2] = "unknown"
		}
	}
	switch answers[3] {
	case "missing":
		answers[3] = yesNo(f.GeoMissingBlocks && takes)
	case "void":
		answers[3] = "no"
	}
	switch {
	case slices.Contains(answers, "no"):
		return "no"
	case slices.Contains(answers, "unknown"):
		return "unknown"
	default:
		return "yes"
	}
}

func (w wanted) protoHolds(f *Facts) string {
	numbers := map[string][]packet.Proto{"TCP": {6}, "UDP": {17}, "ICMP": {1, 58}, "1": {1}}[w.proto]
	switch {
	case w.proto == "" || w.proto == "*":
		return "yes"
	case f.Proto == 0:
		return "unknown"
	default:
		return yesNo(slices.Contains(numbers, f.Proto))
	}
}

func (w wanted) portHolds(f *Facts) string {
	if len(w.ports) == 0 {
		return "yes"
	}
	if f.Proto != 0 && f.Proto != packet.TCP && f.Proto != packet.UDP {
		return "no"
	}
	if !f.PortKnown {
		return "unknown"
	}
	for i := 0; i < len(w.ports); i += 2 {
		if int(f.Port) >= w.ports[i] && int(f.Port) <= w.ports[i+1] {
			if f.Proto == 0 {
				return "unknown"
			}
			return "yes"
		}
	}
	return "no"
}

// naiveFirst walks down the list, as policy.md section 4 says.
func naiveFirst(list []wanted, f *Facts) (rule int, m Match, skipped bool) {
	for i, w := range list {
		switch answer := w.match(f); {
		case answer == "yes":
			return i, Matched, skipped
		case answer == "unknown" && (w.verdict == "+" || w.verdict == "?"):
			return i, Unknown, skipped
		case answer == "unknown":
			skipped = true
		}
	}
	return -1, NoMatch, skipped
}

func drawWantedEntity(t *rapid.T, depth int) wantedEntity {
	pools := [][2]string{
		{"any", "*"}, {"address", "192.0.2.7 192.0.2.8 2001:db8::1 10.0.0.1"},
		{"address", "192.0.2.0/24 192.0.0.0/16 0.0.0.0/0 2001:db8::/32 ::/0"}, {"address", "192.0.2.1-192.0.2.7 192.0.2.8-203.0.113.9 2001:db8::-2001:db8::7"},
		{"scope", "LAN LAN,Internet Localhost Localhost,LAN,Internet"}, {"country", "US DE RU"}, {"continent", "C:EU C:NA"}, {"asn", "AS1 AS64500"},
		{"list", "L:ads L:TRAC L:ads,mal"}, {"exact", "a.example www.a.example b.example"}, {"zone", ".a.example .example .b.example"},
		{"suffix", "*.a.example *ample *w.a.example *example"}, {"prefix", "www.* a*"}, {"contains", "*a.ex* *cdn*"}, {"regex", "/^www/ /b/"},
	}
	n := len(pools)
	if depth < 3 {
		n += 3
	}
	switch i := rapid.IntRange(0, n-1).Draw(t, "kind"); {
	case i < len(pools):
		return wantedEntity{kind: pools[i][0], text: rapid.SampledFrom(strings.Fields(pools[i][1])).Draw(t, "text")}
	case i == len(pools):
		return wantedEntity{kind: "not", of: []wantedEntity{drawWantedEntity(t, depth+1)}}
	default:
		set := wantedEntity{kind: "set"}
		for range rapid.IntRange(1, 3).Draw(t, "size") {
			o := drawWantedEntity(t, depth+1)
			if strings.Contains(o.String(), ",") && o.kind != "set" && !strings.HasPrefix(o.String(), "!{") {
				o = wantedEntity{kind: "country", text: "US"} // a comma ends a list of scopes in a set
			}
			set.of = append(set.of, o)
		}
		return set
	}
}

func drawWanted(t *rapid.T) wanted {
	w := wanted{verdict: rapid.SampledFrom([]string{"+", "-", "--", "?"}).Draw(t, "verdict"), entity: drawWantedEntity(t, 0)}
	w.proto = rapid.SampledFrom([]string{"", "", "", "*", "TCP", "UDP", "ICMP", "1"}).Draw(t, "proto")
	if slices.Contains([]string{"*", "TCP", "UDP"}, w.proto) && rapid.Bool().Draw(t, "has ports") {
		w.ports = rapid.SampledFrom([][]int{{443, 443}, {80, 90}, {53, 53, 80, 80}, {1, 1024}}).Draw(t, "ports")
	}
	w.app = rapid.SampledFrom([]string{"", "", "", "", "tls"}).Draw(t, "app")
	return w
}

// drawStage draws facts as one of the stages has them, or any facts at all.
func drawStage(t *rapid.T) Facts {
	f := drawFacts(t)
	f.GeoMissingBlocks = rapid.Bool().Draw(t, "geoMissing")
	if rapid.Bool().Draw(t, "stamped") {
		f.Entity.Stamp = &intel.Stamp{
			Country: rapid.SampledFrom([]string{"", "US", "DE"}).Draw(t, "country"), Continent: rapid.SampledFrom([]string{"", "EU"}).Draw(t, "continent"),
			ASN:   rapid.SampledFrom([]uint32{0, 1, 64500}).Draw(t, "asn"),
			Lists: rapid.SampledFrom([][]intel.Match{nil, {{ID: "ads", Category: "TRAC"}}, {{ID: "x"}, {ID: "mal", Category: "MAL"}}}).Draw(t, "lists"),
		}
	}
	switch rapid.SampledFrom([]string{"before", "after", "communication", "link", "any"}).Draw(t, "stage") {
	case "before":
		f = Facts{Entity: network.Entity{Domain: "www.a.example"}}
		f.Entity.Domain = drawName.Draw(t, "query")
	case "after":
		f.Proto, f.PortKnown, f.App, f.Final = 0, false, "", false
	case "communication":
		f.Proto, f.PortKnown, f.Final = 0, false, false
	case "link":
		f.Entity.Addr, f.PortKnown, f.Final = addr(drawAddr.Draw(t, "to")), true, true
		f.Proto = drawProto.Draw(t, "of")
	}
	return f
}

// parseWanted makes the list that is meant.
func parseWanted(t *rapid.T, list []wanted) []Rule {
	rules := make([]Rule, len(list))
	for i, w := range list {
		r, err := ParseRule(w.String(), network.RuleRef{})
		if err != nil {
			t.Fatalf("%q: %v", w, err)
		}
		rules[i] = r
	}
	return rules
}

// TestFirstAgainstNaive: the indexed look-up, the walk of "why" and the slow evaluator find the
// same rule with the same result, over all kinds of rules and all stages.
func TestFirstAgainstNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(rapid.Custom(drawWanted), 0, 40).Draw(t, "rules")
		set := NewRuleSet(parseWanted(t, list))
		for range 8 {
			f := drawStage(t)
			want, wantMatch, wantSkipped := naiveFirst(list, &f)
			for _, visit := range []func(*Rule, Match){nil, func(*Rule, Match) {}} {
				r, m, skipped := set.First(&f, visit)
				got := slices.IndexFunc(set.rules, func(o Rule) bool { return r != nil && o.String() == r.String() })
				if r != nil && want >= 0 && r == &set.rules[want] {
					got = want
				}
				if got != want || m != wantMatch || skipped != wantSkipped {
					t.Fatalf("%v\nwith %+v %+v (visit %v): got %d %v %v, want %d %v %v", list, f, f.Entity.Stamp, visit != nil, got, m, skipped, want, wantMatch, wantSkipped)
				}
			}
		}
	})
}

// TestManyPorts: the port index of a large bucket changes nothing.
func TestManyPorts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entity := wantedEntity{kind: "any", text: "*"}
		if rapid.Bool().Draw(t, "zone") {
			entity = wantedEntity{kind: "zone", text: ".example"}
		}
		list := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) wanted {
			from := rapid.IntRange(440, 450).Draw(t, "from")
			w := wanted{verdict: rapid.SampledFrom([]string{"+", "-", "--", "?"}).Draw(t, "verdict"), entity: entity, proto: rapid.SampledFrom([]string{"TCP", "UDP", "*"}).Draw(t, "proto")}
			if rapid.IntRange(0, 9).Draw(t, "ports") > 0 {
				w.ports = []int{from, from + rapid.SampledFrom([]int{0, 0, 3, 1000}).Draw(t, "more")}
			}
			return w
		}), fewRules+1, 60).Draw(t, "rules")
		set := NewRuleSet(parseWanted(t, list))
		for range 20 {
			f := drawStage(t)
			f.Port = uint16(rapid.IntRange(438, 452).Draw(t, "port"))
			want, wantMatch, wantSkipped := naiveFirst(list, &f)
			r, m, skipped := set.First(&f, nil)
			if m != wantMatch || skipped != wantSkipped || m != NoMatch && r != &set.rules[want] {
				t.Fatalf("%v\nwith %+v: got %v %v %v, want %d %v %v", list, f, r, m, skipped, want, wantMatch, wantSkipped)
			}
		}
	})
}

// TestPrefixesOf: a range is exactly its prefixes, and no fewer would do.
func TestPrefixesOf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := addr("192.0.2.0").As4(), addr("2001:db8::").As16()
		var from, to netip.Addr
		lo := rapid.IntRange(0, 0xffff).Draw(t, "from")
		hi := rapid.IntRange(lo, 0xffff).Draw(t, "to")
		if rapid.Bool().Draw(t, "v6") {
			b[14], b[15] = byte(lo>>8), byte(lo)
			from = netip.AddrFrom16(b)
			b[14], b[15] = byte(hi>>8), byte(hi)
			to = netip.AddrFrom16(b)
		} else {
			a[2], a[3] = byte(lo>>8), byte(lo)
			from = netip.AddrFrom4(a)
			a[2], a[3] = byte(hi>>8), byte(hi)
			to = netip.AddrFrom4(a)
		}
		next := from
		list := prefixesOf(from, to)
		for i, p := range list {
			if p.Addr() != next || p != p.Masked() {
				t.Fatalf("%s-%s: %v", from, to, list)
			}
			if i > 0 && list[i-1].Bits() == p.Bits() && netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked().Contains(list[i-1].Addr()) {
				t.Fatalf("%s-%s: %s and %s are one", from, to, list[i-1], p)
			}
			last := numberOf(p.Addr()).or(ones(from.BitLen() - p.Bits()))
			next = last.addr(from.BitLen()).Next()
		}
		if next != to.Next() {
			t.Fatalf("%s-%s: ends before %s: %v", from, to, next, list)
		}
	})
	for text, want := range map[string]int{
		"0.0.0.0-255.255.255.255": 1, "0.0.0.1-255.255.255.254": 62, "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": 1,
		"::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe": 254, "192.0.2.7-192.0.2.7": 1, "::ffff:ffff:ffff:ffff-0:0:0:1::": 2,
	} {
		from, to, _ := strings.Cut(text, "-")
		if got := len(prefixesOf(addr(from), addr(to))); got != want {
			t.Errorf("%s: %d prefixes, want %d", text, got, want)
		}
	}
}
