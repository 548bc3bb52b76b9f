package profiles

import (
	"fmt"
	"maps"
	"slices"

	"gatun/attribution"
	"gatun/config"
	"gatun/status"
)

// policy is what a configuration comes to in a network of one state. It is immutable.
type policy struct {
	cfg            *config.Config
	rating         status.Rating
	portal         bool
	portalHost     string
	holds          map[string]bool
	automatic      bool // core/autoProfiles
	automaticCount int  // profiles that the program made itself
	profiles       []profile
	byName         map[string]int
	matcher        matcher
	front          overlay // of --only, over all others
	base           overlay // the network-conditional layers that hold, over the global settings
	kinds          [5]int  // the profile of what is no program, by attribution.Kind
	nobody         int     // the profile of a program that none fits
	lists          map[listID]*RuleSet
	warnings       config.Problems
}

// profile is one profile of the configuration, or a built-in one.
type profile struct {
	name  string
	spec  *config.ProfileSpec // nil: built in
	own   overlay
	under []int // the groups that lie under it, the nearest first
}

// origin is who made the profile, for people.
func (p *profile) origin() string {
	if p.spec == nil {
		return "built-in"
	}
	return p.spec.Origin.String()
}

// automatic reports whether the program made the profile itself.
func (p *profile) automatic() bool { return p.spec != nil && p.spec.Origin == config.Automatic }

// layers returns everything that holds for a profile, temporary rules aside.
func (p *policy) layers(i int) overlay {
	o := p.profiles[i].own
	for _, group := range p.profiles[i].under {
		o = o.over(p.profiles[group].own)
	}
	return p.front.over(o).over(p.base)
}

// special is the profile of an owner that is no program for sure, which are judged by no
// program's profile.
func (p *policy) special(k attribution.Kind) int {
	if int(k) >= len(p.kinds) || k == attribution.KindProgram {
		k = attribution.KindUnidentified
	}
	return p.kinds[k]
}

// builder makes a policy of a configuration and collects all problems.
type builder struct {
	cfg      *config.Config
	state    status.State
	opt      *Options
	only     []Rule
	before   *policy // in force until now; may be nil
	next     *policy
	regexes  map[string]*fingerprint // of before
	problems config.Problems
}

// newPolicy returns the policy of a configuration, or what is wrong with it.
func newPolicy(cfg *config.Config, st status.State, opt *Options, only []Rule, before *policy) (*policy, config.Problems) {
	b := builder{cfg: cfg, state: st, opt: opt, only: only, before: before}
	b.next = &policy{
		cfg: cfg, rating: st.Rating, holds: maps.Clone(st.Holds), portal: st.Portal, portalHost: st.PortalHost,
		automatic: cfg.Bool("core/autoProfiles"), byName: map[string]int{}, lists: map[listID]*RuleSet{},
		matcher: newMatcher(opt.Environ),
	}
	if before != nil {
		b.regexes = before.matcher.regexes()
	}
	b.build()
	if len(b.problems) > 0 {
		return nil, b.problems.Sort()
	}
	b.next.warnings = b.next.warnings.Sort()
	return b.next, nil
}

func (b *builder) build() {
	p := b.next
	specs := b.cfg.Profiles()
	for i := range specs {
		spec := &specs[i]
		p.byName[spec.Name] = i
		p.profiles = append(p.profiles, profile{name: spec.Name, spec: spec, own: b.own(spec)})
		b.fingerprints(i, spec)
		if spec.Origin == config.Automatic {
			p.automaticCount++
		}
	}
	for i := range specs {
		if len(specs[i].Layers) > 0 {
			p.profiles[i].under = b.groups(i, map[int]bool{i: true}, nil)
		}
	}
	p.base = b.global()
	for i := range slices.Backward(specs) {
		if specs[i].When != nil && b.state.Holds[specs[i].Name] {
			p.base = p.profiles[i].own.over(p.base)
		}
	}
	if len(b.only) > 0 {
		p.front = overlay{
			set:       map[string]setting{keyOnly: {value: true}, "filter/defaultAction": {value: "block", origin: "flag only"}},
			endpoints: []Layer{{Rules: NewRuleSet(b.only)}},
		}
	}
	b.builtIn()
	b.ties(specs)
}

// global is the lowest layer.
func (b *builder) global() overlay {
	o := overlay{names: []string{globalName}, set: map[string]setting{}}
	for _, key := range scalarKeys() {
		o.set[key] = settingOf(b.cfg.Value(key), "", b.state.Rating)
	}
	o.endpoints = b.layerList("", keyEndpoints, b.cfg.Value(keyEndpoints))
	o.services = b.layerList("", keyServices, b.cfg.Value(keyServices))
	return o
}

// own is what one profile sets itself.
func (b *builder) own(spec *config.ProfileSpec) overlay {
	o := overlay{names: []string{spec.Name}}
	for _, key := range scalarKeys() {
		if v, ok := spec.Value(key); ok {
			if o.set == nil {
				o.set = map[string]setting{}
			}
			o.set[key] = settingOf(v, spec.Name, b.state.Rating)
		}
	}
	if v, ok := spec.Value(keyEndpoints); ok {
		o.endpoints = b.layerList(spec.Name, keyEndpoints, v)
	}
	if v, ok := spec.Value(keyServices); ok {
		o.services = b.layerList(spec.Name, keyServices, v)
	}
	return o
}

// groups appends the profiles that lie under i, each followed by those that lie under it. What
// is named twice counts where it is named first. A network-conditional profile lies under all
// groups, while its condition holds.
func (b *builder) groups(i int, seen map[int]bool, list []int) []int {
	for _, name := range b.next.profiles[i].spec.Layers {
		j, known := b.next.byName[name]
		if !known || seen[j] || b.next.profiles[j].spec.When != nil {
			continue
		}
		seen[j] = true
		list = b.groups(j, seen, append(list, j))
	}
	return list
}

