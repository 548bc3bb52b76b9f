package profiles

import (
	"fmt"
	"slices"
	"strings"

	"gatun/config"
	"gatun/intel"
	"gatun/network"
	"gatun/network/packet"
)

// maxLinear is the number of rules of one list that may have to be looked at one by one before
// that is worth a warning: some 20 µs for each decision.
const maxLinear = 1000

// Installed says what rules may rely on.
type Installed struct {
	Lists      []string // ids and categories of the filter lists
	Countries  bool     // data of countries and continents
	Networks   bool     // data of ASNs
	Inspection bool     // app= can be known
}

// Lint returns what is doubtful about the rules of a configuration that is valid: rules that
// never decide, mean something else at the DNS stage, or cost too much. The global lists come
// first, then those of the profiles. What it reports is so; it does not find everything.
func Lint(cfg *config.Config, have Installed) config.Problems {
	l := linter{cfg: cfg, have: have, geoBlocks: cfg.Value("filter/geoMissing").Any() == "block"}
	for _, key := range []string{"filter/endpoints", "filter/serviceEndpoints"} {
		l.list(lintList{key: key, setting: key, texts: cfg.Rules(key)})
	}
	specs := cfg.Profiles()
	l.chosen("filter/lists", cfg.Value("filter/lists"))
	for i := range specs {
		if v, ok := specs[i].Value("filter/lists"); ok {
			l.chosen("profiles["+specs[i].Name+"]/filter/lists", v)
		}
		for _, key := range []string{"filter/endpoints", "filter/serviceEndpoints"} {
			if v, ok := specs[i].Value(key); ok {
				l.list(lintList{key: "profiles[" + specs[i].Name + "]/" + key, setting: key, profile: &specs[i], texts: v.Rules()})
			}
		}
	}
	return l.problems
}

// chosen reports what filter/lists names and nobody has. A category may be without lists.
func (l *linter) chosen(key string, v config.Value) {
	for i, item := range v.Rules() {
		if slices.Contains(l.have.Lists, item.Text) || item.Text == intel.Custom || intel.KnownCategory(item.Text) {
			continue
		}
		meant := config.Nearest(item.Text, slices.Concat(l.have.Lists, intel.Categories()))
		if upper := strings.ToUpper(item.Text); intel.KnownCategory(upper) {
			meant = upper
		}
		message := "no filter list has this id, and it is no category: it blocks nothing"
		l.problems = append(l.problems, l.cfg.Problem(item.Position, fmt.Sprintf("%s[%d]", key, i), message, meant))
	}
}

type linter struct {
	cfg       *config.Config
	have      Installed
	geoBlocks bool
	problems  config.Problems
}

// lintList is one list of rules and what is found about it on the way.
type lintList struct {
	key     string // in messages
	setting string
	profile *config.ProfileSpec // nil: the global list
	texts   []config.RuleText
	set     *RuleSet
	end     int // rules that can be reached

	forced map[network.Scope]string // scopes that are blocked before the list is asked

	seen map[string]int    // condition -> first rule
	dead map[int]bool      // rules that never decide
	once map[string]*again // what is reported once for all rules
}

// again is a problem that several rules of a list have.
type again struct{ problem, more int }

func (l *linter) list(t lintList) {
	var rules []Rule
	var texts []config.RuleText
	for _, text := range t.texts {
		r, err := ParseRule(text.Text, network.RuleRef{Text: text.Text, File: text.File, Line: text.Line, Col: text.Col})
		if err != nil {
			continue // Load has refused it
		}
		rules, texts = append(rules, r), append(texts, text)
	}
	if len(rules) == 0 {
		return
	}
	t.set, t.texts = NewRuleSet(rules), texts
	t.seen, t.dead, t.once = map[string]int{}, map[int]bool{}, map[string]*again{}
	t.end = len(rules)
	if i := slices.IndexFunc(rules, func(r Rule) bool { return r.unconditional() }); i >= 0 {
		t.end = i + 1
	}
	t.forced = l.forced(&t)
	l.inbound(&t)
	for j := range t.end {
		t.dead[j] = l.decidedBefore(&t, j) || l.never(&t, j) || l.data(&t, j)
	}
	for _, o := range t.once {
		if o.more > 0 {
			l.problems[o.problem].Message += fmt.Sprintf("; the same holds for %d more of this list", o.more)
		}
	}
	l.stages(&t)
	l.linear(&t)
	if t.end < len(rules) {
		l.warn(&t, t.end, fmt.Sprintf("never reached%s: %s matches everything; move it to the end of the list or remove what follows", andBelow(len(rules)-t.end-1), t.name(t.end-1)), "")
	}
}

