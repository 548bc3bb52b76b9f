package config

// SettingState is a setting as people see it: what it is, its value and where that comes from.
type SettingState struct {
	Key             string   `json:"key"`
	Name            string   `json:"name"`
	Description     string   `json:"description"`
	Type            string   `json:"type"`
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
	// Inactive says why what is stored has no effect, "" if it has.
	Inactive string `json:"inactive,omitempty"`
	// Stored is the value that Inactive speaks of, nil where none was stored.
	Stored any `json:"stored,omitempty"`
	// Set is true in a profile that sets the value itself, and false where it comes from a layer
	// below.
	Set bool `json:"set,omitempty"`
}

// States returns all settings, in the order of the table. Sensitive values are hidden.
func (c *Config) States() []SettingState { return nil }

// ProfileStates returns the settings that a profile may set, as they hold for its programs;
// profiles that depend on the network are left out. ok is false for an unknown name.
func (c *Config) ProfileStates(name string) (states []SettingState, ok bool) { return nil, false }
