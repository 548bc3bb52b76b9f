package profiles

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"gatun/network"
	"gatun/network/packet"
)

// TestParseRule holds rules that are right against their canonical spelling.
func TestParseRule(t *testing.T) {
	table := map[string]string{
		"+ *":                                  "",
		"- *":                                  "",
		"-- *":                                 "",
		"? *":                                  "",
		"  +\t example.com  # why":             "+ example.com",
		"+ example.com #":                      "+ example.com",
		"+ Example.COM.":                       "+ example.com",
		"+ .Example.com":                       "+ .example.com",
		"- *ads.example":                       "",
		"- *.ads.example":                      "",
		"- ads.*":                              "",
		"- *ads*":                              "",
		"- *_tcp*":                             "",
		"- _dmarc.example.com":                 "",
		"+ bücher.example":                     "+ xn--bcher-kva.example",
		"+ xn--bcher-kva.example":              "",
		"+ .BÜCHER.example":                    "+ .xn--bcher-kva.example",
		"+ *.bücher.example":                   "+ *.xn--bcher-kva.example",
		"+ bücher.*":                           "+ xn--bcher-kva.*",
		"+ faß.example":                        "+ xn--fa-hia.example",
		"+ .us":                                "",
		"- printer":                            "",
		"- /^ad[0-9]{1,3}\\./":                 "",
		"- /a b#c/ TCP":                        "",
		"- /a\\/b/":                            "",
		"+ 192.0.2.1":                          "",
		"+ 192.0.2.0/24 TCP":                   "",
		"+ 0.0.0.0/0":                          "",
		"+ 2001:DB8::1":                        "+ 2001:db8::1",
		"+ 2001:db8::/32 UDP/53":               "",
		"+ ::ffff:192.0.2.1":                   "+ 192.0.2.1",
		"+ ::ffff:192.0.2.0/120":               "+ 192.0.2.0/24",
		"+ 192.0.2.1-192.0.2.9":                "",
		"+ 2001:db8::1-2001:db8::ff":           "",
		"+ LAN":                                "",
		"+ LAN,LAN":                            "+ LAN",
		"+ Internet,Localhost,LAN":             "+ Localhost,LAN,Internet",
		"- {LAN,Internet}":                     "",
		"- {.a.example,192.0.2.0/24,/x{1,2}/}": "",
		"- !{.a.example,!192.0.2.1}":           "",
		"- !LAN,Internet TCP":                  "",
		"+ * tcp/443":                          "+ * TCP/443",
		"+ * TCP/80,443,8000-8080":             "",
		"+ * */53":                             "",
		"+ * *":                                "",
		"+ * 17/53":                            "",
		"+ * 047":                              "+ * 47",
		"+ * gre":                              "+ * GRE",
		"+ * sctp/1":                           "+ * SCTP/1",
		"+ * icmp6":                            "+ * ICMPv6",
		"+ * ospf":                             "+ * OSPF",
		"- RU":                                 "",
		"- XK TCP/443":                         "",
		"-- AS":                                "", // American Samoa
		"- C:AS":                               "",
		"+ C:EU */80":                          "",
		"- AS64500":                            "",
		"- AS0064500 UDP":                      "- AS64500 UDP",
		"- AS4294967295":                       "",
		"- L:ads":                              "",
		"- L:ads,mal,ads TCP":                  "- L:ads,mal TCP",
		"- L:TRAC,my-list_2.v1":                "",
		"- {US,C:EU,AS1,L:ads,L:mal,LAN,.us}":  "",
		"- !{US,!DE}":                          "",
		"- !L:ads,mal":                         "",
		"- {mal,L:ads}":                        "",
		"+ asia":                               "",
		"+ AS1.example":                        "+ as1.example",
		"+ * icmpV6":                           "+ * ICMPv6",
		"- * app=quic":                         "",
		"- .example.com UDP/443 app=quic # q":  "- .example.com UDP/443 app=quic",
	}
	for text, want := range table {
		if want == "" {
			want = text
		}
		ref := network.RuleRef{File: "f.yaml", Line: 7}
		r, err := ParseRule(text, ref)
		if err != nil {
			t.Errorf("ParseRule(%q): %v", text, err)
			continue
		}
		if got := r.String(); got != want {
			t.Errorf("ParseRule(%q).String() = %q, want %q", text, got, want)
		}
		if r.Ref.Text != text || r.Ref.Line != 7 {
			t.Errorf("ParseRule(%q).Ref = %+v", text, r.Ref)
		}
	}
}

