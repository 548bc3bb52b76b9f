package firewall

import (
	"net/netip"

	"gatun/attribution"
	"gatun/intel"
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
	intel     Intel                                                  // nil: nothing is known of names and addresses
	tunnels   Tunnels                                                // nil: queries are not watched
	qtype     uint16                                                 // of a query
	dry       bool                                                   // it is no query of the program
	byName    *intel.Stamp                                           // see listed
	solicited bool                                                   // inbound, and it answers a multicast or broadcast query of ours
	visit     func(layer string, r *profiles.Rule, m profiles.Match) // nil outside "why"
}

// dns reports whether a query is decided rather than a flow.
func (r *request) dns() bool {
	return r.stage == network.StageBeforeIntel || r.stage == network.StageAfterIntel
}

// outcome is what one decider says. The zero outcome is "not my business".
type outcome struct {
	decision network.Decision
	ends     bool         // the list ends here, also without a verdict: a fact is missing, or a person is asked
	unknown  bool         // a fact is missing that could change the verdict: do not cache
	note     string       // for "why", where nothing was decided
	match    *intel.Match // of a filter list, for "why"
}

func decided(d network.Decision) outcome { return outcome{decision: d, ends: true} }

type decide func(*request) outcome

// decider is one entry of the list.
type decider struct {
	number  int // of policy.md section 4; unnumbered entries have the number of the one before
	name    string
	stages  stageSet
	setting string // what a person turns to change it; "" if nothing
	results string // what it may say, for the graph
	decide  decide
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

// deciders returns the policy: the first entry that decides wins (policy.md section 4).
func deciders() []decider {
	var (
		firstPacket = stages(network.StageCommunication, network.StageLink)
		withAddress = firstPacket | stages(network.StageAfterIntel)
		all         = withAddress | stages(network.StageBeforeIntel)
	)
	return []decider{
		{0, "no-process", all, "", "", noProcess},
		{1, "own-traffic", all, "", "block", ownTraffic},
		{1, "nameserver", stages(network.StageLink), "filter/dnsQueryInterception", "reroute-nameserver", nameserver}, // fast track: decided per query
		{1, "pause", all, "", "accept", pause},
		{2, "own-query", firstPacket, "", "accept", ownQuery},
		{3, "block-inbound", firstPacket, "filter/blockInbound", "drop", blockInbound},
		{3, "block-p2p", firstPacket, "filter/blockP2P", "block", blockP2P},
		{4, "scope", withAddress, "filter/blockInternet, blockLAN, blockLocal", "block", scope},
		{5, "rules", all, "filter/endpoints, serviceEndpoints", "accept, block, drop, ask", rules},
		{6, "invalid-address", withAddress, "", "block", invalidAddress},
		{7, "resolver-scope", withAddress, "filter/removeOutOfScopeDNS", "block", resolverScope},
		{8, "connectivity", all, "", "accept", connectivity},
		{9, "bypass", all, "filter/preventBypassing", "block", bypass},
		{10, "filter-lists", all, "filter/lists", "block, drop", filterLists},
		{11, "custom-lists", all, "filter/customLists", "block, drop", customLists},
		{12, "domain-heuristics", all, "filter/domainHeuristics", "block", domainHeuristics},
		{13, "related", all, "filter/autoPermitRelated", "accept", related},
		{14, "default-action", all, "filter/defaultAction", "accept, block, drop, ask", defaultAction},
	}
}

// noProcess decides nothing: who owns a flow is not known, so the special profile's settings
// were taken for it already, never those of another program.
func noProcess(r *request) outcome {
	if k := r.owner.Process.Kind; k != attribution.KindProgram && k != attribution.KindUnidentified || identified(r.owner) {
		return outcome{}
	}
	return outcome{note: "no program is known for sure (" + r.owner.Cause + "): the profile " + r.settings.ProfileName + " judges"}
}

// identified reports whether the owner is one program for sure. Nothing may be permitted for
// what a program is that only may be the owner.
func identified(o attribution.Owner) bool {
	return o.Process.Kind == attribution.KindProgram && (o.Confidence == attribution.Exact || o.Confidence == attribution.Inherited)
}

// ownTraffic cuts loops: what this program sends itself goes around the TUN, so a packet of
// ours that comes out of it was sent back by a wrong mark or route (safety.md, promise 7).
func ownTraffic(r *request) outcome {
	if r.owner.Process.Kind != attribution.KindSelf {
		return outcome{}
	}
	return decided(network.Decision{Verdict: network.Block, Code: "own-traffic", Reason: "gatun's own traffic came back to it: cut, so that it cannot loop"})
}

// nameserver takes over port 53, whatever server was asked; each query is then decided. It looks
// at links only: see Decide.
func nameserver(r *request) outcome {
	if !intercepted(r.settings, r.direction, r.facts.Proto, r.facts.Port) {
		return outcome{}
	}
	return decided(network.Decision{
		Verdict: network.RerouteToNameserver, Code: "dns-interception", Setting: "filter/dnsQueryInterception",
		Reason: "port 53 is answered by the built-in nameserver, which decides each query",
	})
}

// intercepted knows the flows that the nameserver answers. Who asks this machine from elsewhere
// is none of its clients: a program's own server must be protected by the deciders that follow,
// and ours must not answer the network.
func intercepted(s *profiles.Settings, dir network.Direction, p packet.Proto, port uint16) bool {
	return s.DNSQueryInterception && dir != network.Inbound && port == dnsPort && (p == packet.UDP || p == packet.TCP)
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

// pause lets everything through for as long as a person asked for.
func pause(r *request) outcome {
	if !r.settings.Paused {
		return outcome{}
	}
	return decided(network.Decision{Verdict: network.Accept, Code: "paused", Reason: "filtering is paused"})
}

// ownQuery lets in what answers a question of ours: replies to multicast and broadcast come
// from addresses that were never asked.
func ownQuery(r *request) outcome {
	if r.direction != network.Inbound || !r.solicited {
		return outcome{}
	}
	return decided(network.Decision{Verdict: network.Accept, Code: "own-query", Reason: "answers a multicast or broadcast query of this machine"})
}

// blockP2P refuses addresses that no DNS answer named, which is what peer-to-peer programs
// dial, and the ports by which they find each other.
func blockP2P(r *request) outcome {
	s, e := r.settings.BlockP2P, r.facts.Entity
	if !s.Active || r.direction != network.Outbound {
		return outcome{}
	}
	d := network.Decision{
		Verdict: network.Block, Code: "block-p2p", Setting: "filter/blockP2P", Profile: s.Profile,
		Reason: "direct connections to addresses without a name are blocked",
	}
	switch e.Scope() {
	case network.Internet:
	case network.ScopeUnknown:
		return outcome{unknown: true}
	default:
		return outcome{}
	}
	if on := onList(r, "P2P"); on != nil && e.Domain != "" {
		d.Reason, d.List = on.Name+" is on the list "+on.ID+" of peer-to-peer networks", on.ID
		return outcome{ends: true, decision: d, match: on}
	}
	switch {
	case e.Domain == "":
		return decided(d)
	case !r.facts.PortKnown:
		return outcome{unknown: true}
	case isSTUN(r.facts.Proto, r.facts.Port):
		d.Reason = "connections that look for other peers (STUN) are blocked"
		return decided(d)
	}
	return outcome{}
}

// isSTUN knows the ports of RFC 8489, and those of the public servers that browsers use.
func isSTUN(p packet.Proto, port uint16) bool {
	return (p == packet.UDP || p == packet.TCP) && (port == 3478 || port == 5349 || port >= 19302 && port <= 19309)
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
			d := network.Decision{Setting: setting, Profile: layer.Profile, Rule: rule.Ref, Code: "rule", Reason: "matched the rule \"" + rule.Ref.Text + "\""}
			if rule.Action == profiles.Ask {
				return r.ask(d)
			}
			d.Verdict = verdictOf(rule.Action, r.direction)
			return outcome{ends: true, unknown: out.unknown, decision: d}
		}
	}
	return out
}