// parse reads the rules of one list.
func (b *builder) parse(id listID, texts []config.RuleText) []Rule {
	rules := make([]Rule, 0, len(texts))
	for i, t := range texts {
		r, err := ParseRule(t.Text, refTo(t))
		if err != nil {
			b.problems = append(b.problems, b.ruleProblem(t, fmt.Sprintf("%s[%d]", id, i), err))
			continue
		}
		rules = append(rules, r)
	}
	return rules
}

func (b *builder) ruleProblem(t config.RuleText, key string, err error) config.Problem {
	e, ok := err.(*RuleError)
	if !ok {
		return b.cfg.Problem(t.Position, key, err.Error(), "")
	}
	return b.cfg.Problem(b.cfg.At(t, e.Col), key, e.Message, e.Suggestion)
}

// doubtful warns of rules that can have no effect in this version.
func (b *builder) doubtful(id listID, set *RuleSet, texts []config.RuleText) {
	rules := set.Rules()
	if len(rules) != len(texts) {
		return // some are wrong: there will be no policy
	}
	for i := range rules {
		if rules[i].App() != "" {
			b.warn(texts[i].Position, fmt.Sprintf("%s[%d]", id, i), "never matches in this version: app= needs inspection")
		}
	}
}

func (b *builder) warn(at config.Position, key, message string) {
	b.next.warnings = append(b.next.warnings, b.cfg.Problem(at, key, message, ""))
}

func (b *builder) fingerprints(i int, spec *config.ProfileSpec) {
	for _, f := range spec.Match {
		c, err := newFingerprint(f, b.regexes)
		c.profile, c.origin = i, spec.Origin
		if err != nil {
			b.problems = append(b.problems, b.cfg.Problem(f.Position, "profiles["+spec.Name+"]/match", err.Error(), ""))
			continue
		}
		b.next.matcher.add(c)
	}
}

// builtIn adds the identities that stand in where there is no program: the global settings
// under a name of their own, or the profile that names them.
func (b *builder) builtIn() {
	p := b.next
	add := func(name string) int {
		p.profiles = append(p.profiles, profile{name: name, own: overlay{names: []string{name}}})
		p.byName[name] = len(p.profiles) - 1
		return len(p.profiles) - 1
	}
	for k := range p.kinds {
		kind := attribution.Kind(k)
		if kind == attribution.KindProgram {
			continue
		}
		stand := attribution.Process{Kind: kind}
		p.kinds[k] = add(specialOf(&stand))
		if m := p.matcher.find(&stand); m.best != nil {
			p.kinds[k] = m.best.profile
		}
	}
	add(systemResolverName)
	p.nobody = add(globalName)
	p.profiles[p.nobody].own = overlay{} // the global layer is there already
}

// ties reports profiles that say the same of the programs they are for.
func (b *builder) ties(specs []config.ProfileSpec) {
	type key struct{ typ, name, op, value string }
	seen := map[key]int{}
	for i, p := range specs {
		for _, f := range p.Match {
			k := key{f.Type, f.Name, f.Op, f.Value}
			j, again := seen[k]
			switch {
			case !again:
				seen[k] = i
			case j != i && specs[j].Origin == p.Origin:
				b.warn(f.Position, "profiles["+p.Name+"]/match",
					fmt.Sprintf("the profile %s at %s:%d has the same fingerprint; the first one counts", specs[j].Name, specs[j].File, specs[j].Line))
			}
		}
	}
}

// isOf reports whether p was made of just that.
func (p *policy) isOf(cfg *config.Config, st status.State) bool {
	return p.rating == st.Rating && p.portal == st.Portal && p.portalHost == st.PortalHost && maps.Equal(p.holds, st.Holds) && cfg.Equal(p.cfg)
}

// same reports whether p and o give everybody the same settings, from the same places. The
// profiles that the program made itself are compared with those of more and otherMore, which
// are not in the configuration yet.
func (p *policy) same(o *policy, more, otherMore pending) bool {
	if p.portal != o.portal || p.portalHost != o.portalHost || !p.base.same(o.base) || !p.front.same(o.front) || len(p.lists) != len(o.lists) {
		return false
	}
	own, theirs := p.byHand(), o.byHand()
	if !slices.EqualFunc(own, theirs, func(i, j int) bool { return p.sameProfile(i, o, j) }) {
		return false
	}
	return maps.EqualFunc(p.automatics(more), o.automatics(otherMore), func(a, b automaticProfile) bool {
		return a.match == b.match && a.match != (config.Fingerprint{}) || a.index >= 0 && b.index >= 0 && p.sameProfile(a.index, o, b.index)
	})
}

// byHand are the profiles that the program did not make itself, in their order, which settles
// ties.
func (p *policy) byHand() []int {
	var list []int
	for i := range p.profiles {
		if !p.profiles[i].automatic() {
			list = append(list, i)
		}
	}
	return list
}

func (p *policy) sameProfile(i int, o *policy, j int) bool {
	a, b := &p.profiles[i], &o.profiles[j]
	if a.name != b.name || a.origin() != b.origin() || !a.own.same(b.own) ||
		!slices.EqualFunc(a.under, b.under, func(i, j int) bool { return p.profiles[i].name == o.profiles[j].name }) {
		return false
	}
	return a.spec == nil || b.spec == nil || slices.EqualFunc(a.spec.Match, b.spec.Match, func(f, g config.Fingerprint) bool {
		return place(f) == place(g)
	})
}
