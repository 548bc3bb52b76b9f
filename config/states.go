package config

import "slices"

// SettingState is a setting as people see it: what it is, its value and where that comes from.
type SettingState struct {
	Key         string `json:"key"`
	Name        string `json:"name"`
	Description string `json:"description"`
	Type        string `json:"type"` // bool, int, string, duration, graded, string list, rule list, objects
	// Value and Default are what JSON knows, in the spelling of files: bool, number, text, list.
	// FormatValue writes them for people.
	Value           any      `json:"value"`
	Default         any      `json:"default"`
	Origin          string   `json:"origin"`
	Pinned          bool     `json:"pinned"` // by the human's file, the environment or a flag
	Expertise       string   `json:"expertise"`
	Release         string   `json:"release"`
	PerApp          bool     `json:"per_app"`
	Stacked         bool     `json:"stacked"`
	RestartRequired bool     `json:"restart_required"`
	Sensitive       bool     `json:"sensitive"`
	PossibleValues  []string `json:"possible_values,omitempty"`
	// Inactive says why the setting has no effect, or what is stored for it, "" if it has.
	Inactive string `json:"inactive,omitempty"`
	// Stored is the value that Inactive speaks of, where one is stored.
	Stored any `json:"stored,omitempty"`
	// Set is true in a profile that sets the value itself, and false where it comes from a layer
	// below.
	Set bool `json:"set,omitempty"`
}

// States returns all settings, in the order of the table. Sensitive values are hidden.
func (c *Config) States() []SettingState {
	table := Table()
	states := make([]SettingState, 0, len(table))
	for i := range table {
		states = append(states, state(&table[i], c.values[table[i].Key]))
	}
	return states
}

func state(s *Setting, v Value) SettingState {
	st := SettingState{
		Key: s.Key, Name: s.Name, Description: s.Description, Type: s.Type.String(),
		Value: shown(s, v.v), Default: shown(s, defaultOf(s)), Origin: v.Origin.String(), Pinned: v.Origin.Kind > FromRuntime,
		Expertise: s.Expertise.String(), Release: s.Release.String(), PerApp: s.PerApp, Stacked: s.Stacked,
		RestartRequired: s.RestartRequired, Sensitive: s.Sensitive, PossibleValues: s.Values(), Inactive: v.Inactive,
	}
	if v.Inactive != "" {
		st.Stored = shown(s, v.stored)
	}
	if s.Missing != "" {
		st.Inactive = "no effect in this version: it needs " + s.Missing
	}
	return st
}

// shown hides what is nobody's business.
func shown(s *Setting, v any) any {
	if !s.Sensitive {
		return plain(v)
	}
	if FormatValue(v) == FormatValue(defaultOf(s)) {
		return "(not set)"
	}
	return "(set)"
}

// ProfileStates returns the settings that a profile may set, as they hold for its programs:
// lists that add up are joined. Profiles that depend on the network are left out. ok is false
// for an unknown name.
func (c *Config) ProfileStates(name string) (states []SettingState, ok bool) {
	i, ok := c.byName[name]
	if !ok {
		return nil, false
	}
	layers := []*ProfileSpec{&c.profiles[i]}
	for _, layer := range c.LayersOf(name) {
		if j, ok := c.byName[layer]; ok {
			layers = append(layers, &c.profiles[j])
		}
	}
	table := Table()
	for i := range table {
		s := &table[i]
		if !s.PerApp {
			continue
		}
		stored, set := layers[0].values[s.Key]
		st := state(s, c.layered(s, layers))
		st.Set = set
		if stored.Inactive != "" {
			st.Inactive, st.Stored = stored.Inactive, shown(s, stored.v)
		}
		states = append(states, st)
	}
	return states, true
}

// layered returns what holds for a program whose profile lies on those layers.
func (c *Config) layered(s *Setting, layers []*ProfileSpec) Value {
	var found []Value
	for _, p := range layers {
		if v, ok := p.Value(s.Key); ok {
			found = append(found, v)
		}
	}
	found = append(found, c.values[s.Key])
	if !s.Stacked {
		return found[0]
	}
	var list []RuleText
	for _, v := range found {
		list = slices.Concat(list, v.Rules())
	}
	return Value{Origin: found[0].Origin, Inactive: found[0].Inactive, v: list}
}
