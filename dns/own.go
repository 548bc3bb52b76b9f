package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	mdns "github.com/miekg/dns"

	"gatun/attribution"
)

// Addresses resolves a name for this program itself: with the nameservers of the settings and the
// cache that programs have, but no verdict is asked for, nothing is listed, and no program learns
// the name. A name without addresses is an error.
func (s *Server) Addresses(ctx context.Context, name string) ([]netip.Addr, error) {
	self := attribution.Owner{Process: &attribution.Process{Kind: attribution.KindSelf}}
	addrs, errs := bothFamilies(func(t uint16) ([]netip.Addr, error) {
		q := &Query{Owner: self, Name: bareName(name), Type: t, Dry: true}
		f, err := s.resolve(ctx, q, &request{qtype: t, flags: flagRD})
		switch {
		case err != nil:
			return nil, err
		case f.answer.blockedBy != "":
			return nil, fmt.Errorf("blocked by the resolver %s", f.answer.blockedBy)
		case len(f.answer.addrs) == 0:
			return nil, errors.New(causeOf(f.answer))
		}
		return f.answer.addrs, nil
	})
	if len(addrs) > 0 {
		return addrs, nil
	}
	return nil, errs[0]
}

// bothFamilies asks for the addresses of IPv6 and IPv4 at the same time, and returns those of
// both, in this order, with what went wrong.
func bothFamilies(ask func(qtype uint16) ([]netip.Addr, error)) (addrs []netip.Addr, errs []error) {
	type result struct {
		addrs []netip.Addr
		err   error
	}
	types := [...]uint16{mdns.TypeAAAA, mdns.TypeA}
	var results [len(types)]chan result
	for i, t := range types {
		results[i] = make(chan result, 1)
		go func() {
			addrs, err := ask(t)
			results[i] <- result{addrs, err}
		}()
	}
	for _, c := range results {
		r := <-c
		addrs = append(addrs, r.addrs...)
		if r.err != nil {
			errs = append(errs, r.err)
		}
	}
	return addrs, errs
}
