package profiles

import (
	"fmt"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"gatun/attribution"
	"gatun/config"
	"gatun/network"
	"gatun/status"
)

// maxCached bounds the processes whose settings are remembered. It is several times the
// processes of a busy machine; past it the memory starts anew.
const maxCached = 1 << 16

// Options is what a Store needs beside the configuration.
type Options struct {
	// Only are rules without a verdict, as `run --only` takes them: each is allowed, in front
	// of all other rules, and what no rule mentions is blocked, names included.
	Only []string
	// Environ returns the environment of a process, nil if it cannot be read. Without it
	// profiles that are recognised by their environment are refused.
	Environ func(*attribution.Process) []string
	Logger  *zap.Logger // nil: nothing is logged
}

// Store holds the policy in force and knows which settings hold for whom. Its methods may be
// called from any goroutine; For takes no lock.
type Store struct {
	opt  Options
	only []Rule

	swapping sync.Mutex // one Swap at a time
	current  atomic.Pointer[snapshot]
}

// snapshot is one revision of the policy.
type snapshot struct {
	revision uint64
	index    profileIndex
	global   *Settings
	special  [5]*Settings // by attribution.Kind
	warnings config.Problems

	// processes remembers the settings by *attribution.Process, which is immutable, so that
	// its address stands for all its facts.
	processes sync.Map
	cached    atomic.Int64
}

