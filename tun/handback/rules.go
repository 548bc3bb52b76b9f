package handback

import (
	"fmt"
	"strings"
)

// The chain runs one after the guard's "outgoing", which takes the mark from every packet that has
// a user (see the package's documentation).
const (
	chainName     = "handback"
	chainPriority = -148
	egressName    = "silence"

	// knownName has what passes of sockets that carry the mark themselves, markedName what is done with
	// packets that have another mark of ours already, backName marks the connections of those that may
	// come to carry one.
	markedName = "marked"
	knownName  = "known"
	backName   = "back"
	// otherName has what passes of protocols but TCP and UDP.
	otherName = "other"

	// How many rules there are beside those of the lists: of chainName, backName.
	firstRules = 2
	backRules  = 1
)

// count is how many rules the kernel has of a list.
func count(list []rule) (n int) {
	for _, r := range list {
		n += len(r.families())
	}
	return n
}

// rule is one rule: a flow whose packet is of a kind, and is in a set, or without a set all of them.
type rule struct {
	kind, set, then, comment string
}

// The kinds of packets that rules are about.
const (
	kindAny    = ""
	kindSYN    = "tcp flags & syn == syn "
	kindMiddle = "tcp flags & syn != syn " // anything of a connection but its SYN
	kindUDP    = "meta l4proto udp "
	kindTCP    = "meta l4proto tcp "
	kindNotUDP = "meta l4proto != udp "
	kindOther  = "meta l4proto != tcp meta l4proto != udp "
	kindNoPing = "meta l4proto != icmp meta l4proto != ipv6-icmp " // of the others
)

// kindHeld is a SYN that is sent from here.
func kindHeld(o Options) string {
	return fmt.Sprintf(kindSYN+"socket mark & %#08x == %#08x ", o.Mask, o.Mark)
}

// kindLasting is what belongs to a connection that is marked as one that lasts.
func kindLasting(o Options) string {
	return fmt.Sprintf("ct mark & %#08x == %#08x ", o.Mask, o.LastingMark)
}

func marked(o Options, mark uint32) string {
	return fmt.Sprintf("meta mark & %#08x == %#08x ", o.Mask, mark)
}

func setMark(o Options, mark uint32) string {
	return fmt.Sprintf("meta mark set meta mark & %#08x ^ %#08x", ^o.Mask, mark)
}

// What rules do with a packet.
const (
	thenAccept = "accept"
	thenDrop   = "drop"
	thenOther  = "jump " + otherName
)

// thenFew swallows all but a few packets a second, of all flows of a set and family together.
var thenFew = fmt.Sprintf("limit rate over %d/second burst %d packets drop", fewPerSecond, fewAtOnce)

const (
	fewPerSecond = 50
	fewAtOnce    = 5
)

// knownList is the chain "known": the same as is accepted of others, and nothing to be changed. Nothing
// costs a packet of a flow that lasts more than what it is asked here, so the SYN is turned away first and
// the set, which holds flows of TCP and UDP only, is asked without more words.
func knownList(o Options) []rule {
	list := []rule{{kindSYN, "", goAhead, "begins anew"}}
	if o.LastingMark != 0 {
		list = append(list, rule{kindLasting(o), "", thenAccept, "lasts"})
	}
	return append(list, rule{kindAny, setAccept, thenAccept, "handed back"},
		rule{kindTCP, setLinger, thenAccept, "closing"}, rule{kindAny, "", goAhead, "socket with the mark"})
}

// chainList is the chain "handback" behind the rules about marks.
func chainList(o Options) []rule {
	carry := setMark(o, o.Mark) + " goto " + backName
	return []rule{
		{kindMiddle, setAccept, carry, "handed back"},
		{kindUDP, setAccept, carry, "handed back"},
		{kindHeld(o), setAccept, carry, "held packet"},
		{kindMiddle, setLinger, setMark(o, o.Mark) + " accept", "closing"},
		{kindOther, "", thenOther, "another protocol"},
	}
}

// silenceList is the chain "silence" of the device.
func silenceList() []rule {
	return []rule{
		{kindNotUDP, "", thenAccept, "passes"},
		{kindAny, setBlock, thenFew, "blocked"},
		{kindAny, setDrop, thenDrop, "dropped"},
	}
}

// markedList is the chain "marked".
func markedList(o Options) []rule {
	return []rule{{kindOther, "", thenOther, "another protocol"},
		{marked(o, o.OwnMark), "", thenAccept, "others decide"}, {marked(o, o.Mark), "", thenAccept, "others decide"}}
}

// otherList is the chain "other". Of such flows there is no more to see than that they are in the set. A packet
// that wraps another one (GRE, IPIP) has the mark of that, and of our own sockets' too: it is a flow to be decided
// like any other, and loses the mark. These sockets themselves speak TCP, UDP and ICMP only.
func otherList(o Options) []rule {
	return []rule{{kindAny, setOther, setMark(o, o.Mark) + " accept", "handed back"},
		{kindNoPing + marked(o, o.OwnMark), "", setMark(o, 0) + " accept", "wraps what is ours"}}
}

