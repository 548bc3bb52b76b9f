package interception

import (
	"context"
	"net"
	"sync"
	"time"

	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
	"gatun/stack"
)

const (
	sweepEvery = time.Second
	// dropRemembered is how long a denied link is known without a packet: longer than the last
	// gap between two SYNs of one connect (Linux: 64 s with tcp_syn_retries = 6).
	dropRemembered = 130 * time.Second
	deniedIdle     = 30 * time.Second // a denied (socket, peer) pair without a datagram
	queryIdle      = 10 * time.Second // DNS over UDP (product.md, idle limits)
)

// forgettable is a flow that the stack remembers until somebody tells it to forget.
type forgettable interface {
	LastActive() time.Time
	Forget()
}

// parked holds the links that need no relay: denied ones, whose verdict is remembered for
// retransmits, and those that the nameserver answers.
type parked struct {
	mu    sync.Mutex
	links map[*network.Link]*place
}

type place struct {
	flow  forgettable   // nil for TCP: the stack keeps nothing of a denied SYN
	until time.Time     // for TCP
	idle  time.Duration // for the others

	denied uint64    // what flow had when last looked; see insistent
	quiet  time.Time // until when the kernel swallows what the program sends; zero: never since
}

func (p *parked) add(l *network.Link, f forgettable, until time.Time) {
	p.put(l, &place{flow: f, until: until})
}

func (p *parked) put(l *network.Link, at *place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.links == nil {
		p.links = map[*network.Link]*place{}
	}
	p.links[l] = at
}

// touch keeps the verdict of a link whose program tries again.
func (p *parked) touch(l *network.Link, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at := p.links[l]; at != nil {
		at.until = now.Add(dropRemembered)
	}
}

// expire lets the next sweep end the link.
func (p *parked) expire(l *network.Link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at := p.links[l]; at != nil {
		at.until, at.idle = time.Time{}, 0
	}
}

// take forgets the link, and returns its place; nil: it had none.
func (p *parked) take(l *network.Link) *place {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.links[l]
	delete(p.links, l)
	return at
}

// due takes out and returns what is over.
func (p *parked) due(now time.Time) map[*network.Link]*place {
	p.mu.Lock()
	defer p.mu.Unlock()
	over := map[*network.Link]*place{}
	for l, at := range p.links {
		if at.flow == nil && now.After(at.until) || at.flow != nil && now.Sub(at.flow.LastActive()) > at.idle {
			over[l] = at
			delete(p.links, l)
		}
	}
	if len(p.links) == 0 {
		p.links = nil // a Go map never shrinks
	}
	return over
}

func (g *Gate) park(l *network.Link, f forgettable) {
	idle := deniedIdle
	if l.Decision().Verdict == network.RerouteToNameserver {
		idle = queryIdle
	}
	g.parked.put(l, &place{flow: f, idle: idle})
}

func (g *Gate) sweep() {
	g.kernel.late.forget(g.Clock())
	for l, at := range g.parked.due(g.Clock()) {
		if at.flow != nil {
			at.flow.Forget()
		}
		g.hear(l, at)
		cause := "idle"
		if !l.Decision().Verdict.Permits() {
			cause = "blocked"
		}
		g.Ended(l, cause)
	}
	g.silence()
}

// querySink answers each datagram of a pair as a DNS query of its own.
type querySink struct {
	gate  *Gate
	link  *network.Link
	owner attribution.Owner
}

// Datagrams implements stack.UDPSink: it only starts the queries.
func (s *querySink) Datagrams(f *stack.UDPFlow, t stack.Train) {
	for _, b := range t.Payloads {
		s.ask(f, b)
	}
}

func (s *querySink) ask(f *stack.UDPFlow, payload []byte) {
	g := s.gate
	if g.queries.Add(1) > maxQueries {
		g.queries.Add(-1)
		return
	}
	query := append([]byte(nil), payload...)
	go func() {
		defer g.queries.Add(-1)
		defer g.survive("dns query")
		if answer := g.query(g.ctx, f.Flow(), s.link, s.owner, query); answer != nil {
			_ = f.Reply(answer, 0) // the program asks again if the device is gone
		}
	}()
}

// query has the nameserver answer one datagram; nil is silence. One program cannot take all the
// places: what it asks beyond its share is dropped.
func (g *Gate) query(ctx context.Context, f packet.Flow, l *network.Link, o attribution.Owner, query []byte) []byte {
	key := KeyOf(o)
	if !g.askers.take(key, maxQueriesOfOne) {
		return nil
	}
	defer g.askers.give(key)
	l.AddSent(len(query))
	answer := g.Nameserver.ServeUDP(ctx, f, o, query)
	l.AddReceived(len(answer))
	return answer
}

// serveStream has the nameserver serve a connection to its end, and returns the cause of that.
func (g *Gate) serveStream(f packet.Flow, l *network.Link, o attribution.Owner, c net.Conn) string {
	if err := g.Nameserver.ServeConn(g.ctx, f, o, metered{c, l}); err != nil {
		return err.Error()
	}
	return "closed"
}

// metered counts the bytes of a stream that the nameserver serves.
type metered struct {
	net.Conn
	link *network.Link
}

// Read counts what the program sent.
func (m metered) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	m.link.AddSent(n)
	return n, err
}

// Write counts what the program received.
func (m metered) Write(b []byte) (int, error) {
	n, err := m.Conn.Write(b)
	m.link.AddReceived(n)
	return n, err
}
