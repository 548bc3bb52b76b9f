package route

import "fmt"

// State is where the manager stands.
//
//	Off -> Starting -> On <-> Reconfiguring
//	          |         |          |
//	          +--> Degraded <------+      (closed: the guard holds or is being put back)
//	every state but Off -> Stopping -> Off
//
// In every state but Off nothing leaves outside the TUN device except what the guard names.
// Off is left by Up only and entered again by Down or Recover only.
type State uint8

// The states. The zero value is Off.
const (
	Off State = iota
	Starting
	On
	Reconfiguring
	Degraded
	Stopping
)

// String returns the state's name in lower case.
func (s State) String() string {
	switch s {
	case Off:
		return "off"
	case Starting:
		return "starting"
	case On:
		return "on"
	case Reconfiguring:
		return "reconfiguring"
	case Degraded:
		return "degraded"
	case Stopping:
		return "stopping"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// MarshalText makes JSON carry the name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// may reports whether the step from s to next is an edge of the diagram.
func (s State) may(next State) bool {
	switch s {
	case Off:
		return next == Starting
	case Starting:
		return next == On || next == Degraded || next == Stopping
	case On:
		return next == Reconfiguring || next == Degraded || next == Stopping
	case Reconfiguring, Degraded:
		return next == On || next == Reconfiguring || next == Degraded || next == Stopping
	case Stopping:
		return next == Off || next == Degraded
	}
	return false
}
