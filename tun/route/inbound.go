package route

import (
	"fmt"
	"net/netip"
	"time"
)

// InboundMode says what becomes of new TCP and UDP flows that come in to this machine.
type InboundMode uint8

// The modes. The zero value is a guard that looks at nothing that comes in.
const (
	InboundFree InboundMode = iota
	// InboundQueued holds them in Names.Queue until userspace gives them back (tun/inbound).
	// Nobody listening there means that they are dropped: a crash stays closed for new flows.
	InboundQueued
	// InboundCompat is the same by the target of xtables, for kernels without the native one.
	InboundCompat
	// InboundForAll is for who has no reader of the queue: InboundDropped or InboundFree, as
	// Policy.BlockInbound says.
	InboundForAll
	// InboundDropped refuses them, whoever waits for them.
	InboundDropped
)

// String is the mode in one word.
func (m InboundMode) String() string {
	switch m {
	case InboundFree:
		return "free"
	case InboundQueued:
		return "queued"
	case InboundCompat:
		return "queued (xtables)"
	case InboundForAll:
		return "for all"
	case InboundDropped:
		return "dropped"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// text is the mode for people.
func (m InboundMode) text() string {
	switch m {
	case InboundQueued, InboundCompat:
		return "controlled"
	case InboundDropped:
		return "refused for everybody"
	}
	return "not controlled"
}

// inboundChain decides about what comes in to this machine, behind the filters of others: what
// they refuse is not asked about. It runs for every packet, so that a flow's later packets pass it
// in the kernel: by connection tracking, by the mark that an accepted flow has there, or by the
// snapshot of flows that are older than connection tracking.
//
// A verdict comes back as a mark: the packet runs through the chain once more. Nobody outside can
// set it, because "incoming" gives every packet for this machine another one in the same bits.
func (g builder) inboundChain(p Policy) Chain {
	now := g.mark(g.n.InMark)
	rules := []GuardRule{
		{"known flow", []Clause{{kind: ctKnown}}, "accept"},
		{"loopback", []Clause{{kind: iifLoopback}}, "accept"},
		{"from the tun", []Clause{{kind: iifIs, text: g.n.Device}}, "accept"},
		{"accepted now", []Clause{now, g.setCtMark(g.n.InMark)}, ""},
		{"accepted now", []Clause{now}, "accept"}, // also what connection tracking has no entry for
		{"accepted before", []Clause{g.ctMark(g.n.InMark)}, "accept"},
		{"open before up", []Clause{{kind: backSnapshot4}}, "accept"},
		{"open before up", []Clause{{kind: backSnapshot6}}, "accept"},
		{"dhcp client", []Clause{{kind: udpPorts, num: 67<<16 | 68}}, "accept"},
		{"dhcp client", []Clause{{kind: udpPorts, num: 547<<16 | 546}, {kind: destination, prefix: linkLocal6()}}, "accept"},
	}
	link := "accept"
	if p.BlockLAN {
		link = "drop"
	}
	for _, typ := range []uint32{typeBroadcast, typeMulticast} {
		for _, proto := range inboundProtocols() {
			rules = append(rules, GuardRule{"stays on the link", []Clause{proto, {kind: destinationType, num: typ}}, link})
		}
	}
	if p.asks() {
		rules = append(rules,
			GuardRule{"answer to a query", []Clause{udpOnly(), {kind: toAsked4}, g.setMark(g.n.AskedMark)}, ""},
			GuardRule{"answer to a query", []Clause{udpOnly(), {kind: toAsked6}, g.setMark(g.n.AskedMark)}, ""})
	}
	for _, proto := range inboundProtocols() {
		rules = append(rules, g.newInbound(proto, p.Inbound))
	}
	return Chain{Name: "inbound", Type: "filter", Hook: "input", Priority: priorityInbound, Rules: rules}
}

// The sets of who asked a multicast or broadcast group, how long they may be answered, and how many
// are remembered.
const (
	askedSet4, askedSet6 = "asked4", "asked6"
	askedFor             = 5 * time.Second
	askedLimit           = 4096
)

// asks says whether answers to multicast and broadcast queries are told apart: where somebody decides
// about them, and the queries may leave.
func (p Policy) asks() bool {
	return (p.Inbound == InboundQueued || p.Inbound == InboundCompat) && !p.BlockLAN
}

func udpOnly() Clause { return Clause{kind: protocol, num: 17, text: "udp"} }

// queries remember from where this machine asks everybody on the link.
func (p Policy) queries() []GuardRule {
	if !p.asks() {
		return nil
	}
	var rules []GuardRule
	for _, to := range []Clause{{kind: destination, prefix: netip.MustParsePrefix("224.0.0.0/4")}, {kind: destinationType, num: typeBroadcast}} {
		rules = append(rules, GuardRule{"query to the link", []Clause{udpOnly(), to, {kind: asked4}}, ""})
	}
	return append(rules, GuardRule{"query to the link", []Clause{udpOnly(), {kind: destination, prefix: netip.MustParsePrefix("ff00::/8")}, {kind: asked6}}, ""})
}

// askedText declares the two sets in the language of nft(8).
func askedText() string {
	text := ""
	for _, typ := range [...][2]string{{askedSet4, "ipv4_addr"}, {askedSet6, "ipv6_addr"}} {
		text += fmt.Sprintf("\tset %s {\n\t\ttype %s . inet_service\n\t\tsize %d\n\t\tflags dynamic,timeout\n\t\ttimeout %s\n\t}\n", typ[0], typ[1], askedLimit, askedFor)
	}
	return text
}

// newInbound is what happens to a flow that nobody knows yet.
func (g builder) newInbound(proto Clause, m InboundMode) GuardRule {
	switch m {
	case InboundQueued:
		return GuardRule{"new inbound flow", []Clause{proto, {kind: queueTo, num: uint32(g.n.Queue)}}, ""}
	case InboundCompat:
		return GuardRule{"new inbound flow", []Clause{proto, {kind: queueCompat, num: uint32(g.n.Queue)}}, ""}
	default:
		return GuardRule{"new inbound flow", []Clause{proto, {kind: countPackets}}, "drop"}
	}
}

// inboundProtocols are those that belong to programs. All others pass: neighbour discovery, group
// membership, ICMP errors and echo requests are the kernel's.
func inboundProtocols() []Clause {
	return []Clause{{kind: protocol, num: 6, text: "tcp"}, {kind: protocol, num: 17, text: "udp"}}
}
