package firewall

import (
	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
	"gatun/profiles"
)

// Step is one decider's word in a Trail, or one rule that it looked at.
type Step struct {
	Decider string           `json:"decider"`
	Stage   string           `json:"stage"`
	Result  string           `json:"result"`
	Setting string           `json:"setting"`
	Rule    *network.RuleRef `json:"rule"`
	Layer   string           `json:"layer"`
	List    string           `json:"list"`
	Place   *ListPlace       `json:"list_place"`
}

// ListPlace is where a filter list names the other end.
type ListPlace struct {
	Category string `json:"category"`
	Source   string `json:"source"` // file or URL
	Line     int    `json:"line"`   // 0 unknown
	Name     string `json:"name"`   // what the list has there
}

// Trail is the answer to "why": every decider in order, with what it said.
type Trail struct {
	Steps []Step
}

// add does nothing on a nil Trail: outside of "why" nobody pays for it.
func (t *Trail) add(name string, st network.Stage, o outcome) {
	if t == nil {
		return
	}
	s := Step{Decider: name, Stage: st.String(), Result: "pass", Setting: o.decision.Setting, Layer: o.decision.Profile, List: o.decision.List}
	switch {
	case o.decision.Decided():
		s.Result = o.decision.Verdict.String() + ": " + o.decision.Reason
	case o.decision.Asks():
		s.Result = "ask: " + o.decision.Reason
	case o.note != "":
		s.Result = o.note
	case o.unknown:
		s.Result = "unknown yet"
	}
	if m := o.match; m != nil {
		s.List, s.Place = m.ID, &ListPlace{m.Category, m.Source, m.Line, m.Name}
	}
	if o.decision.Rule.Text != "" {
		rule := o.decision.Rule
		s.Rule = &rule
	}
	t.Steps = append(t.Steps, s)
}

func (t *Trail) rule(st network.Stage, layer string, r *profiles.Rule, m profiles.Match) {
	result := "no match"
	switch m {
	case profiles.Matched:
		result = "match"
	case profiles.Unknown:
		result = "unknown yet"
	}
	ref := r.Ref
	t.Steps = append(t.Steps, Step{Decider: "rule", Stage: st.String(), Result: result, Rule: &ref, Layer: layer})
}

// Question is a flow that need not exist: who wants what. A question without a flow's remote
// address is about the name only.
type Question struct {
	Owner     attribution.Owner
	Direction network.Direction
	Entity    network.Entity
	Flow      packet.Flow
}

// Why answers the question as the live path would, stage by stage, and touches no state. The
// first stage that denies ends the trail, because a live flow would not come further.
func (m *Master) Why(q Question) (network.Decision, Trail) {
	var (
		t Trail
		d network.Decision
	)
	if q.Entity.Domain != "" && q.Direction == network.Outbound {
		d = m.whyName(q, &t)
		if d.Decided() && !d.Verdict.Permits() || !q.Flow.Remote.IsValid() {
			return orAccepted(d), t
		}
	}
	c := &network.Communication{Owner: q.Owner, Direction: q.Direction, Entity: q.Entity}
	return m.whyFlow(c, q.Flow, &t), t
}

// WhyLink answers for a link that exists, from the facts it was decided with.
func (m *Master) WhyLink(l *network.Link) (network.Decision, Trail) {
	c := l.Comm()
	if c == nil {
		return network.Decision{Reason: "the owner of the flow is still being looked up"}, Trail{}
	}
	var t Trail
	if l.Kind == network.KindDNS {
		return m.whyName(Question{Owner: c.Owner, Entity: c.Entity}, &t), t
	}
	d, was := m.whyFlow(c, l.Flow, &t), l.Decision()
	switch {
	case d.Asks() && was.Decided() && was.Stage == network.StagePrompt:
		t.add("prompt", network.StagePrompt, outcome{decision: was})
		return was, t
	case d.Verdict.Permits() && was.Code == network.CodeNotCarried:
		t.add("carrier", was.Stage, outcome{decision: was})
		return was, t
	case d.Verdict == was.Verdict.Effect(): // what made it permanent happened to the link
		d.Verdict = was.Verdict
	}
	return d, t
}

// whyFlow answers as Decide decides.
func (m *Master) whyFlow(c *network.Communication, f packet.Flow, t *Trail) network.Decision {
	if !byLink(m.profiles.For(c.Owner), c.Direction, f) {
		if d, cacheable := m.trace(m.communication(c), t); d.Decided() && cacheable {
			return m.ForGood(c, f, d)
		}
	}
	d, _ := m.trace(m.link(c, f), t)
	return m.ForGood(c, f, d)
}

func (m *Master) whyName(q Question, t *Trail) network.Decision {
	n := Name{Owner: q.Owner, Domain: q.Entity.Domain}
	d, _ := m.trace(m.query(n, network.StageBeforeIntel), t)
	if d.Decided() && !d.Verdict.Permits() {
		return d
	}
	n.CNAMEs, n.Local = q.Entity.CNAMEs, q.Entity.Local // the answer tells them
	r := m.query(n, network.StageAfterIntel)
	r.facts.Entity.Addr = q.Entity.Addr
	r.stamp()
	d, _ = m.trace(r, t)
	return orAccepted(d)
}

func (m *Master) trace(r request, t *Trail) (network.Decision, bool) {
	r.visit = func(layer string, rule *profiles.Rule, match profiles.Match) { t.rule(r.stage, layer, rule, match) }
	return m.walk(&r, t)
}