func andBelow(more int) string {
	switch more {
	case 0:
		return ""
	case 1:
		return ", nor is the rule below"
	default:
		return fmt.Sprintf(", nor are the %d rules below", more)
	}
}

func (l *linter) warn(t *lintList, j int, message, suggestion string) {
	l.problems = append(l.problems, l.cfg.Problem(t.texts[j].Position, fmt.Sprintf("%s[%d]", t.key, j), message, suggestion))
}

// name quotes a rule with its place, for messages about another one.
func (t *lintList) name(i int) string {
	text := t.texts[i]
	if text.Line == 0 {
		return fmt.Sprintf("%q", text.Text)
	}
	return fmt.Sprintf("%q in line %d", text.Text, text.Line)
}

// unconditional reports whether the rule matches at every stage, whatever the facts.
func (r *Rule) unconditional() bool {
	return r.bare() && slices.ContainsFunc(r.entity.leaves(nil), func(e *entity) bool { return e.plain().kind == anyEntity })
}

// bare reports whether the rule speaks about its entity only.
func (r *Rule) bare() bool { return r.proto.a == 0 && len(r.ports) == 0 && r.app == "" }

// decidedBefore reports duplicates and rules in the shadow of earlier ones.
func (l *linter) decidedBefore(t *lintList, j int) bool {
	r := &t.set.rules[j]
	same := r.condition()
	i, ok := t.seen[same]
	if !ok {
		t.seen[same] = j
	}
	if ok && t.set.rules[i].Action == r.Action {
		l.warn(t, j, fmt.Sprintf("never decides: it says the same as %s; remove one of them", t.name(i)), "")
		return true
	}
	alias := false
	if !ok {
		i, alias, ok = earlier(t.set, j, l.geoBlocks)
	}
	switch {
	case ok && alias:
		l.warn(t, j, fmt.Sprintf("decides for aliases (CNAMEs) only: %s comes first; move this rule in front, or remove it", t.name(i)), "")
	case ok && t.set.rules[i].Action == r.Action:
		l.warn(t, j, fmt.Sprintf("never decides: %s comes first and does the same to all of it; remove this rule", t.name(i)), "")
	case ok:
		l.warn(t, j, fmt.Sprintf("never decides: %s comes first and covers it; move this rule in front, or remove it", t.name(i)), "")
	}
	return ok && !alias
}

// never reports rules that cannot decide whatever stands around them.
func (l *linter) never(t *lintList, j int) bool {
	r := &t.set.rules[j]
	switch why := r.contradiction(); {
	case why != "":
		l.warn(t, j, "never matches: "+why, "")
		return true
	case r.app != "" && !l.have.Inspection:
		l.warn(t, j, "never matches in this version: app= needs inspection", "")
		return true
	case l.pinged(t, r):
		l.warn(t, j, fmt.Sprintf("has no effect on pings while filter/ping is permit (%s); want filter/ping: rules", l.cfg.Value("filter/ping").Origin), "")
		return true
	}
	leaves := r.entity.leaves(nil)
	blocked := t.forced
	var by string
	for _, leaf := range leaves {
		for _, s := range leaf.plain().scopesOf() {
			if by = blocked[s]; by == "" {
				break
			}
		}
		if by == "" {
			break
		}
	}
	if by != "" {
		l.warn(t, j, "never decides: "+by+" and comes before all rules; switch that off and write a rule instead, or remove this one", "")
		return true
	}
	if !slices.ContainsFunc(leaves, func(e *entity) bool { return !e.onlyLocalhost() }) {
		if t.setting == "filter/serviceEndpoints" {
			l.warn(t, j, "never matches: loopback traffic is not seen", "")
			return true
		}
		l.warn(t, j, "loopback traffic is not seen: this rule decides on DNS answers that point to this machine, and on nothing else", "")
	}
	return false
}

// pinged reports whether the rule is about echo requests that nobody asks it about.
func (l *linter) pinged(t *lintList, r *Rule) bool {
	return t.setting == "filter/endpoints" && (r.proto.a == packet.ICMP || r.proto.a == packet.ICMPv6) && l.cfg.Value("filter/ping").Any() == "permit"
}

