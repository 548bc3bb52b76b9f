package config

import (
	"maps"
	"time"
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
