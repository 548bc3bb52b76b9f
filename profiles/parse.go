package profiles

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"gatun/config"
	"gatun/network"
	"gatun/network/packet"
)

const (
	maxRule  = 16 << 10 // bytes of one rule
	maxDepth = 16       // of sets and negations in each other
)

// RuleError says what is wrong in a rule, at which character of its text (from 1), and what
// was probably meant.
type RuleError struct {
	Col        int
	Message    string
	Suggestion string
}

// Error formats e as "column 3: message (did you mean "…"?)".
func (e *RuleError) Error() string {
	s := fmt.Sprintf("column %d: %s", e.Col, e.Message)
	if e.Suggestion != "" {
		s += fmt.Sprintf(" (did you mean %q?)", e.Suggestion)
	}
	return s
}

// ParseRule reads one rule. The error is a *RuleError. ref is kept as the place where the rule
// was written; its Text is set to text where it is empty.
func ParseRule(text string, ref network.RuleRef) (Rule, error) {
	if ref.Text == "" {
		ref.Text = text
	}
	p := parser{text: text}
	r := Rule{Ref: ref}
	if err := p.rule(&r); err != nil {
		return Rule{}, err
	}
	return r, nil
}

// CheckRule reports what keeps a rule from being used; col is 0 if nothing does. It is what
// config.Source.CheckRule wants.
func CheckRule(text string) (col int, message, suggestion string) {
	p, r := parser{text: text}, Rule{}
	err := p.rule(&r)
	if err == nil {
		return 0, "", ""
	}
	return err.Col, err.Message, err.Suggestion
}

// parser walks over the text of one rule; pos is in bytes, sets counts the open braces.
type parser struct {
	text string
	pos  int
	sets int
}

// at makes an error at a byte position.
func (p *parser) at(pos int, message, suggestion string) *RuleError {
	return &RuleError{Col: utf8.RuneCountInString(p.text[:min(pos, len(p.text))]) + 1, Message: message, Suggestion: suggestion}
}

func (p *parser) space() bool {
	start := p.pos
	for p.pos < len(p.text) && (p.text[p.pos] == ' ' || p.text[p.pos] == '\t') {
		p.pos++
	}
	return p.pos > start
}

// word returns the text up to the next white space.
func (p *parser) word() (word string, start int) {
	start = p.pos
	for p.pos < len(p.text) && p.text[p.pos] != ' ' && p.text[p.pos] != '\t' {
		p.pos++
	}
	return p.text[start:p.pos], start
}

// done reports whether the rule ends here: at its end, or at a comment.
func (p *parser) done() bool { return p.pos == len(p.text) || p.text[p.pos] == '#' }

func (p *parser) rule(r *Rule) *RuleError {
	switch {
	case len(p.text) > maxRule:
		return p.at(0, fmt.Sprintf("a rule has at most %d characters; use a filter list", maxRule), "")
	case !utf8.ValidString(p.text):
		return p.at(0, "not UTF-8 text", "")
	}
	if i := strings.IndexFunc(p.text, func(c rune) bool { return c != '\t' && unicode.IsControl(c) }); i >= 0 {
		return p.at(i, "a rule is one line without control characters", "")
	}
	p.space()
	if err := p.verdict(r); err != nil {
		return err
	}
	if p.done() {
		return p.at(p.pos, "want an address, a name or * after "+r.Action.String(), "")
	}
	var err *RuleError
	if r.entity, err = p.entity(0); err != nil {
		return err
	}
	return p.options(r)
}

func (p *parser) verdict(r *Rule) *RuleError {
	word, start := p.word()
	switch word {
	case "+":
		r.Action = Allow
	case "-":
		r.Action = Block
	case "--":
		r.Action = Drop
	case "?":
		r.Action = Ask
	case "":
		return p.at(start, "the rule is empty; want + (allow), - (block), -- (drop) or ? (ask) and what it is about", "")
	default:
		return p.badVerdict(word, start)
	}
	p.space()
	return nil
}

func (p *parser) badVerdict(word string, start int) *RuleError {
	rest := p.text[p.pos:]
	for _, sign := range []string{"--", "-", "+", "?"} {
		if after, ok := strings.CutPrefix(word, sign); ok {
			return p.at(start+len(sign), "want a space after "+sign, sign+" "+after+rest)
		}
	}
	meant := ""
	switch strings.ToLower(strings.TrimRight(word, ":")) {
	case "allow", "permit", "accept", "pass":
		meant = "+" + rest
	case "block", "deny", "reject", "−", "–", "—":
		meant = "-" + rest
	case "drop":
		meant = "--" + rest
	case "ask", "prompt":
		meant = "?" + rest
	default:
		if rest == "" {
			meant = "- " + word
		}
	}
	return p.at(start, fmt.Sprintf("want + (allow), - (block), -- (drop) or ? (ask) first, got %q", word), meant)
}

// options reads what follows the entity: the protocol with its ports, app= and a comment.
func (p *parser) options(r *Rule) *RuleError {
	for seen := 0; ; {
		spaced := p.space()
		if p.pos == len(p.text) || spaced && p.text[p.pos] == '#' {
			return nil
		}
		word, start := p.word()
		switch {
		case strings.HasPrefix(word, "app="):
			if r.app != "" {
				return p.at(start, "app= is given twice", "")
			}
			if err := p.app(r, word, start); err != nil {
				return err
			}
			seen = 2
		case seen == 0:
			if err := p.protocol(r, word, start); err != nil {
				return err
			}
			seen = 1
		default:
			return p.at(start, fmt.Sprintf("unexpected %q; a rule is: verdict, entity, protocol/ports, app=protocol, # comment", word), "")
		}
	}
}

