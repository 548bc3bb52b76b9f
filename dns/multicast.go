package dns

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/zap"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Multicast DNS (RFC 6762), as a one-shot querier of section 5.1: the query leaves from a port of
// the system's choice, so that the answer comes back to it alone, and nobody has to be a member
// of the group.
const (
	multicastPort     = 5353
	multicastHops     = 255
	multicastPatience = time.Second            // nobody who has the name takes longer
	multicastRepeat   = 300 * time.Millisecond // before the query is sent once more
	multicastGather   = 400 * time.Millisecond // for the answers of others, where many may answer
	multicastGrace    = 150 * time.Millisecond // for the asked type, when the host has the other one
	maxMulticastTTL   = 2 * time.Minute        // a host may be gone

	unicastResponse = 1 << 15 // of a question's class: QU; of a record's: cache flush
	maxSockets      = 16
	maxHeard        = 64 // replies looked at for one query
)

// Listener opens the unconnected UDP sockets for multicast, around the TUN.
type Listener interface {
	ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error)
}

// nearby is one network that is asked by multicast.
type nearby struct {
	link   net.Interface
	onLink []netip.Prefix // of one address family; only from there answers are taken
}

// multicast asks all neighbours for a name.
type multicast struct {
	listener Listener
	networks func() []nearby
	log      *zap.Logger
}

func newMulticast(l Listener, log *zap.Logger) *multicast {
	if l == nil {
		return nil
	}
	return &multicast{listener: l, networks: networks, log: log}
}

// networks returns one entry per interface and address family.
func networks() (list []nearby) {
	links, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, link := range links {
		const able = net.FlagUp | net.FlagRunning | net.FlagMulticast
		if link.Flags&able != able || link.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := link.Addrs()
		if err != nil {
			continue
		}
		list = append(list, byFamily(link, addrs)...)
	}
	return list[:min(len(list), maxSockets)]
}

func byFamily(link net.Interface, addrs []net.Addr) (list []nearby) {
	v4, v6 := nearby{link: link}, nearby{link: link}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		addr, _ := netip.AddrFromSlice(n.IP)
		ones, _ := n.Mask.Size()
		if addr = addr.Unmap(); addr.Is4() {
			v4.onLink = append(v4.onLink, netip.PrefixFrom(addr, ones).Masked())
		} else if addr.IsValid() {
			v6.onLink = append(v6.onLink, netip.PrefixFrom(addr, ones).Masked())
		}
	}
	if len(v4.onLink) > 0 {
		v4.onLink = append(v4.onLink, netip.MustParsePrefix("169.254.0.0/16"))
		list = append(list, v4)
	}
	if len(v6.onLink) > 0 {
		list = append(list, v6)
	}
	return list
}

func (n nearby) v6() bool { return n.onLink[0].Addr().Is6() }

// contains reports whether a is a neighbour there.
func (n nearby) contains(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(n.onLink, func(p netip.Prefix) bool { return p.Contains(a) })
}

// socket is a UDP socket that sends to the multicast group of one network.
type socket struct {
	nearby
	conn net.PacketConn
	p4   *ipv4.PacketConn // one of the two
	p6   *ipv6.PacketConn
}

func (m *multicast) open(ctx context.Context, n nearby) (*socket, error) {
	network, address := "udp4", "0.0.0.0:0"
	if n.v6() {
		network, address = "udp6", "[::]:0"
	}
	c, err := m.listener.ListenPacket(ctx, network, address)
	if err != nil {
		return nil, err
	}
	s := &socket{nearby: n, conn: c}
	if n.v6() {
		s.p6 = ipv6.NewPacketConn(c)
		_ = s.p6.SetControlMessage(ipv6.FlagInterface, true) // not everywhere; the address tells too
		_ = s.p6.SetMulticastHopLimit(multicastHops)
		err = s.p6.SetMulticastInterface(&n.link)
	} else {
		s.p4 = ipv4.NewPacketConn(c)
		_ = s.p4.SetControlMessage(ipv4.FlagInterface, true)
		_ = s.p4.SetMulticastTTL(multicastHops)
		err = s.p4.SetMulticastInterface(&n.link)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return s, nil
}

// send sends to the group; the interface was chosen when the socket was opened.
func (s *socket) send(b []byte) error {
	group := net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: multicastPort}
	if s.p6 != nil {
		group.IP = net.ParseIP("ff02::fb")
	}
	_, err := s.conn.WriteTo(b, &group)
	return err
}

