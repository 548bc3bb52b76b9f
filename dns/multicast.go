package dns

import (
	"context"
	"net"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/zap"
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
	maxHeard        = 64               // replies looked at for one query
	maxAsking       = 1024             // inquiries at a time
	maxParty        = 10 * time.Second // then newcomers look which networks there are
)

// Listener opens the unconnected UDP sockets for multicast, around the TUN.
type Listener interface {
	ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error)
}

// multicast asks all neighbours for a name.
type multicast struct {
	listener Listener
	networks func() []nearby
	log      *zap.Logger

	mu    sync.Mutex
	party *party // nil: nobody asks
}

func newMulticast(l Listener, log *zap.Logger) *multicast {
	if l == nil {
		return nil
	}
	return &multicast{listener: l, networks: networks, log: log}
}

// ask returns what the neighbours answer, nil if nobody has the name.
func (m *multicast) ask(ctx context.Context, q inquiry) *answer {
	ctx, cancel := context.WithTimeout(ctx, multicastPatience)
	defer cancel()
	p := m.enter(ctx)
	defer m.leave(p)
	if len(p.sockets) == 0 {
		return nil
	}
	id, a := p.ask(q)
	if a == nil {
		return nil
	}
	defer p.forget(id)
	queries := q.multicastQueries(id)
	for _, b := range queries {
		p.send(b)
	}
	if len(queries) > 0 {
		again := time.AfterFunc(multicastRepeat, func() { p.send(queries[0]) })
		defer again.Stop()
	}
	return q.gather(ctx, a.heard)
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
