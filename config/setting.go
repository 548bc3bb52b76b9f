package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Type says what a setting's value looks like.
type Type uint8

// The types of values. In Go a value is a bool, int, string, time.Duration, Grade or
// []RuleText, in this order; TypeObjects are lists of objects with keys of their own.
const (
	TypeBool Type = iota
	TypeInt
	TypeString
	TypeDuration
	TypeGrade
	TypeStrings
	TypeRules
	TypeObjects
)

// String names the type as the settings reference does.
func (t Type) String() string {
	switch t {
	case TypeBool:
		return "bool"
	case TypeInt:
		return "int"
	case TypeString:
		return "string"
	case TypeDuration:
		return "duration"
	case TypeGrade:
		return "graded"
	case TypeStrings:
		return "string list"
	case TypeRules:
		return "rule list"
	default:
		return "objects"
	}
}

// Grade is the value of a graded setting. It is interpreted by package status only: nobody
// else compares a Grade with a rating.
type Grade uint8

// The grades: off, active from the named network rating on, or always.
const (
	Off Grade = iota
	Trusted
	Untrusted
	Danger
	On
)

// String returns the grade as files spell it.
func (g Grade) String() string {
	switch g {
	case Off:
		return "off"
	case Trusted:
		return "trusted"
	case Untrusted:
		return "untrusted"
	case Danger:
		return "danger"
	default:
		return "on"
	}
}

// Expertise only filters what is shown; a hidden setting stays in effect.
type Expertise uint8

// The expertise levels.
const (
	User Expertise = iota
	Expert
	Developer
)

// String returns the level as files spell it.
func (e Expertise) String() string { return [...]string{"user", "expert", "developer"}[min(e, 2)] }

// Release gates what is used: a stored value counts only if the setting's release level is
// not above core/releaseLevel.
type Release uint8

// The release levels.
const (
	Stable Release = iota
	Beta
	Experimental
)

// String returns the level as files spell it.
func (r Release) String() string { return [...]string{"stable", "beta", "experimental"}[min(r, 2)] }

// Setting declares one setting. The table of all settings is what docs, schema, completion
// and forms are made from.
type Setting struct {
	Key         string // path: "filter/defaultAction"
	Name        string
	Description string
	Type        Type
	Default     any // of the Go type that Type names; nil for an empty list
	Expertise   Expertise
	Release     Release
	PerApp      bool // a profile may set it
	Stacked     bool // layers add up instead of replacing each other

	RestartRequired bool
	Sensitive       bool // never shown
	PossibleValues  []string

	// Check refuses a value that has the right type: it returns what is wanted, and what was
	// probably meant.
	Check func(v any) (message, suggestion string)

	// Missing names the part of the program that will give the setting its effect, "" if it
	// is there. Changing it is refused until then, and stating the default is worth a warning:
	// nothing may look enforced that is not.
	Missing string
	// Outside says how to set what a file cannot, "" for all others: the client commands need
	// it as well, and they do not read the daemon's file.
	Outside string
	// MissingPerApp is the same for the setting in a profile.
	MissingPerApp string
	// MissingValues are the values of PossibleValues that need a part which is not there.
	MissingValues map[string]string
}

// refusal says why the setting cannot be set in a file, or in a profile of one.
func (s *Setting) refusal(app bool) string {
	switch {
	case s.Outside != "":
		return "cannot be set in a file, because the client commands need it too; use " + s.Outside
	case app && !s.PerApp:
		return "cannot be set per app; set it at the top of the file"
	case app && s.MissingPerApp != "":
		return "cannot be set per app in this version: it needs " + s.MissingPerApp
	}
	return ""
}

// Values lists what the setting can be, for completion; nil where that is open.
func (s *Setting) Values() []string {
	switch s.Type {
	case TypeBool:
		return []string{"on", "off"}
	case TypeGrade:
		return []string{"off", "trusted", "untrusted", "danger", "on"}
	default:
		return s.PossibleValues
	}
}

