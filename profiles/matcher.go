package profiles

import (
	"slices"
	"strings"

	"gatun/attribution"
)

// matcher finds the fingerprint that fits a process best. Their number hardly matters: values
// and prefixes are looked up, and a regular expression is tried only where four bytes that all
// its matches contain are there.
type matcher struct {
	fingerprints []fingerprint
	tags         map[string]*textIndex // by name of the tag
	env          map[string]*textIndex // by name of the variable
	cmdline      textIndex
	path         textIndex
	environ      func(*attribution.Process) []string
}

// regexes are the regular expressions of m by their text.
func (m *matcher) regexes() map[string]*fingerprint {
	list := map[string]*fingerprint{}
	for i := range m.fingerprints {
		if f := &m.fingerprints[i]; f.regex != nil {
			list[f.Value] = f
		}
	}
	return list
}

// textIndex finds the fingerprints of one kind that may fit a text.
type textIndex struct {
	equals   map[string][]int32
	prefixes map[string][]int32
	lengths  []int            // of the prefixes in bytes
	grams    map[gram][]int32 // regular expressions by a part of every match
	rest     []int32          // all others
}

// gram is four bytes of a text.
type gram [4]byte

func newMatcher(environ func(*attribution.Process) []string) matcher {
	return matcher{tags: map[string]*textIndex{}, env: map[string]*textIndex{}, environ: environ}
}

func (m *matcher) add(f fingerprint) {
	i := int32(len(m.fingerprints))
	m.fingerprints = append(m.fingerprints, f)
	byName := m.tags
	switch f.Type {
	case "path":
		m.path.add(&f, i)
		return
	case "cmdline":
		m.cmdline.add(&f, i)
		return
	case "env":
		byName = m.env
	}
	if byName[f.Name] == nil {
		byName[f.Name] = &textIndex{}
	}
	byName[f.Name].add(&f, i)
}

func (x *textIndex) add(f *fingerprint, i int32) {
	switch f.Op {
	case "equals":
		if x.equals == nil {
			x.equals = map[string][]int32{}
		}
		x.equals[f.Value] = append(x.equals[f.Value], i)
	case "prefix":
		if x.prefixes == nil {
			x.prefixes = map[string][]int32{}
		}
		if x.prefixes[f.Value] == nil && !slices.Contains(x.lengths, len(f.Value)) {
			x.lengths = append(x.lengths, len(f.Value))
		}
		x.prefixes[f.Value] = append(x.prefixes[f.Value], i)
	default:
		x.addRegex(f.part, i)
	}
}

// addRegex files a regular expression under the least used part of what its matches contain.
func (x *textIndex) addRegex(text string, i int32) {
	if len(text) < len(gram{}) {
		x.rest = append(x.rest, i)
		return
	}
	if x.grams == nil {
		x.grams = map[gram][]int32{}
	}
	rarest := gram([]byte(text[:4]))
	for at := 1; at+4 <= len(text); at++ {
		if g := gram([]byte(text[at : at+4])); len(x.grams[g]) < len(x.grams[rarest]) {
			rarest = g
		}
	}
	x.grams[rarest] = append(x.grams[rarest], i)
}

// visit calls try with every fingerprint that may fit the text.
func (x *textIndex) visit(text string, try func(list []int32, text string)) {
	try(x.equals[text], text)
	for _, n := range x.lengths {
		if n <= len(text) {
			try(x.prefixes[text[:n]], text)
		}
	}
	if len(x.grams) > 0 {
		for at := 0; at+4 <= len(text); at++ {
			if list := x.grams[gram{text[at], text[at+1], text[at+2], text[at+3]}]; list != nil {
				try(list, text)
			}
		}
	}
	try(x.rest, text)
}

// match is the best fingerprint so far.
type match struct {
	m    *matcher
	best *fingerprint // nil: none fits
	tied []int        // other profiles that fit equally well
}

// find returns what fits p best. The better score wins, then the human's file over what was
// made at run time over what the program made itself, then the one that stands first.
func (m *matcher) find(p *attribution.Process) match {
	r := match{m: m}
	for name, x := range m.tags {
		if text := tagOf(p, name); text != "" {
			x.visit(text, r.try)
		}
	}
	// The types do not overlap: what fits by a stronger one is not beaten by a weaker.
	if r.best == nil && p.Kind == attribution.KindProgram {
		r.program(p)
	}
	slices.Sort(r.tied)
	return r
}

func (r *match) program(p *attribution.Process) {
	m := r.m
	if len(p.Args) > 0 {
		m.cmdline.visit(strings.Join(p.Args, " "), r.try)
	}
	if r.best == nil && len(m.env) > 0 && m.environ != nil {
		for _, entry := range m.environ(p) {
			name, value, _ := strings.Cut(entry, "=")
			if x := m.env[name]; x != nil {
				x.visit(value, r.try)
			}
		}
	}
	if r.best == nil && p.Path != "" {
		m.path.visit(p.Path, r.try)
	}
}

func (r *match) try(list []int32, text string) {
	for _, i := range list {
		f := &r.m.fingerprints[i]
		if (r.best == nil || f.score >= r.best.score) && f != r.best && f.matchText(text) {
			r.offer(f)
		}
	}
}

func (r *match) offer(f *fingerprint) {
	b := r.best
	switch {
	case b == nil || f.score > b.score || f.score == b.score && f.origin < b.origin:
		r.best, r.tied = f, nil
	case f.score < b.score || f.origin > b.origin || f.profile == b.profile:
	case f.profile < b.profile:
		r.best = f
		r.tie(b.profile, f.profile)
	default:
		r.tie(f.profile, b.profile)
	}
}

// tie notes that a profile fits as well as the best one.
func (r *match) tie(profile, best int) {
	if !slices.Contains(r.tied, profile) {
		r.tied = append(r.tied, profile)
	}
	r.tied = slices.DeleteFunc(r.tied, func(p int) bool { return p == best })
}
