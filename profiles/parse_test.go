package profiles

import (
	"errors"
	"strings"
	"testing"

	"gatun/network"
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
		{"- RU", 3, "the country RU is not available in this version: it needs country data", ""},
		{"- C:EU", 3, "the continent C:EU is not available in this version: it needs country data", ""},
		{"- C:Europe", 5, `want a continent`, "C:EUROPE"},
		{"- AS64500", 3, "AS64500 is not available in this version: it needs ASN data", ""},
		{"- L:ads,mal", 3, "the list L:ads,mal is not available in this version: it needs filter lists", ""},
		{"- {a.example,RU}", 14, "the country RU is not available", ""},
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
		{"+ bücher.example ÜDP", 18, `want a protocol such as TCP`, ""}, // columns are characters
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
	if col, message, _ := CheckRule("+ example.org"); col != 0 || message != "" {
		t.Errorf("a good rule gives %d %q", col, message)
	}
	if col, message, _ := CheckRule("? example.org"); col != 1 || message != "? is not available in this version: it needs prompts" {
		t.Errorf("a rule that asks gives %d %q", col, message)
	}
	if col, _, suggestion := CheckRule("+ us"); col != 3 || suggestion != "US" {
		t.Errorf("a bad rule gives %d %q", col, suggestion)
	}
}

// FuzzParseRule: no text makes the parser panic; an error points into the text; a rule that is
// accepted has a spelling that gives the same rule, and can be held against facts.
func FuzzParseRule(f *testing.F) {
	for _, seed := range []string{
		"+ *", "- {a.example,!192.0.2.0/24,/x/} TCP/1-2,3 app=tls # c", "-- 2001:db8::1-2001:db8::2", "+ LAN,Internet",
		"+ #x", "+ bücher.*", "- *ads*", "+ us", "- .example.org */443", "- !LAN,Internet 17/53", "+ xn--a.example", "+ {LAN,Internet}",
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
