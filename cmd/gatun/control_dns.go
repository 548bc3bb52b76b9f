package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"gatun/api"
	"gatun/attribution"
	"gatun/dns"
	"gatun/network"
)

// nameserver is dns.Server as far as the API asks it.
type nameserver interface {
	Query(ctx context.Context, o attribution.Owner, name, qtype string) (dns.Result, error)
	Cached(prefix string) []dns.CacheEntry
	Flush() int
	FlushName(name string) int
	Nameservers() []dns.Nameserver
	Counters() dns.Counters
}

// nameControl implements what the API asks of names.
type nameControl struct {
	server nameserver
}

// Nameserver implements api.Names.
func (c nameControl) Nameserver() api.NameserverStatus {
	n := c.server.Counters()
	st := api.NameserverStatus{
		Cache: api.CacheSize{Entries: n.CacheEntries, Bytes: n.CacheBytes},
		Counters: map[string]uint64{
			"hits": n.Hits, "misses": n.Misses, "joined": n.Joined, "stale": n.Stale, "exchanges": n.Exchanges,
			"blocked": n.Blocked, "malformed": n.Malformed, "panics": n.Panics,
		},
	}
	for _, r := range c.server.Nameservers() {
		one := api.ResolverStatus{
			URL: r.Resolver.String(), Source: string(r.Source), Failing: r.Failing, Failures: r.Failures,
			LatencyMS: float64(r.Latency.Microseconds()) / 1000,
		}
		if r.Error != nil {
			one.Error = r.Error.Error()
		}
		st.Resolvers = append(st.Resolvers, one)
	}
	return st
}

// Query implements api.Names.
func (c nameControl) Query(ctx context.Context, q api.DNSQuestion) (api.DNSAnswer, error) {
	owner, err := dryOwner(q.Program, q.User)
	if err != nil {
		return api.DNSAnswer{}, fmt.Errorf("%w: %w", err, api.ErrUnusable)
	}
	r, err := c.server.Query(ctx, owner, q.Name, q.Type)
	switch {
	case ctx.Err() != nil:
		return api.DNSAnswer{}, ctx.Err()
	case err != nil:
		return api.DNSAnswer{}, fmt.Errorf("%w: %w", err, api.ErrUnusable)
	}
	d := r.Decision
	a := api.DNSAnswer{
		Name: r.Name, Type: r.Type, Program: q.Program, User: q.User, Outcome: dnsOutcome(r),
		Verdict: d.Verdict.String(), Stage: d.Stage.String(), Reason: d.Reason, ReasonCode: d.Code, Setting: d.Setting, Profile: d.Profile, List: d.List,
		Rcode: r.Rcode, Records: r.Records, TTL: int(r.TTL / time.Second), Cached: r.Cached, Stale: r.Stale, Resolver: r.Resolver, EDE: r.EDE,
		DurationMS: float64(r.Duration) / float64(time.Millisecond),
	}
	if d.Rule.Text != "" {
		a.Rule = &network.RuleRef{Text: d.Rule.Text, File: d.Rule.File, Line: d.Rule.Line}
	}
	return a, nil
}

// dnsOutcome sums a result up for who looks at the exit code only.
func dnsOutcome(r dns.Result) string {
	switch {
	case !r.Decision.Verdict.Permits():
		return api.DNSBlocked
	case r.Rcode == "NOERROR", r.Rcode == "NXDOMAIN":
		return api.DNSAnswered
	default:
		return api.DNSFailed
	}
}

// Cached implements api.Names.
func (c nameControl) Cached(name string) []api.CachedAnswer {
	name = bareName(name)
	var list []api.CachedAnswer
	for _, e := range c.server.Cached("") {
		if name != "" && e.Name != name && !strings.HasSuffix(e.Name, "."+name) {
			continue
		}
		scope := e.Scope
		if !e.Shared {
			scope = "profile, " + scope
		}
		list = append(list, api.CachedAnswer{
			Name: e.Name, Type: e.Type, Rcode: e.Rcode, Records: e.Records, Expires: e.Expires.UTC(), Stale: e.Stale, Resolver: e.Resolver, Scope: scope,
		})
	}
	return list
}

// bareName writes a name as the cache has it; "" is the root, with all names below it.
func bareName(name string) string {
	if host, ok := hostName(name); ok {
		return host
	}
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

// Forget implements api.Names.
func (c nameControl) Forget(name string) int {
	if name = bareName(name); name == "" {
		return c.server.Flush()
	}
	return c.server.FlushName(name)
}

// dnsRecords are the nameserver's part of the virtual database. What changes with every query is
// left out: whoever watches would be told of each.
func dnsRecords(c api.Names) []network.Record {
	var list []network.Record
	for i, r := range c.Nameserver().Resolvers {
		r.LatencyMS, r.Failures = 0, 0
		list = append(list, network.Record{Key: fmt.Sprintf("resolvers/%d", i+1), Value: r})
	}
	seen := map[string]int{}
	for _, e := range c.Cached("") {
		key := "cache/" + e.Name + "/" + e.Type
		if seen[key]++; seen[key] > 1 { // the answer of other nameservers, or with signatures
			key = fmt.Sprintf("%s/%d", key, seen[key])
		}
		list = append(list, network.Record{Key: key, Value: e})
	}
	slices.SortStableFunc(list, func(a, b network.Record) int { return strings.Compare(a.Key, b.Key) })
	return list
}