// apps are the protocols that app= may name.
func apps() []string { return []string{"dns", "http", "quic", "ssh", "tls"} }

func (p *parser) app(r *Rule, word string, start int) *RuleError {
	r.app = strings.TrimPrefix(word, "app=")
	for _, a := range apps() {
		switch {
		case a == r.app:
			return nil
		case strings.EqualFold(a, r.app):
			return p.at(start+4, "protocols are written in lower case", "app="+a)
		}
	}
	meant := config.Nearest(r.app, apps())
	if meant != "" {
		meant = "app=" + meant
	}
	return p.at(start+4, fmt.Sprintf("unknown protocol %q; want dns, http, quic, ssh or tls", r.app), meant)
}

func (p *parser) protocol(r *Rule, word string, start int) *RuleError {
	name, ports, hasPorts := strings.Cut(word, "/")
	if err := p.protocolName(r, name, start, hasPorts); err != nil {
		return err
	}
	if !hasPorts {
		return nil
	}
	start += len(name) + 1
	if ports == "" {
		return p.at(start, "want a port after /", "")
	}
	for item := range strings.SplitSeq(ports, ",") {
		port, err := p.portRange(item, start)
		if err != nil {
			return err
		}
		r.ports = append(r.ports, port)
		start += len(item) + 1
	}
	return nil
}

func (p *parser) protocolName(r *Rule, name string, start int, withPorts bool) *RuleError {
	r.proto.text = name
	if name == "*" {
		return nil
	}
	if n, err := strconv.ParseUint(name, 10, 64); err == nil {
		if n < 1 || n > 255 {
			return p.at(start, fmt.Sprintf("want a protocol from 1 to 255, got %s", name), "*/"+name)
		}
		r.proto = protocol{text: strconv.FormatUint(n, 10), a: packet.Proto(n)}
	} else if known, ok := protocolNamed(name); ok {
		r.proto = known
	} else {
		suggestion := ""
		if name != "" && strings.Trim(name, "0123456789-,") == "" {
			suggestion = "*/" + name
		} else if port := wellKnown(name); port != "" {
			suggestion = "TCP/" + port
		} else if suggestion = config.Nearest(name, protocolNames()); suggestion != "" && withPorts {
			suggestion += p.text[start+len(name) : p.pos]
		}
		return p.at(start, fmt.Sprintf("want a protocol such as TCP, UDP, ICMP or a number from 1 to 255, got %q", name), suggestion)
	}
	if withPorts && !hasPorts(r.proto.a) {
		return p.at(start+len(name), fmt.Sprintf("%s has no ports", r.proto.text), r.proto.text)
	}
	return nil
}

// protocols are those that have a name. ICMP means both families.
func protocols() []protocol {
	return []protocol{
		{"TCP", packet.TCP, 0}, {"UDP", packet.UDP, 0}, {"ICMP", packet.ICMP, packet.ICMPv6}, {"ICMPv6", packet.ICMPv6, 0},
		{"IGMP", 2, 0}, {"IPIP", 4, 0}, {"DCCP", 33, 0}, {"IPv6", 41, 0}, {"GRE", 47, 0}, {"ESP", 50, 0}, {"AH", 51, 0}, {"OSPF", 89, 0},
		{"PIM", 103, 0}, {"IPComp", 108, 0}, {"VRRP", 112, 0}, {"L2TP", 115, 0}, {"SCTP", 132, 0}, {"UDPLite", 136, 0},
	}
}

func protocolNames() []string {
	var names []string
	for _, p := range protocols() {
		names = append(names, p.text)
	}
	return names
}

// protocolNamed knows the protocols by name, in any case.
func protocolNamed(name string) (protocol, bool) {
	switch strings.ToLower(name) {
	case "icmp6":
		name = "ICMPv6"
	case "udp-lite":
		name = "UDPLite"
	}
	for _, p := range protocols() {
		if strings.EqualFold(p.text, name) {
			return p, true
		}
	}
	return protocol{}, false
}

func wellKnown(name string) string {
	switch strings.ToLower(name) {
	case "http":
		return "80"
	case "https", "tls":
		return "443"
	case "ssh":
		return "22"
	case "dns", "domain":
		return "53"
	default:
		return ""
	}
}

func (p *parser) portRange(item string, start int) (portRange, *RuleError) {
	from, to, isRange := strings.Cut(item, "-")
	lo, ok := parsePort(from)
	if !ok {
		return portRange{}, p.at(start, fmt.Sprintf("want a port from 1 to 65535, got %q", from), wellKnown(from))
	}
	if !isRange {
		return portRange{lo, lo}, nil
	}
	hi, ok := parsePort(to)
	if !ok {
		return portRange{}, p.at(start+len(from)+1, fmt.Sprintf("want a port from 1 to 65535, got %q", to), wellKnown(to))
	}
	if hi < lo {
		return portRange{}, p.at(start, fmt.Sprintf("the range %s is empty", item), to+"-"+from)
	}
	return portRange{lo, hi}, nil
}

func parsePort(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && n > 0 && s[0] != '0'
}