// parse reads a scalar as the file spells it. tag is the YAML tag of an unquoted scalar, or
// "" for text from the environment or a flag, which has no type of its own.
func (s *Setting) parse(text, tag string) (v any, message, suggestion string) {
	switch s.Type {
	case TypeBool:
		v, message, suggestion = parseSwitch(text)
	case TypeGrade:
		v, message, suggestion = parseGrade(text)
	case TypeInt:
		v, message = parseInt(text, tag)
	case TypeDuration:
		v, message = parseDuration(text)
	case TypeString:
		v, message, suggestion = s.parseString(text, tag)
	default:
		return nil, "want a list, got " + describe(text, tag), ""
	}
	if message == "" && s.Check != nil {
		message, suggestion = s.Check(v)
	}
	return v, message, suggestion
}

func parseSwitch(text string) (any, string, string) {
	switch text {
	case "on", "true":
		return true, "", ""
	case "off", "false":
		return false, "", ""
	}
	return nil, fmt.Sprintf("want on or off, got %q", text), switchMeant(text)
}

func parseGrade(text string) (any, string, string) {
	switch text {
	case "on", "true":
		return On, "", ""
	case "off", "false":
		return Off, "", ""
	}
	names := (&Setting{Type: TypeGrade}).Values()
	for g, name := range names {
		if text == name {
			return Grade(g), "", ""
		}
	}
	meant := switchMeant(text)
	if meant == "" {
		meant = nearest(text, names)
	}
	return nil, fmt.Sprintf("want off, trusted, untrusted, danger or on, got %q", text), meant
}

// switchMeant knows the other spellings of on and off that people try.
func switchMeant(text string) string {
	switch strings.ToLower(text) {
	case "yes", "y", "1", "enable", "enabled", "on", "true":
		return "on"
	case "no", "n", "0", "disable", "disabled", "off", "false", "never":
		return "off"
	}
	return ""
}

func parseInt(text, tag string) (any, string) {
	if tag == "" || tag == "!!int" {
		if n, err := strconv.ParseInt(text, 0, 64); err == nil {
			return int(n), ""
		}
	}
	return nil, "want a number, got " + describe(text, tag)
}

func parseDuration(text string) (any, string) {
	if days, found := strings.CutSuffix(text, "d"); found {
		if d, err := time.ParseDuration(days + "h"); err == nil && d >= 0 {
			return 24 * d, ""
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return d, ""
	}
	return nil, fmt.Sprintf("want a duration such as 90s, 10m, 24h or 30d, got %q", text)
}

func (s *Setting) parseString(text, tag string) (any, string, string) {
	if tag != "" && tag != "!!str" {
		return nil, "want text, got " + describe(text, tag), ""
	}
	if len(s.PossibleValues) == 0 {
		return text, "", ""
	}
	for _, v := range s.PossibleValues {
		if text != v {
			continue
		}
		if part := s.MissingValues[v]; part != "" {
			return nil, fmt.Sprintf("%q is not available in this version: it needs %s", v, part), ""
		}
		return text, "", ""
	}
	return nil, fmt.Sprintf("want %s, got %q", oneOf(s.PossibleValues), text), nearest(text, s.PossibleValues)
}

// oneOf lists values as "a, b or c".
func oneOf(values []string) string {
	if len(values) == 1 {
		return values[0]
	}
	last := len(values) - 1
	return strings.Join(values[:last], ", ") + " or " + values[last]
}

// describe says what was found in the words of people, not of YAML.
func describe(text, tag string) string {
	switch tag {
	case "!!null":
		return "nothing"
	case "!!bool":
		return "the switch " + text
	case "!!int", "!!float":
		return "the number " + text
	case "!!timestamp":
		return "the date " + text
	case "!!seq":
		return "a list"
	case "!!map":
		return "a section"
	default:
		return fmt.Sprintf("%q", text)
	}
}
