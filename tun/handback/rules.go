package handback

import (
	"fmt"
	"strings"
)

// The chain runs one after the guard's "outgoing", which takes the mark from every packet that has
// a user (see the package's documentation).
const (
	chainName     = "handback"
	chainPriority = -149
	egressName    = "silence"

	// How many rules they have.
	inetRules   = 12
	netdevRules = 2
)

// Rules is the text of both tables in the language of nft(8); rules_linux.go sends the same rules
// to the kernel. A test feeds the text to nft and compares.
//
// The sets hold flows as the program's packets name them. A SYN does not pass by them: the port of a
// closed connection may be another program's next moment, and after a crash nobody would notice. Only
// what is sent from here, by a socket with the mark, does: the held SYN, and one that came again (Follow).
//
// Silence cannot be had in an output hook, where a program's send fails with EPERM: what is to be
// dropped goes the way of everything that is undecided, and ends at the device. Block over UDP is
// an answer by ICMP, and send fails with EPERM too.
func Rules(o Options) string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", o.Table)
	for _, name := range []string{setAccept, setLinger, setBlock} {
		writeSet(&b, name, o.Limit)
	}
	fmt.Fprintf(&b, "\tchain %s {\n\t\ttype route hook output priority %d; policy accept;\n", chainName, chainPriority)
	mark := fmt.Sprintf("meta mark set meta mark & %#08x ^ %#08x accept", ^o.Mask, o.Mark)
	for _, r := range []struct{ before, set, then, comment string }{
		{"tcp flags & syn != syn ", setAccept, mark, "handed back"},
		{"meta l4proto udp ", setAccept, mark, "handed back"},
		{fmt.Sprintf("tcp flags & syn == syn socket mark & %#08x == %#08x ", o.Mask, o.Mark), setAccept, mark, "held packet"},
		{"tcp flags & syn != syn ", setLinger, mark, "closing"},
		{"meta l4proto tcp ", setBlock, "reject with tcp reset", "blocked"},
		{"meta l4proto udp ", setBlock, "reject with icmpx port-unreachable", "blocked"},
	} {
		for _, family := range []string{"4", "6"} {
			fmt.Fprintf(&b, "\t\t%s%s @%s%s %s comment %q\n", r.before, tuple(family), r.set, family, r.then, r.comment)
		}
	}
	b.WriteString("\t}\n}\n")
	if o.Device == "" {
		return b.String()
	}
	fmt.Fprintf(&b, "table netdev %s {\n", o.Table)
	writeSet(&b, setDrop, o.Limit)
	fmt.Fprintf(&b, "\tchain %s {\n\t\ttype filter hook egress device %q priority 0; policy accept;\n", egressName, o.Device)
	for _, family := range []string{"4", "6"} {
		fmt.Fprintf(&b, "\t\t%s @%s%s drop comment \"dropped\"\n", tuple(family), setDrop, family)
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}

func tuple(family string) string {
	ip := "ip"
	if family == "6" {
		ip = "ip6"
	}
	return ip + " saddr . " + ip + " daddr . meta l4proto . th sport . th dport"
}

func writeSet(b *strings.Builder, name string, limit int) {
	for _, family := range []string{"4", "6"} {
		fmt.Fprintf(b, "\tset %s%s {\n\t\ttype ipv%s_addr . ipv%s_addr . inet_proto . inet_service . inet_service\n\t\tsize %d\n\t\tflags timeout\n", name, family, family, family, limit)
		if name == setAccept {
			b.WriteString("\t\tcounter\n")
		}
		b.WriteString("\t}\n")
	}
}
