package main

import (
	"slices"
	"strings"
	"sync"

	"gatun/attribution"
	"gatun/config"
	"gatun/dns"
	"gatun/firewall"
	"gatun/netenv"
	"gatun/network"
	"gatun/profiles"
)

// dnsFirewall lets the nameserver ask the firewall.
type dnsFirewall struct {
	master *firewall.Master
	known  *knowledge
}

// BeforeIntel implements dns.Firewall.
func (f dnsFirewall) BeforeIntel(q *dns.Query) network.Decision {
	f.queryStamp(q, nil)
	return f.master.DecideOnCommunicationBeforeIntel(firewall.Name{Owner: q.Owner, Domain: q.Name, Type: q.Type, Dry: q.Dry})
}

// AfterIntel implements dns.Firewall.
func (f dnsFirewall) AfterIntel(q *dns.Query, a *dns.Answer) network.Decision {
	d, remove := f.master.DecideOnCommunicationAfterIntel(firewall.Name{Owner: q.Owner, Domain: q.Name, CNAMEs: a.CNAMEs, Type: q.Type, Local: a.Local, Dry: q.Dry}, a.Addrs)
	a.Remove = remove
	f.queryStamp(q, a)
	return d
}

// newNameserver wires the nameserver of an engine.
func newNameserver(e *engine) *dns.Server {
	own := &resolverLists{lists: map[string][]dns.Resolver{}}
	return dns.New(dns.Options{
		Firewall: dnsFirewall{e.master, e.known}, Dialer: e.opt.dialer, Memory: e.names, Recorder: e.table, Intel: e.known.remote,
		System:      e.system.Resolvers,
		BlockStyle:  func(o attribution.Owner, d network.Decision) dns.BlockStyle { return styleOf(e.master.Settings(o), d) },
		Profile:     func(o attribution.Owner) string { return e.master.Settings(o).ProfileName },
		Nameservers: func(o attribution.Owner) []dns.Resolver { return own.of(e.master.Settings(o)) },
		Multicast:   e.opt.dialer,
		Told:        e.inquired,
		Config:      dnsConfig(e.opt.cfg),
		Logger:      e.opt.log,
	})
}

// maxResolverLists bounds the distinct lists that profiles may bring; then all are read again.
const maxResolverLists = 256

// resolverLists reads the nameservers of profiles once per list, so that the nameserver knows by
// their memory that they are the same.
type resolverLists struct {
	mu    sync.Mutex
	lists map[string][]dns.Resolver
}

// of returns the nameservers of a profile that has its own, nil for the others.
func (l *resolverLists) of(s *profiles.Settings) []dns.Resolver {
	if len(s.Nameservers) == 0 {
		return nil
	}
	key := strings.Join(s.Nameservers, " ")
	l.mu.Lock()
	defer l.mu.Unlock()
	list, ok := l.lists[key]
	if !ok {
		if len(l.lists) >= maxResolverLists {
			clear(l.lists)
		}
		list = parseResolvers(s.Nameservers)
		l.lists[key] = list
	}
	return list
}

// styleOf says how a blocked name is answered. That of the canary does not exist whatever the
// setting says, because nothing else turns a browser's own resolver off.
func styleOf(s *profiles.Settings, d network.Decision) dns.BlockStyle {
	if d.Code == "bypass-canary" {
		return dns.NXDomain
	}
	return blockStyle(s.BlockStyle)
}

func blockStyle(s profiles.BlockStyle) dns.BlockStyle {
	switch s {
	case profiles.Refused:
		return dns.Refused
	case profiles.Zero:
		return dns.Zero
	default:
		return dns.NXDomain
	}
}

// dnsConfig takes what concerns the nameserver from a checked configuration.
func dnsConfig(cfg *config.Config) dns.Config {
	return dns.Config{
		Nameservers: parseResolvers(cfg.Strings("dns/nameservers")), RetryRate: cfg.Duration("dns/nameserverRetryRate"),
		NoAssigned: cfg.Bool("dns/noAssignedNameservers"), NoInsecure: cfg.Bool("dns/noInsecureProtocols"),
		NoMulticast: cfg.Bool("dns/noMulticastDNS"), UseStale: cfg.Bool("dns/useStaleCache"),
		ResolveSpecial: !cfg.Bool("dns/dontResolveSpecialDomains"),
	}
}

// parseResolvers reads URLs that config has checked.
func parseResolvers(texts []string) (list []dns.Resolver) {
	for _, text := range texts {
		if r, err := dns.ParseResolver(text); err == nil {
			list = append(list, r)
		}
	}
	return list
}

// whereabouts is where this machine is, as far as it matters for what nameservers answer: behind
// which routers, and whether a captive portal holds it.
type whereabouts struct {
	gateways []netenv.Gateway
	portal   bool
}

// moved takes over what is known now, and reports whether that is another place. A router has the
// same MAC until another one is seen: it is unknown before the first packet, and again when the
// neighbour table forgets it.
func (w *whereabouts) moved(s netenv.Snapshot) bool {
	now := whereabouts{slices.Clone(s.Gateways), s.Online == netenv.Portal}
	same := now.portal == w.portal && slices.EqualFunc(now.gateways, w.gateways, func(a, b netenv.Gateway) bool {
		return a.Addr == b.Addr && a.Interface == b.Interface && (a.MAC == b.MAC || a.MAC == "" || b.MAC == "")
	})
	for i := range now.gateways {
		if same && now.gateways[i].MAC == "" {
			now.gateways[i].MAC = w.gateways[i].MAC
		}
	}
	*w = now
	return !same
}
