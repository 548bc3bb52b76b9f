package handback

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"gatun/network/packet"
)

const (
	// setAhead has the destinations of connections that are permitted before they begin.
	setAhead = "ahead"
	// firstName is a chain in front of the guard's: it gives such a connection its mark. aheadName is what
	// passes of those that are not in the set of accepted flows yet.
	firstName     = "first"
	firstPriority = -151
	aheadName     = "ahead"

	firstRules = 3
	aheadRules = 3

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

// writeAhead writes the set and the chains for what is permitted ahead.
//
// The rules do not know whose a SYN is: whoever may set marks reaches such a destination by them. Who gives
// the mark to sockets (network/state.Permits) has to see to it, behind these rules, that no other SYN with
// the mark leaves; and to take a destination into the set only as long as it does. The source has to be an
// address of this machine, as in the device.
func writeAhead(b *strings.Builder, o Options) {
	for _, family := range []string{"4", "6"} {
		fmt.Fprintf(b, "\tset %s%s {\n\t\ttype ipv%s_addr . inet_proto . inet_service\n\t\tsize %d\n\t\tflags timeout\n\t}\n", setAhead, family, family, aheadLimit)
	}
	fmt.Fprintf(b, "\tchain %s {\n", aheadName)
	for _, family := range []string{"4", "6"} {
		fmt.Fprintf(b, "\t\t%s @%s%s accept comment \"permitted ahead\"\n", destination(family), setAhead, family)
	}
	fmt.Fprintf(b, "\t\t%s comment \"socket with the mark\"\n\t}\n", setMark(o, 0))
	fmt.Fprintf(b, "\tchain %s {\n\t\ttype filter hook output priority %d; policy accept;\n", firstName, firstPriority)
	fmt.Fprintf(b, "\t\tmeta mark & %#08x != %#08x accept comment \"others decide\"\n", o.Mask, o.SocketMark)
	for _, family := range []string{"4", "6"} {
		fmt.Fprintf(b, "\t\ttcp flags & (fin | syn | rst | ack) == syn %s @%s%s fib saddr type local goto %s comment \"permitted ahead\"\n",
			destination(family), setAhead, family, backName)
	}
	b.WriteString("\t}\n")
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