// TestParseRuleErrors holds wrong rules against the column, the message and the suggestion.
func TestParseRuleErrors(t *testing.T) {
	const whole = "unexpected %q; a rule is: verdict, entity, protocol/ports, app=protocol, # comment"
	table := []struct {
		text       string
		col        int
		message    string // beginning
		suggestion string
	}{
		{"", 1, "the rule is empty; want + (allow)", ""},
		{"   ", 4, "the rule is empty", ""},
		{"+", 2, "want an address, a name or * after +", ""},
		{"+ ", 3, "want an address, a name or * after +", ""},
		{"+ #x", 3, "want an address, a name or * after +", ""}, // panics in the reference
		{"-- # nothing", 4, "want an address, a name or * after --", ""},
		{"-example.org TCP", 2, "want a space after -", "- example.org TCP"},
		{"--example.org", 3, "want a space after --", "-- example.org"},
		{"– *", 1, `want + (allow), - (block), -- (drop) or ? (ask) first, got "–"`, "- *"},
		{"allow example.org", 1, `want + (allow), - (block), -- (drop) or ? (ask) first, got "allow"`, "+ example.org"},
		{"deny: *", 1, `want + (allow)`, "- *"},
		{"example.org", 1, `want + (allow)`, "- example.org"},
		{"+ us", 3, `"us" is a country if it is in upper case, and a zone with a dot before it`, "US"},
		{"+ as1", 3, `"as1" is an ASN if it is in upper case`, "AS1"},
		{"+ As64500 TCP", 3, `"As64500" is an ASN if it is in upper case`, "AS64500"},
		{"+ c:eu", 3, `"c:eu" is a continent if it is in upper case`, "C:EU"},
		{"+ l:ads", 3, `"l:ads" is a list if it begins with an upper-case L`, "L:ads"},
		{"+ lan", 3, `"lan" is a scope if it is written LAN`, "LAN"},
		{"+ LAN,internet", 7, `"internet" is a scope if it is written Internet`, "Internet"},
		{"+ LAN,example.org", 7, `want Localhost, LAN or Internet, got "example.org"`, ""},
		{"+ xy", 3, `"xy" is neither a country nor a zone, which begins with a dot`, ".xy"},
		{"+ uk", 3, `"uk" is a country if it is in upper case`, "GB"},
		{"+ Us", 3, `"Us" is a country if it is in upper case`, "US"},
		{"+ eu", 3, `"eu" is a country if it is in upper case`, "C:EU"},
		{"- UK", 3, "there is no country UK in ISO 3166-1", "GB"},
		{"- EU", 3, "there is no country EU in ISO 3166-1", "C:EU"},
		{"- OC TCP", 3, "there is no country OC in ISO 3166-1", "C:OC"},
		{"- ZZ", 3, "there is no country ZZ in ISO 3166-1", ""},
		{"- {a.example,XX}", 14, "there is no country XX in ISO 3166-1", ""},
		{"- US,DE", 5, "several entities are written in braces", "{US,DE}"},
		{"- C:Europe", 5, `want a continent: AF, AN, AS, EU, NA, OC or SA, got "Europe"`, "C:EU"},
		{"- C:eu", 3, `"C:eu" is a continent if it is in upper case`, "C:EU"},
		{"- C:DE", 5, "DE is a country; want a continent", "DE"},
		{"- C:", 5, `want a continent: AF, AN, AS, EU, NA, OC or SA, got ""`, ""},
		{"- C:XX", 5, `want a continent`, ""},
		{"- as64500", 3, `"as64500" is an ASN if it is in upper case`, "AS64500"},
		{"- ASN64500", 3, `"ASN64500" is an ASN if it is written AS64500`, "AS64500"},
		{"- AS0", 3, "want an ASN from AS1 to AS4294967295, got AS0", ""},
		{"- AS4294967296", 3, "want an ASN from AS1 to AS4294967295", ""},
		{"- AS 64500", 6, "want a protocol from 1 to 255, got 64500", "*/64500"}, // AS is American Samoa
		{"- AS1,AS2", 6, "several entities are written in braces", "{AS1,AS2}"},
		{"- L:", 5, `"" is not the name of a list: it is empty`, ""},
		{"- L:ads,", 9, `"" is not the name of a list: it is empty`, ""},
		{"- L:ads,L:mal", 9, "L: stands once, before the first list", "mal"},
		{"- L:ads/x", 5, `"ads/x" is not the name of a list: it has '/'`, ""},
		{"- L:" + strings.Repeat("a", 65), 5, `"` + strings.Repeat("a", 65) + `" is not the name of a list: it has more than 64`, ""},
		{"- {L:ads,mal}", 10, "in a set each list has its own L:", "L:mal"},
		{"- {!L:ads,mal}", 11, "in a set each list has its own L:", "L:mal"},
		{"+ .ads*", 3, `no name begins with a dot, as ".ads*" does`, "*.ads*"},
		{"+ *example.", 3, `names are written without a dot at their end, unlike "*example."`, "*example"},
		{"+ *.", 3, `want a name, got "*."`, ""},
		{"+ * TPC", 5, `want a protocol such as TCP`, "TCP"},
		{"+ * UPD/53", 5, `want a protocol such as TCP`, "UDP/53"},
		{"+ * TCP,UDP", 5, `want a protocol such as TCP`, ""},
		{"+ * app=tsl", 9, `unknown protocol "tsl"`, "app=tls"},
		{"+ * 100-50", 5, `want a protocol such as TCP`, "*/100-50"},
		{"+ * TCP/100-50", 9, "the range 100-50 is empty", "50-100"},
		{"+ * TCP/80,100-50", 12, "the range 100-50 is empty", "50-100"},
		{"+ * 443", 5, "want a protocol from 1 to 255, got 443", "*/443"},
		{"+ * 0", 5, "want a protocol from 1 to 255, got 0", "*/0"},
		{"+ * 256", 5, "want a protocol from 1 to 255, got 256", "*/256"},
		{"+ * https", 5, `want a protocol such as TCP, UDP, ICMP or a number from 1 to 255, got "https"`, "TCP/443"},
		{"+ * TCP/", 9, "want a port after /", ""},
		{"+ * TCP/http", 9, `want a port from 1 to 65535, got "http"`, "80"},
		{"+ * TCP/0", 9, `want a port from 1 to 65535, got "0"`, ""},
		{"+ * TCP/65536", 9, `want a port from 1 to 65535, got "65536"`, ""},
		{"+ * TCP/80,", 12, `want a port from 1 to 65535, got ""`, ""},
		{"+ * TCP/80-", 12, `want a port from 1 to 65535, got ""`, ""},
		{"+ * TCP/80, 443", 12, `want a port from 1 to 65535, got ""`, ""},
		{"+ * ICMP/8", 9, "ICMP has no ports", "ICMP"},
		{"+ * 1/8", 6, "1 has no ports", "1"},
		{"+ * gre/1", 8, "GRE has no ports", "GRE"},
		{"+ * TCP UDP", 9, strings.Replace(whole, "%q", `"UDP"`, 1), ""},
		{"+ * app=tls TCP", 13, strings.Replace(whole, "%q", `"TCP"`, 1), ""},
		{"+ * app=tls app=ssh", 13, "app= is given twice", ""},
		{"+ * app=TLS", 9, "protocols are written in lower case", "app=tls"},
		{"+ * app=gopher", 9, `unknown protocol "gopher"; want dns, http, quic, ssh or tls`, ""},
		{"+ 192.0.2.1/24", 3, "192.0.2.1/24 has bits behind its prefix", "192.0.2.0/24"},
		{"+ 192.0.2.0/33", 13, `want a prefix length from 0 to 32, got "33"`, ""},
		{"+ 2001:db8::/129", 14, `want a prefix length from 0 to 128, got "129"`, ""},
		{"+ ::ffff:0:0/64", 3, "::ffff:0:0/64 has bits behind its prefix", "::/64"},
		{"+ fe80::1%eth0", 10, "an address in a rule has no zone", "fe80::1"},
		{"+ 192.0.2.9-192.0.2.1", 3, "the range 192.0.2.9-192.0.2.1 is empty", "192.0.2.1-192.0.2.9"},
		{"+ 192.0.2.9-2001:db8::1", 3, "192.0.2.9-2001:db8::1 mixes IPv4 and IPv6", ""},
		{"+ 192.0.2.300", 3, `"192.0.2.300" is neither an address nor a domain name`, ""},
		{"+ 192.0.2.1:443", 12, "the port stands behind the protocol", "192.0.2.1 */443"},
		{"+ example.org:443", 14, "the port stands behind the protocol", "example.org */443"},
		{"+ https://example.org/", 3, "want a name or an address, not a URL", ""},
		{"+ a.example,b.example", 12, "several entities are written in braces", "{a.example,b.example}"},
		{"+ {a.example", 3, "the set that begins here has no }", ""},
		{"+ {}", 4, "want an address or a name here", ""},
		{"+ {a.example,}", 14, "want an address or a name here", ""},
		{"+ {a.example, b.example}", 14, "want an address or a name here", ""},
		{"+ {a.example b.example}", 13, "want , or } without spaces in a set", ""},
		{"+ {a.example}x", 14, `want a space before "x"`, ""},
		{"+ !", 4, "want an address or a name here", ""},
		{"+ ! a.example", 4, "want an address or a name here", ""},
		{"+ " + strings.Repeat("!", 20) + "*", 20, "more than 16 sets and negations in each other", ""},
		{"+ /abc", 3, "the regular expression that begins here has no / at its end", ""},
		{`+ /abc\/`, 3, "the regular expression that begins here has no / at its end", ""},
		{"+ //", 3, "the regular expression is empty", ""},
		{"+ /a(/", 4, "not a regular expression: missing closing ): `(?i)a(`", ""},
		{"+ /a/b", 6, `want a space before "b"`, ""},
		{"+ exa*mple.org", 6, "* stands at the beginning or the end of a name only", ""},
		{"+ **", 3, `want a name, got "**"`, ""},
		{"+ ***", 4, "* stands at the beginning or the end of a name only", ""},
		{"+ .", 3, `want a name, got "."`, ""},
		{"+ ..", 3, `want a name, got ".."`, ""},
		{"+ a..example", 3, `"a..example" is not a domain name: a label is empty`, ""},
		{"+ us.", 3, `"us" is a country if it is in upper case`, "US"},
		{"+ ＵＳ", 3, `"us" is a country if it is in upper case`, "US"},
		{"+ lan.", 3, `"lan" is a scope if it is written LAN`, "LAN"},
		{"+ １.２.３.４", 3, `"１.２.３.４" is neither an address nor a domain name`, ""},
		{"+ *a..b*", 3, `"a..b" is not a part of a domain name: a label is empty`, ""},
		{"+ -a.example", 3, `"-a.example" is not a domain name: a label begins or ends with -`, ""},
		{"+ " + strings.Repeat("a", 64) + ".example", 3, `"` + strings.Repeat("a", 64) + `.example" is not a domain name: a label has more than 63`, ""},
		{"+ ex$mple.org", 3, `"ex$mple.org" is not a domain name: it has '$'`, ""},
		{"+ example.org#x", 3, `"example.org#x" is not a domain name: it has '#'`, ""},
		{"+ *bücher.example", 3, `"bücher.example": letters outside of a-z need whole labels`, ""},
		{"+ bücher.example ÜDP", 18, `want a protocol such as TCP`, "UDP"}, // columns are characters
		{"+ a\nb", 4, "a rule is one line without control characters", ""},
		{"+ \xff", 1, "not UTF-8 text", ""},
		{"+ " + strings.Repeat("a", maxRule), 1, "a rule has at most 16384 characters; use a filter list", ""},
	}
	for _, c := range table {
		_, err := ParseRule(c.text, network.RuleRef{})
		var e *RuleError
		if !errors.As(err, &e) {
			t.Errorf("ParseRule(%.60q): error %v, want a *RuleError", c.text, err)
			continue
		}
		if e.Col != c.col || !strings.HasPrefix(e.Message, c.message) || e.Suggestion != c.suggestion {
			t.Errorf("ParseRule(%.60q):\n got %d %q %q\nwant %d %q %q", c.text, e.Col, e.Message, e.Suggestion, c.col, c.message, c.suggestion)
		}
	}
}

