package profiles

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"gatun/attribution"
	"gatun/config"
	"gatun/status"
)

// maxCached bounds the processes whose settings are remembered. It is several times the
// processes of a busy machine; past it the memory starts anew.
const maxCached = 1 << 15

// Options is what a Store needs beside the configuration.
type Options struct {
	// Only are rules without a verdict, as `run --only` takes them: each is allowed, in front
	// of all other rules, and what no rule mentions is blocked, names included.
	Only []string
	// Environ returns the environment of a process, nil if it cannot be read. Without it
	// no profile is recognised by an environment, as is right where there are no processes.
	Environ func(*attribution.Process) []string
	// Created is told each profile that was made because an application without one was seen
	// for the first time; it must not block, and gets a copy. The profile is in force already
	// and stays so until it is in the configuration, or core/autoProfiles is off. nil: none
	// are made.
	Created func(config.ProfileSpec)
	Clock   func() time.Time // nil: time.Now
	Logger  *zap.Logger      // nil: nothing is logged
}

// Store holds the policy in force and knows which settings hold for whom. Its methods may be
// called from any goroutine; For takes no lock for a process that is known.
type Store struct {
	opt  Options
	only []Rule

	swapping sync.Mutex // one Swap at a time
	current  atomic.Pointer[snapshot]
	moved    atomic.Pointer[func()]
	seen     census

	mu            sync.Mutex // guards what follows, and every change of current
	pending       pending
	lastTemporary int
	geoMissing    uint64 // counted by rules that are no longer in force
}

// snapshot is one revision of the policy, with what holds for a while. But for its caches it
// is immutable.
type snapshot struct {
	revision    uint64
	policy      *policy
	temporaries []temporary // the newest first
	paused      time.Time   // until when; zero: not
	deadline    time.Time   // when the first of these ends; zero: never

	resolved  []atomic.Pointer[Settings] // by profile of the policy, once somebody needs them
	automatic sync.Map                   // the same by name for profiles that are not in the policy yet
	// processes remembers the settings by *attribution.Process, which is immutable, so that
	// its address stands for all its facts.
	processes sync.Map
	cached    atomic.Int64
}

// NewStore returns a store of that configuration, in a network of that state. The error is
// config.Problems with every rule and profile that is wrong.
func NewStore(cfg *config.Config, st status.State, o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	s := &Store{opt: o, pending: newPending()}
	var problems config.Problems
	for _, text := range o.Only {
		r, err := ParseRule("+ "+text, refOf("+ "+text, "", 0, 0))
		if err != nil {
			problems = append(problems, onlyProblem(text, err))
			continue
		}
		s.only = append(s.only, r)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	if err := s.Swap(cfg, st); err != nil {
		return nil, err
	}
	return s, nil
}

// onlyProblem speaks of the text as it was given, which has no verdict.
func onlyProblem(text string, err error) config.Problem {
	p := config.Problem{Position: config.Position{File: "--only"}, Key: text, Message: err.Error()}
	if e, ok := err.(*RuleError); ok {
		p.Message = fmt.Sprintf("column %d: %s", max(1, e.Col-2), e.Message)
		p.Suggestion = e.Suggestion
	}
	return p
}

// Swap puts another configuration or network state in force, at once and as a whole. An error is
// config.Problems, and the policy in force stays what it was. Where nothing changes for anybody
// the revision stays too, and with it every decision that was kept.
func (s *Store) Swap(cfg *config.Config, st status.State) error {
	s.swapping.Lock()
	defer s.swapping.Unlock()
	var before *policy
	if c := s.current.Load(); c != nil {
		if before = c.policy; before.isOf(cfg, st) {
			return nil
		}
	}
	next, problems := newPolicy(cfg, st, &s.opt, s.only, before)
	if len(problems) > 0 {
		return problems
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.current.Load()
	if c == nil {
		s.publish(next, 1, nil, time.Time{})
		return nil
	}
	were := s.pending
	s.pending = were.without(next)
	s.geoMissing += before.geoMissing(next)
	revision := c.revision
	if !before.same(next, were, s.pending) {
		revision++
	}
	s.publish(next, revision, c.temporaries, c.paused)
	return nil
}

// Renew gives the policy in force another revision: what decisions rest on beside it has changed,
// such as a filter list, and none that was kept holds any more.
func (s *Store) Renew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.current.Load()
	s.publish(c.policy, c.revision+1, c.temporaries, c.paused)
}

// OnMove names the function that is called before and after every change of what is in force, so that
// what rests on decisions beside the revision can be taken back. It is called while the store is locked: it
// must not block, nor call the store.
func (s *Store) OnMove(f func()) { s.moved.Store(&f) }

// publish makes a snapshot the current one. The caller holds mu, or is the first.
func (s *Store) publish(p *policy, revision uint64, temporaries []temporary, paused time.Time) {
	c := &snapshot{revision: revision, policy: p, temporaries: temporaries, paused: paused, deadline: paused}
	c.resolved = make([]atomic.Pointer[Settings], len(p.profiles))
	for i := range temporaries {
		if until := temporaries[i].Until; !until.IsZero() && (c.deadline.IsZero() || until.Before(c.deadline)) {
			c.deadline = until
		}
	}
	moved := s.moved.Load()
	if moved != nil {
		(*moved)()
	}
	s.current.Store(c)
	if moved != nil {
		(*moved)()
	}
}

// now returns the snapshot in force, without what has come to its end.
func (s *Store) now() *snapshot {
	c := s.current.Load()
	if !c.deadline.IsZero() {
		if now := s.clock(); !now.Before(c.deadline) {
			s.Expire(now, nil)
			c = s.current.Load()
		}
	}
	return c
}

func (s *Store) clock() time.Time { return s.opt.Clock() }

// Revision returns the number of the policy in force. It grows with every change that may change
// a decision.
func (s *Store) Revision() uint64 { return s.now().revision }

// Warnings returns what is doubtful in the policy in force.
func (s *Store) Warnings() config.Problems { return s.current.Load().policy.warnings }

// GeoMissing returns how many decisions a rule about a country, continent or ASN had no part
// in, or blocked by filter/geoMissing, because the data says nothing about the address.
func (s *Store) GeoMissing() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.geoMissing + s.current.Load().policy.geoMissing(nil)
}

