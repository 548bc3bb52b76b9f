package dns

import (
	"context"
	"errors"
	"net/netip"

	"go.uber.org/zap"
)

// Lookup asks for the addresses of a name, here and now: nothing is taken from the cache or put
// there, no program's verdict is asked for, and nothing is remembered. It asks whom the names are
// asked by which one finds out whether one is online: the system's nameservers, unless the
// settings forbid them, then the configured ones. It is how netenv looks whether the network tells
// the truth; no program's query may come here. A name without addresses, or one that the
// nameserver blocks, is an empty list; an error means that nobody answered.
func (s *Server) Lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	l, _ := s.lineup(nil)
	if len(l.connectivity) == 0 {
		return nil, ErrNoNameserver
	}
	addrs, errs := bothFamilies(func(t uint16) ([]netip.Addr, error) {
		return s.lookup(ctx, inquiry{name: name, qtype: t}, l.connectivity)
	})
	if len(errs) == 2 {
		return nil, errors.Join(errs...)
	}
	return addrs, nil
}

func (s *Server) lookup(ctx context.Context, q inquiry, groups [][]Resolver) (addrs []netip.Addr, err error) {
	defer func() {
		if p := recover(); p != nil { // over a hostile reply
			s.panics.Add(1)
			s.o.Logger.Error("a lookup panicked", zap.Any("panic", p), zap.Stack("stack"))
			addrs, err = nil, errPanic
		}
	}()
	m, _, err := s.resolver.client.ask(ctx, q, groups)
	if blocked := (*BlockedUpstreamError)(nil); errors.As(err, &blocked) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	a, err := clean(m, q)
	if err != nil {
		return nil, err
	}
	if a.failed() {
		return nil, errors.New(causeOf(a))
	}
	return a.addrs, nil
}
