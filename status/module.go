package status

import "fmt"

// ModuleState says how a part of the program fares.
type ModuleState uint8

// The states, from the best to the worst.
const (
	OK      ModuleState = iota
	Info                // works; something is worth knowing
	Warning             // works in part
	Error               // does not do what it is for
)

// moduleStates are the names in files and on the API.
func moduleStates() []string { return []string{"ok", "info", "warning", "error"} }

// String returns the state as the API spells it. What is no state is as bad as the worst.
func (s ModuleState) String() string { return moduleStates()[min(s, Error)] }

// MarshalText spells the state.
func (s ModuleState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (s *ModuleState) UnmarshalText(b []byte) error {
	for i, name := range moduleStates() {
		if string(b) == name {
			*s = ModuleState(i)
			return nil
		}
	}
	return fmt.Errorf("want ok, info, warning or error, got %q", b)
}

// Module is what a part of the program says about itself.
type Module struct {
	Name    string      `json:"name"`
	State   ModuleState `json:"state"`
	Message string      `json:"message,omitempty"` // what is wrong and what to do; "" where all is well
}

// Worst returns the first of those that fare worst, the zero Module where there is none.
func Worst(modules []Module) Module {
	var worst Module
	for i, m := range modules {
		if i == 0 || m.State > worst.State {
			worst = m
		}
	}
	return worst
}
