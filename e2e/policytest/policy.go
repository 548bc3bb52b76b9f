package policytest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Policy is a configuration. Render writes what of it a person would write into a file.
type Policy struct {
	Preset   string            // "" none
	Settings map[string]string // global scalars by key, as YAML spells them: "filter/blockLAN": "danger"
	Lists    map[string][]Rule // global rules by key: filter/endpoints, filter/serviceEndpoints
	Ratings  []Rating          // network/ratingRules
	Profiles []Profile

	// What follows is not in the file.
	Only      []string          // as `run --only`: rules without a verdict
	Runtime   map[string]string // global scalars that were changed while the program ran
	Temporary []Temporary       // in the order in which they were made
	Paused    bool
}

// Temporary is a rule that holds for a while, for the programs of one profile or, with "", for
// everybody.
type Temporary struct{ Profile, Rule string }

// Rule is one rule and the line of the file it is on.
type Rule struct {
	Text string
	Line int
}

// Rating is one rule that rates the network.
type Rating struct {
	Rating string
	When   Condition
}

// Condition speaks about the network: all that is given has to hold.
type Condition struct{ Interface, Gateway, Address string }

// Profile is one profile of the file.
type Profile struct {
	Name     string
	Match    []Fingerprint
	Layers   []string
	When     *Condition
	Settings map[string]string
	Lists    map[string][]Rule
}

// Fingerprint recognises a program. Name is that of the tag or variable.
type Fingerprint struct{ Type, Name, Op, Value string }

// Render writes the policy as YAML and notes the line of each rule in it.
func (p *Policy) Render() string {
	w := &writer{line: 1}
	w.put("version: 1")
	if p.Preset != "" {
		w.put("preset: " + p.Preset)
	}
	w.settings("", p.Settings, p.Lists, p.Ratings)
	if len(p.Profiles) > 0 {
		w.put("profiles:")
	}
	for i := range p.Profiles {
		w.profile(&p.Profiles[i])
	}
	return w.b.String()
}

type writer struct {
	b    strings.Builder
	line int // that is written next
}

func (w *writer) put(text string) {
	w.b.WriteString(text + "\n")
	w.line++
}

// settings writes scalars and rules, section by section.
func (w *writer) settings(indent string, scalars map[string]string, lists map[string][]Rule, ratings []Rating) {
	sections := map[string]bool{}
	for key := range scalars {
		sections[section(key)] = true
	}
	for key := range lists {
		sections[section(key)] = true
	}
	if len(ratings) > 0 {
		sections["network"] = true
	}
	for _, s := range slices.Sorted(maps.Keys(sections)) {
		w.put(indent + s + ":")
		for _, key := range slices.Sorted(maps.Keys(scalars)) {
			if section(key) == s {
				w.put(indent + "  " + strings.TrimPrefix(key, s+"/") + ": " + scalars[key])
			}
		}
		for _, key := range slices.Sorted(maps.Keys(lists)) {
			if section(key) == s {
				w.rules(indent+"  ", strings.TrimPrefix(key, s+"/"), lists[key])
			}
		}
		if s == "network" && len(ratings) > 0 {
			w.put(indent + "  ratingRules:")
			for _, r := range ratings {
				w.put(indent + "    - {rating: " + r.Rating + r.When.fields(", ") + "}")
			}
		}
	}
}

func section(key string) string {
	s, _, _ := strings.Cut(key, "/")
	return s
}

func (w *writer) rules(indent, key string, rules []Rule) {
	if len(rules) == 0 {
		w.put(indent + key + ": []")
		return
	}
	w.put(indent + key + ":")
	for i := range rules {
		rules[i].Line = w.line
		w.put(indent + "  - " + quote(rules[i].Text))
	}
}

func (w *writer) profile(p *Profile) {
	w.put("  - name: " + quote(p.Name))
	if len(p.Match) > 0 {
		w.put("    match:")
	}
	for _, f := range p.Match {
		switch f.Type {
		case "tag", "env":
			w.put(fmt.Sprintf("      - {%s: %s, %s: %s}", f.Type, f.Name, f.Op, quote(f.Value)))
		default:
			w.put(fmt.Sprintf("      - {%s: {%s: %s}}", f.Type, f.Op, quote(f.Value)))
		}
	}
	if len(p.Layers) > 0 {
		w.put("    layers: [" + strings.Join(p.Layers, ", ") + "]")
	}
	if p.When != nil {
		w.put("    when: {" + p.When.fields("") + "}")
	}
	w.settings("    ", p.Settings, p.Lists, nil)
}

// fields writes the condition as the inside of a YAML mapping, with a separator in front where
// there is any field.
func (c *Condition) fields(front string) string {
	var list []string
	for _, f := range [][2]string{{"interface", c.Interface}, {"gateway", c.Gateway}, {"address", c.Address}} {
		if f[1] != "" {
			list = append(list, f[0]+": "+quote(f[1]))
		}
	}
	if len(list) == 0 {
		return ""
	}
	return front + strings.Join(list, ", ")
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// Clone returns a copy that shares nothing with p.
func (p *Policy) Clone() *Policy {
	c := *p
	c.Settings, c.Lists = maps.Clone(p.Settings), cloneLists(p.Lists)
	c.Ratings, c.Only = slices.Clone(p.Ratings), slices.Clone(p.Only)
	c.Runtime, c.Temporary = maps.Clone(p.Runtime), slices.Clone(p.Temporary)
	c.Profiles = slices.Clone(p.Profiles)
	for i := range c.Profiles {
		q := &c.Profiles[i]
		q.Match, q.Layers = slices.Clone(q.Match), slices.Clone(q.Layers)
		q.Settings, q.Lists = maps.Clone(q.Settings), cloneLists(q.Lists)
	}
	return &c
}

func cloneLists(lists map[string][]Rule) map[string][]Rule {
	c := maps.Clone(lists)
	for key := range c {
		c[key] = slices.Clone(c[key])
	}
	return c
}
