package dns

import (
	"reflect"
	"slices"
	"strings"
	"time"

	mdns "github.com/miekg/dns"

	"gatun/attribution"
	"gatun/network"
)

// maxLists bounds the distinct lists of nameservers that profiles may bring before all are
// forgotten.
const maxLists = 256

// The scope of a cached answer: the revision of the settings, the list of nameservers and the
// kind of name.
const (
	scopeRoute    = 1<<4 - 1
	scopeList     = 4 // bits to shift
	scopeLists    = 1<<12 - 1
	scopeRevision = 16
)

// choice says who is asked for a name.
type choice struct {
	where     route
	groups    [][]Resolver // one group stands in when those before it do not answer
	scope     uint64       // under which answers are cached
	local     bool         // they may give addresses of this network
	multicast bool         // asked by multicast before the groups are
	uncached  bool
}

// lineup is one list of nameservers, sorted by what they may be asked for: what choose would
// otherwise find out for every query.
type lineup struct {
	scope        uint64
	list         []Resolver // as it was given
	ordinary     [][]Resolver
	network      [][]Resolver            // for names that mean something on this network only
	connectivity [][]Resolver            // for names that tell whether a captive portal is there
	assigned     bool                    // the network's own come first for those
	search       map[string][][]Resolver // by domain
}

// choose says who is asked for the name when that owner asks.
func (s *Server) choose(o attribution.Owner, name string) choice {
	l, config := s.lineup(s.o.Nameservers(o))
	return l.choose(name, config)
}

// lineup sorts a list of nameservers, and the system's as they are now; none means the list of
// the settings.
func (s *Server) lineup(list []Resolver) (*lineup, Config) {
	system := s.o.System()
	s.mu.Lock()
	moved := !sameResolvers(system, s.upstream.system)
	if moved {
		s.upstream.system = slices.Clone(system)
		s.upstream.renew()
	}
	l, config := s.upstream.lineup(list), s.upstream.config
	s.mu.Unlock()
	if moved { // to another network: connections of before may be dead, and who failed there may do well here
		s.resolver.client.renew(config.RetryRate)
	}
	return l, config
}

// choose takes the first kind of name that fits, in the order of dns.md.
func (l *lineup) choose(name string, config Config) choice {
	where := routeOf(name)
	local := network.LocalName(name)
	switch {
	case where == routeLocal && ours(name):
		return choice{where: routeLocal, local: local}
	case network.ConnectivityName(name):
		// The network's own nameservers lead to its portal, which is mostly beside its gateway.
		return choice{where: routeConnectivity, groups: l.connectivity, scope: l.scope | uint64(routeConnectivity), local: l.assigned, uncached: true}
	}
	if groups := l.searched(name); groups != nil {
		return choice{where: routeSearch, groups: groups, scope: l.scope | uint64(routeSearch), local: true}
	}
	if config.ResolveSpecial {
		where = routeUpstream
	}
	c := choice{where: where, scope: l.scope | uint64(where), local: local}
	switch where {
	case routeUpstream:
		c.groups = l.ordinary
	case routeSystem:
		c.groups = l.network
	case routeMulticast:
		c.groups, c.multicast = l.network, !config.NoMulticast
	}
	return c
}

// ours reports a name that no setting gives to another.
func ours(name string) bool {
	last := lastLabel(name)
	return last == ownZone || last == "localhost"
}

// searched returns the nameservers that were chosen for a domain of which the name is part:
// those of the longest such domain first. Nobody else is asked: who set them keeps the names of
// that domain from others.
func (l *lineup) searched(name string) (groups [][]Resolver) {
	if len(l.search) == 0 {
		return nil
	}
	for at, end := 0, name == ""; !end; at, end = mdns.NextLabel(name, at) {
		if found := l.search[name[at:]]; found != nil {
			groups = append(groups[:len(groups):len(groups)], found...)
		}
	}
	return groups
}

// state is the nameservers in use. Its revision is part of every cache key.
type state struct {
	config   Config
	system   []Resolver
	revision uint64
	lineups  []*lineup // the first is that of the settings
}

// renew forgets what was derived from the settings and the system's nameservers.
func (u *state) renew() {
	u.revision++
	u.lineups = nil // the next is the first again
	u.lineups = append(u.lineups, u.derive(u.config.Nameservers))
}

