package route

import (
	"fmt"
	"net/netip"
	"strings"
)

// Guard is the nftables table, as data: String is its text for nft(8), guard_linux.go sends
// the same clauses to the kernel in one transaction. A test feeds the text to nft and compares.
type Guard struct {
	Table  string
	Chains []Chain
	Asked  bool // there are sets of who asked a multicast or broadcast group
	Bare   bool // there are no sets at all
}

// Chain is a base chain, or a plain one if Hook is empty.
type Chain struct {
	Name, Type, Hook string
	Priority         int
	Drop             bool // policy drop, else accept
	Rules            []GuardRule
}

// GuardRule is a comment, the conditions and statements, and a verdict ("" goes on).
type GuardRule struct {
	Comment string
	Clauses []Clause
	Verdict string
}

// Clause is one condition or statement of a guard rule.
type Clause struct {
	kind   clauseKind
	text   string
	num    uint32
	mask   uint32
	prefix netip.Prefix
}

type clauseKind uint8

const (
	oifIs clauseKind = iota + 1
	oifLoopback
	iifIs
	iifIsNot
	iifLoopback
	iifNotLoopback
	markIs
	markSet
	uidIs
	hasUID
	ctMarkIs
	ctMarkSet
	ctNew
	ctDirection
	inSnapshot4
	inSnapshot6
	destination
	destinationType
	destinationNotType
	protocol
	udpPorts
	icmp6Type
	hopLimit
	countPackets
	udpTo
	tcpOpenTo
	tcpOpen
	tcpFrom
	redirectTo
	udpFrom
	socketMarkIs
	zoneSet
	ctKnown
	backSnapshot4
	backSnapshot6
	queueTo
	queueCompat
	asked4
	asked6
	toAsked4
	toAsked6
	keepSource4
	keepSource6
)

// Address types as in rtnetlink(7) and nft's "fib daddr type".
const (
	typeUnicast   = 1
	typeLocal     = 2
	typeBroadcast = 3
	typeMulticast = 5
)

// Directions of connection tracking.
const (
	directionOriginal = 0
	directionReply    = 1
)

// Names of the two sets of flows that were open before Up.
const (
	set4 = "est4"
	set6 = "est6"
)

// Priorities of the chains (netfilter's numbers). Marks are set where the mangle table sits,
// after connection tracking; "outgoing" behind what others do there, so that they do not change its
// marks. The guard comes after every other table, so that nobody changes a mark or the way out behind it.
const (
	priorityRaw      = -300 // before connection tracking
	priorityMangle   = -150
	priorityOutgoing = -149
	priorityRedirect = -110 // before the NAT of others: who translates a flow first has it
	priorityInbound  = 100  // behind the filters of others
	priorityKeep     = 99   // before the source NAT of others
	priorityLast     = 400
)

// NewGuard returns the guard.
//
// Three chains, and "inbound" where Policy.Inbound asks for it (see inboundChain). "incoming" runs before routing: it remembers in the connection mark which flows
// came in from an interface, and marks what is for this machine so that strict reverse-path
// filters look at the main table. "outgoing" is of type route: it gives a packet the mark that
// takes it to its old path, or takes away a mark that it has no right to, and the kernel routes
// it again. "guard" sees every packet, local or forwarded, when its way out is final (an output
// hook would still see the first routing decision) and drops what is not named.
//
// With Policy.DivertPort there is one more (see divertChain), with Policy.DNSPort three (see redirectChains). They let nothing out: what they
// change goes to loopback, and without them port 53 takes the way of all other traffic.
func NewGuard(n Names, p Policy) Guard {
	g := builder{n: n}
	guard := Guard{Table: n.NftTable, Asked: p.asks(), Chains: []Chain{
		{Name: "incoming", Type: "filter", Hook: "prerouting", Priority: priorityMangle, Rules: g.incoming()},
		{Name: "outgoing", Type: "route", Hook: "output", Priority: priorityOutgoing, Rules: g.outgoing(p)},
		{Name: "guard", Type: "filter", Hook: "postrouting", Priority: priorityLast, Drop: true, Rules: g.guard(p)},
	}}
	if p.Inbound != InboundFree {
		guard.Chains = append(guard.Chains, g.inboundChain(p))
	}
	if p.DivertPort != 0 {
		guard.Chains = append(guard.Chains, g.divertChain(p.DivertPort, Clause{kind: uidIs, num: p.UID}))
	}
	if p.DNSPort != 0 {
		guard.Chains = append(guard.Chains, g.redirectChains(p)...)
	}
	if p.DivertPort != 0 || p.DNSPort != 0 { // where there is translation
		guard.Chains = append(guard.Chains, g.keepChain())
	}
	return guard
}