// contradiction returns why no traffic can be as the rule wants it.
func (r *Rule) contradiction() string {
	leaves := r.entity.leaves(nil)
	all := func(is func(e *entity) bool) bool {
		return !slices.ContainsFunc(leaves, func(e *entity) bool { return !is(e) })
	}
	family := func(bits int) bool {
		return all(func(e *entity) bool {
			return e.kind == prefixEntity && e.prefix.Addr().BitLen() == bits || e.kind == rangeEntity && e.from.BitLen() == bits
		})
	}
	only := func(p packet.Proto) bool { return r.proto.a == p && r.proto.b == 0 }
	switch {
	case all((*entity).matchesNothing):
		return fmt.Sprintf("nothing is left beside %s", leaves[0].of[0].String())
	case only(packet.ICMPv6) && family(32):
		return fmt.Sprintf("%s belongs to IPv6, the addresses to IPv4; want ICMP", r.proto.text)
	case (only(packet.ICMP) || only(2)) && family(128):
		return fmt.Sprintf("protocol %s belongs to IPv4, the addresses to IPv6", r.proto.text)
	case r.app == "quic" && only(packet.TCP):
		return "QUIC runs over UDP"
	case (r.app == "ssh" || r.app == "http") && only(packet.UDP):
		return r.app + " runs over TCP"
	default:
		return ""
	}
}

// matchesNothing reports whether a leaf excludes everything.
func (e *entity) matchesNothing() bool {
	if e = e.plain(); e.kind != notEntity {
		return false
	}
	found := map[string]bool{}
	for _, leaf := range e.of[0].leaves(nil) {
		switch leaf = leaf.plain(); leaf.kind {
		case anyEntity:
			return true
		case prefixEntity:
			found[leaf.prefix.String()] = true
		case scopeEntity:
			for _, s := range leaf.scopes {
				found[s.String()] = true
			}
		}
	}
	return found["0.0.0.0/0"] && found["::/0"] || found["Localhost"] && found["LAN"] && found["Internet"]
}

// scopesOf returns the scopes of the addresses of a leaf, or none of them if it is not about
// addresses.
func (e *entity) scopesOf() []network.Scope {
	switch e.kind {
	case prefixEntity, rangeEntity:
		return scopesOf(e.span())
	case scopeEntity:
		return slices.DeleteFunc(slices.Clone(e.scopes[:]), func(s network.Scope) bool { return s == network.ScopeUnknown })
	default:
		return []network.Scope{network.ScopeUnknown}
	}
}

func (e *entity) onlyLocalhost() bool {
	return !slices.ContainsFunc(e.plain().scopesOf(), func(s network.Scope) bool { return s != network.Localhost })
}

// forced returns the scopes that are blocked before any rule of the list is asked, with the
// reason. A setting counts only if no profile relaxes it: the list may lie under any of them.
func (l *linter) forced(t *lintList) map[network.Scope]string {
	found := map[network.Scope]string{}
	for scope, key := range map[network.Scope]string{network.Internet: "filter/blockInternet", network.LAN: "filter/blockLAN", network.Localhost: "filter/blockLocal"} {
		if origin, ok := l.always(t, key); ok {
			found[scope] = fmt.Sprintf("%s is on (%s)", key, origin)
		}
	}
	return found
}

// always reports whether a graded setting is on, at every rating, for all programs that the
// list holds for.
func (l *linter) always(t *lintList, key string) (origin string, on bool) {
	specs := l.cfg.Profiles()
	for i := range specs {
		if v, ok := specs[i].Value(key); ok && v.Any() != config.On {
			return "", false
		}
	}
	if t.profile != nil {
		if v, ok := t.profile.Value(key); ok {
			return v.Origin.String(), true
		}
	}
	v := l.cfg.Value(key)
	return v.Origin.String(), v.Any() == config.On
}

// inbound warns of incoming rules that blockInbound leaves nothing to.
func (l *linter) inbound(t *lintList) {
	if t.setting != "filter/serviceEndpoints" {
		return
	}
	if origin, on := l.always(t, "filter/blockInbound"); on {
		l.warn(t, 0, fmt.Sprintf("incoming rules have no effect while filter/blockInbound is on (%s); switch it off in the profile of the program that serves", origin), "")
	}
}

// warnOnce reports what many rules of a list may have in common once, at the first of them.
func (l *linter) warnOnce(t *lintList, what string, j int, message, suggestion string) {
	if o := t.once[what]; o != nil {
		o.more++
		return
	}
	t.once[what] = &again{problem: len(l.problems)}
	l.warn(t, j, message, suggestion)
}

