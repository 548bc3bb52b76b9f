package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Fingerprint is how a profile recognises its program.
type Fingerprint struct {
	Position
	Type  string // path, cmdline, env or tag
	Name  string // of the variable or tag, "" for path and cmdline
	Op    string // equals, prefix or regex
	Value string
}

// ProfileOrigin says who made a profile.
type ProfileOrigin uint8

// The origins of a profile, from the strongest to the weakest.
const (
	Pinned    ProfileOrigin = iota // in the human's file
	Runtime                        // by hand while the program ran
	Automatic                      // by the program when it first saw an application
)

// String returns the origin as files spell it.
func (o ProfileOrigin) String() string {
	return [...]string{"pinned", "runtime", "automatic"}[min(o, Automatic)]
}

// MarshalText spells the origin in JSON as well.
func (o ProfileOrigin) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// ProfileSpec is one profile: what it applies to and what it sets.
type ProfileSpec struct {
	Position
	Name  string
	Match []Fingerprint
	// Layers names the profiles that lie under this one, the nearest first.
	Layers []string
	// When makes it a profile that lies under all others, and above the global settings, while
	// the condition holds; it then has no Match. nil for all others.
	When    *NetworkCondition
	Origin  ProfileOrigin
	Created time.Time         // zero: unknown
	Facts   map[string]string // of the program when it was first seen: path, args, user, unit, container …

	lines    []string   // of the text that it was imported from
	layersAt []Position // of Layers
	values   map[string]Value
}

// NewProfile returns a profile that sets nothing.
func NewProfile(name string, match []Fingerprint, origin ProfileOrigin, facts map[string]string) ProfileSpec {
	return ProfileSpec{Name: name, Match: match, Origin: origin, Facts: maps.Clone(facts), values: map[string]Value{}}
}

// Value returns what the profile sets; ok is false if it leaves the setting to the layers
// below.
func (p *ProfileSpec) Value(key string) (v Value, ok bool) {
	v, ok = p.values[key]
	return v, ok && v.Inactive == ""
}

const maxProfileName = 64

// profileList reads the key "profiles" of one file.
func (w *walker) profileList(s *scope, n *yaml.Node) []ProfileSpec {
	if n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		w.problem(s.at(n), "profiles", "want a list of profiles, each with name and match, got "+describe(n.Value, n.Tag), "")
		return nil
	}
	var list []ProfileSpec
	for i, item := range n.Content {
		item = resolve(item)
		if item.Kind != yaml.MappingNode {
			w.problem(s.at(item), fmt.Sprintf("profiles[%d]", i), "want a profile with name and match, got "+describe(item.Value, item.Tag), "")
			continue
		}
		list = append(list, w.profile(&scope{file: s.file, fixed: s.fixed, kind: s.kind}, i, item))
	}
	return list
}

func (w *walker) profile(s *scope, index int, n *yaml.Node) ProfileSpec {
	s.app, s.values, s.prefix = true, map[string]Value{}, fmt.Sprintf("profiles[%d]", index)
	s.keys = []string{"name", "origin", "created", "facts", "match", "layers", "when"}
	p := ProfileSpec{Position: s.at(n), Origin: Runtime, values: s.values}
	has := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 { // the messages name the profile
		if v := resolve(n.Content[i+1]); n.Content[i].Value == "name" && v.Tag == "!!str" && validName(v.Value) {
			s.prefix = fmt.Sprintf("profiles[%s]", v.Value)
		}
	}
	w.fields(s, "", n, func(name string, key, value *yaml.Node) {
		has[name] = true
		switch {
		case slices.Contains(s.keys, name):
			w.profileKey(s, &p, name, value)
		case w.children[name] != nil:
			w.subsection(s, name, key, value)
		default:
			w.unknown(s, "", key)
		}
	})
	if !has["name"] {
		w.problem(p.Position, s.prefix, "want a name", "")
	}
	switch {
	case has["when"] && has["match"]:
		w.problem(p.Position, s.prefix, "has match and when: a profile with when is for all programs while the condition holds; want one of them", "")
	case has["when"] && has["layers"]:
		w.problem(p.Position, s.prefix, "has layers and when: a profile with when lies under all others and has no layers of its own", "")
	}
	return p
}

