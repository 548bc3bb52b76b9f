package profiles

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// domain reads a name or a pattern of names.
func (p *parser) domain(word string, start int) (entity, *RuleError) {
	e := entity{kind: exactName}
	name := word
	front, back := strings.HasPrefix(name, "*"), strings.HasSuffix(name, "*")
	switch {
	case front && back:
		e.kind, name = containsName, strings.TrimSuffix(name[1:], "*")
	case front:
		e.kind, name = suffixName, name[1:]
	case back:
		e.kind, name = prefixName, name[:len(name)-1]
	case strings.HasPrefix(name, "."):
		e.kind, name = zoneName, name[1:]
	}
	if i := strings.IndexByte(name, '*'); i >= 0 {
		return entity{}, p.at(start+strings.Index(word[1:], "*")+1, "* stands at the beginning or the end of a name only; want /a regular expression/", "")
	}
	if name == "" || name == "." {
		return entity{}, p.at(start, fmt.Sprintf("want a name, got %q", word), "")
	}
	var err *RuleError
	if e.kind == exactName || e.kind == zoneName {
		e.name, err = p.wholeName(strings.TrimSuffix(name, "."), start)
		if err == nil && e.kind == exactName {
			err = p.disguised(e.name, start)
		}
	} else {
		e.name, err = p.partOfName(name, e.kind, start)
	}
	return e, err
}

// disguised refuses a name whose plain form is not one: "us." and full-width letters.
func (p *parser) disguised(name string, start int) *RuleError {
	if _, _, err := p.scopeList(name, start); err != nil {
		return err
	}
	return p.misspelled(name, start)
}

// wholeName checks a full name and gives it the form of Entity.Domain.
func (p *parser) wholeName(name string, start int) (string, *RuleError) {
	ascii, err := toASCII(name)
	if err != nil {
		return "", p.at(start, fmt.Sprintf("%q is not a domain name: %v", name, err), "")
	}
	if message := checkName(ascii); message != "" {
		return "", p.at(start, fmt.Sprintf("%q is not a domain name: %s", name, message), "")
	}
	if last := ascii[strings.LastIndexByte(ascii, '.')+1:]; isDigits(last) {
		return "", p.at(start, fmt.Sprintf("%q is neither an address nor a domain name", name), "")
	}
	return ascii, nil
}

// partOfName checks what stands beside a *. Letters outside of ASCII are encoded label by
// label, so the part has to consist of whole labels where it has any.
func (p *parser) partOfName(part string, kind entityKind, start int) (string, *RuleError) {
	if message := checkCharacters(strings.ToLower(part)); message != "" {
		return "", p.at(start, fmt.Sprintf("%q is not a part of a domain name: %s", part, message), "")
	}
	switch { // such a name does not exist, and the rule would never match
	case kind == prefixName && part[0] == '.':
		return "", p.at(start, fmt.Sprintf("no name begins with a dot, as %q does", part+"*"), "*"+part+"*")
	case kind == suffixName && part[len(part)-1] == '.':
		return "", p.at(start, fmt.Sprintf("names are written without a dot at their end, unlike %q", "*"+part), "*"+part[:len(part)-1])
	}
	if strings.Contains(part, "..") {
		return "", p.at(start, fmt.Sprintf("%q is not a part of a domain name: a label is empty", part), "")
	}
	if isASCII(part) {
		return strings.ToLower(part), nil
	}
	whole := kind == suffixName && strings.HasPrefix(part, ".") || kind == prefixName && strings.HasSuffix(part, ".")
	ascii, err := toASCII(strings.Trim(part, "."))
	if !whole || err != nil {
		return "", p.at(start, fmt.Sprintf("%q: letters outside of a-z need whole labels beside a *, as in *.bücher.example", part), "")
	}
	if kind == suffixName {
		return "." + ascii, nil
	}
	return ascii + ".", nil
}

// toASCII maps a name to lower case and punycode, the form in which names are asked for.
// Underscores stay: service names have them.
func toASCII(name string) (string, error) {
	if isASCII(name) && !strings.Contains(strings.ToLower(name), "xn--") {
		return strings.ToLower(name), nil
	}
	profile := idna.New(idna.MapForLookup(), idna.Transitional(false), idna.StrictDomainName(false))
	ascii, err := profile.ToASCII(name)
	if err != nil {
		return "", fmt.Errorf("%s", strings.TrimPrefix(err.Error(), "idna: "))
	}
	return ascii, nil
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

func checkName(ascii string) string {
	if len(ascii) > 253 {
		return "it has more than 253 characters"
	}
	for label := range strings.SplitSeq(ascii, ".") {
		switch {
		case label == "":
			return "a label is empty"
		case len(label) > 63:
			return "a label has more than 63 characters"
		case label[0] == '-' || label[len(label)-1] == '-':
			return "a label begins or ends with -"
		}
	}
	return checkCharacters(ascii)
}

func checkCharacters(name string) string {
	for _, c := range name {
		ok := c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' || c >= utf8.RuneSelf
		if !ok {
			return fmt.Sprintf("it has %q", c)
		}
	}
	return ""
}
