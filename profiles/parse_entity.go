package profiles

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"gatun/network"
)

// entity reads one entity. Inside of a set it ends at a comma or the brace as well.
func (p *parser) entity(depth int) (entity, *RuleError) {
	switch {
	case depth > maxDepth:
		return entity{}, p.at(p.pos, fmt.Sprintf("more than %d sets and negations in each other", maxDepth), "")
	case p.pos == len(p.text):
		return entity{}, p.at(p.pos, "want an address or a name here", "")
	}
	switch p.text[p.pos] {
	case '!':
		p.pos++
		of, err := p.entity(depth + 1)
		return entity{kind: notEntity, of: []entity{of}}, err
	case '{':
		return p.set(depth)
	case '/':
		return p.regexEntity()
	default:
		return p.token()
	}
}

func (p *parser) set(depth int) (entity, *RuleError) {
	e, start := entity{kind: setEntity}, p.pos
	p.pos++
	p.sets++
	for {
		begin := p.pos
		of, err := p.entity(depth + 1)
		if err == nil {
			err = p.splitList(e.of, &of, begin)
		}
		if err != nil {
			return entity{}, err
		}
		e.of = append(e.of, of)
		switch {
		case p.pos == len(p.text):
			return entity{}, p.at(start, "the set that begins here has no }", "")
		case p.text[p.pos] == '}':
			p.pos++
			p.sets--
			return e, p.boundary()
		case p.text[p.pos] == ',':
			p.pos++
		default:
			return entity{}, p.at(p.pos, "want , or } without spaces in a set", "")
		}
	}
}

// boundary checks that nothing is glued to the end of a set or a regular expression.
func (p *parser) boundary() *RuleError {
	if p.pos < len(p.text) && !p.ends(p.text[p.pos]) {
		return p.at(p.pos, fmt.Sprintf("want a space before %q", p.text[p.pos:]), "")
	}
	return nil
}

// ends reports whether an entity ends before c.
func (p *parser) ends(c byte) bool {
	return c == ' ' || c == '\t' || p.sets > 0 && (c == ',' || c == '}')
}

func (p *parser) regexEntity() (entity, *RuleError) {
	start := p.pos
	for p.pos++; p.pos < len(p.text) && p.text[p.pos] != '/'; p.pos++ {
		if p.text[p.pos] == '\\' {
			p.pos++
		}
	}
	if p.pos >= len(p.text) {
		p.pos = len(p.text)
		return entity{}, p.at(start, "the regular expression that begins here has no / at its end", "")
	}
	source := p.text[start+1 : p.pos]
	p.pos++
	if source == "" {
		return entity{}, p.at(start, "the regular expression is empty", "")
	}
	re, err := regexp.Compile("(?i)" + source) // names are lower-case: A in the expression means a
	if err != nil {
		return entity{}, p.at(start+1, "not a regular expression: "+strings.TrimPrefix(err.Error(), "error parsing regexp: "), "")
	}
	return entity{kind: regexName, name: source, regex: re}, p.boundary()
}

// token reads an entity that is a single word. What it can be is tried in this order: any,
// address, prefix, range, country, continent, ASN, scopes, lists, name.
func (p *parser) token() (entity, *RuleError) {
	start := p.pos
	for p.pos < len(p.text) && !p.ends(p.text[p.pos]) {
		p.pos++
	}
	word := p.text[start:p.pos]
	switch {
	case word == "":
		return entity{}, p.at(start, "want an address or a name here", "")
	case word == "*":
		return entity{kind: anyEntity}, nil
	}
	for _, try := range []func(string, int) (entity, bool, *RuleError){p.address, p.addressRange, p.country, p.continent, p.network, p.scopeList, p.lists} {
		if e, ok, err := try(word, start); ok || err != nil {
			return e, err
		}
	}
	if err := p.misspelled(word, start); err != nil {
		return entity{}, err
	}
	return p.domain(word, start)
}

func (p *parser) address(word string, start int) (entity, bool, *RuleError) {
	if a, err := netip.ParseAddr(word); err == nil {
		if a.Zone() != "" {
			return entity{}, false, p.at(start+strings.IndexByte(word, '%'), "an address in a rule has no zone", a.WithZone("").String())
		}
		a = a.Unmap()
		return entity{kind: prefixEntity, single: true, prefix: netip.PrefixFrom(a, a.BitLen())}, true, nil
	}
	host, bits, found := strings.Cut(word, "/")
	a, err := netip.ParseAddr(host)
	if !found || err != nil {
		return entity{}, false, nil
	}
	c, err := netip.ParsePrefix(word)
	if err != nil {
		return entity{}, false, p.at(start+len(host)+1, fmt.Sprintf("want a prefix length from 0 to %d, got %q", a.BitLen(), bits), "")
	}
	if c != c.Masked() {
		return entity{}, false, p.at(start, fmt.Sprintf("%s has bits behind its prefix", word), c.Masked().String())
	}
	if a.Is4In6() {
		if c.Bits() < 96 {
			return entity{}, false, p.at(start, fmt.Sprintf("%s mixes IPv4 and IPv6", word), "")
		}
		c = netip.PrefixFrom(a.Unmap(), c.Bits()-96)
	}
	return entity{kind: prefixEntity, prefix: c}, true, nil
}