func TestCheckRule(t *testing.T) {
	for _, good := range []string{"+ example.org", "? example.org", "- RU", "- L:ads"} {
		if col, message, _ := CheckRule(good); col != 0 || message != "" {
			t.Errorf("%q gives %d %q", good, col, message)
		}
	}
	if col, _, suggestion := CheckRule("+ us"); col != 3 || suggestion != "US" {
		t.Errorf("a bad rule gives %d %q", col, suggestion)
	}
}

// TestTokenOrder: what a token can be is tried in the order of policy.md section 3.
func TestTokenOrder(t *testing.T) {
	for word, want := range map[string]entityKind{
		"*": anyEntity, "192.0.2.1": prefixEntity, "::1": prefixEntity, "192.0.2.0/24": prefixEntity, "192.0.2.1-192.0.2.2": rangeEntity,
		"US": countryEntity, "AS": countryEntity, "C:AS": continentEntity, "AS1": asnEntity, "LAN": scopeEntity, "LAN,Internet": scopeEntity,
		"L:US": listEntity, "us.example": exactName, "dead.beef": exactName, "USA": exactName, "ASX": exactName, "c.example": exactName, ".us": zoneName,
		"*us": suffixName, "us*": prefixName, "*us*": containsName, "/us/": regexName, "{US}": setEntity, "!US": notEntity,
	} {
		if r := mustRule(t, "- "+word); r.entity.kind != want {
			t.Errorf("%q is of kind %d, want %d", word, r.entity.kind, want)
		}
	}
}

