package profiles

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"gatun/config"
	"gatun/network"
	"gatun/network/packet"
)

// lintConfig loads a configuration from a file with this text.
func lintConfig(t testing.TB, text string) *config.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gatun.yaml")
	if err := os.WriteFile(file, []byte("version: 1\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(config.Source{File: file, CheckRule: CheckRule})
	if err != nil {
		t.Fatalf("%s\n%v", text, err)
	}
	return cfg
}

// rulesYAML is a list of rules, the first in line 4 of the file.
func rulesYAML(rules ...string) string {
	if len(rules) == 0 {
		return "filter: {endpoints: []}\n"
	}
	var b strings.Builder
	b.WriteString("filter:\n  endpoints:\n")
	for _, r := range rules {
		fmt.Fprintf(&b, "    - %q\n", r)
	}
	b.WriteString("  ping: rules\n")
	return b.String()
}

const (
	never    = "never decides: "
	moveIt   = " comes first and covers it; move this rule in front, or remove it"
	asMuch   = " comes first and does the same to all of it; remove this rule"
	the      = "it says the same as "
	aliases  = "decides for aliases (CNAMEs) only: "
	toAlias  = " comes first; move this rule in front, or remove it"
	loop     = "loopback traffic is not seen: this rule decides on DNS answers that point to this machine, and on nothing else"
	noLists  = " never matches: no filter lists are configured; name some in the section lists"
	noGeo    = " never matches: there is no country data; name a file of it in the section geo"
	noASN    = " never matches: there is no ASN data; name a file of it in the section geo"
	noApp    = "never matches in this version: app= needs inspection"
	toEnd    = " matches everything; move it to the end of the list or remove what follows"
	notAsked = " may allow what a name leads to, so that each name is resolved first; put rules about names in front, or give that rule names"
	dontKeep = "does not keep names from being asked for: "
	noAddr   = "a name has no address while it is asked for: names that "
	onlyThen = " allows are resolved, and only then this rule blocks the addresses it knows; move it behind if the name is to win"
)

// everything is there: the warnings are about the rules alone.
func everything() Installed {
	return Installed{Lists: []string{"ads", "mal", "TRAC", "MAL"}, Countries: true, Networks: true, Inspection: true}
}

// TestLint holds lists of rules against the exact warnings: "2: …" is about the second rule.
func TestLint(t *testing.T) {
	table := []struct {
		name  string
		rules string // separated by " | "
		want  []string
	}{
		{"empty", "", nil},
		{"one", "+ .a.example", nil},
		{"all that is different", "+ .a.example | - .b.example | + 192.0.2.1 | - 198.51.100.0/24 | + LAN TCP/22 | - US | + AS1 | - L:ads", nil},
		{"narrow before wide", "- www.a.example | + .a.example | - .example", nil},
		{"same name, other port", "+ a.example TCP/443 | + a.example TCP/80 | - a.example", nil},
		{"duplicate", "+ .a.example | - b.example | + .A.example.", []string{"3: " + never + the + `"+ .a.example" in line 4; remove one of them`}},
		{"duplicate ports", "- * TCP/443 | - * tcp/443 # again", []string{"2: " + never + the + `"- * TCP/443" in line 4; remove one of them`}},
		{"block and drop of the same", "- a.example | -- a.example", []string{"2: " + never + `"- a.example" in line 4` + moveIt}},
		{"block and allow of the same", "- a.example | + a.example", []string{"2: " + never + `"- a.example" in line 4` + moveIt}},
		{"allow and block of the same", "+ a.example | - a.example", []string{"2: " + aliases + `"+ a.example" in line 4` + toAlias}},
		{"allow and ask", "+ a.example | ? a.example", []string{"2: " + never + `"+ a.example" in line 4` + moveIt}},
		{"zone over exact", "- .example | + www.a.example", []string{"2: " + never + `"- .example" in line 4` + moveIt}},
		{"zone over zone", "- .example | - .a.example", []string{"2: " + never + `"- .example" in line 4` + asMuch}},
		{"zone over suffix", "- .example | + *.a.example", []string{"2: " + never + `"- .example" in line 4` + moveIt}},
		{"suffix over exact", "- *ds.example | + ads.example", []string{"2: " + never + `"- *ds.example" in line 4` + moveIt}},
		{"suffix over zone", "- *ample | + .a.example", []string{"2: " + never + `"- *ample" in line 4` + moveIt}},
		{"suffix below a zone leaves the zone", "- *.a.example | + .a.example", nil},
		{"contains over all forms", "- *ads* | + ads.example | + .ads.example | + *ads.example | + ads.* | + *xadsx*", []string{
			"2: " + never + `"- *ads*" in line 4` + moveIt, "3: " + never + `"- *ads*" in line 4` + moveIt, "4: " + never + `"- *ads*" in line 4` + moveIt,
			"5: " + never + `"- *ads*" in line 4` + moveIt, "6: " + never + `"- *ads*" in line 4` + moveIt,
		}},
		{"prefix over prefix", "- ads.* | + ads.x.* | + ads.y.example | + ad.*", []string{"2: " + never + `"- ads.*" in line 4` + moveIt, "3: " + never + `"- ads.*" in line 4` + moveIt}},
		{"regex over exact", "- /^ads[0-9]+\\./ | + ads7.example | + ads.example", []string{"2: " + never + `"- /^ads[0-9]+\\./" in line 4` + moveIt}},
		{"an allowed zone leaves aliases to a block", "+ .example | - www.a.example", []string{"2: " + aliases + `"+ .example" in line 4` + toAlias}},
		{"a block with ports leaves the rest", "- .example TCP/443 | + www.example TCP | + www.example", nil},
		{"ports within ports", "- .example TCP/80-90,443 | + www.example TCP/85-88,443 | + www.example TCP/89-91", []string{"2: " + never + `"- .example TCP/80-90,443" in line 4` + moveIt}},
		{"adjoining ports", "- * TCP/80-90,91-99 | + .example TCP/85-95", []string{"2: " + never + `"- * TCP/80-90,91-99" in line 4` + moveIt}},
		{"any protocol over one", "- .example */53 | + .example UDP/53 | + .example TCP", []string{"2: " + never + `"- .example */53" in line 4` + moveIt}},
		{"ICMP over its numbers", "- * ICMP | + * 1 | + * 58 | + * ICMPv6 | + * UDP/1 | - .example", []string{
			"2: " + never + `"- * ICMP" in line 4` + moveIt, "3: " + never + `"- * ICMP" in line 4` + moveIt, "4: " + never + `"- * ICMP" in line 4` + moveIt,
		}},
		{"one number leaves the other", "- * 1 | + * ICMP", nil},
		{"prefix over address, range and prefix", "- 192.0.2.0/24 | + 192.0.2.7 | + 192.0.2.1-192.0.2.9 | + 192.0.2.128/25 | + 192.0.3.0/24 | + 192.0.2.9-192.0.3.9", []string{
			"2: " + never + `"- 192.0.2.0/24" in line 4` + moveIt, "3: " + never + `"- 192.0.2.0/24" in line 4` + moveIt, "4: " + never + `"- 192.0.2.0/24" in line 4` + moveIt,
		}},
		{"range over prefix", "- 10.0.0.1-10.3.255.255 | + 10.1.0.0/16 | + 10.0.0.0/16", []string{"2: " + never + `"- 10.0.0.1-10.3.255.255" in line 4` + moveIt}},
		{"range over range of IPv6", "- 2001:db8::-2001:db8::ff | + 2001:db8::1-2001:db8::2 | + 2001:db8::1-2001:db8::100", []string{"2: " + never + `"- 2001:db8::-2001:db8::ff" in line 4` + moveIt}},
		{"scope over address", "- LAN | + 10.0.0.0/8 | + 192.168.0.0-192.168.255.255 | + 224.0.0.251 | + 192.0.2.1 | + fe80::/10 | + 172.0.0.0/11", []string{
			"2: " + never + `"- LAN" in line 4` + moveIt, "3: " + never + `"- LAN" in line 4` + moveIt, "4: " + never + `"- LAN" in line 4` + moveIt, "6: " + never + `"- LAN" in line 4` + moveIt,
		}},
		{"scopes over scope", "- LAN,Internet | + LAN | + Internet TCP", []string{"2: " + never + `"- LAN,Internet" in line 4` + moveIt, "3: " + never + `"- LAN,Internet" in line 4` + moveIt}},
		{"negated scope", "- !LAN | + Internet | + 192.0.2.1 | + 10.0.0.1 | - LAN", []string{"2: " + never + `"- !LAN" in line 4` + moveIt, "3: " + never + `"- !LAN" in line 4` + moveIt}},
		{"country, continent, ASN, list", "- {US,C:EU,AS1} | + US | + C:EU TCP | + AS1 | + DE | - L:ads,mal | + L:mal | + L:TRAC", []string{
			"2: " + never + `"- {US,C:EU,AS1}" in line 4` + moveIt, "3: " + never + `"- {US,C:EU,AS1}" in line 4` + moveIt, "4: " + never + `"- {US,C:EU,AS1}" in line 4` + moveIt,
			"7: " + never + `"- L:ads,mal" in line 9` + moveIt,
		}},
		{"a set in the shadow of several", "- .a.example | + .b.example TCP/1 | - b.example | + {www.a.example,b.example} | + {www.a.example,c.example}", []string{"4: " + never + `"- .a.example" in line 4` + moveIt}},
		{"negations are equal or nothing", "- !.a.example | + !.a.example | + !.b.example", []string{"2: " + never + `"- !.a.example" in line 4` + moveIt}},
		{"double negation", "- .a.example | + !!www.a.example", []string{"2: " + never + `"- .a.example" in line 4` + moveIt}},
		{"unreachable", "+ .a.example | - * | + .b.example | + c.example", []string{`3: never reached, nor is the rule below: "- *" in line 5` + toEnd}},
		{"unreachable behind allow", "+ * | - LAN", []string{`2: never reached: "+ *" in line 4` + toEnd}},
		{"unreachable in many", "? {.a.example,*} | - LAN | - US | - AS1", []string{`2: never reached, nor are the 2 rules below: "? {.a.example,*}" in line 4` + toEnd}},
		{"* with a port is not everything", "+ * TCP/443 | - .a.example", nil},
		{"all scopes, when they allow", "+ Localhost,LAN,Internet | - .a.example", []string{"2: " + never + `"+ Localhost,LAN,Internet" in line 4` + moveIt}},
		{"all scopes, when they block, leave the name", "- Localhost,LAN,Internet | - .a.example", nil},
		{"excludes everything", "- !* | + !{Localhost,LAN,Internet} | - !{0.0.0.0/0,::/0} TCP", []string{
			"1: never matches: nothing is left beside *", "2: never matches: nothing is left beside {Localhost,LAN,Internet}", "3: never matches: nothing is left beside {0.0.0.0/0,::/0}",
		}},
		{"wrong family of ICMP", "- 192.0.2.1 ICMPv6 | - 2001:db8::/32 1 | - 2001:db8::1-2001:db8::2 IGMP | + 192.0.2.1 ICMP | + 2001:db8::1 58", []string{
			"1: never matches: ICMPv6 belongs to IPv6, the addresses to IPv4; want ICMP", "2: never matches: protocol 1 belongs to IPv4, the addresses to IPv6",
			"3: never matches: protocol IGMP belongs to IPv4, the addresses to IPv6",
		}},
		{"application and transport", "- * TCP app=quic | - * UDP app=ssh | - * UDP app=quic | - * UDP/53 app=dns", []string{"1: never matches: QUIC runs over UDP", "2: never matches: ssh runs over TCP"}},
		{"loopback", "- Localhost | + 127.0.0.0/8 TCP/80 | + {::1,LAN}", []string{"1: " + loop, "2: " + never + `"- Localhost" in line 4` + moveIt}},
		{"unknown list", "- L:adds | - L:mal,nothing-like-it", []string{"1: L:adds never matches: no filter list has this id or category (L:ads)", "2: L:nothing-like-it never matches: no filter list has this id or category"}},
		{"address before name", "- 192.0.2.0/24 | - RU | + .a.example | + b.example", []string{"1: " + noAddr + `"+ .a.example" in line 6` + onlyThen}},
		{"address before name with a port", "- 192.0.2.0/24 | + .a.example TCP/443", nil},
		{"address before a set with an address", "- 192.0.2.0/24 | + {.a.example,198.51.100.1}", nil},
		{"name before address", "+ .a.example | - 192.0.2.0/24", nil},
		{"trailing block behind an address", "+ .a.example | + 192.0.2.0/24 TCP | - *", []string{"3: " + dontKeep + `"+ 192.0.2.0/24 TCP" in line 5` + notAsked}},
		{"trailing block behind a dead address and another", "- LAN | + 10.0.0.1 | + 192.0.2.1 | - *", []string{
			"2: " + never + `"- LAN" in line 4` + moveIt, "4: " + dontKeep + `"+ 192.0.2.1" in line 6` + notAsked,
		}},
		{"trailing block behind a dead address", "- LAN | + 10.0.0.1 | - *", []string{"2: " + never + `"- LAN" in line 4` + moveIt, "3: " + dontKeep + `"+ 10.0.0.1" in line 5` + notAsked}},
		{"trailing block behind a port", "+ * TCP/443 | -- *", []string{"2: " + dontKeep + `"+ * TCP/443" in line 4` + notAsked}},
		{"trailing block behind names", "+ .a.example TCP/443 | + b.example | - *", nil},
		{"trailing block behind blocks", "- LAN | - US | - * TCP/25 | - *", nil},
		{"trailing allow behind addresses", "- LAN | - US | + *", nil},
	}
	if len(table) < 40 {
		t.Errorf("%d lists", len(table))
	}
	for _, c := range table {
		cfg := lintConfig(t, rulesYAML(strings.FieldsFunc(strings.ReplaceAll(c.rules, " | ", "\n"), func(r rune) bool { return r == '\n' })...))
		var got []string
		for _, p := range Lint(cfg, everything()).Sort() {
			text := fmt.Sprintf("%d: %s", p.Line-3, p.Message)
			if p.Suggestion != "" {
				text += " (" + p.Suggestion + ")"
			}
			got = append(got, text)
			if p.Col != 8 || p.Excerpt == "" || p.Key != fmt.Sprintf("filter/endpoints[%d]", p.Line-4) {
				t.Errorf("%s: position %v, key %q, excerpt %q", c.name, p.Position, p.Key, p.Excerpt)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %s\n got %q\nwant %q", c.name, c.rules, got, c.want)
		}
	}
}

// TestLintConfig is about what other settings and missing data make of rules.
func TestLintConfig(t *testing.T) {
	profile := "profiles:\n  - {name: p, match: [{path: /usr/bin/p}], filter: {%s}}\n"
	table := []struct {
		name, text string
		have       Installed
		want       []string
	}{
		{"nothing is installed", rulesYAML("- {RU,L:ads}", "- DE", "- L:mal", "+ * app=tls", "- * app=quic", "+ AS1"), Installed{}, []string{
			"4 filter/endpoints[0]: RU" + noGeo + "; the same holds for 1 more of this list", "4 filter/endpoints[0]: L:ads" + noLists + "; the same holds for 1 more of this list",
			"7 filter/endpoints[3]: " + noApp, "8 filter/endpoints[4]: " + noApp,
			"9 filter/endpoints[5]: AS1" + noASN,
		}},
		{"lists that nobody has", "filter: {lists: [TRAC, NSFW, adss, CUSTOM, mal]}\n" + fmt.Sprintf(profile, "lists: [trac]"), everything(), []string{
			"2 filter/lists[2]: no filter list has this id, and it is no category: it blocks nothing",
			"4 profiles[p]/filter/lists[0]: no filter list has this id, and it is no category: it blocks nothing",
		}},
		{"one kind of data", rulesYAML("- {RU,AS1}", "- AS2", "- C:EU"), Installed{Countries: true}, []string{"4 filter/endpoints[0]: AS1" + noASN + "; the same holds for 1 more of this list"}},
		{"pings are relayed", "filter: {endpoints: [\"- * ICMP\", \"+ LAN 58\", \"- * UDP\"]}\n", everything(), []string{
			"2 filter/endpoints[0]: has no effect on pings while filter/ping is permit (default); want filter/ping: rules",
			"2 filter/endpoints[1]: never decides: \"- * ICMP\" in line 2" + moveIt,
		}},
		{"a dead rule has no stage", rulesYAML("- RU", "+ .a.example"), Installed{}, []string{"4 filter/endpoints[0]: RU" + noGeo}},
		{"blocked scope", "filter: {blockLAN: on, endpoints: [\"+ 192.168.1.1\", \"- LAN TCP/80\", \"+ {10.0.0.1,.a.example}\", \"+ 192.0.2.1\"]}\n", everything(), []string{
			"2 filter/endpoints[0]: never decides: filter/blockLAN is on (FILE:2) and comes before all rules; switch that off and write a rule instead, or remove this one",
			"2 filter/endpoints[1]: never decides: filter/blockLAN is on (FILE:2) and comes before all rules; switch that off and write a rule instead, or remove this one",
		}},
		{"blocked at a rating is not always", "filter: {blockLAN: danger, endpoints: [\"+ 192.168.1.1\"]}\n", everything(), nil},
		{"blocked, but not for all", "filter: {blockLAN: on, endpoints: [\"+ 192.168.1.1\"]}\n" + fmt.Sprintf(profile, "blockLAN: off"), everything(), nil},
		{"blocked in a profile", fmt.Sprintf(profile, `blockInternet: on, endpoints: ["+ 192.0.2.1", "+ LAN"]`), everything(), []string{
			"3 profiles[p]/filter/endpoints[0]: never decides: filter/blockInternet is on (FILE:3) and comes before all rules; switch that off and write a rule instead, or remove this one",
		}},
		{"incoming rules and blockInbound", "filter: {serviceEndpoints: [\"+ LAN TCP/22\"]}\n", everything(), []string{
			"2 filter/serviceEndpoints[0]: incoming rules have no effect while filter/blockInbound is on (default); switch it off in the profile of the program that serves",
		}},
		{"incoming rules and a profile that serves", "filter: {serviceEndpoints: [\"+ LAN TCP/22\"]}\n" + fmt.Sprintf(profile, `blockInbound: off, serviceEndpoints: ["+ *", "- LAN"]`), everything(), []string{
			`4 profiles[p]/filter/serviceEndpoints[1]: never reached: "+ *" in line 4` + toEnd,
		}},
		{"incoming loopback", "filter: {blockInbound: off, serviceEndpoints: [\"+ ::1\"]}\n", everything(), []string{"2 filter/serviceEndpoints[0]: never matches: loopback traffic is not seen"}},
		{"profiles stand alone", rulesYAML("- .a.example") + fmt.Sprintf(profile, `endpoints: ["+ .a.example", "- *"]`), everything(), nil},
		{"profiles come last", fmt.Sprintf(profile, `endpoints: ["- b.example", "- b.example"]`) + rulesYAML("- a.example", "- a.example"), everything(), []string{
			"7 filter/endpoints[1]: never decides: it says the same as \"- a.example\" in line 6; remove one of them",
			"3 profiles[p]/filter/endpoints[1]: never decides: it says the same as \"- b.example\" in line 3; remove one of them",
		}},
	}
	for _, c := range table {
		cfg := lintConfig(t, c.text)
		var got []string
		for _, p := range Lint(cfg, c.have) {
			got = append(got, strings.ReplaceAll(fmt.Sprintf("%d %s: %s", p.Line, p.Key, p.Message), p.File, "FILE"))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s:\n got %q\nwant %q", c.name, got, c.want)
		}
	}
}

// TestLintLinear: many rules without an index are worth a warning, any number of others none.
func TestLintLinear(t *testing.T) {
	if testing.Short() {
		t.Skip("long, and of one goroutine: the whole run has it")
	}
	var texts []string
	for i := range maxLinear + 2 {
		texts = append(texts, nthRule("exact", i), nthRule("regex", i))
	}
	got := Lint(lintConfig(t, rulesYAML(texts...)), everything())
	if len(got) != 1 || got[0].Line != 5 || !strings.HasPrefix(got[0].Message, fmt.Sprintf("%d rules of this list are looked at one by one", maxLinear+2)) {
		t.Errorf("got %v", got)
	}
	if got := Lint(lintConfig(t, rulesYAML(texts[:2*maxLinear]...)), everything()); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

// TestLintLong: the lint of 100 000 rules takes seconds, not hours.
func TestLintLong(t *testing.T) {
	if testing.Short() {
		t.Skip("loads a file with 100 000 rules")
	}
	texts := make([]string, 100_000)
	for i := range texts {
		texts[i] = nthRule("mixed", i)
	}
	texts = append(texts, "+ host0.example TCP/443", "+ 192.0.2.1", texts[77])
	have := everything()
	for i := range texts {
		have.Lists = append(have.Lists, fmt.Sprintf("list%d", i))
	}
	cfg, start := lintConfig(t, rulesYAML(texts...)), time.Now()
	got := Lint(cfg, have)
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
	if len(got) != 2 {
		for _, p := range got {
			t.Error(p.Line, p.Message)
		}
	}
}

// TestLintIsRight: a rule of which the lint says that it never decides decides none of
// thousands of random flows and names, whatever stage they are at; and the lint does find some.
func TestLintIsRight(t *testing.T) {
	found := 0
	for _, geoMissing := range []bool{false, true} {
		rapid.Check(t, func(t *rapid.T) {
			list := rapid.SliceOfN(rapid.Custom(drawWanted), 2, 12).Draw(t, "rules")
			set := NewRuleSet(parseWanted(t, list))
			dead := reportedOf(t, set, geoMissing)
			found += len(dead)
			if len(dead) == 0 {
				return
			}
			for range 200 {
				f := drawStage(t)
				f.GeoMissingBlocks = geoMissing
				if f.Entity.Addr.IsValid() && !f.Entity.Addr.Is4() && f.Proto == packet.ICMP {
					f.Proto = packet.ICMPv6 // as it is on a network
				}
				r, m, _ := set.First(&f, nil)
				for i, message := range dead {
					if strings.HasPrefix(message, aliases) && len(f.Entity.CNAMEs) > 0 {
						continue
					}
					if m == Matched && r == &set.rules[i] {
						t.Fatalf("%v\nrule %d %q: %s\nbut it decides %+v %+v", list, i, r, message, f, f.Entity.Stamp)
					}
				}
			}
		})
	}
	if found < 20 {
		t.Errorf("only %d rules were reported: the test shows nothing", found)
	}
}

// reportedOf asks the lint about a set without a file.
func reportedOf(t *rapid.T, set *RuleSet, geoBlocks bool) map[int]string {
	texts := make([]config.RuleText, set.Len())
	for i, r := range set.Rules() {
		texts[i] = config.RuleText{Text: r.String()}
	}
	l := linter{cfg: defaults(t), have: everything(), geoBlocks: geoBlocks}
	l.list(lintList{key: "filter/endpoints", setting: "filter/endpoints", texts: texts})
	dead := map[int]string{}
	for _, p := range l.problems {
		var i int
		if _, err := fmt.Sscanf(p.Key, "filter/endpoints[%d]", &i); err != nil {
			t.Fatal(p.Key)
		}
		switch {
		case strings.HasPrefix(p.Message, "never reached"):
			for j := i; j < set.Len(); j++ {
				dead[j] = p.Message
			}
		case strings.HasPrefix(p.Message, "never "), strings.HasPrefix(p.Message, aliases):
			dead[i] = p.Message
		}
	}
	return dead
}

func defaults(t *rapid.T) *config.Config {
	cfg, err := config.Load(config.Source{})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestScopesOf: the scopes of a range are those of its addresses.
func TestScopesOf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		edges := []string{"0.0.0.0", "0.255.255.255", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.127.255.255", "126.255.255.255", "127.0.0.0", "127.255.255.255", "169.254.0.0",
			"169.254.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.0", "192.168.255.255", "224.0.0.0", "239.255.255.255", "255.255.255.254", "255.255.255.255"}
		if rapid.Bool().Draw(t, "v6") {
			edges = []string{"::", "::1", "::2", "2001:db8::", "fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}
		}
		near := rapid.Custom(func(t *rapid.T) (i int) { return rapid.IntRange(0, len(edges)-1).Draw(t, "edge") })
		from, to := addr(edges[near.Draw(t, "from")]), addr(edges[near.Draw(t, "to")])
		if rapid.Bool().Draw(t, "after") && from.Next().IsValid() {
			from = from.Next()
		}
		if rapid.Bool().Draw(t, "before") && to.Prev().IsValid() {
			to = to.Prev()
		}
		if to.Less(from) {
			from, to = to, from
		}
		want := map[network.Scope]bool{network.ScopeOf(from): true, network.ScopeOf(to): true}
		for _, e := range edges { // the scope changes at an edge or beside it only
			for _, a := range []string{e, addr(e).Next().String(), addr(e).Prev().String()} {
				if a != "invalid IP" && !addr(a).Less(from) && !to.Less(addr(a)) {
					want[network.ScopeOf(addr(a))] = true
				}
			}
		}
		got := map[network.Scope]bool{}
		for _, s := range scopesOf(from, to) {
			got[s] = true
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%s-%s: got %v, want %v", from, to, got, want)
		}
	})
}
