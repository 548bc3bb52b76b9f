package config

import (
	"crypto/sha256"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"
)

// OriginKind says which layer a value comes from.
type OriginKind uint8

// The layers, from the weakest to the strongest.
const (
	FromDefault OriginKind = iota
	FromPreset
	FromRuntime // changed at run time: config.json, or a profile of the data directory
	FromFile
	FromEnv
	FromFlag
)

// Origin says where a value comes from.
type Origin struct {
	Kind     OriginKind
	Name     string   // of the preset, variable or flag
	Position Position // in a file
}

// String formats o for people: "default", "preset server", "config.json", "gatun.yaml:12", "environment
// GATUN_FILTER__PING", "flag core/socket".
func (o Origin) String() string {
	switch o.Kind {
	case FromPreset:
		return "preset " + o.Name
	case FromRuntime:
		if filepath.Base(o.Position.File) == runtimeFile {
			return runtimeFile
		}
		return fmt.Sprintf("%s/%s:%d", profilesDir, filepath.Base(o.Position.File), o.Position.Line)
	case FromFile:
		return fmt.Sprintf("%s:%d", o.Position.File, o.Position.Line)
	case FromEnv:
		return "environment " + o.Name
	case FromFlag:
		return "flag " + o.Name
	default:
		return "default"
	}
}

// RuleText is one item of a list as it was written; Position is that of its first character.
type RuleText struct {
	Text string
	Position
}

// Value is the value of one setting and where it comes from.
type Value struct {
	Origin Origin
	// Inactive says why a stored value is not used, "" if it is. The value is then the default.
	Inactive string

	v      any
	stored any // what Inactive speaks of
}

// Any returns the value as the Go type that the setting's Type names.
func (v Value) Any() any { return v.v }

// Rules returns the items of a list; the caller must not change them.
func (v Value) Rules() []RuleText {
	list, _ := v.v.([]RuleText)
	return list
}

// Config is everything that was configured: checked, merged and immutable.
type Config struct {
	values   map[string]Value
	profiles []ProfileSpec
	byName   map[string]int // -> index of profiles
	preset   string
	lists    []ListSpec
	geo      GeoSpec
	warnings Problems
	lines    map[string][]string // of every file, for excerpts
	paths    []string
	sum      [sha256.Size]byte
}

// Value returns a setting of the table. An unknown key is a mistake in the program and panics.
func (c *Config) Value(key string) Value {
	v, ok := c.values[key]
	if !ok {
		panic("config: no setting " + key)
	}
	return v
}

// Bool returns a setting of type TypeBool.
func (c *Config) Bool(key string) bool { return c.Value(key).v.(bool) }

// Int returns a setting of type TypeInt.
func (c *Config) Int(key string) int { return c.Value(key).v.(int) }

// String returns a setting of type TypeString.
func (c *Config) String(key string) string { return c.Value(key).v.(string) }

// Duration returns a setting of type TypeDuration.
func (c *Config) Duration(key string) time.Duration { return c.Value(key).v.(time.Duration) }

// Grade returns a setting of type TypeGrade.
func (c *Config) Grade(key string) Grade { return c.Value(key).v.(Grade) }

// Rules returns the items of a setting of type TypeRules, with their positions.
func (c *Config) Rules(key string) []RuleText { return c.Value(key).Rules() }

// Strings returns the items of a setting of type TypeStrings.
func (c *Config) Strings(key string) []string {
	items := c.Value(key).Rules()
	texts := make([]string, len(items))
	for i, item := range items {
		texts[i] = item.Text
	}
	return texts
}

// Profiles returns the profiles of the files, in the order of the files.
func (c *Config) Profiles() []ProfileSpec { return c.profiles }

// Preset returns the name of the preset, "" if none was chosen.
func (c *Config) Preset() string { return c.preset }

// Warnings returns what is doubtful but not wrong, sorted by position.
func (c *Config) Warnings() Problems { return c.warnings }

// Files returns the files that were read, in the order in which they were merged.
func (c *Config) Files() []string { return c.paths }

// Equal reports whether both say the same in the same places: files, preset, profiles and
// every value with its origin. Only then nothing at all follows from replacing one by the
// other.
func (c *Config) Equal(o *Config) bool { return o != nil && c.sum == o.sum }

// Problem makes a Problem at a place of one of the files, with the excerpt filled in.
func (c *Config) Problem(p Position, key, message, suggestion string) Problem {
	return Problem{Position: p, Key: key, Message: message, Suggestion: suggestion, Excerpt: lineOf(c.lines, p)}
}

// At returns the place of the col-th character of a list item. Where the item is written with
// escapes or over several lines, that is the item's first character.
func (c *Config) At(r RuleText, col int) Position { return place(c.lines, r, col) }

func place(lines map[string][]string, r RuleText, col int) Position {
	line := lineOf(lines, r.Position)
	if col <= 1 || r.Col == 0 || utf8.RuneCountInString(line) < r.Col {
		return r.Position
	}
	if strings.HasPrefix(string([]rune(line)[r.Col-1:]), r.Text) {
		p := r.Position
		p.Col += col - 1
		return p
	}
	return r.Position
}

func lineOf(lines map[string][]string, p Position) string {
	if l := lines[p.File]; p.Line >= 1 && p.Line <= len(l) {
		return l[p.Line-1]
	}
	return ""
}

// fingerprint digests all that Equal compares, in an order that does not depend on maps.
func (c *Config) fingerprint() {
	h, table := sha256.New(), Table()
	fmt.Fprintf(h, "%q %q\n", c.preset, c.paths)
	digest := func(values map[string]Value) {
		if len(values) == 0 {
			return
		}
		for _, s := range table {
			if v, ok := values[s.Key]; ok {
				fmt.Fprintf(h, "%s %#v %q %s", s.Key, v.Origin, v.Inactive, FormatValue(v.v))
				digestPositions(h, v.v)
			}
		}
	}
	digest(c.values)
	for i := range c.profiles {
		p := &c.profiles[i]
		fmt.Fprintf(h, "%#v %q %#v %q %d %q %q\n", p.Position, p.Name, p.Match, p.Layers, p.Origin, p.Created.Format(time.RFC3339Nano), p.Facts)
		if p.When != nil {
			fmt.Fprintf(h, "%#v %s\n", p.When.Position, p.When.flow())
		}
		digest(p.values)
	}
	c.digestIntelligence(h)
	h.Sum(c.sum[:0])
}

// digestPositions tells lists apart that say the same in different places.
func digestPositions(h io.Writer, v any) {
	switch v := v.(type) {
	case []RuleText:
		for _, item := range v {
			fmt.Fprintf(h, " %#v", item)
		}
	case []RatingRule:
		for _, r := range v {
			fmt.Fprintf(h, " %#v", r.Position)
		}
	}
	fmt.Fprintln(h)
}

// LayersOf returns the profiles that lie under one, the nearest first, with those that lie under
// these: each layer is followed by its own layers, and what is named twice counts where it is
// named first. Profiles with a condition are not among them.
func (c *Config) LayersOf(name string) []string {
	seen, order := map[string]bool{name: true}, []string(nil)
	var visit func(name string)
	visit = func(name string) {
		i, ok := c.byName[name]
		if !ok {
			return
		}
		for _, layer := range c.profiles[i].Layers {
			if !seen[layer] {
				seen[layer] = true
				order = append(order, layer)
				visit(layer)
			}
		}
	}
	visit(name)
	return order
}