// NeedsGeo reports whether a rule of the policy in force is about countries, continents or networks.
func (s *Store) NeedsGeo() bool {
	for _, set := range s.current.Load().policy.lists {
		for i := range set.rules {
			found := false
			set.rules[i].entity.walk(func(e *entity) { found = found || e.kind.isGeo() })
			if found {
				return true
			}
		}
	}
	return false
}

// geoMissing is what was counted by the rules of p that next, which may be nil, has not.
func (p *policy) geoMissing(next *policy) (n uint64) {
	for id, set := range p.lists {
		if next == nil || next.lists[id] != set {
			n += set.GeoMissing()
		}
	}
	return n
}

// For returns the settings that hold for an owner, never nil. An owner that is not one process
// for sure is judged as unidentified, never by a program's profile. A process without a number
// does not exist: somebody asks what would be ("why --exe"), and no profile is made for it.
func (s *Store) For(o attribution.Owner) *Settings {
	c := s.now()
	if !isOne(o) {
		return c.settings(c.policy.special(o.Process.Kind))
	}
	if v, ok := c.processes.Load(o.Process); ok {
		return v.(*Settings)
	}
	return s.find(o.Process)
}

// isOne reports whether the owner is one program for sure.
func isOne(o attribution.Owner) bool {
	return o.Process.Kind == attribution.KindProgram && (o.Confidence == attribution.Exact || o.Confidence == attribution.Inherited)
}

// find looks for the profile of a process that was not seen before.
func (s *Store) find(p *attribution.Process) *Settings {
	for {
		c := s.now()
		settings, current := s.match(c, p)
		if !current {
			continue // the policy was changed meanwhile
		}
		if c.cached.Add(1) > maxCached {
			c.processes.Clear()
			c.cached.Store(1)
		}
		c.processes.Store(p, settings)
		if p.PID != 0 {
			s.seen.add(p, settings.ProfileName)
		}
		return settings
	}
}

// Compact forgets which settings hold for which process: after a flood most of these have ended,
// and their facts lie alone in memory that is otherwise free. Who is still there is matched again.
func (s *Store) Compact() {
	c := s.current.Load()
	c.processes.Clear()
	c.cached.Store(0)
}

// match returns the settings of a program; current is false if c is no longer in force.
func (s *Store) match(c *snapshot, p *attribution.Process) (settings *Settings, current bool) {
	i, m := c.policy.profileOf(p)
	if len(m.tied) > 0 {
		s.opt.Logger.Warn("two profiles fit a program equally well; the first one counts", zap.String("path", p.Path),
			zap.String("profile", c.policy.profiles[i].name), zap.String("other", c.policy.profiles[m.tied[0]].name))
	}
	if i == c.policy.nobody {
		name, current := s.automatic(c, p)
		if !current {
			return nil, false
		}
		if name != "" {
			return c.settingsOfNew(name, p), true
		}
	}
	if c.forOne(p) {
		return c.resolve(c.policy.layers(i), c.policy.profiles[i].name, p), true
	}
	return c.settings(i), true
}

// profileOf returns the profile of a program: the one that fits best, else that of the system's
// resolver, else that of nobody.
func (p *policy) profileOf(q *attribution.Process) (int, match) {
	m := p.matcher.find(q)
	switch {
	case m.best != nil:
		return m.best.profile, m
	case specialOf(q) != "":
		return p.byName[specialOf(q)], m
	default:
		return p.nobody, m
	}
}

// forOne reports whether a temporary rule is for that process alone.
func (c *snapshot) forOne(p *attribution.Process) bool {
	for i := range c.temporaries {
		if c.temporaries[i].PID != 0 && c.temporaries[i].concerns("", p) {
			return true
		}
	}
	return false
}

// settings returns those of a profile of the policy; they are made when they are needed.
func (c *snapshot) settings(i int) *Settings {
	if made := c.resolved[i].Load(); made != nil {
		return made
	}
	c.resolved[i].CompareAndSwap(nil, c.resolve(c.policy.layers(i), c.policy.profiles[i].name, nil))
	return c.resolved[i].Load()
}

// settingsOfNew returns those of a profile that is not in the policy yet and sets nothing.
func (c *snapshot) settingsOfNew(name string, p *attribution.Process) *Settings {
	o := c.policy.layers(c.policy.nobody)
	o.names = append([]string{name}, o.names...)
	if c.forOne(p) {
		return c.resolve(o, name, p)
	}
	if made, ok := c.automatic.Load(name); ok {
		return made.(*Settings)
	}
	made, _ := c.automatic.LoadOrStore(name, c.resolve(o, name, nil))
	return made.(*Settings)
}

// resolve makes the settings of a profile, or of one process of it.
func (c *snapshot) resolve(o overlay, name string, p *attribution.Process) *Settings {
	s := temporaryLayer(c.temporaries, name, p).over(o).settings()
	s.Revision, s.Paused = c.revision, !c.paused.IsZero()
	s.Portal, s.PortalHost = c.policy.portal, c.policy.portalHost
	s.ProfileName = name
	if name != globalName {
		s.ProfileID = name
	}
	return &s
}
