package profiles

import (
	"maps"
	"slices"
	"strings"

	"gatun/config"
	"gatun/network"
	"gatun/status"
)

// TemporaryLayer is the Layer.Profile of temporary rules.
const TemporaryLayer = "temporary"

// keyOnly is the overlay's key for `run --only`: what no rule mentions is blocked, names too.
const keyOnly = "only"

// overlay is what one layer says, or several of them over each other: nothing of a key that is
// absent. The first layer that sets a scalar wins; the lists of all layers are evaluated one
// after another. It is immutable.
type overlay struct {
	names               []string // of the layers, the first on top
	set                 map[string]setting
	endpoints, services []Layer
}

// setting is one value of an overlay. It is comparable.
type setting struct {
	value   any // bool, string, time.Duration; of a graded setting whether it is active
	origin  Origin
	profile string // whose layer it is, "" for the global one
}

// over lays o over below. Only the order of the layers matters, not in which groups they are
// laid over each other.
func (o overlay) over(below overlay) overlay {
	set := below.set
	switch {
	case len(set) == 0:
		set = o.set
	case len(o.set) > 0:
		set = maps.Clone(set)
		maps.Copy(set, o.set)
	}
	return overlay{
		names: slices.Concat(o.names, below.names), set: set,
		endpoints: slices.Concat(o.endpoints, below.endpoints), services: slices.Concat(o.services, below.services),
	}
}

// same reports whether both say the same, and say that it comes from the same places.
func (o overlay) same(other overlay) bool {
	return slices.Equal(o.names, other.names) && maps.Equal(o.set, other.set) &&
		slices.EqualFunc(o.endpoints, other.endpoints, sameLayer) && slices.EqualFunc(o.services, other.services, sameLayer)
}

func sameLayer(a, b Layer) bool {
	return a.Profile == b.Profile && (a.Rules == b.Rules ||
		slices.EqualFunc(a.Rules.Rules(), b.Rules.Rules(), func(a, b Rule) bool { return a.Ref == b.Ref }))
}

// scalarKeys are the settings that Settings has a field for.
func scalarKeys() []string {
	return []string{
		"filter/defaultAction", "filter/askTimeout", "filter/blockInternet", "filter/blockLAN", "filter/blockLocal", "filter/blockP2P",
		"filter/blockInbound", "filter/ping", "filter/permanentVerdicts", "filter/dnsQueryInterception", "filter/reevaluate",
		"filter/removeOutOfScopeDNS", "filter/removeBlockedDNS", "filter/autoPermitRelated", "filter/geoMissing", "dns/blockStyle",
		"filter/lists", "filter/includeSubdomains", "filter/includeCNAMEs", "filter/preventBypassing", "filter/domainHeuristics", "dns/nameservers",
	}
}

// Keys of the two lists of rules.
const (
	keyEndpoints = "filter/endpoints"
	keyServices  = "filter/serviceEndpoints"
)

// settingOf makes a setting of a value; a grade is interpreted by the rating of the network.
func settingOf(v config.Value, profile string, rating status.Rating) setting {
	s := setting{value: v.Any(), profile: profile, origin: Origin(v.Origin.String())}
	if g, graded := s.value.(config.Grade); graded {
		s.value = status.Active(g, rating)
	}
	if items, list := s.value.([]config.RuleText); list { // of names without blanks; a setting is comparable
		texts := make([]string, len(items))
		for i, item := range items {
			texts[i] = item.Text
		}
		s.value = strings.Join(texts, " ")
	}
	if profile != "" {
		s.origin = "profile " + Origin(profile) + " (" + s.origin + ")"
	}
	return s
}

// layerList makes the rules of one layer of a list of texts. What is wrong with them goes to b.
// The set of the policy in force is used again where nothing changed: 100 000 rules are not
// parsed anew because another line was edited.
func (b *builder) layerList(profile, key string, v config.Value) []Layer {
	texts := v.Rules()
	if len(texts) == 0 {
		return nil
	}
	id := listID{profile, key}
	set := b.before.list(id, texts)
	if set == nil {
		set = NewRuleSet(b.parse(id, texts))
	}
	b.next.lists[id] = set
	b.doubtful(id, set, texts)
	return []Layer{{Profile: profile, Rules: set}}
}

// listID names one list of rules of the configuration.
type listID struct{ profile, key string }

func (id listID) String() string {
	if id.profile == "" {
		return id.key
	}
	return "profiles[" + id.profile + "]/" + id.key
}

// list returns the set of rules that was made of exactly these texts, nil if there is none.
func (p *policy) list(id listID, texts []config.RuleText) *RuleSet {
	if p == nil || p.lists[id] == nil {
		return nil
	}
	set := p.lists[id]
	if !slices.EqualFunc(set.Rules(), texts, func(r Rule, t config.RuleText) bool { return r.Ref == refTo(t) }) {
		return nil
	}
	return set
}

func refTo(t config.RuleText) network.RuleRef { return refOf(t.Text, t.File, t.Line, t.Col) }
