package handback

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"gatun/network/packet"
)

const (
	// setAhead has the destinations of connections that are permitted before they begin, aheadName is what
	// passes of those that are not in the set of accepted flows yet.
	setAhead   = "ahead"
	aheadName  = "ahead"
	aheadRules = 3

	// firstSuffix is that of a table which is owned by this process, and is gone with it however it ends.
	// Its chain, in front of the guard's, is the only one that gives such a connection its mark.
	firstSuffix   = "_ahead"
	firstName     = "first"
	beginsName    = "begins"
	firstPriority = -151

	// aheadLimit is how many destinations there may be, aheadTimeout how long the kernel keeps one without
	// hearing of us again.
	aheadLimit   = 4096
	aheadTimeout = 15 * time.Second
)

// Began is a connection whose socket was given Options.SocketMark before its SYN, which so never came here.
type Began struct {
	Flow   packet.Flow
	Cookie uint64 // of the socket
}

// goAhead ends the way of a packet from a socket with the mark that no accepted flow accounts for.
const goAhead = "goto " + aheadName

// writeAhead writes the set and the chain for what is permitted ahead. They let nothing out by themselves:
// the guard wants the connection's mark, which the table of opening gives.
func writeAhead(b *strings.Builder, o Options) {
	for _, family := range []string{"4", "6"} {
		fmt.Fprintf(b, "\tset %s%s {\n\t\ttype ipv%s_addr . inet_proto . inet_service\n\t\tsize %d\n\t\tflags timeout\n\t}\n", setAhead, family, family, aheadLimit)
	}
	fmt.Fprintf(b, "\tchain %s {\n", aheadName)
	for _, family := range []string{"4", "6"} {
		fmt.Fprintf(b, "\t\t%s @%s%s accept comment \"permitted ahead\"\n", destination(family), setAhead, family)
	}
	fmt.Fprintf(b, "\t\t%s comment \"socket with the mark\"\n\t}\n", setMark(o, 0))
}

func destination(family string) string {
	ip := "ip"
	if family == "6" {
		ip = "ip6"
	}
	return ip + " daddr . meta l4proto . th dport"
}

// destinationKey is a destination as the set holds it.
func destinationKey(proto packet.Proto, to netip.AddrPort) (k key) {
	b := append(k.b[:0], to.Addr().AsSlice()...)
	b = append(b, byte(proto), 0, 0, 0, byte(to.Port()>>8), byte(to.Port()), 0, 0)
	k.len = uint8(len(b))
	return k
}

// slow is from when on a connection that was not answered has met silence rather than a refusal, and how
// many SYNs it has sent by then.
const (
	slow         = 3 * time.Second
	slowAttempts = 3
)

// attemptsAhead is Attempts of a connection whose SYNs nobody has counted.
func attemptsAhead(took time.Duration) uint64 {
	if took < slow {
		return 1
	}
	return slowAttempts
}
