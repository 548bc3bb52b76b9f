package interception

import (
	"net/netip"
	"sync"

	"gatun/network"
	"gatun/network/packet"
)

// sockets finds the UDP links of a program's socket by its local port. A verdict belongs to a
// socket: when that is closed, the next owner of the port must be decided anew, although its
// datagrams look the same.
type sockets struct {
	mu     sync.Mutex
	byPort map[uint16]*few[*network.Link, socketUse]
}

// socketUse is one link's use of a socket.
type socketUse struct {
	flow    remembered
	decided bool // its verdict has taken effect
	closed  bool // the socket was closed before that
}

// linkUse is a link that has a verdict, and its flow.
type linkUse struct {
	link *network.Link
	flow remembered
}

func (s *sockets) add(l *network.Link, f remembered) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byPort == nil {
		s.byPort = map[uint16]*few[*network.Link, socketUse]{}
	}
	port := l.Flow.Local.Port()
	links := s.byPort[port]
	if links == nil {
		links = &few[*network.Link, socketUse]{}
		s.byPort[port] = links
	}
	links.put(l, socketUse{flow: f})
}

func (s *sockets) remove(l *network.Link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	port := l.Flow.Local.Port()
	links := s.byPort[port]
	if links == nil {
		return
	}
	if links.remove(l); links.len() == 0 {
		delete(s.byPort, port)
	}
	if len(s.byPort) == 0 {
		s.byPort = nil // a Go map never shrinks
	}
}

// settle notes that the verdict has taken effect, and reports whether the socket was closed
// while it was being found.
func (s *sockets) settle(l *network.Link) (closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	links := s.byPort[l.Flow.Local.Port()]
	if links == nil {
		return false
	}
	use, found := links.get(l)
	if !found {
		return false
	}
	use.decided = true
	links.put(l, use)
	return use.closed
}

// closed returns the links whose socket is no more. Those that are still being decided are only
// marked: what they hold was sent by the socket's owner, and is carried before they end.
func (s *sockets) closed(local netip.AddrPort) (over []linkUse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	links := s.byPort[local.Port()]
	if links == nil {
		return nil
	}
	for l, use := range links.all() {
		if a := local.Addr(); !a.IsUnspecified() && a != l.Flow.Local.Addr() {
			continue
		}
		use.closed = true
		links.put(l, use)
		if use.decided {
			over = append(over, linkUse{l, use.flow})
		}
	}
	return over
}

// all returns every link that has a verdict.
func (s *sockets) all() (all []linkUse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, links := range s.byPort {
		for l, use := range links.all() {
			if use.decided {
				all = append(all, linkUse{l, use.flow})
			}
		}
	}
	return all
}

const causeSocketClosed = "socket closed"

// SocketClosed ends the UDP links of a socket that a program has closed. The system's word for
// it comes about 0.1 ms after the close.
func (g *Gate) SocketClosed(p packet.Proto, local netip.AddrPort) {
	if p != packet.UDP {
		return
	}
	for _, use := range g.sockets.closed(local) {
		g.retire(use.link, use.flow, causeSocketClosed)
	}
}

// SocketsLost is called when closings went unheard: every link is asked for its owner again, and
// those that have another one end.
func (g *Gate) SocketsLost() {
	for _, use := range g.sockets.all() {
		l := use.link
		was, is := l.Comm().Owner.Process, g.Owners.Find(g.ctx, l.Flow).Process
		if was.PID != is.PID || !was.Started.Equal(is.Started) {
			g.retire(l, use.flow, causeSocketClosed)
		}
	}
}

// retire ends a UDP link, whoever carries it.
func (g *Gate) retire(l *network.Link, f remembered, cause string) {
	if !l.Kill(cause) { // nobody relays it: denied, or answered by the nameserver
		at := g.parked.take(l)
		f.Forget()
		g.hear(l, at)
		g.Ended(l, cause)
	}
}

// Ended enters the end of a link that was carried beside its handler. The Relay reports the ends
// of its pairs and pings here.
func (g *Gate) Ended(l *network.Link, cause string) {
	if l.Flow.Proto == packet.UDP {
		g.sockets.remove(l)
	}
	g.Table.End(l, cause)
}
