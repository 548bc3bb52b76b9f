// Package status rates the network and interprets graded settings by the rating.
//
// cmd lets it Judge what netenv knows whenever that or the configuration changes; profiles asks
// it while it resolves settings; nobody else compares grades with ratings, or looks at network
// conditions. It also has the states of the program's parts. It keeps no state and decides nothing.
package status

import (
	"fmt"
	"maps"
	"time"

	"gatun/config"
)

// Rating says how far the network is trusted.
type Rating uint8

// The ratings, from the most to the least trusted.
const (
	Trusted Rating = iota
	Untrusted
	Danger
)

// String returns the rating as files spell it.
func (r Rating) String() string {
	switch r {
	case Trusted:
		return "trusted"
	case Untrusted:
		return "untrusted"
	default:
		return "danger"
	}
}

// ParseRating reads a rating as String prints it.
func ParseRating(s string) (Rating, error) {
	for _, r := range []Rating{Trusted, Untrusted, Danger} {
		if s == r.String() {
			return r, nil
		}
	}
	return Danger, fmt.Errorf("want trusted, untrusted or danger, got %q", s)
}

// Active reports whether a setting of that grade is in effect: on is always, off never, and
// the others from the rating of their name on. What is not a grade counts as on, because
// graded settings restrict.
func Active(g config.Grade, r Rating) bool {
	switch g {
	case config.Off:
		return false
	case config.Trusted:
		return true
	case config.Untrusted:
		return r >= Untrusted
	case config.Danger:
		return r >= Danger
	default:
		return true
	}
}

// State is what the network is judged to be at one moment. The zero State is a trusted network
// in which no condition holds.
type State struct {
	Rating Rating
	Origin string          // where the rating comes from: "default", "gatun.yaml:3", "rule gatun.yaml:9"
	Holds  map[string]bool // by name of a network-conditional profile: whether its condition holds
	Portal bool            // a captive portal holds this machine back
	// PortalHost is the name or address of its page, "" where that is not known.
	PortalHost string
	Next       time.Time // when a condition on the time of day may change; zero: never
}

// look is how long Wait waits at most. The machine may sleep and its clock may be set, and then
// a timer for hours comes late.
const look = time.Minute

// Equal reports whether both judge the same, whenever that may change.
func (s State) Equal(o State) bool {
	return s.Rating == o.Rating && s.Portal == o.Portal && s.PortalHost == o.PortalHost && s.Origin == o.Origin && maps.Equal(s.Holds, o.Holds)
}

// Wait returns after how long to Judge again because of the time of day; ok is false where no
// condition speaks of it.
func (s State) Wait(now time.Time) (d time.Duration, ok bool) {
	if s.Next.IsZero() {
		return 0, false
	}
	return min(max(s.Next.Sub(now.Round(0)), 0), look), true
}
