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
	type result struct {
		addrs []netip.Addr
		err   error
	}
	types := [...]uint16{mdns.TypeAAAA, mdns.TypeA}
	var results [len(types)]chan result
	for i, t := range types {
		results[i] = make(chan result, 1)
		go func() {
			q := &Query{Owner: self, Name: bareName(name), Type: t, Dry: true}
			f, err := s.resolve(ctx, q, &request{qtype: t, flags: flagRD})
			r := result{err: err}
			switch {
			case err != nil:
			case f.answer.blockedBy != "":
				r.err = fmt.Errorf("blocked by the resolver %s", f.answer.blockedBy)
			case len(f.answer.addrs) == 0:
				r.err = errors.New(causeOf(f.answer))
			default:
				r.addrs = f.answer.addrs
			}
			results[i] <- r
		}()
	}
	var addrs []netip.Addr
	var errs []error
	for _, c := range results {
		r := <-c
		addrs = append(addrs, r.addrs...)
		if r.err != nil {
			errs = append(errs, r.err)
		}
	}
	if len(addrs) > 0 {
		return addrs, nil
	}
	return nil, errs[0]
}