// builder makes clauses that need the names.
type builder struct{ n Names }

func (g builder) mark(v uint32) Clause      { return Clause{kind: markIs, num: v, mask: g.n.Mask} }
func (g builder) setMark(v uint32) Clause   { return Clause{kind: markSet, num: v, mask: g.n.Mask} }
func (g builder) ctMark(v uint32) Clause    { return Clause{kind: ctMarkIs, num: v, mask: g.n.Mask} }
func (g builder) setCtMark(v uint32) Clause { return Clause{kind: ctMarkSet, num: v, mask: g.n.Mask} }

// backed is the mark of connections that tun/handback has given back: only that package sets it. It is what
// most packets of a busy machine are asked about, so it comes first, in the fewest words.
func (g builder) backed() Clause {
	mask := g.n.backMask()
	return Clause{kind: ctMarkIs, num: g.n.BackMark & mask, mask: mask}
}

func (g builder) incoming() []GuardRule {
	return []GuardRule{
		// It needs no look at the routes.
		{"reply of a flow handed back", []Clause{g.backed(), {kind: ctDirection, num: directionReply}, {kind: iifIsNot, text: g.n.Device}, g.setMark(g.n.OldMark)}, "accept"},
		{"loopback", []Clause{{kind: iifLoopback}}, "accept"},
		{"from the tun", []Clause{{kind: iifIs, text: g.n.Device}}, "accept"},
		// Forwarded packets get no mark: they take our table and end in the TUN or nowhere.
		{"to be forwarded", []Clause{{kind: destinationType, num: typeUnicast}}, "accept"},
		{"inbound flow", []Clause{{kind: ctNew}, g.ctMark(0), g.setCtMark(g.n.OldMark)}, ""}, // not again: it may be accepted by now
		{"for this machine", []Clause{g.setMark(g.n.OldMark)}, "accept"},
	}
}

func (g builder) outgoing(p Policy) []GuardRule {
	own, old, back := g.n.Mark, g.n.OldMark, g.n.BackMark
	original := Clause{kind: ctDirection, num: directionOriginal}
	rules := []GuardRule{
		// Nothing below concerns what tun/handback carries: its chain, the next, has the word. The mark
		// of a socket counts only with that of the connection, which no program can set. Both outlive
		// Down: Up takes the connection's away (forgetHandedBack), so no flow of the snapshot is among them.
		{"handed back", []Clause{g.backed(), g.mark(back)}, "accept"},
		{"loopback", []Clause{{kind: oifLoopback}}, "accept"},
		{"handed back", []Clause{g.backed(), g.mark(0)}, "accept"},
		{"own sockets", []Clause{g.mark(own), {kind: uidIs, num: p.UID}, g.setCtMark(own)}, "accept"},
		// Connection tracking has no entry for the resets and errors that answer what came in: then
		// the rule above ends where it looks for one.
		{"own sockets", []Clause{g.mark(own), {kind: uidIs, num: p.UID}}, "accept"},
		{"open before up", []Clause{{kind: inSnapshot4}, g.setMark(old)}, "accept"},
		{"open before up", []Clause{{kind: inSnapshot6}, g.setMark(old)}, "accept"},
		{"reply of an inbound flow", []Clause{{kind: ctDirection, num: directionReply}, g.ctMark(old), g.setMark(old)}, "accept"},
		{"reply of an inbound flow", []Clause{{kind: ctDirection, num: directionReply}, g.ctMark(g.n.InMark), g.setMark(old)}, "accept"},
		{"dhcp client", []Clause{{kind: udpPorts, num: 68<<16 | 67}, g.setMark(old)}, "accept"},
		// What the kernel still sends for our sockets after they are closed has the connection
		// mark but no user. A program's packet has a user and never gets this far with our mark:
		// else it could bind the port of a closed flow and borrow its mark.
		{"mark of another user", []Clause{g.mark(own), {kind: hasUID}, g.setMark(0)}, "accept"},
		{"mark of another user", []Clause{g.mark(old), {kind: hasUID}, g.setMark(0)}, "accept"},
		{"mark without a flow", []Clause{g.mark(back), g.setMark(0)}, "accept"},
	}
	if p.DNSPort != 0 || p.DivertPort != 0 { // which ask for socket marks, too: install goes without, if need be
		// Others that restore every packet's mark from its connection, or set one of their own, have
		// taken ours away. The socket still has it.
		rules = append(rules, GuardRule{"own sockets, marked anew by others", []Clause{{kind: socketMarkIs, num: own, mask: g.n.Mask}, {kind: uidIs, num: p.UID}, g.setCtMark(own), g.setMark(own)}, "accept"})
	}
	return append(rules, []GuardRule{
		{"has a user", []Clause{{kind: hasUID}}, "accept"},
		{"after own sockets", []Clause{g.ctMark(own), original, g.setMark(own)}, "accept"},
		{"mark without a flow", []Clause{g.mark(own), g.setMark(0)}, "accept"},
		{"mark without a flow", []Clause{g.mark(old), g.setMark(0)}, "accept"},
	}...)
}

