package profiles

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gatun/attribution"
	"gatun/config"
)

// Info is one profile as people see it.
type Info struct {
	Name      string            `json:"name"`
	Origin    string            `json:"origin"`   // pinned, runtime, automatic or built-in
	Position  string            `json:"position"` // file:line, "" where it is in no file yet
	Match     []string          `json:"match"`
	Layers    []LayerInfo       `json:"layers"`    // what lies under it now, the nearest first, the global settings last
	Condition bool              `json:"condition"` // it lies under all others while a condition on the network holds
	Holds     bool              `json:"holds"`     // that condition holds now
	Processes uint64            `json:"processes"` // that were judged by it since the start of the program
	Created   time.Time         `json:"created,omitzero"`
	Facts     map[string]string `json:"facts,omitempty"`
}

// LayerInfo is one layer under a profile.
type LayerInfo struct {
	Name     string `json:"name"`
	Origin   string `json:"origin"`
	Position string `json:"position"`
}

// MatchReport says which profile an owner has, and why.
type MatchReport struct {
	Profile     string      `json:"profile"`
	Origin      string      `json:"origin"`
	Fingerprint string      `json:"fingerprint"` // that fits best; "" where none fits, or the owner is no program for sure
	Score       int         `json:"score"`
	Ties        []string    `json:"ties"` // other profiles that fit equally well; the first of the file counts
	Layers      []LayerInfo `json:"layers"`
}

// Profiles returns all profiles: those of the configuration in its order, those that were made
// automatically and are not there yet by name, then the built-in ones.
func (s *Store) Profiles() []Info {
	c := s.now()
	p := c.policy
	var list, builtIn []Info
	for i := range p.profiles {
		info := p.info(i)
		info.Processes = s.seen.count(info.Name)
		if p.profiles[i].spec == nil {
			builtIn = append(builtIn, info)
		} else {
			list = append(list, info)
		}
	}
	first := len(list)
	s.mu.Lock()
	for _, spec := range s.pending.specs {
		list = append(list, p.infoOf(spec))
	}
	s.mu.Unlock()
	for i := range list[first:] {
		list[first+i].Processes = s.seen.count(list[first+i].Name)
	}
	slices.SortFunc(list[first:], func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return append(list, builtIn...)
}

func (p *policy) info(i int) Info {
	q := &p.profiles[i]
	info := Info{Name: q.name, Origin: q.origin(), Match: []string{}, Layers: p.layerInfos(i)}
	if q.spec == nil {
		return info
	}
	named := p.infoOf(*q.spec)
	named.Layers, named.Condition = info.Layers, q.spec.When != nil
	named.Holds = named.Condition && slices.Contains(p.base.names, q.name)
	return named
}

func (p *policy) infoOf(spec config.ProfileSpec) Info {
	info := Info{Name: spec.Name, Origin: spec.Origin.String(), Position: positionOf(spec.Position), Match: []string{}, Created: spec.Created, Facts: spec.Facts}
	for _, f := range spec.Match {
		g := fingerprint{Fingerprint: f}
		info.Match = append(info.Match, g.String())
	}
	info.Layers = p.layerInfos(p.nobody)
	return info
}

// layerInfos describes what lies under a profile.
func (p *policy) layerInfos(i int) []LayerInfo {
	list := []LayerInfo{}
	add := func(q *profile) {
		layer := LayerInfo{Name: q.name, Origin: q.origin()}
		if q.spec != nil {
			layer.Position = positionOf(q.spec.Position)
		}
		list = append(list, layer)
	}
	for _, group := range p.profiles[i].under {
		add(&p.profiles[group])
	}
	below := p.base.names
	if p.profiles[i].spec != nil {
		below = below[slices.Index(below, p.profiles[i].name)+1:] // of a condition that holds itself
	}
	for _, name := range below {
		add(&p.profiles[p.byName[name]])
	}
	return list
}

func positionOf(p config.Position) string {
	if p.File == "" {
		return ""
	}
	return p.File + ":" + strconv.Itoa(p.Line)
}

// Pending returns the profiles that were made automatically and are not in the configuration
// yet, the oldest first: for who missed what Options.Created was told.
func (s *Store) Pending() []config.ProfileSpec {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]config.ProfileSpec, 0, len(s.pending.specs))
	for _, spec := range s.pending.specs {
		list = append(list, copyOf(spec))
	}
	slices.SortFunc(list, func(a, b config.ProfileSpec) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Name, b.Name))
	})
	return list
}

// copyOf returns a profile that shares nothing which somebody could write.
func copyOf(p config.ProfileSpec) config.ProfileSpec {
	p.Match, p.Facts = slices.Clone(p.Match), maps.Clone(p.Facts)
	return p
}

// Match says which profile an owner has, and why. It changes nothing: no profile is made.
func (s *Store) Match(o attribution.Owner) MatchReport {
	p := s.now().policy
	var m match
	i := p.special(o.Process.Kind)
	if isOne(o) {
		i, m = p.profileOf(o.Process)
	}
	r := MatchReport{Profile: p.profiles[i].name, Origin: p.profiles[i].origin(), Ties: []string{}, Layers: p.layerInfos(i)}
	if m.best != nil {
		r.Fingerprint, r.Score = m.best.String(), m.best.score
	}
	for _, j := range m.tied {
		r.Ties = append(r.Ties, p.profiles[j].name)
	}
	if f, ok := boundTo(o.Process); i == p.nobody && ok {
		s.mu.Lock()
		spec, made := s.pending.specs[f]
		s.mu.Unlock()
		if made {
			g, _ := newFingerprint(f, nil)
			r.Profile, r.Origin, r.Fingerprint, r.Score = spec.Name, spec.Origin.String(), g.String(), g.score
		}
	}
	return r
}

// census counts the processes of each profile.
type census struct {
	processes sync.Map // identity -> name of the profile
	known     atomic.Int64
	counts    sync.Map // name of the profile -> *atomic.Uint64
}

// identity is one process for ever.
type identity struct {
	pid     int
	started int64
}

func (c *census) add(p *attribution.Process, profile string) {
	before, known := c.processes.Swap(identity{p.PID, p.Started.UnixNano()}, profile)
	if known && before == profile {
		return
	}
	if !known && c.known.Add(1) > maxCached {
		c.processes.Clear() // a process may be counted twice: better than to grow for ever
		c.known.Store(0)
	}
	n, ok := c.counts.Load(profile)
	if !ok {
		n, _ = c.counts.LoadOrStore(profile, new(atomic.Uint64))
	}
	n.(*atomic.Uint64).Add(1)
}

func (c *census) count(profile string) uint64 {
	if n, ok := c.counts.Load(profile); ok {
		return n.(*atomic.Uint64).Load()
	}
	return 0
}