// data reports the parts of a rule that need data which is not there, and whether that is all
// of it.
func (l *linter) data(t *lintList, j int) (dead bool) {
	var geo, lists []*entity
	r := &t.set.rules[j]
	r.entity.walk(func(e *entity) {
		switch {
		case e.kind == asnEntity && !l.have.Networks, e.kind != asnEntity && e.kind.isGeo() && !l.have.Countries:
			geo = append(geo, e)
		case e.kind == listEntity:
			lists = append(lists, e)
		}
	})
	if len(geo) > 0 {
		effect, what := "never matches", "country"
		if geo[0].kind == asnEntity {
			what = "ASN"
		}
		dead = len(geo) == len(r.entity.leaves(nil))
		if l.geoBlocks && r.Action.restricts() {
			effect, dead = "matches every public address, as filter/geoMissing is block", false
		}
		l.warnOnce(t, what+effect, j, fmt.Sprintf("%s %s: there is no %s data; name a file of it in the section geo", geo[0], effect, what), "")
	}
	for _, e := range lists {
		for _, id := range e.ids {
			switch {
			case slices.Contains(l.have.Lists, id):
			case len(l.have.Lists) == 0:
				l.warnOnce(t, "lists", j, fmt.Sprintf("L:%s never matches: no filter lists are configured; name some in the section lists", id), "")
			default:
				meant := config.Nearest(id, l.have.Lists)
				if meant != "" {
					meant = "L:" + meant
				}
				l.warn(t, j, fmt.Sprintf("L:%s never matches: no filter list has this id or category", id), meant)
			}
		}
	}
	return dead
}

// walk calls f for the entity and all its parts.
func (e *entity) walk(f func(*entity)) {
	f(e)
	for i := range e.of {
		e.of[i].walk(f)
	}
}

func (l *linter) linear(t *lintList) {
	if n := len(t.set.index.rest); n > maxLinear {
		l.warn(t, int(t.set.index.rest[0]), fmt.Sprintf("%d rules of this list are looked at one by one for each decision: *text*, text.*, /expressions/ and !; write zones (.example.com), or a filter list", n), "")
	}
}

// stages reports what means something else while a name is asked for than while a connection
// is made: rules about addresses have nothing to go by then.
func (l *linter) stages(t *lintList) {
	rules := t.set.rules[:t.end]
	early := -1 // the first rule about addresses that takes something away
	for j := range rules {
		r := &rules[j]
		switch {
		case t.dead[j]:
		case early < 0 && r.Action.restricts() && r.needsAddress():
			early = j
		case early >= 0 && !r.Action.restricts() && r.bare() && r.onlyNames():
			l.warn(t, early, fmt.Sprintf("a name has no address while it is asked for: names that %s allows are resolved, and only then this rule blocks the addresses it knows; move it behind if the name is to win", t.name(j)), "")
			early = len(rules)
		}
		if early == len(rules) {
			break
		}
	}
	last := t.end - 1
	if !rules[last].unconditional() || !rules[last].Action.restricts() {
		return
	}
	blind := -1
	for i := range rules[:last] {
		if rules[i].Action.restricts() || !rules[i].blind() {
			continue
		}
		if blind = i; !t.dead[i] { // a dead one stops names all the same
			break
		}
	}
	if blind >= 0 {
		l.warn(t, last, fmt.Sprintf("does not keep names from being asked for: %s may allow what a name leads to, so that each name is resolved first; put rules about names in front, or give that rule names", t.name(blind)), "")
	}
}

// needsAddress reports whether the rule is only about addresses.
func (r *Rule) needsAddress() bool {
	return !slices.ContainsFunc(r.entity.leaves(nil), func(e *entity) bool {
		e = e.plain()
		return e.kind != prefixEntity && e.kind != rangeEntity && e.kind != scopeEntity && !e.kind.isGeo()
	})
}

func (r *Rule) onlyNames() bool {
	return !slices.ContainsFunc(r.entity.leaves(nil), func(e *entity) bool { return !e.kind.isName() })
}

// blind reports whether the rule is undecided about every name before its address is known.
func (r *Rule) blind() bool {
	return slices.ContainsFunc(r.entity.leaves(nil), func(e *entity) bool {
		e = e.plain()
		if e.kind == anyEntity {
			return !r.bare()
		}
		return e.kind == prefixEntity || e.kind == rangeEntity || e.kind == scopeEntity || e.kind == listEntity || e.kind.isGeo()
	})
}
