package profiles

import (
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"gatun/attribution"
	"gatun/config"
)

// Bounds of what the program makes itself: who copies a binary to ever new places must not fill
// the disk with profiles, nor one of them with its arguments.
const (
	maxAutomatic = 4096
	maxNameRunes = 64 // what config allows
	maxFactRunes = 256
)

// Marks of attribution on a path that is no file here.
const (
	suffixDeleted = " (deleted)"
	suffixForeign = " (other mount namespace)"
)

// pending are the profiles that were made automatically and are not in the configuration yet,
// by their only fingerprint and by name.
type pending struct {
	specs map[config.Fingerprint]config.ProfileSpec
	names map[string]config.Fingerprint
}

func newPending() pending {
	return pending{specs: map[config.Fingerprint]config.ProfileSpec{}, names: map[string]config.Fingerprint{}}
}

func (p pending) add(f config.Fingerprint, spec config.ProfileSpec) {
	p.specs[f], p.names[spec.Name] = spec, f
}

// without returns the pending profiles that are not in the configuration and whose name it gave
// to no other one: that one would be made again under a free name.
func (p pending) without(c *policy) pending {
	next := newPending()
	for f, spec := range p.specs {
		if _, taken := c.byName[spec.Name]; !taken && c.automatic {
			next.add(f, spec)
		}
	}
	return next
}

// boundTo returns the fingerprint of a profile for the application of p: the path of its
// binary, or the name of a package whose binaries have another path each time. ok is false
// where no profile is made: a binary that is no file here, or not one that a file can name.
func boundTo(p *attribution.Process) (f config.Fingerprint, ok bool) {
	f = config.Fingerprint{Type: "tag", Op: "equals"}
	switch {
	case p.Kind != attribution.KindProgram || specialOf(p) != "":
		return f, false
	case p.Flatpak != "":
		f.Name, f.Value = "flatpak", p.Flatpak
	case p.Snap != "":
		f.Name, f.Value = "snap", p.Snap
	case p.AppImage != "":
		f.Name, f.Value = "appimage", p.AppImage
	case strings.HasSuffix(p.Path, suffixDeleted) || strings.HasSuffix(p.Path, suffixForeign):
		return f, false
	default:
		f.Type, f.Value = "path", p.Path
		if !strings.HasPrefix(p.Path, "/") && !strings.Contains(p.Path, `:\`) {
			return f, false
		}
	}
	return f, legible(f.Value)
}

func legible(text string) bool {
	return text != "" && utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) })
}

// automatic returns the profile that was made for the application of p, and makes it at first
// sight; a process without a number is only asked about and leaves no trace. current is false if c is no longer in force: then nothing was done.
func (s *Store) automatic(c *snapshot, p *attribution.Process) (name string, current bool) {
	f, ok := boundTo(p)
	if !ok || s.opt.Created == nil || !c.policy.automatic {
		return "", true
	}
	now := s.clock()
	s.mu.Lock()
	if s.current.Load() != c {
		s.mu.Unlock()
		return "", false
	}
	spec, known := s.pending.specs[f]
	made := !known && p.PID != 0 && len(s.pending.specs)+c.policy.automaticCount < maxAutomatic
	if made {
		spec = config.NewProfile(s.freeName(c.policy, f), []config.Fingerprint{f}, config.Automatic, factsOf(p))
		spec.Created = now
		s.pending.add(f, spec)
	}
	s.mu.Unlock()
	if made {
		s.opt.Created(copyOf(spec))
	}
	return spec.Name, true
}

// freeName returns a name for people that no other profile has. The caller holds mu.
func (s *Store) freeName(p *policy, f config.Fingerprint) string {
	free := func(name string) bool {
		_, known := p.byName[name]
		_, made := s.pending.names[name]
		return !known && !made && name != TemporaryLayer && utf8.RuneCountInString(name) <= maxNameRunes
	}
	file := strings.ReplaceAll(f.Value, `\`, "/")
	base := path.Base(file)
	for _, extension := range []string{".exe", ".AppImage"} {
		base = strings.TrimSuffix(base, extension)
	}
	base = strings.TrimSpace(cut(base, maxNameRunes-6))
	if base == "" {
		base = "application"
	}
	if free(base) {
		return base
	}
	if name := base + " (" + path.Dir(file) + ")"; free(name) {
		return name
	}
	for n := 2; ; n++ {
		if name := fmt.Sprintf("%s %d", base, n); free(name) {
			return name
		}
	}
}

func cut(text string, runes int) string {
	if utf8.RuneCountInString(text) <= runes {
		return text
	}
	return string([]rune(text)[:runes])
}

// factsOf keeps what the application looked like when it was first seen.
func factsOf(p *attribution.Process) map[string]string {
	facts := map[string]string{}
	for name, value := range map[string]string{
		"path": p.Path, "args": strings.Join(p.Args, " "), "user": tagOf(p, "user"), "unit": p.Unit, "container": p.Container, "script": p.Script,
	} {
		if value = cut(strings.ToValidUTF8(value, "?"), maxFactRunes); value != "" {
			facts[name] = strings.Map(func(r rune) rune {
				if unicode.IsPrint(r) {
					return r
				}
				return ' '
			}, value)
		}
	}
	return facts
}

// automaticProfile is a profile that the program made: match is its fingerprint if it is as it
// was made, and index where it is in the configuration, -1 if it is not there.
type automaticProfile struct {
	match config.Fingerprint
	index int
}

// automatics are the automatic profiles by name. Whether one is in the configuration already
// makes no difference to anybody.
func (p *policy) automatics(more pending) map[string]automaticProfile {
	list := map[string]automaticProfile{}
	for i := range p.profiles {
		if q := &p.profiles[i]; q.automatic() {
			list[q.name] = automaticProfile{match: q.untouched(), index: i}
		}
	}
	for name, f := range more.names {
		list[name] = automaticProfile{match: f, index: -1}
	}
	return list
}

// untouched returns the fingerprint of a profile that sets nothing, zero for any other.
func (p *profile) untouched() config.Fingerprint {
	if len(p.spec.Match) != 1 || len(p.under) > 0 || len(p.own.set) > 0 || len(p.own.endpoints)+len(p.own.services) > 0 {
		return config.Fingerprint{}
	}
	return place(p.spec.Match[0])
}

// place returns a fingerprint without its position.
func place(f config.Fingerprint) config.Fingerprint {
	f.Position = config.Position{}
	return f
}
