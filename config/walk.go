package config

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// walker checks documents against the table. It never stops at the first problem.
type walker struct {
	table    map[string]*Setting
	children map[string][]string // section -> names of its keys and subsections
	lines    map[string][]string
	problems Problems
	warnings Problems

	checkRule  func(text string) (col int, message, suggestion string) // or nil
	migrations map[int]migration

	checkResolver func(text string) (message, suggestion string) // or nil
}

// checks says which checks of others are made: what was read without them is not known to be right.
func (w *walker) checks() [2]bool { return [...]bool{w.checkRule != nil, w.checkResolver != nil} }

func newWalker() *walker {
	w := &walker{table: map[string]*Setting{}, children: map[string][]string{}, lines: map[string][]string{}}
	for _, s := range Table() {
		w.table[s.Key] = &s
		parent := ""
		for name := range strings.SplitSeq(s.Key, "/") {
			if !slices.Contains(w.children[parent], name) {
				w.children[parent] = append(w.children[parent], name)
			}
			parent = join(parent, name)
		}
	}
	return w
}

// silent returns a walker that shares all but what it finds.
func (w *walker) silent() *walker {
	c := *w
	c.problems, c.warnings = nil, nil
	return &c
}

func (w *walker) keepLines(path string, data []byte) {
	w.lines[path] = strings.Split(strings.ReplaceAll(string(data), "\r\n", "\n"), "\n")
}

func join(section, name string) string {
	if section == "" {
		return name
	}
	return section + "/" + name
}

func (w *walker) problem(p Position, key, message, suggestion string) {
	w.problems = append(w.problems, Problem{Position: p, Key: key, Message: message, Suggestion: suggestion, Excerpt: lineOf(w.lines, p)})
}

func (w *walker) warn(p Position, key, message string) {
	w.warnings = append(w.warnings, Problem{Position: p, Key: key, Message: message, Excerpt: lineOf(w.lines, p)})
}

// scope is the place in the tree that is walked: a whole file, or one profile of it.
type scope struct {
	file   string
	fixed  *Position // of everything, where it is not in a file
	kind   OriginKind
	app    bool   // a profile: only settings that can be set per app
	bare   bool   // a file that has no settings
	prefix string // of the keys in messages: "profiles[curl]"
	keys   []string
	values map[string]Value
}

func (s *scope) at(n *yaml.Node) Position {
	if s.fixed != nil {
		return *s.fixed
	}
	return Position{File: s.file, Line: n.Line, Col: n.Column}
}

func (s *scope) name(key string) string { return join(s.prefix, key) }

// resolve follows an alias to what it stands for. An alias never points at itself here: the
// tree is only descended as far as the table goes.
func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// fields calls f for each key of a mapping, after it refused what cannot be a key.
func (w *walker) fields(s *scope, section string, n *yaml.Node, f func(name string, key, value *yaml.Node)) {
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], resolve(n.Content[i+1])
		switch {
		case key.Tag == "!!merge":
			w.problem(s.at(key), s.name(section), "merge keys are not supported; write the keys out", "")
		case key.Kind != yaml.ScalarNode || key.Tag != "!!str":
			w.problem(s.at(key), s.name(section), "want a name as key, got "+describe(key.Value, key.Tag), "")
		case seen[key.Value] != 0:
			w.problem(s.at(key), s.name(join(section, key.Value)), fmt.Sprintf("set twice; it is already set in line %d", seen[key.Value]), "")
		default:
			seen[key.Value] = key.Line
			f(key.Value, key, value)
		}
	}
}

// section walks the settings below a path.
func (w *walker) section(s *scope, section string, n *yaml.Node) {
	w.fields(s, section, n, func(name string, key, value *yaml.Node) {
		path := join(section, name)
		switch {
		case w.table[path] != nil:
			w.setting(s, w.table[path], key, value)
		case w.children[path] != nil:
			w.subsection(s, path, key, value)
		default:
			w.unknown(s, section, key)
		}
	})
}

func (w *walker) subsection(s *scope, path string, key, value *yaml.Node) {
	switch {
	case value.Kind == yaml.MappingNode:
		w.section(s, path, value)
	case value.Tag == "!!null": // a section with all its keys commented out
	default:
		w.problem(s.at(key), s.name(path), "want a section with keys of its own, got "+describe(value.Value, value.Tag), "")
	}
}

func (w *walker) unknown(s *scope, section string, key *yaml.Node) {
	if part, ok := missingSections()[key.Value]; ok && section == "" && !s.app {
		w.problem(s.at(key), key.Value, "not available in this version: it needs "+part.needs, "")
		return
	}
	if s.bare {
		w.problem(s.at(key), key.Value, "unknown key; this file has version and profiles only", nearest(key.Value, s.keys))
		return
	}
	candidates := w.children[section]
	if section == "" {
		candidates = slices.Concat(candidates, s.keys)
	}
	meant := nearest(key.Value, candidates)
	if meant == "" {
		// The right name in the wrong section, or a path where a section belongs.
		for _, set := range Table() {
			if set.Key == key.Value || strings.EqualFold(set.Key[strings.LastIndexByte(set.Key, '/')+1:], key.Value) {
				meant = set.Key
				break
			}
		}
	}
	w.problem(s.at(key), s.name(join(section, key.Value)), "unknown key", meant)
}

