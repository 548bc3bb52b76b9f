package firewall

import (
	"net/netip"

	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
	"gatun/profiles"
)

// Profiles finds the settings that judge a process. The result is immutable and never nil.
type Profiles interface {
	For(attribution.Owner) *profiles.Settings
}

// Master decides. Its methods are pure in the sense that they depend on their arguments and
// on the settings of the moment only; any goroutine may call them.
type Master struct {
	Intel   Intel   // set before the first decision; nil: no lists, countries and networks
	Tunnels Tunnels // set before the first decision; nil: tunnels through names are not looked for
	// HandsBack says that the system's kernel can carry flows: set before the first decision.
	HandsBack bool
	profiles  Profiles
	order     []decider
}

// New returns a Master that judges with the settings p finds.
func New(p Profiles) *Master { return &Master{profiles: p, order: deciders()} }

// Settings returns the settings that judge that owner now.
func (m *Master) Settings(o attribution.Owner) *profiles.Settings { return m.profiles.For(o) }

// Name is the program's wish to resolve a name.
type Name struct {
	Owner  attribution.Owner
	Domain string // lower-case, punycode, without the final dot
	CNAMEs []string
	Type   uint16 // of the records that are asked for (RFC 1035, 3.2.2)
	Local  bool   // after it was resolved: who answered may give addresses of this network
	Dry    bool   // a person asks what would be decided: it is no query of the program
}

// DecideOnCommunicationBeforeIntel decides whether the program may ask for the name at all. An
// undecided answer means that addresses are needed: resolve, then ask AfterIntel.
func (m *Master) DecideOnCommunicationBeforeIntel(n Name) network.Decision {
	r := m.query(n, network.StageBeforeIntel)
	d, _ := m.walk(&r, nil)
	return d
}

// DecideOnCommunicationAfterIntel decides again with what the answer says. It returns the
// decision on the name and the addresses that the program must not see. A name of which no
// address remains is denied with the decision on its first address.
func (m *Master) DecideOnCommunicationAfterIntel(n Name, addrs []netip.Addr) (network.Decision, []netip.Addr) {
	r := m.query(n, network.StageAfterIntel)
	if len(addrs) == 0 {
		r.facts.Final = true
		r.stamp()
		d, _ := m.walk(&r, nil)
		return orAccepted(d), nil
	}
	var (
		denied       []netip.Addr
		first, allow network.Decision
	)
	for _, a := range addrs {
		r.facts.Entity.Addr = a
		r.stamp()
		d, _ := m.walk(&r, nil)
		d = orAccepted(d)
		switch {
		case d.Verdict.Permits():
			if !allow.Decided() {
				allow = d
			}
		default:
			if !first.Decided() {
				first = d
			}
			if r.settings.RemoveBlockedDNS || resolverScope(&r).ends { // whoever else denies the address, too
				denied = append(denied, a)
			}
		}
	}
	if !allow.Decided() {
		return first, addrs
	}
	return allow, denied
}

// orAccepted turns "a port is still missing" into "the name may be answered": the connection
// is decided again with all facts.
func orAccepted(d network.Decision) network.Decision {
	if d.Decided() {
		return d
	}
	return network.Decision{Verdict: network.Accept, Stage: network.StageAfterIntel, Code: "dns-later", Reason: "the connection decides: a rule needs its port or protocol"}
}

func (m *Master) query(n Name, st network.Stage) request {
	s := m.profiles.For(n.Owner)
	return request{
		stage: st, owner: n.Owner, settings: s, intel: m.Intel, tunnels: m.Tunnels, qtype: n.Type, dry: n.Dry,
		facts: profiles.Facts{
			Entity:           network.Entity{Domain: n.Domain, Source: network.DomainDNS, CNAMEs: n.CNAMEs, Local: n.Local},
			GeoMissingBlocks: s.GeoMissingBlocks,
		},
	}
}

// Decide decides on a flow's first packet: on its Communication if that is possible, which the
// next links of it then inherit, else on the link with all facts.
func (m *Master) Decide(c *network.Communication, f packet.Flow) network.Decision {
	return m.ForGood(c, f, m.decide(c, f))
}

