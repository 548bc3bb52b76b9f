package profiles

import (
	"net/netip"
	"strings"
	"testing"

	"gatun/intel"
	"gatun/network"
	"gatun/network/packet"
)

func mustRule(t testing.TB, text string) Rule {
	t.Helper()
	r, err := ParseRule(text, network.RuleRef{})
	if err != nil {
		t.Fatalf("ParseRule(%q): %v", text, err)
	}
	return r
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// dnsFacts is what a DNS stage knows before the answer is there.
func dnsFacts(name string, aliases ...string) Facts {
	return Facts{Entity: network.Entity{Domain: name, CNAMEs: aliases}}
}

// linkFacts is what the first packet tells.
func linkFacts(name, to string, proto packet.Proto, port uint16) Facts {
	return Facts{Entity: network.Entity{Addr: addr(to), Domain: name}, Proto: proto, Port: port, PortKnown: true, Final: true}
}

// matchFacts are facts of every stage, for tests that compare.
func matchFacts() []Facts {
	communication := linkFacts("", "192.0.2.7", 0, 0)
	communication.PortKnown, communication.Final = false, false
	withApp := linkFacts("www.a.example", "2001:db8::1", packet.UDP, 443)
	withApp.App = "quic"
	stamped := linkFacts("www.a.example", "192.0.2.7", packet.TCP, 443)
	stamped.Entity.Stamp = &intel.Stamp{Country: "US", Continent: "NA", ASN: 64500, Lists: []intel.Match{{ID: "ads", Category: "TRAC"}}}
	hole := linkFacts("", "192.0.2.7", packet.TCP, 443)
	hole.Entity.Stamp, hole.GeoMissingBlocks = &intel.Stamp{}, true
	return []Facts{
		stamped, hole,
		dnsFacts("www.a.example"), dnsFacts("b.example", "www.a.example", "xn--bcher-kva.example"), communication, withApp,
		linkFacts("a.example", "192.0.2.7", packet.TCP, 443), linkFacts("", "10.1.2.3", packet.UDP, 53),
		linkFacts("", "127.0.0.1", packet.ICMP, 0), linkFacts("", "fe80::1", packet.ICMPv6, 0), {Final: true}, {},
	}
}

// TestMatch is policy.md section 4, three-valued matching, as a table.
func TestMatch(t *testing.T) {
	named := linkFacts("www.a.example", "192.0.2.7", packet.TCP, 443)
	bare := linkFacts("", "192.0.2.7", packet.TCP, 443)
	six := linkFacts("", "2001:db8::7", packet.UDP, 53)
	ping := linkFacts("", "192.0.2.7", packet.ICMP, 0)
	ping6 := linkFacts("", "2001:db8::7", packet.ICMPv6, 0)
	query := dnsFacts("www.a.example")
	alias := dnsFacts("shop.example", "cdn.a.example")
	early := Facts{Entity: network.Entity{Addr: addr("192.0.2.7")}} // Communication of an address
	mapped := linkFacts("", "::ffff:192.0.2.7", packet.TCP, 443)
	quic := named
	quic.App = "quic"
	table := []struct {
		rule  string
		facts Facts
		want  Match
	}{
		{"+ *", query, Matched}, {"+ *", Facts{}, Matched},
		{"+ * TCP", query, Unknown}, {"+ * TCP", named, Matched}, {"+ * TCP", six, NoMatch}, {"+ * *", query, Matched},
		{"+ * TCP/443", query, Unknown}, {"+ * TCP/443", named, Matched}, {"+ * TCP/80", named, NoMatch}, {"+ * TCP/80-90,443", named, Matched},
		{"+ * */443", named, Matched}, {"+ * */443", ping, NoMatch}, {"+ * */443", query, Unknown},
		{"- * ICMP", ping, Matched}, {"- * ICMP", ping6, Matched}, {"- * 1", ping6, NoMatch}, {"- * 58", ping6, Matched}, {"- * ICMPv6", ping, NoMatch},
		{"+ 192.0.2.7", named, Matched}, {"+ 192.0.2.7", mapped, Matched}, {"+ 192.0.2.0/24", bare, Matched}, {"+ 192.0.2.0/24", six, NoMatch},
		{"+ 192.0.2.0/24", query, Unknown}, {"+ ::/0", bare, NoMatch}, {"+ ::/0", six, Matched},
		{"+ 192.0.2.1-192.0.2.7", bare, Matched}, {"+ 192.0.2.8-192.0.2.9", bare, NoMatch}, {"+ ::-ffff::", bare, NoMatch},
		{"+ 2001:db8::-2001:db8::ffff", six, Matched}, {"+ 192.0.2.1-192.0.2.7", query, Unknown},
		{"+ Internet", bare, Matched}, {"+ LAN", bare, NoMatch}, {"+ LAN,Internet", bare, Matched}, {"+ LAN,LAN", linkFacts("", "10.0.0.1", packet.TCP, 1), Matched},
		{"+ Localhost", query, Unknown},
		{"+ www.a.example", query, Matched}, {"+ a.example", query, NoMatch}, {"+ .a.example", query, Matched}, {"+ .www.a.example", query, Matched},
		{"+ .ww.a.example", query, NoMatch}, {"+ .w.a.example", query, NoMatch}, {"+ *.a.example", query, Matched}, {"+ *w.a.example", query, Matched},
		{"+ www.*", query, Matched}, {"+ *a.ex*", query, Matched}, {"+ /^WWW\\./", query, Matched}, {"+ /^a/", query, NoMatch},
		{"+ www.a.example", bare, NoMatch}, {"- www.a.example", bare, NoMatch}, {"- www.a.example", early, Unknown},
		{"+ {b.example,.a.example}", query, Matched}, {"+ {b.example,192.0.2.0/24}", query, Unknown}, {"+ {b.example,192.0.2.0/24}", bare, Matched},
		{"+ !.a.example", query, NoMatch}, {"+ !.b.example", query, Matched}, {"+ !192.0.2.0/24", query, Unknown}, {"+ !!.a.example", query, Matched},
		{"- !LAN,Localhost", bare, Matched},
		{"- .a.example TCP/443", query, Unknown}, {"- .b.example TCP/443", query, NoMatch}, {"- .a.example UDP", named, NoMatch},
		{"- * app=quic", quic, Matched}, {"- * app=quic", named, NoMatch}, {"- * app=quic", query, Unknown}, {"- * app=tls", quic, NoMatch},
		// Aliases make a decision stricter, never looser.
		{"- .a.example", alias, Matched}, {"-- .a.example", alias, Matched}, {"+ .a.example", alias, NoMatch}, {"? .a.example", alias, NoMatch},
		{"+ !.a.example", alias, NoMatch}, {"- !.a.example", alias, Matched}, {"- !.shop.example", alias, NoMatch}, {"- !!.a.example", alias, Matched},
		{"- {b.example,cdn.*}", alias, Matched},
	}
	for _, c := range table {
		r := mustRule(t, c.rule)
		if got := r.Match(&c.facts); got != c.want {
			t.Errorf("%q against %+v: %v, want %v", c.rule, c.facts, got, c.want)
		}
	}
}

// TestMatchIntel is what rules say of countries, ASNs and lists, and of holes in the data.
func TestMatchIntel(t *testing.T) {
	full := &intel.Stamp{Country: "US", Continent: "NA", ASN: 64500, Lists: []intel.Match{{ID: "ads", Category: "TRAC"}}}
	at := func(to string, s *intel.Stamp) Facts {
		f := linkFacts("", to, packet.TCP, 443)
		f.Entity.Stamp = s
		return f
	}
	us, hole, none, lan := at("192.0.2.7", full), at("192.0.2.7", &intel.Stamp{}), at("192.0.2.7", nil), at("10.0.0.1", &intel.Stamp{})
	early := Facts{Entity: network.Entity{Addr: addr("192.0.2.7")}}
	query := dnsFacts("a.example")
	nameOnly := dnsFacts("a.example")
	nameOnly.Entity.Stamp = full
	half := at("192.0.2.7", &intel.Stamp{Country: "US"})
	table := []struct {
		rule   string
		facts  Facts
		want   Match
		blocks Match // with filter/geoMissing: block
	}{
		{"- US", us, Matched, Matched}, {"+ US", us, Matched, Matched}, {"- DE", us, NoMatch, NoMatch}, {"- !DE", us, Matched, Matched},
		{"- C:NA", us, Matched, Matched}, {"- C:EU", us, NoMatch, NoMatch}, {"- AS64500", us, Matched, Matched}, {"- AS1", us, NoMatch, NoMatch},
		{"- {DE,AS64500}", us, Matched, Matched},
		// The reference denies here whatever the rule says.
		{"+ US", hole, NoMatch, NoMatch}, {"? US", hole, NoMatch, NoMatch}, {"- US", hole, NoMatch, Matched}, {"-- AS1", hole, NoMatch, Matched},
		{"+ !US", hole, NoMatch, NoMatch}, {"- !US", hole, NoMatch, Matched}, {"- C:EU", hole, NoMatch, Matched}, {"- US UDP", hole, NoMatch, NoMatch},
		{"+ {US,192.0.2.7}", hole, Matched, Matched}, {"- {US,192.0.2.8}", hole, NoMatch, Matched}, {"- AS1", half, NoMatch, Matched}, {"- DE", half, NoMatch, NoMatch},
		{"- {DE,AS1}", half, NoMatch, Matched}, {"- {US,AS1}", half, Matched, Matched},
		{"- US", none, NoMatch, Matched}, {"+ US", none, NoMatch, NoMatch}, {"- L:ads", none, NoMatch, NoMatch}, {"+ !L:ads", none, NoMatch, NoMatch},
		// A local address is in no country, and that is no hole in the data.
		{"- US", lan, NoMatch, NoMatch}, {"- !US", lan, NoMatch, NoMatch}, {"+ !US", lan, NoMatch, NoMatch},
		// Not yet.
		{"- US", early, Unknown, Unknown}, {"+ !US", early, Unknown, Unknown}, {"- L:ads", early, Unknown, Unknown}, {"- US", query, Unknown, Unknown}, {"+ AS1", query, Unknown, Unknown},
		{"- US", nameOnly, Unknown, Unknown}, {"- L:ads", nameOnly, Matched, Matched},
		{"- US TCP/80", us, NoMatch, NoMatch}, {"- {US,.a.example}", query, Matched, Matched},
		// Lists are named by their id or by their category, which never matches in the reference.
		{"- L:ads", us, Matched, Matched}, {"- L:TRAC", us, Matched, Matched}, {"- L:mal,TRAC", us, Matched, Matched}, {"- L:mal", us, NoMatch, NoMatch}, {"- !L:ads", us, NoMatch, NoMatch},
		{"+ !L:mal", us, Matched, Matched}, {"- L:ads", hole, NoMatch, NoMatch},
	}
	for _, c := range table {
		r := mustRule(t, c.rule)
		c.facts.GeoMissingBlocks = false
		if got := r.Match(&c.facts); got != c.want {
			t.Errorf("%q against %+v %+v: %v, want %v", c.rule, c.facts, c.facts.Entity.Stamp, got, c.want)
		}
		c.facts.GeoMissingBlocks = true
		if got := r.Match(&c.facts); got != c.blocks {
			t.Errorf("geoMissing block: %q against %+v %+v: %v, want %v", c.rule, c.facts, c.facts.Entity.Stamp, got, c.blocks)
		}
	}
}

// TestReferenceFaults: the measured faults of the reference (policy.md section 3), one by one.
func TestReferenceFaults(t *testing.T) {
	refused := map[string]string{ // rule -> beginning of the message
		"+ #x":           "want an address, a name or *", // panics
		"+ * TCP/100-50": "the range 100-50 is empty",    // accepted, never matches
		"+ * ICMP/8":     "ICMP has no ports",            // accepted, never matches
		"+ * GRE/1":      "GRE has no ports",
		"- us":           `"us" is a country if`, // taken for a domain
		"- as1":          `"as1" is an ASN if`,
	}
	for text, want := range refused {
		if col, message, _ := CheckRule(text); col == 0 || !strings.HasPrefix(message, want) {
			t.Errorf("%q: column %d, %q, want %q", text, col, message, want)
		}
	}
	here := linkFacts("", "10.0.0.1", packet.TCP, 443)
	hole := linkFacts("", "192.0.2.7", packet.TCP, 443)
	hole.Entity.Stamp = &intel.Stamp{Lists: []intel.Match{{ID: "ads", Category: "TRAC"}}}
	table := []struct {
		rules, decides string
		facts          Facts
	}{
		{"+ LAN,LAN", "+ LAN", here},                                 // never matches
		{"- L:TRAC", "- L:TRAC", hole},                               // category ids never match
		{"+ US | - 192.0.2.0/24", "- 192.0.2.0/24", hole},            // a hole in the geo data denies,
		{"+ AS1 | + C:EU | + *", "+ *", hole},                        // on an allow rule as well
		{"- US | - AS1 | + *", "+ *", hole},                          //
		{"+ * TCP/443 | - *", "undecided", dnsFacts("a.example")},    // a trailing "- *" kills every query
		{"+ 192.0.2.0/24 | - *", "undecided", dnsFacts("a.example")}, // that no earlier line allows
		{"+ bücher.example | - *", "+ xn--bcher-kva.example", dnsFacts("xn--bcher-kva.example")},
		{"+ xn--bcher-kva.example | - *", "+ xn--bcher-kva.example", dnsFacts("xn--bcher-kva.example")},
		{"- * */1-65535 | + *", "+ *", linkFacts("", "192.0.2.7", packet.ICMP, 0)}, // said so in doc.go: no port, no match
	}
	for _, c := range table {
		set := mustSet(t, strings.Split(c.rules, " | ")...)
		got := "nothing"
		switch r, m, _ := set.First(&c.facts, nil); m {
		case Matched:
			got = r.String()
		case Unknown:
			got = "undecided"
		}
		if got != c.decides {
			t.Errorf("%s: %s decides, want %s", c.rules, got, c.decides)
		}
	}
	set := mustSet(t, "+ US", "- *")
	set.First(&hole, nil)
	set.First(&hole, func(*Rule, Match) {}) // "why" does not count
	set.First(&here, nil)                   // a local address is no hole
	if n := set.GeoMissing(); n != 1 {
		t.Errorf("counted %d holes, want 1", n)
	}
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		Allow.String(): "+", Block.String(): "-", Drop.String(): "--", Ask.String(): "?",
		Matched.String(): "match", NoMatch.String(): "no match", Unknown.String(): "unknown yet",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if (Action(0)) != Block {
		t.Error("the zero action does not block")
	}
}
