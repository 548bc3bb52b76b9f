package profiles

import (
	"regexp"
	"regexp/syntax"
	"strconv"
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
	part    string // what every match of regex contains, "" if nothing is known
	score   int
	profile int                  // whose it is
	origin  config.ProfileOrigin // who made that profile
}

// newFingerprint computes the score of policy.md section 2: the type counts most, then the
// operation, then the length. known, which may be nil, has the regular expressions that were
// compiled before.
func newFingerprint(f config.Fingerprint, known map[string]*fingerprint) (fingerprint, error) {
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
		if k := known[f.Value]; k != nil {
			c.regex, c.part = k.regex, k.part
			break
		}
		c.regex, err = regexp.Compile(f.Value)
		c.part = required(f.Value)
	}
	return c, err
}

// String formats f for people: "path equals /usr/bin/curl", "tag systemd-unit prefix apt".
func (f *fingerprint) String() string {
	if f.Name != "" {
		return f.Type + " " + f.Name + " " + f.Op + " " + f.Value
	}
	return f.Type + " " + f.Op + " " + f.Value
}

func (f *fingerprint) matchText(s string) bool {
	switch f.Op {
	case "equals":
		return s == f.Value
	case "prefix":
		return strings.HasPrefix(s, f.Value)
	default:
		return strings.Contains(s, f.part) && f.regex.MatchString(s)
	}
}

// tagOf returns what a process carries as that tag, "" if nothing. What stands in where there is
// no program carries only the tag special, so that it never gets a program's rules.
func tagOf(p *attribution.Process, name string) string {
	if name == "special" {
		return specialOf(p)
	}
	if p.Kind != attribution.KindProgram {
		return ""
	}
	switch name {
	case "systemd-unit":
		return p.Unit
	case "container":
		return p.Container
	case "cgroup":
		return p.CGroup
	case "flatpak":
		return p.Flatpak
	case "snap":
		return p.Snap
	case "appimage":
		return p.AppImage
	case "script":
		return p.Script
	case "user":
		if p.User == "" {
			return strconv.FormatUint(uint64(p.UID), 10) // a user without a name
		}
		return p.User
	default:
		return ""
	}
}

// The names of the profiles that identities without a program of their own have.
const (
	unidentifiedName   = "unidentified"
	unsolicitedName    = "unsolicited"
	systemName         = "system"
	systemResolverName = "system-resolver"
	selfName           = "self"
	globalName         = "global"
)

// specialOf is the value of the tag special: the name of a built-in profile, "" for an ordinary
// program.
func specialOf(p *attribution.Process) string {
	switch p.Kind {
	case attribution.KindProgram:
		if IsSystemResolver(p.Path) {
			return systemResolverName
		}
		return ""
	case attribution.KindUnsolicited:
		return unsolicitedName
	case attribution.KindSystem:
		return systemName
	case attribution.KindSelf:
		return selfName
	default:
		return unidentifiedName
	}
}

// IsSystemResolver knows the resolver daemons that ask for everybody by where distributions
// install them. Only root can put a program there; a binary of
// that name elsewhere, or in a mount namespace of its own, has another path.
func IsSystemResolver(path string) bool {
	switch path {
	case "/usr/lib/systemd/systemd-resolved", "/lib/systemd/systemd-resolved", "/usr/sbin/nscd", "/usr/sbin/dnsmasq",
		"/usr/bin/dnsmasq", "/usr/sbin/unbound", "/usr/bin/unbound", "/usr/sbin/named", "/usr/bin/named",
		"/usr/sbin/kresd", "/usr/bin/stubby", "/usr/sbin/stubby":
		return true
	}
	return false
}

// required returns a text that every match of the regular expression contains, "" if none is
// known.
func required(expression string) string {
	re, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		return ""
	}
	return requiredBy(re.Simplify())
}

func requiredBy(re *syntax.Regexp) string {
	switch re.Op {
	case syntax.OpLiteral:
		text := string(re.Rune)
		if re.Flags&syntax.FoldCase != 0 || strings.ContainsRune(text, utf8.RuneError) {
			return "" // that rune also stands for every byte that is not UTF-8
		}
		return text
	case syntax.OpCapture, syntax.OpPlus:
		return requiredBy(re.Sub[0])
	case syntax.OpConcat:
		longest := ""
		for _, sub := range re.Sub {
			if text := requiredBy(sub); len(text) > len(longest) {
				longest = text
			}
		}
		return longest
	default:
		return ""
	}
}
