package config

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// environment reads GATUN_SECTION__KEY variables, and the two short ones for the state
// directory and the socket. Others that begin with GATUN_ belong to the program's flags.
func (m *merger) environment(env []string) {
	names := map[string]*Setting{"GATUN_STATE": m.w.table["core/state"], "GATUN_SOCKET": m.w.table["core/socket"]}
	var known []string
	for key, s := range m.w.table {
		name := "GATUN_" + strings.ToUpper(strings.ReplaceAll(key, "/", "__"))
		names[name] = s
		known = append(known, name)
	}
	slices.Sort(known)
	values := map[string]Value{}
	sorted := slices.Clone(env)
	slices.Sort(sorted) // the long form of a name comes before the short one, which wins
	for _, entry := range sorted {
		name, text, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "GATUN_") || text == "" {
			continue
		}
		at := Position{File: name}
		if name == "GATUN_PRESET" {
			m.setPreset(text, "", Value{Origin: Origin{Kind: FromEnv, Name: name}}, at)
			continue
		}
		s := names[name]
		if s == nil {
			if strings.Contains(name, "__") {
				m.w.problem(at, "", "unknown environment variable", nearest(name, known))
			}
			continue
		}
		if v, ok := m.text(&scope{fixed: &at}, s, text); ok {
			v.Origin = Origin{Kind: FromEnv, Name: name}
			values[s.Key] = v
		}
	}
	m.merge(values)
}

func (m *merger) flags(flags map[string]string) {
	for key, text := range flags {
		at := Position{File: "flag " + key}
		s := m.w.table[key]
		switch {
		case key == "preset":
			m.setPreset(text, "", Value{Origin: Origin{Kind: FromFlag, Name: key}}, at)
		case s == nil:
			m.w.problem(at, "", "unknown setting", nearest(key, slices.Collect(keysOf(m.w.table))))
		default:
			if v, ok := m.text(&scope{fixed: &at}, s, text); ok {
				v.Origin = Origin{Kind: FromFlag, Name: key}
				m.v.Set(key, v)
			}
		}
	}
}

// text reads a value that is not in a file. A list is written as YAML writes it on one line,
// ["- RU", "+ *"]; any other text is a list of that one item.
func (m *merger) text(s *scope, set *Setting, text string) (Value, bool) {
	var v any
	n := &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}}}
	switch set.Type {
	case TypeStrings, TypeRules, TypeObjects:
		if strings.HasPrefix(text, "[") {
			root, p := decodeYAML(s.fixed.File, []byte(text))
			if p != nil {
				m.w.problem(*s.fixed, s.name(set.Key), p.Message, "")
				return Value{}, false
			}
			n = root
		}
	default:
		var message, suggestion string
		if v, message, suggestion = set.parse(text, ""); message != "" {
			m.w.problem(*s.fixed, s.name(set.Key), message, suggestion)
			return Value{}, false
		}
		return Value{v: v}, m.w.effective(*s.fixed, s.name(set.Key), set, v)
	}
	return m.node(s, set, n)
}

// node reads a tree that is not in a file.
func (m *merger) node(s *scope, set *Setting, n *yaml.Node) (Value, bool) {
	v, ok := m.w.value(s, set, n)
	return Value{v: v}, ok && m.w.effective(*s.fixed, s.name(set.Key), set, v)
}