// setting checks one value and keeps it.
func (w *walker) setting(s *scope, set *Setting, key, value *yaml.Node) {
	message := set.refusal(s.app)
	if message != "" {
		w.problem(s.at(key), s.name(set.Key), message, "")
		return
	}
	v, ok := w.value(s, set, value)
	if ok && w.effective(s.at(key), s.name(set.Key), set, v) {
		s.values[set.Key] = Value{Origin: Origin{Kind: s.kind, Position: s.at(key)}, v: v}
	}
}

// effective refuses to change what has no effect yet. To state the default is allowed.
func (w *walker) effective(at Position, name string, set *Setting, v any) bool {
	switch {
	case set.Missing == "":
		return true
	case FormatValue(v) == FormatValue(defaultOf(set)):
		w.warn(at, name, "has no effect in this version: it needs "+set.Missing)
		return true
	default:
		w.problem(at, name, "not available in this version: it needs "+set.Missing, "")
		return false
	}
}

// value reads a value of the type that the setting has.
func (w *walker) value(s *scope, set *Setting, n *yaml.Node) (v any, ok bool) {
	switch {
	case set.Type == TypeObjects:
		return w.ratingRules(s, set, n)
	case set.Type == TypeStrings || set.Type == TypeRules:
		return w.list(s, set, n)
	case n.Kind != yaml.ScalarNode:
		w.problem(s.at(n), s.name(set.Key), wanted(set)+", got "+describe("", n.Tag), "")
		return nil, false
	}
	v, message, suggestion := set.parse(n.Value, n.Tag)
	if message != "" {
		w.problem(s.at(n), s.name(set.Key), message, suggestion)
	}
	return v, message == ""
}

// wanted names the form of a scalar setting.
func wanted(set *Setting) string {
	switch set.Type {
	case TypeBool:
		return "want on or off"
	case TypeGrade:
		return "want off, trusted, untrusted, danger or on"
	case TypeInt:
		return "want a number"
	case TypeDuration:
		return "want a duration"
	default:
		if len(set.PossibleValues) > 0 {
			return "want " + oneOf(set.PossibleValues)
		}
		return "want text"
	}
}

// list reads a list of texts. A scalar is refused: viper would split it at commas, and a rule
// may contain some.
func (w *walker) list(s *scope, set *Setting, value *yaml.Node) ([]RuleText, bool) {
	if value.Kind != yaml.SequenceNode {
		suggestion := ""
		if value.Kind == yaml.ScalarNode && value.Tag == "!!str" && value.Value != "" {
			suggestion = fmt.Sprintf("[%q]", value.Value)
		}
		w.problem(s.at(value), s.name(set.Key), "want a list, got "+describe(value.Value, value.Tag), suggestion)
		return nil, false
	}
	list, ok := make([]RuleText, 0, len(value.Content)), true
	for i, item := range value.Content {
		name := fmt.Sprintf("%s[%d]", s.name(set.Key), i)
		item := resolve(item)
		if item.Kind != yaml.ScalarNode || item.Tag != "!!str" {
			w.problem(s.at(item), name, "want text in quotes, got "+describe(item.Value, item.Tag), "")
			ok = false
			continue
		}
		text := RuleText{Text: item.Value, Position: textStart(s, item)}
		list, ok = append(list, text), w.item(set, name, text) && ok
	}
	return list, ok
}

// item checks one text of a list.
func (w *walker) item(set *Setting, name string, text RuleText) bool {
	col, message, suggestion := 1, "", ""
	switch {
	case !utf8.ValidString(text.Text): // from an Edit: a file could not keep it
		message = "want UTF-8 text"
	case set.Key == nameserversKey && w.checkResolver != nil:
		message, suggestion = w.checkResolver(text.Text)
	case set.Check != nil:
		message, suggestion = set.Check(text.Text)
	case set.Type == TypeRules && w.checkRule != nil:
		col, message, suggestion = w.checkRule(text.Text)
	}
	if message == "" {
		return true
	}
	if text.Line == 0 && col > 1 { // not in a file: the caret has no line to stand under
		message = fmt.Sprintf("character %d of %q: %s", col, text.Text, message)
	}
	w.problem(place(w.lines, text, col), name, message, suggestion)
	return false
}

// textStart is the position of a scalar's first character, behind its quote.
func textStart(s *scope, n *yaml.Node) Position {
	p := s.at(n)
	if n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0 && s.fixed == nil {
		p.Col++
	}
	return p
}