// ask ends the list without a verdict. A name is resolved meanwhile: the connection that
// follows is what a person is asked about, because it can be held and a query cannot for long.
func (r *request) ask(d network.Decision) outcome {
	if r.dns() {
		return outcome{ends: true, unknown: true, note: "asks when the connection comes"}
	}
	d.Stage, d.Code = network.StagePrompt, "ask"
	d.Reason = "a person is asked: " + d.Reason
	return outcome{ends: true, unknown: true, decision: d}
}

func (r *request) visitor(layer string) func(*profiles.Rule, profiles.Match) {
	if r.visit == nil {
		return nil
	}
	return func(rule *profiles.Rule, m profiles.Match) { r.visit(layer, rule, m) }
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
	switch s.DefaultAction {
	case profiles.Allow:
		d.Verdict, d.Reason = network.Accept, "no rule matched and the default action is permit"
	case profiles.Ask:
		d.Reason = "no rule matched and the default action is ask"
		return r.ask(d)
	default:
		d.Verdict, d.Reason = network.Block, "no rule matched and the default action is block"
	}
	return decided(d)
}

// invalidAddress refuses addresses that no host can have: a packet to them goes nowhere, or to
// whoever claims them. A name may lead there by any of its links.
func invalidAddress(r *request) outcome {
	a := r.facts.Entity.Addr
	if !a.IsValid() || !impossible(a.Unmap()) {
		return outcome{unknown: !a.IsValid()}
	}
	return decided(network.Decision{Verdict: network.Block, Code: "invalid-address", Reason: "no host can have this address"})
}

// impossible knows 0/8 and 240/4 (RFC 1122, RFC 1112) but for the broadcast address, and ::.
func impossible(a netip.Addr) bool {
	if !a.Is4() {
		return a.IsUnspecified()
	}
	b := a.As4()
	return b[0] == 0 || b[0] >= 240 && b != [4]byte{255, 255, 255, 255}
}