// NewStore returns a store of that configuration, in a network of that state. The error is config.Problems with every
// rule and profile that is wrong.
func NewStore(cfg *config.Config, st status.State, o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	s := &Store{opt: o}
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
// config.Problems, and the policy in force stays what it was.
func (s *Store) Swap(cfg *config.Config, st status.State) error {
	s.swapping.Lock()
	defer s.swapping.Unlock()
	b := builder{cfg: cfg, rating: st.Rating, opt: &s.opt, only: s.only, next: &snapshot{revision: 1}}
	if old := s.current.Load(); old != nil {
		b.next.revision = old.revision + 1
	}
	if problems := b.build(); len(problems) > 0 {
		return problems.Sort()
	}
	s.current.Store(b.next)
	return nil
}

// Revision returns the number of the policy in force. It grows with every Swap.
func (s *Store) Revision() uint64 { return s.current.Load().revision }

// Warnings returns what is doubtful in the policy in force.
func (s *Store) Warnings() config.Problems { return s.current.Load().warnings }

// For returns the settings that hold for an owner, never nil. An owner that is not one process
// for sure is judged as unidentified, never by a program's profile.
func (s *Store) For(o attribution.Owner) *Settings {
	c := s.current.Load()
	p := o.Process
	switch {
	case int(p.Kind) >= len(c.special):
		return c.special[attribution.KindUnidentified]
	case p.Kind != attribution.KindProgram:
		return c.special[p.Kind]
	case o.Confidence != attribution.Exact && o.Confidence != attribution.Inherited:
		return c.special[attribution.KindUnidentified]
	}
	if v, ok := c.processes.Load(p); ok {
		return v.(*Settings)
	}
	return s.find(c, p)
}

func (s *Store) find(c *snapshot, p *attribution.Process) *Settings {
	settings := c.global
	best, tied := c.index.find(p)
	if best != nil {
		settings = best.settings
	}
	if tied != "" {
		s.opt.Logger.Warn("two profiles fit a program equally well; the first one counts",
			zap.String("path", p.Path), zap.String("profile", best.name), zap.String("other", tied))
	}
	if c.cached.Add(1) > maxCached {
		c.processes.Clear()
		c.cached.Store(1)
	}
	c.processes.Store(p, settings)
	return settings
}

// builder makes a snapshot of a configuration and collects all problems.
type builder struct {
	cfg      *config.Config
	rating   status.Rating
	opt      *Options
	only     []Rule
	next     *snapshot
	problems config.Problems
}

func (b *builder) build() config.Problems {
	var globalOut, globalIn []Layer
	if len(b.only) > 0 {
		globalOut = append(globalOut, Layer{Rules: NewRuleSet(b.only)})
	}
	onlyLayers := len(globalOut)
	globalOut = b.appendLayer(globalOut, "", "filter/endpoints", b.cfg.Value("filter/endpoints"))
	globalIn = b.appendLayer(globalIn, "", "filter/serviceEndpoints", b.cfg.Value("filter/serviceEndpoints"))

	b.next.global = b.settings(&resolver{cfg: b.cfg, rating: b.rating}, globalOut, globalIn)
	b.next.global.ProfileName = "global"
	b.next.index = profileIndex{byPath: map[string][]pathEntry{}, environ: b.opt.Environ}
	specs := b.cfg.Profiles()
	for i := range specs {
		p := &specs[i]
		out := b.appendLayer(globalOut[:onlyLayers:onlyLayers], p.Name, "filter/endpoints", valueOf(p, "filter/endpoints"))
		in := b.appendLayer(nil, p.Name, "filter/serviceEndpoints", valueOf(p, "filter/serviceEndpoints"))
		r := &resolver{cfg: b.cfg, profile: p, rating: b.rating}
		b.addProfile(i, p, b.settings(r, append(out, globalOut[onlyLayers:]...), append(in, globalIn...)))
	}
	b.specials()
	b.ties(specs)
	b.next.warnings = b.next.warnings.Sort()
	return b.problems
}

func valueOf(p *config.ProfileSpec, key string) config.Value {
	v, _ := p.Value(key)
	return v
}

func (b *builder) settings(r *resolver, out, in []Layer) *Settings {
	s := r.settings()
	s.Revision, s.Endpoints, s.ServiceEndpoints = b.next.revision, out, in
	if len(b.only) > 0 {
		s.DefaultAction, s.DefaultActionOrigin, s.DefaultActionProfile, s.DefaultActionForNames = Block, "flag only", "", true
	}
	return &s
}

// appendLayer parses a list and appends it. The slice that is appended to is not written.
func (b *builder) appendLayer(layers []Layer, profile, key string, v config.Value) []Layer {
	texts := v.Rules()
	if len(texts) == 0 {
		return layers
	}
	if profile != "" {
		key = "profiles[" + profile + "]/" + key
	}
	rules := make([]Rule, 0, len(texts))
	for i, t := range texts {
		name := fmt.Sprintf("%s[%d]", key, i)
		r, err := ParseRule(t.Text, network.RuleRef{Text: t.Text, File: t.File, Line: t.Line, Col: t.Col})
		if err != nil {
			b.problems = append(b.problems, b.ruleProblem(t, name, err))
			continue
		}
		if e := unavailable(&r); e != nil {
			b.problems = append(b.problems, b.ruleProblem(t, name, e))
		}
		if r.app != "" {
			b.next.warnings = append(b.next.warnings, b.cfg.Problem(t.Position, name, "never matches in this version: app= needs inspection", ""))
		}
		rules = append(rules, r)
	}
	return append(layers[:len(layers):len(layers)], Layer{Profile: profile, Rules: NewRuleSet(rules)})
}

func (b *builder) ruleProblem(t config.RuleText, key string, err error) config.Problem {
	e, ok := err.(*RuleError)
	if !ok {
		return b.cfg.Problem(t.Position, key, err.Error(), "")
	}
	return b.cfg.Problem(b.cfg.At(t, e.Col), key, e.Message, e.Suggestion)
}

func (b *builder) addProfile(i int, spec *config.ProfileSpec, s *Settings) {
	for _, f := range spec.Match {
		c, err := newFingerprint(f)
		switch {
		case err != nil:
			b.problems = append(b.problems, b.cfg.Problem(f.Position, "profiles["+spec.Name+"]/match", err.Error(), ""))
		case f.Type == "env" && b.opt.Environ == nil:
			b.problems = append(b.problems, b.cfg.Problem(f.Position, "profiles["+spec.Name+"]/match", "env is not available here: the environment of programs cannot be read", ""))
		case f.Type == "path" && f.Op == "equals":
			b.next.index.byPath[f.Value] = append(b.next.index.byPath[f.Value], pathEntry{profile: i, score: c.score})
		default:
			c.profile = i
			b.next.index.others = append(b.next.index.others, c)
		}
	}
	b.next.index.profiles = append(b.next.index.profiles, profile{name: spec.Name, settings: s})
}

// specials resolves the identities that stand in where there is no program: the global
// settings under a name of their own, or a profile that names them.
func (b *builder) specials() {
	for k := range b.next.special {
		kind := attribution.Kind(k)
		if best, _ := b.next.index.find(&attribution.Process{Kind: kind}); best != nil && kind != attribution.KindProgram {
			b.next.special[k] = best.settings
			continue
		}
		s := *b.next.global
		s.ProfileID, s.ProfileName = specialName(kind), specialName(kind)
		b.next.special[k] = &s
	}
}

// ties reports profiles that say the same of the programs they are for.
func (b *builder) ties(specs []config.ProfileSpec) {
	type key struct{ typ, name, op, value string }
	seen := map[key]int{}
	for i, p := range specs {
		for _, f := range p.Match {
			k := key{f.Type, f.Name, f.Op, f.Value}
			if j, ok := seen[k]; ok && j != i {
				b.next.warnings = append(b.next.warnings, b.cfg.Problem(f.Position, "profiles["+p.Name+"]/match",
					fmt.Sprintf("the profile %s at %s:%d has the same fingerprint; the first one counts", specs[j].Name, specs[j].File, specs[j].Line), ""))
				continue
			}
			seen[k] = i
		}
	}
}
