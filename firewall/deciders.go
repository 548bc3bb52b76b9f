package firewall

import (
	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
	"gatun/profiles"
)

// dnsPort is the port whose traffic the nameserver answers.
const dnsPort = 53

// request holds the facts of one decision at one stage.
type request struct {
	stage     network.Stage
	owner     attribution.Owner
	direction network.Direction
	facts     profiles.Facts
	settings  *profiles.Settings
	visit     func(layer string, r *profiles.Rule, m profiles.Match) // nil outside "why"
}

// dns reports whether a query is decided rather than a flow.
func (r *request) dns() bool {
	return r.stage == network.StageBeforeIntel || r.stage == network.StageAfterIntel
}

// outcome is what one decider says. The zero outcome is "not my business".
type outcome struct {
	decision network.Decision
	ends     bool // the list ends here, also without a verdict: a fact is missing
	unknown  bool // a fact is missing that could change the verdict: do not cache
}

func decided(d network.Decision) outcome { return outcome{decision: d, ends: true} }

type decide func(*request) outcome

// decider is one entry of the list.
type decider struct {
	name   string
	stages stageSet
	decide decide
}

// stageSet is the set of stages in which a decider runs.
type stageSet uint8

func stages(list ...network.Stage) stageSet {
	var s stageSet
	for _, st := range list {
		s |= 1 << st
	}
	return s
}

func (s stageSet) has(st network.Stage) bool { return s&(1<<st) != 0 }

// deciders returns the policy: the first entry that decides wins (policy.md section 4). The
// numbers are those of the design; the ones that are missing come with intelligence, network
// environment and prompts.
func deciders() []decider {
	var (
		firstPacket = stages(network.StageCommunication, network.StageLink)
		withAddress = firstPacket | stages(network.StageAfterIntel)
		all         = withAddress | stages(network.StageBeforeIntel)
	)
	return []decider{
		{"own-traffic", all, ownTraffic},             // 1
		{"nameserver", firstPacket, nameserver},      // fast track: decided per query
		{"block-inbound", firstPacket, blockInbound}, // 3
		{"block-p2p", firstPacket, blockP2P},         // 3
		{"scope", withAddress, scope},                // 4
		{"rules", all, rules},                        // 5
		{"default-action", all, defaultAction},       // end of the list
	}
}

// ownTraffic cuts loops: what this program sends itself goes around the TUN, so a packet of
// ours that comes out of it was sent back by a wrong mark or route (safety.md, promise 7).
func ownTraffic(r *request) outcome {
	if r.owner.Process.Kind != attribution.KindSelf {
		return outcome{}
	}
	return decided(network.Decision{Verdict: network.Block, Code: "own-traffic", Reason: "gatun's own traffic came back to it: cut, so that it cannot loop"})
}

// nameserver takes over port 53, whatever server was asked; each query is then decided.
func nameserver(r *request) outcome {
	if !r.settings.DNSQueryInterception || r.facts.Proto.IsICMP() {
		return outcome{}
	}
	if !r.facts.PortKnown {
		return outcome{unknown: true}
	}
	if r.facts.Port != dnsPort || r.facts.Proto != packet.UDP && r.facts.Proto != packet.TCP {
		return outcome{}
	}
	return decided(network.Decision{
		Verdict: network.RerouteToNameserver, Code: "dns-interception", Setting: "filter/dnsQueryInterception",
		Reason: "port 53 is answered by the built-in nameserver, which decides each query",
	})
}

func blockInbound(r *request) outcome {
	s := r.settings.BlockInbound
	if r.direction != network.Inbound || !s.Active || r.facts.Entity.Scope() == network.Localhost {
		return outcome{}
	}
	return decided(network.Decision{
		Verdict: network.Drop, Code: "block-inbound", Setting: "filter/blockInbound", Profile: s.Profile,
		Reason: "incoming connections are blocked",
	})
}

// blockP2P refuses addresses that no DNS answer named: what peer-to-peer programs dial.
func blockP2P(r *request) outcome {
	s := r.settings.BlockP2P
	e := r.facts.Entity
	if !s.Active || r.direction != network.Outbound || e.Domain != "" || e.Scope() != network.Internet {
		return outcome{}
	}
	return decided(network.Decision{
		Verdict: network.Block, Code: "block-p2p", Setting: "filter/blockP2P", Profile: s.Profile,
		Reason: "direct connections to addresses without a name are blocked",
	})
}