// ForGood makes an Accept permanent where nothing needs the flow's bytes (filter/permanentVerdicts):
// the kernel then carries it. Decide has done so; what a person has answered has not been through.
func (m *Master) ForGood(c *network.Communication, f packet.Flow, d network.Decision) network.Decision {
	if d.Verdict != network.Accept || !m.HandsBack || f.Proto.IsICMP() {
		return d
	}
	relayed := f.Proto == packet.TCP || f.Proto == packet.UDP
	if !relayed || m.profiles.For(c.Owner).PermanentVerdicts {
		d.Verdict = network.PermanentAccept
	}
	return d
}

func (m *Master) decide(c *network.Communication, f packet.Flow) network.Decision {
	s := m.profiles.For(c.Owner)
	if byLink(s, c.Direction, f) { // whatever holds for the other links of c
		return m.DecideOnLink(c, f)
	}
	if d := c.Cached(s.Revision); d != nil {
		return *d
	}
	if d, cacheable := m.DecideOnCommunication(c); d.Decided() && cacheable {
		kept := d // only this one is to lie on the heap
		c.Cache(s.Revision, &kept)
		return d
	}
	return m.DecideOnLink(c, f)
}

// byLink knows the flows that a decider judges by their port: what holds for the other flows of
// their Communication does not hold for them.
func byLink(s *profiles.Settings, dir network.Direction, f packet.Flow) bool {
	return intercepted(s, dir, f.Proto, f.Remote.Port()) || s.PreventBypassing && dir != network.Inbound && decidedByPort(f)
}

// DecideOnCommunication decides with what all links of c share: the program, and the domain or
// the address. The decision counts only if it is cacheable: no missing fact could change it.
func (m *Master) DecideOnCommunication(c *network.Communication) (d network.Decision, cacheable bool) {
	r := m.communication(c)
	return m.walk(&r, nil)
}

// DecideOnLink decides with all facts of the first packet. It always decides, or asks.
func (m *Master) DecideOnLink(c *network.Communication, f packet.Flow) network.Decision {
	r := m.link(c, f)
	d, _ := m.walk(&r, nil)
	if !d.Decided() && !d.Asks() { // cannot happen while every fact is there; the zero value must not pass
		return network.Decision{Verdict: network.Block, Stage: network.StageLink, Code: "undecided", Reason: "no decision was possible"}
	}
	return d
}

func (m *Master) communication(c *network.Communication) request {
	r := m.flow(c, network.StageCommunication)
	if c.Entity.Domain != "" {
		r.facts.Entity.Addr, r.facts.Entity.Stamp = netip.Addr{}, nil // links of one name go to many addresses
	}
	r.stamp()
	return r
}

func (m *Master) link(c *network.Communication, f packet.Flow) request {
	r := m.flow(c, network.StageLink)
	if r.facts.Entity.Addr = f.Remote.Addr(); r.facts.Entity.Addr != c.Entity.Addr {
		r.facts.Entity.Stamp = nil // that of another address of the name
	}
	r.facts.Proto, r.facts.Port, r.facts.PortKnown, r.facts.Final = f.Proto, f.Remote.Port(), true, true
	if c.Direction == network.Inbound {
		r.facts.Port = f.Local.Port()
	}
	r.stamp()
	return r
}

// flow is what all links of c share.
func (m *Master) flow(c *network.Communication, st network.Stage) request {
	s := m.profiles.For(c.Owner)
	return request{
		stage: st, owner: c.Owner, direction: c.Direction, settings: s, intel: m.Intel, solicited: c.Solicited,
		facts: profiles.Facts{Entity: c.Entity, GeoMissingBlocks: s.GeoMissingBlocks},
	}
}

// walk runs the list. cacheable is false where a missing fact could have changed the result.
func (m *Master) walk(r *request, trail *Trail) (d network.Decision, cacheable bool) {
	cacheable = true
	for i := range m.order {
		e := &m.order[i]
		if !e.stages.has(r.stage) {
			continue
		}
		o := e.decide(r)
		if o.decision.Decided() {
			o.decision.Stage = r.stage
		}
		trail.add(e.name, r.stage, o)
		cacheable = cacheable && !o.unknown
		if o.ends {
			return o.decision, cacheable
		}
	}
	return network.Decision{}, false
}