// TestCountries: every code is there once, and what people take for one leads to one.
func TestCountries(t *testing.T) {
	codes := strings.Fields(isoCountries)
	if len(codes) != 250 || !slices.IsSorted(codes) || len(slices.Compact(codes)) != 250 {
		t.Errorf("%d codes, want the 249 of ISO 3166-1 and XK", len(codes))
	}
	for pair := range strings.FieldsSeq(meantCountries) {
		code, meant, _ := strings.Cut(pair, "=")
		if isCountry(code) {
			t.Errorf("%s is a country", code)
		}
		mustRule(t, "- "+meant)
	}
}

// TestTunnelPolicies: tunnel policies are written in the same grammar; + uses, - excludes.
func TestTunnelPolicies(t *testing.T) {
	set := mustSet(t, "- LAN,Localhost", "- .bank.example", "+ {US,C:NA} TCP", "+ *")
	f := linkFacts("www.bank.example", "192.0.2.7", packet.TCP, 443)
	if r, m, _ := set.First(&f, nil); m != Matched || r.Action.restricts() != true || r.String() != "- .bank.example" {
		t.Errorf("got %v %v", r, m)
	}
	f.Entity.Domain = "a.example"
	if r, m, _ := set.First(&f, nil); m != Matched || r.Action != Allow {
		t.Errorf("got %v %v", r, m)
	}
}