// lineup returns what is known of a list; none means the list of the settings.
func (u *state) lineup(list []Resolver) *lineup {
	if len(list) == 0 {
		return u.lineups[0]
	}
	for _, l := range u.lineups {
		if sameResolvers(l.list, list) {
			return l
		}
	}
	if len(u.lineups) >= maxLists {
		u.renew()
	}
	l := u.derive(list)
	u.lineups = append(u.lineups, l)
	return l
}

// derive sorts the nameservers by what they may be asked for.
func (u *state) derive(list []Resolver) *lineup {
	l := &lineup{scope: u.revision<<scopeRevision | uint64(len(u.lineups))<<scopeList, list: slices.Clone(list), search: map[string][][]Resolver{}}
	var ordinary, near []Resolver
	clear := func(r Resolver) bool { return !r.Encrypted() }
	system := u.system
	if u.config.NoInsecure {
		list = slices.DeleteFunc(slices.Clone(list), clear)
		system = slices.DeleteFunc(slices.Clone(system), clear)
	}
	for _, r := range list {
		if !r.SearchOnly {
			ordinary = append(ordinary, r)
		}
		if r.near() {
			near = append(near, r)
		}
		for domain := range strings.SplitSeq(r.Search, ",") {
			if domain = bareName(domain); domain != "" {
				l.addSearch(domain, r)
			}
		}
	}
	assigned := system
	if u.config.NoAssigned {
		assigned = nil
	}
	l.connectivity, l.assigned = grouped(assigned, ordinary), len(assigned) > 0
	if len(ordinary) > 0 && !slices.ContainsFunc(ordinary, clear) {
		assigned = slices.DeleteFunc(slices.Clone(assigned), clear) // who wants encryption gets no answer rather than one in the clear
	}
	l.ordinary = grouped(ordinary, assigned)
	l.network = grouped(near, system)
	return l
}

// near reports whether the resolver knows the names of this network: it was said to, or it is one
// of its hosts.
func (r Resolver) near() bool {
	return r.LinkLocal || !r.SearchOnly && network.ScopeOf(r.Addr.Addr()) == network.LAN
}

func (l *lineup) addSearch(domain string, r Resolver) {
	if l.search[domain] == nil {
		l.search[domain] = [][]Resolver{nil}
	}
	if group := &l.search[domain][0]; !slices.Contains(*group, r) {
		*group = append(*group, r)
	}
}

// grouped leaves out what is empty.
func grouped(groups ...[]Resolver) [][]Resolver {
	return slices.DeleteFunc(groups, func(g []Resolver) bool { return len(g) == 0 })
}

// sameResolvers compares two lists, which are mostly the same memory.
func sameResolvers(a, b []Resolver) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || slices.Equal(a, b))
}

// Source says who named a nameserver.
type Source string

// The sources of a nameserver.
const (
	SourceConfigured Source = "configured"
	SourceProfile    Source = "profile"
	SourceSystem     Source = "system"
)

// Nameserver is one upstream as it is now.
type Nameserver struct {
	Resolver
	Source   Source
	Failing  bool          // more than 5 failures in 50 s: asked after the others until it answers
	Failures int           // in the last 50 s
	Latency  time.Duration // of its answers, smoothed; 0: none yet
	Error    error         // of the last failure, if it has not answered since
}

// Nameservers returns the upstreams that may be asked, in the order of the settings: those of
// the settings, those of profiles that were in use, and the system's.
func (s *Server) Nameservers() []Nameserver {
	system := s.o.System()
	s.mu.Lock()
	config := s.upstream.config
	own := make([][]Resolver, 0, len(s.upstream.lineups))
	for _, l := range s.upstream.lineups[1:] {
		own = append(own, l.list)
	}
	s.mu.Unlock()
	now := s.o.Clock()
	var list []Nameserver
	add := func(source Source, resolvers []Resolver) {
		for _, r := range resolvers {
			known := slices.ContainsFunc(list, func(n Nameserver) bool { return n.Resolver == r })
			if !known && (r.Encrypted() || !config.NoInsecure) {
				h := s.resolver.client.health(r, now)
				list = append(list, Nameserver{Resolver: r, Source: source, Failing: h.failing, Failures: h.failures, Latency: h.latency, Error: h.err})
			}
		}
	}
	add(SourceConfigured, config.Nameservers)
	for _, l := range own {
		add(SourceProfile, l)
	}
	add(SourceSystem, system)
	return list
}

// equal reports whether c and d ask the same nameservers in the same way.
func (c Config) equal(d Config) bool {
	same := slices.Equal(c.Nameservers, d.Nameservers)
	c.Nameservers, d.Nameservers = nil, nil
	return same && reflect.DeepEqual(c, d)
}
