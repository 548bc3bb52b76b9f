package profiles

import (
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"gatun/attribution"
	"gatun/config"
)

const maxLengthScore = 499

// fingerprint is a config.Fingerprint ready to be held against processes.
type fingerprint struct {
	config.Fingerprint
	regex   *regexp.Regexp
	score   int
	profile int // whose it is
}

func newFingerprint(f config.Fingerprint) (fingerprint, error) {
	c := fingerprint{Fingerprint: f, score: min(utf8.RuneCountInString(f.Value), maxLengthScore)}
	switch f.Type {
	case "tag":
		c.score += 50_000
	case "cmdline":
		c.score += 40_000
	case "env":
		c.score += 30_000
	default:
		c.score += 10_000
	}
	var err error
	switch f.Op {
	case "equals":
		c.score += 3_000
	case "prefix":
		c.score += 2_000
	default:
		c.score += 1_000
		c.regex, err = regexp.Compile(f.Value)
	}
	return c, err
}

func (f *fingerprint) matchText(s string) bool {
	switch f.Op {
	case "equals":
		return s == f.Value
	case "prefix":
		return strings.HasPrefix(s, f.Value)
	default:
		return f.regex.MatchString(s)
	}
}

// match holds the fingerprint against a process. What stands in where there is no program is
// recognised by the tag special only: it never gets another program's rules.
func (f *fingerprint) match(p *attribution.Process, environ func(*attribution.Process) []string) bool {
	if f.Type == "tag" && f.Name == "special" {
		return p.Kind != attribution.KindProgram && f.Value == specialName(p.Kind)
	}
	if p.Kind != attribution.KindProgram {
		return false
	}
	switch f.Type {
	case "path":
		return p.Path != "" && f.matchText(p.Path)
	case "cmdline":
		return len(p.Args) > 0 && f.matchText(strings.Join(p.Args, " "))
	case "env":
		return slices.ContainsFunc(environ(p), func(entry string) bool {
			name, value, _ := strings.Cut(entry, "=")
			return name == f.Name && f.matchText(value)
		})
	default:
		tag := tagOf(p, f.Name)
		return tag != "" && f.matchText(tag)
	}
}

func tagOf(p *attribution.Process, name string) string {
	switch name {
	case "systemd-unit":
		return p.Unit
	case "container":
		return p.Container
	case "user":
		return p.User
	default:
		return ""
	}
}

// specialName is the name of the profile that an identity without a program has.
func specialName(k attribution.Kind) string {
	switch k {
	case attribution.KindUnsolicited:
		return "unsolicited"
	case attribution.KindSystem:
		return "system"
	case attribution.KindSelf:
		return "self"
	default:
		return "unidentified"
	}
}

// profile is one profile of the configuration with its resolved settings.
type profile struct {
	name     string
	settings *Settings
}

// profileIndex finds the profile of a process. Paths that are named exactly are looked up, all
// other fingerprints are tried.
type profileIndex struct {
	profiles []profile
	byPath   map[string][]pathEntry
	others   []fingerprint // all that do not say path equals
	environ  func(*attribution.Process) []string
}

type pathEntry struct {
	profile int
	score   int
}

// find returns the profile with the best score, nil if none fits. Of equal scores the profile
// that stands first wins, and tied names the other.
func (x *profileIndex) find(p *attribution.Process) (best *profile, tied string) {
	top, at := 0, -1
	offer := func(score, i int) {
		switch {
		case score > top || score == top && i < at:
			if score == top {
				tied = x.profiles[at].name
			} else {
				tied = ""
			}
			top, at = score, i
		case score == top && i != at:
			tied = x.profiles[i].name
		}
	}
	if p.Kind == attribution.KindProgram {
		for _, e := range x.byPath[p.Path] {
			offer(e.score, e.profile)
		}
	}
	for i := range x.others {
		f := &x.others[i]
		if f.score >= top && f.match(p, x.environ) {
			offer(f.score, f.profile)
		}
	}
	if at < 0 {
		return nil, ""
	}
	return &x.profiles[at], tied
}