// FuzzParseRule: no text makes the parser panic; an error points into the text; a rule that is
// accepted has a spelling that gives the same rule, and can be held against facts.
func FuzzParseRule(f *testing.F) {
	for _, seed := range []string{
		"+ *", "- {a.example,!192.0.2.0/24,/x/} TCP/1-2,3 app=tls # c", "-- 2001:db8::1-2001:db8::2", "+ LAN,Internet",
		"+ #x", "- US", "- {C:EU,AS1,L:a,L:b}", "- L:a,b TCP/1", "- {L:a,b}", "- C:eu", "+ bücher.*", "- *ads*", "+ us", "- .example.org */443", "- !LAN,Internet 17/53", "+ xn--a.example", "+ {LAN,Internet}",
	} {
		f.Add(seed)
	}
	facts := matchFacts()
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRule(text, network.RuleRef{})
		if err != nil {
			var e *RuleError
			if !errors.As(err, &e) || e.Col < 1 || e.Col > len(text)+1 || e.Message == "" {
				t.Fatalf("ParseRule(%q): error %#v", text, err)
			}
			return
		}
		again, err := ParseRule(r.String(), network.RuleRef{})
		if err != nil {
			t.Fatalf("ParseRule(%q) prints %q, which is wrong: %v", text, r.String(), err)
		}
		if again.String() != r.String() {
			t.Fatalf("%q prints %q prints %q", text, r.String(), again.String())
		}
		for _, facts := range facts {
			if a, b := r.Match(&facts), again.Match(&facts); a != b {
				t.Fatalf("%q: %v, printed %q: %v", text, a, r.String(), b)
			}
		}
	})
}