// profileKey reads one key that is not a setting.
func (w *walker) profileKey(s *scope, p *ProfileSpec, name string, value *yaml.Node) {
	switch name {
	case "name":
		p.Name = w.profileName(s, value)
	case "match":
		p.Match = w.matchList(s, value)
	case "layers":
		p.Layers, p.layersAt = w.layerNames(s, value)
	case "when":
		p.When = w.when(s, value)
	case "origin":
		p.Origin = w.profileOrigin(s, value)
	case "created":
		p.Created = w.created(s, value)
	case "facts":
		p.Facts = w.facts(s, value)
	}
}

func (w *walker) profileName(s *scope, n *yaml.Node) string {
	switch {
	case n.Kind != yaml.ScalarNode || n.Tag != "!!str":
		w.problem(s.at(n), s.name("name"), "want text in quotes, got "+describe(n.Value, n.Tag), "")
	case !validName(n.Value):
		w.problem(s.at(n), s.name("name"), fmt.Sprintf("want 1 to %d printable characters without spaces around them, got %q", maxProfileName, n.Value), "")
	case slices.Contains(SpecialProfiles(), n.Value) || n.Value == "global":
		w.problem(s.at(n), s.name("name"), fmt.Sprintf("%q is the name of a built-in profile; match it with {tag: special, equals: …} under a name of your own", n.Value), "")
	default:
		return n.Value
	}
	return ""
}

func validName(s string) bool {
	return validText(s) && utf8.RuneCountInString(s) <= maxProfileName && strings.TrimSpace(s) == s
}

func (w *walker) layerNames(s *scope, n *yaml.Node) (names []string, at []Position) {
	if n.Kind != yaml.SequenceNode {
		w.problem(s.at(n), s.name("layers"), "want a list of names of profiles, got "+describe(n.Value, n.Tag), "")
		return nil, nil
	}
	for i, item := range n.Content {
		item = resolve(item)
		key := fmt.Sprintf("layers[%d]", i)
		switch {
		case item.Kind != yaml.ScalarNode || item.Tag != "!!str" || item.Value == "":
			w.problem(s.at(item), s.name(key), "want the name of a profile in quotes, got "+describe(item.Value, item.Tag), "")
		case slices.Contains(names, item.Value):
			w.problem(s.at(item), s.name(key), fmt.Sprintf("%q is named twice", item.Value), "")
		default:
			names, at = append(names, item.Value), append(at, s.at(item))
		}
	}
	return names, at
}

func (w *walker) when(s *scope, n *yaml.Node) *NetworkCondition {
	if n.Kind != yaml.MappingNode {
		w.problem(s.at(n), s.name("when"), "want a condition such as {interface: wlan0}, got "+describe(n.Value, n.Tag), "")
		return &NetworkCondition{Position: s.at(n)}
	}
	c := w.condition(s, "when", n, func(name string, k, _ *yaml.Node) {
		w.problem(s.at(k), s.name(join("when", name)), "unknown key", nearest(name, conditionKeys()))
	})
	return &c
}

func (w *walker) profileOrigin(s *scope, n *yaml.Node) ProfileOrigin {
	switch n.Value {
	case "runtime":
	case "automatic":
		return Automatic
	default:
		w.problem(s.at(n), s.name("origin"), "want runtime or automatic, got "+describe(n.Value, n.Tag), nearest(n.Value, []string{"runtime", "automatic"}))
	}
	return Runtime
}

func (w *walker) created(s *scope, n *yaml.Node) time.Time {
	t, err := time.Parse(time.RFC3339Nano, n.Value)
	if n.Kind != yaml.ScalarNode || err != nil || t.Year() < 1 || t.Year() > 9999 {
		w.problem(s.at(n), s.name("created"), "want a time such as 2026-01-31T12:00:00Z, got "+describe(n.Value, n.Tag), "")
		return time.Time{}
	}
	return t.UTC()
}

func (w *walker) facts(s *scope, n *yaml.Node) map[string]string {
	if n.Kind != yaml.MappingNode {
		w.problem(s.at(n), s.name("facts"), "want names and texts such as {path: /usr/bin/curl}, got "+describe(n.Value, n.Tag), "")
		return nil
	}
	facts := map[string]string{}
	w.fields(s, "facts", n, func(name string, k, v *yaml.Node) {
		switch {
		case !validFactName(name):
			w.problem(s.at(k), s.name(join("facts", name)), "want lower-case letters, digits and - as name", "")
		case v.Kind != yaml.ScalarNode || v.Tag != "!!str":
			w.problem(s.at(v), s.name(join("facts", name)), "want text in quotes, got "+describe(v.Value, v.Tag), "")
		default:
			facts[name] = v.Value
		}
	})
	return facts
}

func validFactName(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && len(s) <= 32
}