// Rules is the text of both tables in the language of nft(8); rules_linux.go sends the same rules
// to the kernel. A test feeds the text to nft and compares.
//
// The sets hold flows as the program's packets name them. A SYN does not pass by them: the port of a
// closed connection may be another program's next moment, and after a crash nobody would notice. Only
// what is sent from here, by a socket with the mark, does: the held SYN, and one that came again (Follow).
//
// What a set lets pass gets Options.Mark and is routed again, for it was on its way into the device. A
// socket that carries Options.SocketMark itself (see Mark) is on the right way from the start; its flow
// has to be in the set all the same, else it loses the mark and goes into the device. The chain "back"
// gives connections the mark that the guard wants to see with it: without these rules no flow gets one.
// A flow that lasts has another mark there, which says that it is in the set: then its packets are not looked
// up, nor counted by the set (see lasting).
//
// What is neither TCP nor UDP is asked for first where it has a mark: see markedList.
//
// Neither silence nor an answer by ICMP can be had in an output hook, where a program's send fails with
// EPERM: what is denied goes the way of everything that is undecided, and ends at the device. Of blocked
// flows a few packets still come to userspace, which answers them, as routers bound their answers too
// (RFC 1812, section 4.3.2.8; RFC 4443, section 2.4 f).
func Rules(o Options) string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", o.Table)
	for _, name := range []string{setAccept, setLinger, setOther} {
		writeSet(&b, name, o.Limit)
	}
	fmt.Fprintf(&b, "\tchain %s {\n\t\tct mark & %#08x == 0x00000000 ct mark set ct mark & %#08x ^ %#08x comment \"handed back\"\n\t}\n", backName, o.Mask, ^o.Mask, o.SocketMark)
	writeAhead(&b, o)
	fmt.Fprintf(&b, "\tchain %s {\n", knownName)
	writeRules(&b, knownList(o))
	fmt.Fprintf(&b, "\t}\n\tchain %s {\n", otherName)
	writeRules(&b, otherList(o))
	fmt.Fprintf(&b, "\t}\n\tchain %s {\n", markedName)
	writeRules(&b, markedList(o))
	fmt.Fprintf(&b, "\t}\n\tchain %s {\n\t\ttype route hook output priority %d; policy accept;\n", chainName, chainPriority)
	fmt.Fprintf(&b, "\t\t%sjump %s comment \"socket with the mark\"\n", marked(o, o.SocketMark), knownName)
	fmt.Fprintf(&b, "\t\tmeta mark & %#08x != 0x00000000 jump %s comment \"marked\"\n", o.Mask, markedName)
	writeRules(&b, chainList(o))
	b.WriteString("\t}\n}\n")
	if o.Device == "" {
		return b.String()
	}
	fmt.Fprintf(&b, "table netdev %s {\n", o.Table)
	writeSet(&b, setBlock, o.Limit)
	writeSet(&b, setDrop, o.Limit)
	fmt.Fprintf(&b, "\tchain %s {\n\t\ttype filter hook egress device %q priority 0; policy accept;\n", egressName, o.Device)
	writeRules(&b, silenceList())
	b.WriteString("\t}\n}\n")
	return b.String()
}

func writeRules(b *strings.Builder, rules []rule) {
	for _, r := range rules {
		for _, family := range r.families() {
			match := ""
			if r.set != "" {
				match = fmt.Sprintf("%s @%s%s ", tuple(r.set, family), r.set, family)
			}
			fmt.Fprintf(b, "\t\t%s%s%s comment %q\n", r.kind, match, r.then, r.comment)
		}
	}
}

// families are those for which there is a rule of its own: where a set is asked.
func (r rule) families() []string {
	if r.set == "" {
		return []string{""}
	}
	return []string{"4", "6"}
}

func tuple(set, family string) string {
	ip := "ip"
	if family == "6" {
		ip = "ip6"
	}
	text := ip + " saddr . " + ip + " daddr . meta l4proto"
	if set == setOther {
		return text
	}
	return text + " . th sport . th dport"
}

// counts says whether the elements of a set count what they let pass.
func counts(set string) bool { return set == setAccept || set == setOther }

func writeSet(b *strings.Builder, name string, limit int) {
	for _, family := range []string{"4", "6"} {
		ports := " . inet_service . inet_service"
		if name == setOther {
			ports = ""
		}
		fmt.Fprintf(b, "\tset %s%s {\n\t\ttype ipv%s_addr . ipv%s_addr . inet_proto%s\n\t\tsize %d\n\t\tflags timeout\n", name, family, family, family, ports, limit)
		if counts(name) {
			b.WriteString("\t\tcounter\n")
		}
		b.WriteString("\t}\n")
	}
}