// scope enforces the three force-blocks, which beat every rule. While the address is not known
// they cannot be judged: the verdict of this stage must then not be cached.
func scope(r *request) outcome {
	s := r.settings
	switch r.facts.Entity.Scope() {
	case network.Internet:
		return scopeBlock(s.BlockInternet, "filter/blockInternet", "scope-internet", "connections to the Internet are blocked")
	case network.LAN:
		return scopeBlock(s.BlockLAN, "filter/blockLAN", "scope-lan", "connections to the local network are blocked")
	case network.Localhost:
		return scopeBlock(s.BlockLocal, "filter/blockLocal", "scope-localhost", "connections to this machine are blocked")
	default:
		return outcome{unknown: s.BlockInternet.Active || s.BlockLAN.Active || s.BlockLocal.Active}
	}
}

func scopeBlock(s profiles.Switch, setting, code, reason string) outcome {
	if !s.Active {
		return outcome{}
	}
	return decided(network.Decision{Verdict: network.Block, Code: code, Setting: setting, Profile: s.Profile, Reason: reason})
}

// rules evaluates the lists of all layers, the program's first and the global one last.
func rules(r *request) outcome {
	layers, setting := r.settings.Endpoints, "filter/endpoints"
	if r.direction == network.Inbound {
		layers, setting = r.settings.ServiceEndpoints, "filter/serviceEndpoints"
	}
	var out outcome
	for _, layer := range layers {
		rule, match, skipped := layer.Rules.First(&r.facts, r.visitor(layer.Profile))
		out.unknown = out.unknown || skipped
		switch match {
		case profiles.Unknown:
			return outcome{ends: true, unknown: true}
		case profiles.Matched:
			return outcome{ends: true, unknown: out.unknown, decision: network.Decision{
				Verdict: verdictOf(rule.Action, r.direction), Code: "rule", Setting: setting, Profile: layer.Profile, Rule: rule.Ref,
				Reason: reasonOf(rule),
			}}
		}
	}
	return out
}

func (r *request) visitor(layer string) func(*profiles.Rule, profiles.Match) {
	if r.visit == nil {
		return nil
	}
	return func(rule *profiles.Rule, m profiles.Match) { r.visit(layer, rule, m) }
}

func reasonOf(rule *profiles.Rule) string {
	if rule.Action == profiles.Ask {
		return "the rule asks, and nobody can be asked: blocked"
	}
	return "matched the rule \"" + rule.Ref.Text + "\""
}

// verdictOf turns a rule's action into a verdict: "-" refuses outgoing connections and is
// silent to incoming ones, so that a scanner learns nothing.
func verdictOf(a profiles.Action, d network.Direction) network.Verdict {
	switch a {
	case profiles.Allow:
		return network.Accept
	case profiles.Drop:
		return network.Drop
	default:
		if d == network.Inbound {
			return network.Drop
		}
		return network.Block
	}
}

// defaultAction ends the list. A name that no rule mentions may be resolved, because only the
// connection shows what it is wanted for, unless the profile says that its default holds for
// names too (`run --only`).
func defaultAction(r *request) outcome {
	s := r.settings
	if r.direction == network.Inbound {
		return decided(network.Decision{Verdict: network.Drop, Code: "default-inbound", Setting: "filter/serviceEndpoints", Reason: "no rule permits this incoming connection"})
	}
	if r.dns() && !s.DefaultActionForNames {
		return decided(network.Decision{Verdict: network.Accept, Code: "dns-default", Reason: "no rule speaks about this name"})
	}
	d := network.Decision{Setting: "filter/defaultAction", Profile: s.DefaultActionProfile, Code: "default-action"}
	if s.DefaultAction == profiles.Allow {
		d.Verdict, d.Reason = network.Accept, "no rule matched and the default action is permit"
	} else {
		d.Verdict, d.Reason = network.Block, "no rule matched and the default action is block"
	}
	return decided(d)
}
