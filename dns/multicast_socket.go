package dns

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// nearby is one network that is asked by multicast.
type nearby struct {
	link   net.Interface
	onLink []netip.Prefix // of one address family; only from there answers are taken
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

// party is the sockets that all inquiries of the same time share, so that a program that asks for
// many names costs no more files than one that asks for one.
type party struct {
	log   *zap.Logger
	began time.Time
	ready chan struct{} // closed when the sockets are open
	users int           // multicast.mu is held

	sockets []*socket
	readers sync.WaitGroup

	mu     sync.Mutex
	asking map[uint16]*asking
}

// asking is one inquiry that waits for replies.
type asking struct {
	inquiry inquiry
	heard   chan heard
}

// enter returns the party of now. Each needs one leave.
func (m *multicast) enter(ctx context.Context) *party {
	m.mu.Lock()
	p := m.party
	if p != nil && time.Since(p.began) < maxParty {
		p.users++
		m.mu.Unlock()
		<-p.ready
		return p
	}
	p = &party{log: m.log, began: time.Now(), ready: make(chan struct{}), users: 1, asking: map[uint16]*asking{}}
	m.party = p
	m.mu.Unlock()
	defer close(p.ready)
	for _, n := range m.networks() {
		s, err := m.open(ctx, n)
		if err != nil {
			m.log.Debug("multicast DNS: no socket", zap.String("interface", n.link.Name), zap.Error(err))
			continue
		}
		p.sockets = append(p.sockets, s)
		p.readers.Go(func() { p.listen(s) })
	}
	return p
}

// leave closes the sockets behind the last one.
func (m *multicast) leave(p *party) {
	m.mu.Lock()
	p.users--
	last := p.users == 0
	if last && m.party == p {
		m.party = nil
	}
	m.mu.Unlock()
	if !last {
		return
	}
	for _, s := range p.sockets {
		s.conn.Close()
	}
	p.readers.Wait()
}

// ask begins to listen for replies to q, under an ID that nobody else has.
func (p *party) ask(q inquiry) (id uint16, a *asking) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.asking) >= maxAsking {
		return 0, nil
	}
	for {
		id, err := randomID()
		if err != nil {
			return 0, nil
		}
		if p.asking[id] == nil {
			a = &asking{inquiry: q, heard: make(chan heard, maxHeard)}
			p.asking[id] = a
			return id, a
		}
	}
}

func (p *party) forget(id uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.asking, id)
}

// send asks on all networks.
func (p *party) send(b []byte) {
	for _, s := range p.sockets {
		_ = s.send(b) // the others may have the host
	}
}

// listen hands replies to those who asked, until the socket is closed.
func (p *party) listen(s *socket) {
	buf := make([]byte, maxReplyUDP)
	for {
		b, err := s.receive(buf)
		if err != nil {
			return
		}
		if len(b) < headerLen {
			continue
		}
		id := binary.BigEndian.Uint16(b)
		p.mu.Lock()
		a := p.asking[id]
		p.mu.Unlock()
		if a == nil {
			continue
		}
		if h := p.hear(a.inquiry, b, id); h.kind != heardNothing {
			select {
			case a.heard <- h:
			default: // one reply is enough, and that many are a flood
			}
		}
	}
}

// hear reads one reply. A panic over a hostile one costs that one.
func (p *party) hear(q inquiry, b []byte, id uint16) (h heard) {
	defer func() {
		if r := recover(); r != nil {
			p.log.Error("a multicast reply panicked", zap.Any("panic", r), zap.Stack("stack"))
			h = heard{}
		}
	}()
	return q.hear(b, id)
}