func (g builder) guard(p Policy) []GuardRule {
	rules := []GuardRule{
		{"handed back", []Clause{g.mark(g.n.BackMark), g.backed()}, "accept"},
		{"old path", []Clause{g.mark(g.n.OldMark)}, "accept"},
		{"loopback", []Clause{{kind: oifLoopback}}, "accept"},
		{"into the tun", []Clause{{kind: oifIs, text: g.n.Device}}, "accept"},
		{"out of the tun", []Clause{{kind: iifIs, text: g.n.Device}}, "accept"},
		{"own sockets", []Clause{g.mark(g.n.Mark), {kind: uidIs, num: p.UID}}, "accept"},
		// "outgoing" left this mark only where the kernel speaks for a closed socket of ours.
		{"after own sockets", []Clause{g.mark(g.n.Mark), g.ctMark(g.n.Mark)}, "accept"},
		{"dhcp client", []Clause{{kind: udpPorts, num: 546<<16 | 547}, {kind: destination, prefix: linkLocal6()}}, "accept"},
		{"dhcp client", []Clause{{kind: udpPorts, num: 546<<16 | 547}, {kind: destination, prefix: netip.MustParsePrefix("ff02::/16")}}, "accept"},
	}
	// Neighbour discovery has hop limit 255: it cannot have been, and will not be, forwarded.
	for _, t := range []struct {
		typ  uint32
		name string
	}{{133, "nd-router-solicit"}, {135, "nd-neighbor-solicit"}, {136, "nd-neighbor-advert"}} {
		rules = append(rules, GuardRule{"neighbour discovery", []Clause{{kind: icmp6Type, num: t.typ, text: t.name}, {kind: hopLimit, num: 255}}, "accept"})
	}
	// Group membership, or snooping switches cut the groups of neighbour discovery.
	rules = append(rules,
		GuardRule{"group membership", []Clause{{kind: icmp6Type, num: 131, text: "mld-listener-report"}, {kind: hopLimit, num: 1}}, "accept"},
		GuardRule{"group membership", []Clause{{kind: icmp6Type, num: 132, text: "mld-listener-done"}, {kind: hopLimit, num: 1}}, "accept"},
		GuardRule{"group membership", []Clause{{kind: icmp6Type, num: 143, text: "mld2-listener-report"}, {kind: hopLimit, num: 1}}, "accept"})
	if !p.BlockLAN {
		rules = append(rules, p.queries()...)
		rules = append(rules, linkRules()...)
	}
	// The policy says drop too; the rule makes replacing the rules in one transaction closed
	// whatever the order in which the kernel switches rules and policy.
	return append(rules, GuardRule{"everything else", []Clause{{kind: countPackets}}, "drop"})
}

// linkRules let multicast, broadcast and link-local pass (policy: per scope, not per program).
func linkRules() []GuardRule {
	var rules []GuardRule
	for _, v6 := range []bool{false, true} {
		for _, p := range linkScope(v6) {
			rules = append(rules, GuardRule{"stays on the link", []Clause{{kind: destination, prefix: p}}, "accept"})
		}
	}
	return append(rules, GuardRule{"stays on the link", []Clause{{kind: destinationType, num: typeBroadcast}}, "accept"})
}

// Name of the operation.
func (g Guard) Name() string { return "nft table inet " + g.Table }

// String is the table in the language of nft(8).
func (g Guard) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", g.Table)
	if !g.Bare {
		fmt.Fprintf(&b, "\tset %s {\n\t\ttype ipv4_addr . ipv4_addr . inet_proto . inet_service . inet_service\n\t}\n", set4)
		fmt.Fprintf(&b, "\tset %s {\n\t\ttype ipv6_addr . ipv6_addr . inet_proto . inet_service . inet_service\n\t}\n", set6)
	}
	if g.Asked {
		b.WriteString(askedText())
	}
	for _, c := range g.Chains {
		policy := "accept"
		if c.Drop {
			policy = "drop"
		}
		fmt.Fprintf(&b, "\tchain %s {\n\t\ttype %s hook %s priority %d; policy %s;\n", c.Name, c.Type, c.Hook, c.Priority, policy)
		for _, r := range c.Rules {
			b.WriteString("\t\t" + r.String() + "\n")
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}")
	return b.String()
}

