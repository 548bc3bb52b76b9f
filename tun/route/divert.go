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

// insideTable is the table in the network namespace of a sandbox, where who sends has no user.
func insideTable(n Names, port uint16) Guard {
	g := builder{n: n}
	return Guard{Table: n.NftTable, Bare: true, Chains: []Chain{
		// A SYN on its way into the device leaves no entry that would keep it from being translated when
		// it is sent once more. Nothing else there needs connection tracking.
		{Name: "undecided", Type: "filter", Hook: "output", Priority: priorityRaw, Rules: []GuardRule{
			{"undecided", []Clause{{kind: oifIs, text: n.Device}, g.mark(0), {kind: tcpOpen}}, "notrack"},
		}},
		g.divertChain(port),
	}}
}

// arrival is a connection that is expected.
type arrival struct{ fd chan int }

// diverting is the Diverter's record of connections that are expected, by the flow as the program knows it.
type diverting map[packet.Flow]*arrival
