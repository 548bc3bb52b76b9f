package route

import (
	"errors"
	"fmt"

	"gatun/network/packet"
)

// Diverted connections arrive at the first free port of this range, for the reasons of firstDNSPort.
const (
	firstDivertPort = 333
	lastDivertPort  = 340
)

// ErrNotDiverted says that a held connection did not arrive at our socket; it is as it was.
var ErrNotDiverted = errors.New("the kernel did not end the connection")

// divertChain sends the SYNs of connections that the Diverter sends once more to its listener. It alone sets
// that mark, on packets that it makes itself; the kernel leads all the rest of such a connection the same
// way. Nobody comes to the listener otherwise. The chain lets nothing out: what it changes goes to loopback.
func (g builder) divertChain(port uint16, sender ...Clause) Chain {
	held := append([]Clause{g.mark(g.n.DivertMark)}, sender...)
	return Chain{Name: "divert", Type: "nat", Hook: "output", Priority: priorityRedirect, Rules: []GuardRule{
		{fmt.Sprintf("held connections to port %d", port), append(held, Clause{kind: tcpOpen}, Clause{kind: redirectTo, num: uint32(port)}), ""},
		{"nobody else", []Clause{{kind: oifIs, text: "lo"}, {kind: tcpOpenTo, num: uint32(port)}}, "drop"},
	}}
}

// insideTable is the table in the network namespace of a sandbox, where who sends has no user. Nothing else
// needs connection tracking there: what the command does on loopback, and every datagram, is left alone.
func insideTable(n Names, port uint16) Guard {
	g := builder{n: n}
	return Guard{Table: n.NftTable, Bare: true, Chains: []Chain{
		{Name: "leaving", Type: "filter", Hook: "output", Priority: priorityRaw, Rules: []GuardRule{
			{"nobody else", []Clause{{kind: oifIs, text: "lo"}, {kind: tcpOpenTo, num: uint32(port)}}, "drop"}, // untracked, the chain below would not see it
			{"from the listener", []Clause{{kind: oifIs, text: "lo"}, {kind: tcpFrom, num: uint32(port)}}, "accept"},
			{"loopback", []Clause{{kind: oifIs, text: "lo"}}, "notrack"},
			// A SYN on its way into the device leaves no entry that would keep it from being translated
			// when it is sent once more.
			{"undecided", []Clause{g.mark(0), {kind: tcpOpen}}, "notrack"},
			{"connections", []Clause{{kind: protocol, num: protocolTCP, text: "tcp"}}, "accept"},
			{"all others", nil, "notrack"},
		}},
		{Name: "arriving", Type: "filter", Hook: "prerouting", Priority: priorityRaw, Rules: []GuardRule{
			{"out of the device", []Clause{{kind: iifIs, text: n.Device}}, "notrack"},
		}},
		g.divertChain(port),
	}}
}

const protocolTCP = 6

// arrival is a connection that is expected.
type arrival struct{ fd chan int }

// diverting is the Diverter's record of connections that are expected, by the flow as the program knows it.
type diverting map[packet.Flow]*arrival
