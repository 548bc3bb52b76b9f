package route

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"gatun/network/packet"
)

// dnsPort is the port whose traffic is redirected.
const dnsPort = 53

// The listeners take the first free port of this range. It is below 1024, so that after a crash,
// when the rules that lead to it are still there, no ordinary program can bind it and answer in
// our place. Nobody else is registered for these ports.
const (
	firstDNSPort = 325
	lastDNSPort  = 332
)

// ErrNotRedirected says that a flow was not sent to port 53 and redirected, but came to the
// listener by its own address.
var ErrNotRedirected = errors.New("the flow was not redirected")

// DNSListener is where redirected traffic arrives: one socket per protocol and family. UDP and TCP
// are the caller's to read; a family that the kernel has not is missing.
type DNSListener struct {
	Port uint16
	UDP  []*net.UDPConn
	TCP  []*net.TCPListener

	origins *origins
}

// ListenDNS opens the listener. An error means that port 53 cannot be redirected on this machine:
// leave Policy.DNSPort 0 then.
func ListenDNS() (*DNSListener, error) {
	var first error
	for port := uint16(firstDNSPort); port <= lastDNSPort; port++ {
		l, err := listenDNS(port)
		if err == nil {
			l.origins, err = openOrigins()
		}
		if err == nil {
			return l, nil
		}
		l.Close()
		first = errors.Join(first, err)
	}
	return nil, fmt.Errorf("listen on loopback for redirected DNS queries: %w", first)
}

// listenDNS opens the sockets of one port. The listener is never nil.
func listenDNS(port uint16) (*DNSListener, error) {
	l := &DNSListener{Port: port}
	for _, family := range []struct{ digit, address string }{{"4", "127.0.0.1"}, {"6", "::1"}} {
		at := netip.AddrPortFrom(netip.MustParseAddr(family.address), port)
		udp, tcp, err := listenLoopback(family.digit, at)
		if udp != nil {
			l.UDP = append(l.UDP, udp)
		}
		if tcp != nil {
			l.TCP = append(l.TCP, tcp)
		}
		if err != nil && !(family.digit == "6" && noSuchFamily(err)) {
			return l, err
		}
	}
	return l, nil
}

// Original returns a flow as the program knows it: its own address, and the server that it asked.
// f is the flow as the listener sees it, Local being the program's side. A program that asks two
// servers from one socket has two flows that would be the same after the redirect, so the kernel
// changes the source port of one: do not take f.Local for the program's.
func (l *DNSListener) Original(f packet.Flow) (packet.Flow, error) {
	o, err := l.origins.find(f)
	switch {
	case err != nil:
		return packet.Flow{}, err
	case o.Remote.Port() != dnsPort:
		return packet.Flow{}, fmt.Errorf("%v: %w", f, ErrNotRedirected)
	}
	return o, nil
}

// Close ends the listener. It may be called on one that was never whole.
func (l *DNSListener) Close() {
	for _, c := range l.UDP {
		c.Close()
	}
	for _, c := range l.TCP {
		c.Close()
	}
	if l.origins != nil {
		l.origins.close()
	}
}

// dnsZone is the zone of connection tracking in which our own questions are. A program's entry
// outlives its socket by up to two minutes, and one of our questions may have the same port and
// server: in one zone with it, it would be taken for a packet of that flow and come back to us; and
// a program that gets a port of ours would be taken for our flow and not be redirected.
const dnsZone = 26465

// redirectChains send port 53 to our listener, whoever was asked: a resolver on loopback, which no
// TUN device sees, or a server elsewhere, for which this is the shorter way. Only what this machine
// sends is concerned: a container's queries are forwarded and take the TUN device.
func (g builder) redirectChains(p Policy) []Chain {
	zone := Clause{kind: zoneSet, num: dnsZone}
	return []Chain{
		{Name: "questions", Type: "filter", Hook: "output", Priority: priorityRaw, Rules: []GuardRule{
			{"own questions", []Clause{g.mark(g.n.Mark), {kind: uidIs, num: p.UID}, {kind: udpTo, num: dnsPort}, zone}, ""},
		}},
		{Name: "answers", Type: "filter", Hook: "prerouting", Priority: priorityRaw, Rules: []GuardRule{
			// What comes over loopback is tracked already.
			{"to own questions", []Clause{{kind: udpFrom, num: dnsPort}, {kind: iifNotLoopback}, {kind: socketMarkIs, num: g.n.Mark, mask: g.n.Mask}, zone}, ""},
		}},
		{Name: "dns", Type: "nat", Hook: "output", Priority: priorityRedirect, Rules: g.redirect(p)},
	}
}

// redirect is the chain that translates. It sees the first packet of a flow only, and the kernel
// gives the answers the address that was asked. The opening packet of TCP is asked for because a
// connection that is older than connection tracking looks new in the middle. Link-local servers
// keep their interface, as the rest of the guard lets them: a socket that is bound to one cannot
// be led to loopback.
func (g builder) redirect(p Policy) []GuardRule {
	own := []Clause{g.mark(g.n.Mark), {kind: uidIs, num: p.UID}}
	rules := []GuardRule{
		{"own sockets", own, "accept"},
		{"old path", []Clause{g.mark(g.n.OldMark)}, "accept"},
	}
	for _, v6 := range []bool{false, true} {
		for _, to := range linkScope(v6) {
			rules = append(rules, GuardRule{"stays on the link", []Clause{{kind: destination, prefix: to}}, "accept"})
		}
	}
	to := Clause{kind: redirectTo, num: uint32(p.DNSPort)}
	return append(rules,
		GuardRule{fmt.Sprintf("dns to port %d", p.DNSPort), []Clause{{kind: udpTo, num: dnsPort}, to}, ""},
		GuardRule{fmt.Sprintf("dns to port %d", p.DNSPort), []Clause{{kind: tcpOpenTo, num: dnsPort}, to}, ""})
}

// keepChain keeps the source address of what goes into the TUN device, which is not a way out: a masquerade of
// others for "any way but the containers' bridge" means the way behind it. Translated here, a flow would come to us
// under an address that is not its own, and could not be given back.
func (g builder) keepChain() Chain {
	return Chain{Name: "keep", Type: "nat", Hook: "postrouting", Priority: priorityKeep, Rules: []GuardRule{
		{"not a way out", []Clause{{kind: oifIs, text: g.n.Device}, {kind: keepSource4}}, ""},
		{"not a way out", []Clause{{kind: oifIs, text: g.n.Device}, {kind: keepSource6}}, ""},
	}}
}