// receive waits for a packet that a neighbour on that very network sent from the port of
// multicast DNS. What comes from elsewhere was routed here by somebody who guessed our port.
func (s *socket) receive(buf []byte) ([]byte, error) {
	for {
		var (
			n, link int
			from    net.Addr
			err     error
		)
		if s.p6 != nil {
			var cm *ipv6.ControlMessage
			if n, cm, from, err = s.p6.ReadFrom(buf); cm != nil {
				link = cm.IfIndex
			}
		} else {
			var cm *ipv4.ControlMessage
			if n, cm, from, err = s.p4.ReadFrom(buf); cm != nil {
				link = cm.IfIndex
			}
		}
		if err != nil {
			return nil, err
		}
		u, ok := from.(*net.UDPAddr)
		if !ok || link != 0 && link != s.link.Index {
			continue
		}
		if at := u.AddrPort(); at.Port() == multicastPort && s.contains(at.Addr()) {
			return buf[:n], nil
		}
	}
}

// ask returns what the neighbours answer, nil if nobody has the name.
func (m *multicast) ask(ctx context.Context, q inquiry) *answer {
	ctx, cancel := context.WithTimeout(ctx, multicastPatience)
	id, err := randomID()
	if err != nil {
		cancel()
		return nil
	}
	var wg sync.WaitGroup
	heard := make(chan heard, maxHeard)
	for _, n := range m.networks() {
		s, err := m.open(ctx, n)
		if err != nil {
			m.log.Debug("multicast DNS: no socket", zap.String("interface", n.link.Name), zap.Error(err))
			continue
		}
		wg.Go(func() { s.run(ctx, id, q, heard) })
	}
	go func() { wg.Wait(); close(heard) }()
	a := q.gather(heard)
	cancel()
	for range heard { // until the sockets are closed
	}
	return a
}