func (p *parser) addressRange(word string, start int) (entity, bool, *RuleError) {
	low, high, found := strings.Cut(word, "-")
	from, err1 := netip.ParseAddr(low)
	to, err2 := netip.ParseAddr(high)
	if !found || err1 != nil || err2 != nil {
		return entity{}, false, nil
	}
	if from.Zone() != "" || to.Zone() != "" {
		return entity{}, false, p.at(start, "an address in a rule has no zone", "")
	}
	from, to = from.Unmap(), to.Unmap()
	switch {
	case from.BitLen() != to.BitLen():
		return entity{}, false, p.at(start, fmt.Sprintf("%s mixes IPv4 and IPv6", word), "")
	case to.Less(from):
		return entity{}, false, p.at(start, fmt.Sprintf("the range %s is empty", word), high+"-"+low)
	}
	return entity{kind: rangeEntity, from: from, to: to}, true, nil
}

// scopes are the scopes that a rule can name.
func scopes() []network.Scope {
	return []network.Scope{network.Localhost, network.LAN, network.Internet}
}

// scopeList reads one or more scopes. They are kept in one order and once each, so that
// LAN,LAN means LAN.
func (p *parser) scopeList(word string, start int) (entity, bool, *RuleError) {
	var has [4]bool
	for i, item := range strings.Split(word, ",") {
		s, ok := parseScope(item)
		if !ok && i == 0 {
			return entity{}, false, nil
		}
		if !ok {
			return entity{}, false, p.at(start, fmt.Sprintf("want Localhost, LAN or Internet, got %q", item), "")
		}
		if item != s.String() {
			return entity{}, false, p.at(start, fmt.Sprintf("%q is a scope if it is written %s", item, s), s.String())
		}
		has[s] = true
		start += len(item) + 1
	}
	e, n := entity{kind: scopeEntity}, 0
	for _, s := range scopes() {
		if has[s] {
			e.scopes[n] = s
			n++
		}
	}
	return e, true, nil
}

func parseScope(word string) (network.Scope, bool) {
	for _, s := range scopes() {
		if strings.EqualFold(word, s.String()) {
			return s, true
		}
	}
	return network.ScopeUnknown, false
}

// misspelled refuses words that are names by their form and almost certainly meant otherwise.
func (p *parser) misspelled(word string, start int) *RuleError {
	upper := strings.ToUpper(word)
	switch {
	case len(word) == 2 && isUpper(upper):
		meant := meantCountry(upper)
		if meant == "" {
			return p.at(start, fmt.Sprintf("%q is neither a country nor a zone, which begins with a dot", word), "."+strings.ToLower(word))
		}
		return p.at(start, fmt.Sprintf("%q is a country if it is in upper case, and a zone with a dot before it", word), meant)
	case strings.HasPrefix(upper, "AS") && isDigits(word[2:]):
		return p.at(start, fmt.Sprintf("%q is an ASN if it is in upper case", word), upper)
	case strings.HasPrefix(upper, "ASN") && isDigits(word[3:]):
		return p.at(start, fmt.Sprintf("%q is an ASN if it is written AS%s", word, word[3:]), "AS"+word[3:])
	case strings.HasPrefix(word, "c:"):
		return p.at(start, fmt.Sprintf("%q is a continent if it is in upper case", word), upper)
	case strings.HasPrefix(word, "l:"):
		return p.at(start, fmt.Sprintf("%q is a list if it begins with an upper-case L", word), "L"+word[1:])
	case strings.Contains(word, "://"):
		return p.at(start, "want a name or an address, not a URL", "")
	case strings.Contains(word, ","):
		return p.at(start+strings.IndexByte(word, ','), "several entities are written in braces", "{"+word+"}")
	case strings.HasPrefix(word, "#"):
		return p.at(start, "want an address, a name or * before the comment", "")
	}
	if i := strings.LastIndexByte(word, ':'); i > 0 && strings.Count(word, ":") == 1 && isDigits(word[i+1:]) {
		return p.at(start+i, "the port stands behind the protocol", word[:i]+" */"+word[i+1:])
	}
	return nil
}

func isUpper(s string) bool {
	for i := range len(s) {
		if s[i] < 'A' || s[i] > 'Z' {
			return false
		}
	}
	return s != ""
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