// String is the rule in the language of nft(8).
func (r GuardRule) String() string {
	parts := make([]string, 0, len(r.Clauses)+2)
	for _, c := range r.Clauses {
		parts = append(parts, c.String())
	}
	if r.Verdict != "" {
		parts = append(parts, r.Verdict)
	}
	return strings.Join(append(parts, fmt.Sprintf("comment %q", r.Comment)), " ")
}

// String is the clause in the language of nft(8).
func (c Clause) String() string {
	switch c.kind {
	case oifIs:
		return fmt.Sprintf("oifname %q", c.text)
	case oifLoopback:
		return `oif "lo"`
	case iifIs:
		return fmt.Sprintf("iifname %q", c.text)
	case iifIsNot:
		return fmt.Sprintf("iifname != %q", c.text)
	case iifLoopback:
		return `iif "lo"`
	case iifNotLoopback:
		return `iif != "lo"`
	case markIs:
		return fmt.Sprintf("meta mark & %#08x == %#08x", c.mask, c.num)
	case markSet:
		return fmt.Sprintf("meta mark set meta mark & %#08x ^ %#08x", ^c.mask, c.num)
	case ctMarkIs:
		return fmt.Sprintf("ct mark & %#08x == %#08x", c.mask, c.num)
	case ctMarkSet:
		return fmt.Sprintf("ct mark set ct mark & %#08x ^ %#08x", ^c.mask, c.num)
	case uidIs:
		return fmt.Sprintf("meta skuid %d", c.num)
	case hasUID:
		return "meta skuid >= 0"
	case ctNew:
		return "ct state new"
	case ctDirection:
		if c.num == directionReply {
			return "ct direction reply"
		}
		return "ct direction original"
	case inSnapshot4:
		return "ip saddr . ip daddr . meta l4proto . th sport . th dport @" + set4
	case inSnapshot6:
		return "ip6 saddr . ip6 daddr . meta l4proto . th sport . th dport @" + set6
	case backSnapshot4:
		return "ip daddr . ip saddr . meta l4proto . th dport . th sport @" + set4
	case backSnapshot6:
		return "ip6 daddr . ip6 saddr . meta l4proto . th dport . th sport @" + set6
	case asked4:
		return "update @" + askedSet4 + " { ip saddr . udp sport }"
	case asked6:
		return "update @" + askedSet6 + " { ip6 saddr . udp sport }"
	case toAsked4:
		return "ip daddr . udp dport @" + askedSet4
	case toAsked6:
		return "ip6 daddr . udp dport @" + askedSet6
	case keepSource4:
		return "snat ip to ip saddr"
	case keepSource6:
		return "snat ip6 to ip6 saddr"
	case ctKnown:
		return "ct state established,related"
	}
	return c.protocolText()
}

// protocolText covers the clauses about packet headers.
func (c Clause) protocolText() string {
	switch c.kind {
	case destination:
		if c.prefix.Addr().Is4() {
			if c.prefix.IsSingleIP() {
				return "ip daddr " + c.prefix.Addr().String()
			}
			return "ip daddr " + c.prefix.String()
		}
		return "ip6 daddr " + c.prefix.String()
	case destinationType:
		return "fib daddr type " + map[uint32]string{typeUnicast: "unicast", typeLocal: "local", typeBroadcast: "broadcast", typeMulticast: "multicast"}[c.num]
	case udpPorts:
		return fmt.Sprintf("udp sport %d udp dport %d", c.num>>16, c.num&0xffff)
	case icmp6Type:
		return "icmpv6 type " + c.text
	case hopLimit:
		return fmt.Sprintf("ip6 hoplimit %d", c.num)
	case countPackets:
		return "counter"
	case udpTo:
		return fmt.Sprintf("udp dport %d", c.num)
	case tcpOpenTo:
		return fmt.Sprintf("tcp dport %d tcp flags & (fin | syn | rst | ack) == syn", c.num)
	case tcpFrom:
		return fmt.Sprintf("tcp sport %d", c.num)
	case tcpOpen:
		return "tcp flags & (fin | syn | rst | ack) == syn"
	case redirectTo:
		return fmt.Sprintf("redirect to :%d", c.num)
	case udpFrom:
		return fmt.Sprintf("udp sport %d", c.num)
	case socketMarkIs:
		return fmt.Sprintf("socket mark & %#08x == %#08x", c.mask, c.num)
	case zoneSet:
		return fmt.Sprintf("ct zone set %d", c.num)
	case protocol:
		return "meta l4proto " + c.text
	case queueTo:
		return fmt.Sprintf("queue to %d", c.num)
	case queueCompat:
		return "xt target \"NFQUEUE\""
	}
	return fmt.Sprintf("clause %d", c.kind)
}