// run asks and listens on one network until ctx ends.
func (s *socket) run(ctx context.Context, id uint16, q inquiry, out chan<- heard) {
	defer s.conn.Close()
	stop := context.AfterFunc(ctx, func() { s.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	questions := q.multicastQueries(id)
	for _, b := range questions {
		if s.send(b) != nil {
			return
		}
	}
	again := time.AfterFunc(multicastRepeat, func() { _ = s.send(questions[0]) })
	defer again.Stop()
	buf := make([]byte, maxReplyUDP)
	for range maxHeard {
		b, err := s.receive(buf)
		if err != nil {
			return
		}
		if h := q.hear(b, id); h.kind != heardNothing {
			select {
			case out <- h:
			case <-ctx.Done():
				return
			}
		}
	}
}

// multicastQueries returns the query, and one for the other address type: only a host that has
// neither is silent on both, so a host without IPv6 is known at once.
func (q inquiry) multicastQueries(id uint16) (list [][]byte) {
	types := []uint16{q.qtype}
	if other := sibling(q.qtype); other != 0 {
		types = append(types, other)
	}
	for _, t := range types {
		m := mdns.Msg{Question: []mdns.Question{{Name: mdns.Fqdn(q.name), Qtype: t, Qclass: mdns.ClassINET | unicastResponse}}}
		m.Id = id
		if b, err := m.Pack(); err == nil {
			list = append(list, b)
		}
	}
	return list
}

func sibling(qtype uint16) uint16 {
	switch qtype {
	case mdns.TypeA:
		return mdns.TypeAAAA
	case mdns.TypeAAAA:
		return mdns.TypeA
	}
	return 0
}

// heard is what one reply says.
type heard struct {
	kind    heardKind
	answer  *answer
	records []mdns.RR
}

type heardKind uint8

const (
	heardNothing heardKind = iota
	heardAnswer
	heardOther  // the host exists and has the other type of address
	heardAbsent // the host says that it has no such record
)

// hear reads a reply. Records of other names are passed over, whoever sent them.
func (q inquiry) hear(b []byte, id uint16) heard {
	if len(b) < headerLen || binary.BigEndian.Uint16(b) != id {
		return heard{}
	}
	m := new(mdns.Msg)
	if m.Unpack(b) != nil || !m.Response || m.Opcode != mdns.OpcodeQuery || m.Rcode != mdns.RcodeSuccess || len(m.Answer)+len(m.Ns)+len(m.Extra) > maxRecords {
		return heard{}
	}
	for _, asked := range m.Question {
		if bareName(asked.Name) != q.name {
			return heard{}
		}
	}
	h := heard{}
	var kept []mdns.RR
	for i, rr := range slices.Concat(m.Answer, m.Ns, m.Extra) {
		head := rr.Header()
		head.Class &^= unicastResponse
		if nsec, ok := rr.(*mdns.NSEC); ok && h.kind == heardNothing && bareName(head.Name) == q.name && !slices.Contains(nsec.TypeBitMap, q.qtype) {
			h.kind = heardAbsent
		}
		if i >= len(m.Answer) || hollow(rr) {
			continue
		}
		kept = append(kept, rr)
		if bareName(head.Name) == q.name && head.Rrtype == sibling(q.qtype) {
			h.kind = heardOther
		}
	}
	if a, err := q.multicastAnswer(kept); err == nil && a.an > 0 {
		return heard{kind: heardAnswer, answer: a, records: a.records}
	}
	return h
}

// useless reports an address that means nothing on the way from the host to the program: of
// the program's own machine, of a group, or one that needs an interface's name beside it.
func useless(a netip.Addr) bool {
	return a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.Is6() && a.IsLinkLocalUnicast()
}

func (q inquiry) multicastAnswer(records []mdns.RR) (*answer, error) {
	a, err := clean(&mdns.Msg{Answer: records}, q)
	if err == nil && slices.ContainsFunc(a.addrs, useless) {
		a, err = a.without(q.name, q.qtype, slices.DeleteFunc(a.addrs, func(x netip.Addr) bool { return !useless(x) }))
	}
	if err != nil {
		return nil, err
	}
	least := maxMulticastTTL
	for _, rr := range a.records {
		least = min(least, time.Duration(rr.Header().Ttl)*time.Second)
	}
	a.lifetime = max(least, errorTTL)
	a.answeredBy("multicast", q.qtype)
	return a, nil
}

// gather makes one answer of what was heard. A record that only one host has is believed as it
// came first, and whoever contradicts it is too late; of shared ones all are taken that come
// soon after the first.
func (q inquiry) gather(in <-chan heard) *answer {
	var (
		end      <-chan time.Time
		absent   *answer
		shared   []mdns.RR
		many     = q.qtype == mdns.TypePTR || q.qtype == mdns.TypeANY
		negative = func() *answer {
			a := &answer{lifetime: errorTTL}
			a.answeredBy("multicast", q.qtype)
			return a
		}
	)
	result := func() *answer {
		if a, err := q.multicastAnswer(shared); err == nil && len(shared) > 0 {
			return a
		}
		return absent
	}
	for {
		select {
		case h, ok := <-in:
			switch {
			case !ok:
				return result()
			case h.kind == heardAnswer && !many:
				return h.answer
			case h.kind == heardAnswer:
				if shared = merged(shared, h.records); end == nil {
					end = time.After(multicastGather)
				}
			case absent == nil:
				if absent = negative(); end == nil {
					end = time.After(multicastGrace)
				}
			}
		case <-end:
			return result()
		}
	}
}

// merged adds the records that are new.
func merged(have, more []mdns.RR) []mdns.RR {
	for _, rr := range more {
		if len(have) < maxRecords/2 && !slices.ContainsFunc(have, func(o mdns.RR) bool { return mdns.IsDuplicate(o, rr) }) {
			have = append(have, rr)
		}
	}
	return have
}
