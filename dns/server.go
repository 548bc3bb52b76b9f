package dns

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/zap"

	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
)

// Query is one question of a program.
type Query struct {
	Flow  packet.Flow
	Owner attribution.Owner
	Name  string // lower-case, without the final dot
	Type  uint16
	Link  *network.Link

	Dry bool // a person asks what would be answered: nothing is counted or remembered

	local bool // who is asked may give addresses of this network

	answer Answer // for the second decision
}

// Answer is what would be answered. Addrs are all addresses in it, those in HTTPS and SVCB
// hints too; CNAMEs are the aliases on the way, in order. Both are shared and only to be read.
// Local says that who answered may give addresses of this network. The Firewall puts into Remove
// the addresses that the program must not see.
type Answer struct {
	Addrs  []netip.Addr
	CNAMEs []string
	Local  bool
	Remove []netip.Addr
}

// Firewall decides on queries.
type Firewall interface {
	// BeforeIntel decides on the name alone. Denied: it is not resolved. Undecided: it is, and
	// AfterIntel decides.
	BeforeIntel(q *Query) network.Decision
	// AfterIntel decides with the answer, which is empty where there is none. Only a verdict
	// that permits lets the answer out.
	AfterIntel(q *Query, a *Answer) network.Decision
}

// Recorder lists the queries; *network.Table is one.
type Recorder interface {
	NewQuery(f packet.Flow) *network.Link
	Decide(l *network.Link, d network.Decision)
	End(l *network.Link, cause string)
}

// Intel fetches what is known of a name, while the name is being resolved. AfterIntel is asked
// when both are done.
type Intel interface {
	// Wants reports whether there is something to fetch: mostly it is known already, or nobody is
	// asked.
	Wants(name string) bool
	Fetch(ctx context.Context, name string)
}

// Config is what may change while the server runs.
type Config struct {
	Nameservers    []Resolver    // in order; none: the system's
	NoAssigned     bool          // dns/noAssignedNameservers: the system's are never asked for other than local names
	NoInsecure     bool          // dns/noInsecureProtocols: nothing is asked without encryption
	NoMulticast    bool          // dns/noMulticastDNS: nothing is asked by multicast
	ResolveSpecial bool          // dns/dontResolveSpecialDomains is off: special-use names are asked upstream like others
	UseStale       bool          // dns/useStaleCache: expired answers are served while they are renewed
	RetryRate      time.Duration // dns/nameserverRetryRate: how often a failing nameserver is tried in the background
}

// Options wires a Server. Firewall, Dialer, Memory and Recorder must be set.
type Options struct {
	Firewall Firewall
	Dialer   Dialer
	Memory   *Memory
	Recorder Recorder

	System  func() []Resolver              // the system's nameservers as they are now; nil: none
	Profile func(attribution.Owner) string // name of the profile that judges it, for the record; nil: none
	// BlockStyle is how a name is answered that was blocked by that decision; nil: NXDomain.
	BlockStyle func(attribution.Owner, network.Decision) BlockStyle
	Intel      Intel       // nil: none
	Multicast  Listener    // nil: nothing is asked by multicast
	Told       func(error) // how each inquiry upstream ended: nil, or nobody answered; nil: nobody wants to know
	// Nameservers are those of the owner's own profile, which take the place of Config's. The
	// slice must not change. Nil: none.
	Nameservers func(attribution.Owner) []Resolver
	Config      Config
	Limits      Limits
	Clock       func() time.Time // default time.Now
	Logger      *zap.Logger      // default none
}

// Server answers the programs' queries. Its methods may be called from any goroutine.
type Server struct {
	o        Options
	resolver resolution
	cookies  cookies

	mu       sync.Mutex
	upstream state
	idle     time.Duration // of a TCP connection

	malformed, blocked, panics atomic.Uint64
	exchanges                  atomic.Uint64
}

// Counters are totals since the start.
type Counters struct {
	Hits, Misses, Joined uint64 // answered from the cache, asked upstream, waited for another's inquiry
	Stale                uint64 // of the hits: expired already
	Exchanges            uint64 // queries sent upstream, repetitions included
	Blocked, Malformed   uint64
	Panics               uint64
	CacheEntries         int
	CacheBytes           int
}

// New returns a server. Run renews its cache; it answers without it as well.
func New(o Options) *Server {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.System == nil {
		o.System = func() []Resolver { return nil }
	}
	if o.BlockStyle == nil {
		o.BlockStyle = func(attribution.Owner, network.Decision) BlockStyle { return NXDomain }
	}
	if o.Nameservers == nil {
		o.Nameservers = func(attribution.Owner) []Resolver { return nil }
	}
	if o.Profile == nil {
		o.Profile = func(attribution.Owner) string { return "" }
	}
	s := &Server{o: o, upstream: state{config: o.Config}, idle: streamIdle}
	s.upstream.renew()
	s.cookies.init()
	s.resolver = resolution{
		client:  newClient(o.Dialer, o.Clock, o.Logger, func() { s.exchanges.Add(1) }),
		cache:   newCache(cacheEntries, cacheBytes),
		limiter: newLimiter(o.Limits),
		clock:   o.Clock,
		renew:   make(chan renewal, refreshQueue),
		flights: map[key]*flight{}, patience: patience, told: o.Told,
		multicast: newMulticast(o.Multicast, o.Logger),
	}
	s.resolver.client.renew(o.Config.RetryRate)
	s.keepStale(o.Config)
	return s
}

// Run renews cached answers that are about to expire and probes failing resolvers, until ctx
// ends. Then it closes all connections to resolvers for good.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.resolver.client.run(ctx) })
	s.resolver.run(ctx)
	wg.Wait()
	return nil
}

// Configure changes the nameservers. What others had answered is not served any more.
func (s *Server) Configure(c Config) {
	s.mu.Lock()
	same := s.upstream.config.equal(c)
	if !same {
		s.upstream.config = c
		s.upstream.renew()
	}
	s.mu.Unlock()
	if !same {
		s.resolver.client.renew(c.RetryRate)
		s.keepStale(c)
		s.Flush()
	}
}

// Moved forgets what was answered so far, also what is being asked right now: this machine is in
// another network, where the same addresses may be other hosts, or a captive portal has let it out,
// whose answers were false.
func (s *Server) Moved() {
	s.o.Memory.Moved()
	s.mu.Lock()
	s.upstream.renew()
	s.mu.Unlock()
	s.Flush()
}

func (s *Server) keepStale(c Config) {
	if c.UseStale {
		s.resolver.cache.keepStale(maxStale)
		return
	}
	s.resolver.cache.keepStale(0)
}

// Counters returns the totals so far.
func (s *Server) Counters() Counters {
	c := Counters{
		Hits: s.resolver.hits.Load(), Misses: s.resolver.misses.Load(), Joined: s.resolver.joined.Load(), Stale: s.resolver.stales.Load(), Exchanges: s.exchanges.Load(),
		Blocked: s.blocked.Load(), Malformed: s.malformed.Load(), Panics: s.panics.Load(),
	}
	c.CacheEntries, c.CacheBytes = s.resolver.cache.len()
	return c
}

// ServeUDP answers one datagram. The reply is to be sent from the address that was asked; nil
// means silence.
func (s *Server) ServeUDP(ctx context.Context, flow packet.Flow, owner attribution.Owner, query []byte) (reply []byte) {
	return s.serve(ctx, flow, owner, query)
}

func (s *Server) serve(ctx context.Context, flow packet.Flow, owner attribution.Owner, msg []byte) (out []byte) {
	defer func() {
		if p := recover(); p != nil {
			s.panics.Add(1)
			s.o.Logger.Error("a query panicked", zap.Any("panic", p), zap.Stack("stack"))
			out = nil
		}
	}()
	req, rcode := parseRequest(msg)
	limit := maxTCP
	if flow.Proto == packet.UDP {
		limit = req.size
	}
	if req.cookie != nil {
		req.served = s.cookies.serve(req.cookie, flow.Local.Addr(), s.o.Clock())
	}
	if rcode != mdns.RcodeSuccess {
		s.malformed.Add(1)
		if rcode == noReply {
			return nil
		}
		return req.pack(failed(rcode), limit)
	}
	q := &Query{Flow: flow, Owner: owner, Name: req.name, Type: req.qtype, Link: s.o.Recorder.NewQuery(flow)}
	s.describe(q)
	q.Link.AddSent(len(msg))
	e := s.handle(ctx, q, &req)
	if e.reply.answer != nil {
		out = req.pack(e.reply, limit)
		q.Link.AddReceived(len(out))
	}
	q.Link.SetAnswered(e.told(q.Type))
	s.o.Recorder.Decide(q.Link, e.decision)
	s.o.Recorder.End(q.Link, e.cause)
	return out
}

// describe says on the query's link whose it is and for what.
func (s *Server) describe(q *Query) {
	q.Link.SetComm(&network.Communication{
		Owner: q.Owner, Entity: network.Entity{Domain: q.Name, Source: network.DomainDNS}, Profile: s.o.Profile(q.Owner),
	})
}

// ending is how a query ends. A reply without an answer is silence.
type ending struct {
	reply    reply
	found    found // what the reply was made of; its answer is nil where nobody was asked
	decision network.Decision
	cause    string
}

// told is what the record says about the answer to a question of that type.
func (e *ending) told(qtype uint16) *network.Answered {
	a := e.found.answer
	if a != nil && a.told != nil && e.reply.answer == a {
		return a.told
	}
	t := &network.Answered{Type: typeName(qtype)}
	if e.reply.answer != nil {
		t.Rcode = rcodeName(e.reply.answer.rcode)
		if a != nil {
			t.Resolver = a.from
		}
	}
	return t
}

// handle takes one query through its stages.
func (s *Server) handle(ctx context.Context, q *Query, req *request) ending {
	if q.Owner.Process.Kind == attribution.KindSelf {
		return s.deny(q, ownQuery())
	}
	before := s.o.Firewall.BeforeIntel(q)
	if before.Decided() && !before.Verdict.Permits() {
		return s.deny(q, before)
	}
	f, err := s.resolveAndFetch(ctx, q, req)
	if ctx.Err() != nil {
		return ending{decision: before, cause: "the program gave up"}
	}
	result := &q.answer
	result.Local = q.local
	if err == nil {
		result.Addrs, result.CNAMEs = f.answer.addrs, f.answer.cnames
	}
	after := s.o.Firewall.AfterIntel(q, result)
	switch {
	case !after.Verdict.Permits():
		after = orUndecided(after)
	case err == nil && f.answer.blockedBy != "":
		after = blockedUpstream(f.answer.blockedBy)
	case err != nil:
		return unanswered(after, err)
	default:
		return s.permit(q, f, after, result.Remove)
	}
	e := s.deny(q, after)
	e.found = f
	return e
}

// permit ends a query with what was found, as far as the program may see it.
func (s *Server) permit(q *Query, f found, d network.Decision, remove []netip.Addr) ending {
	rep := reply{answer: f.answer, ttl: f.ttl}
	if len(remove) > 0 {
		var err error
		if rep.answer, err = f.answer.without(q.Name, q.Type, remove); err != nil {
			return unanswered(d, err)
		}
		rep.ede = &mdns.EDNS0_EDE{InfoCode: mdns.ExtendedErrorCodeFiltered, ExtraText: "addresses were removed by the firewall"}
	}
	switch {
	case f.answer.note != "":
		rep.ede = &mdns.EDNS0_EDE{InfoCode: mdns.ExtendedErrorCodeCachedError, ExtraText: f.answer.note}
	case f.stale && rep.ede == nil:
		rep.ede = &mdns.EDNS0_EDE{InfoCode: mdns.ExtendedErrorCodeStaleAnswer}
	case rep.ede == nil:
		rep.ede = f.answer.ede
	}
	if !q.Dry {
		s.o.Memory.Remember(q.Owner, Resolved{Name: q.Name, CNAMEs: f.answer.cnames, Addrs: rep.answer.addrs, TTL: f.ttl, Local: q.local})
	}
	return ending{reply: rep, found: f, decision: d, cause: causeOf(rep.answer)}
}

// resolveAndFetch resolves the name and fetches what is known of it at the same time.
func (s *Server) resolveAndFetch(ctx context.Context, q *Query, req *request) (found, error) {
	if s.o.Intel == nil || !s.o.Intel.Wants(q.Name) {
		return s.resolve(ctx, q, req)
	}
	waits(ctx)
	fetched := make(chan struct{})
	go func() {
		defer close(fetched)
		defer func() {
			if p := recover(); p != nil {
				s.panics.Add(1)
				s.o.Logger.Error("fetching intelligence panicked", zap.Any("panic", p), zap.Stack("stack"))
			}
		}()
		s.o.Intel.Fetch(ctx, q.Name)
	}()
	f, err := s.resolve(ctx, q, req)
	<-fetched
	return f, err
}

func (s *Server) resolve(ctx context.Context, q *Query, req *request) (found, error) {
	c := s.choose(q.Owner, q.Name)
	q.local = c.local
	if c.where == routeLocal {
		return found{answer: local(q.Name, q.Type)}, nil
	}
	if len(c.groups) == 0 && !c.multicast {
		return nobody(c.where)
	}
	return s.resolver.resolve(ctx, programOf(q.Owner), q.key(req, c.scope), c)
}

// key is under which the answer is cached: what of the query makes for another answer.
func (q *Query) key(req *request, scope uint64) key {
	return key{name: q.Name, qtype: q.Type, do: req.do, cd: req.flags&flagCD != 0, scope: scope}
}

// nobody is the answer where there is no nameserver to ask: no name of this network exists on
// one that has none.
func nobody(where route) (found, error) {
	if where == routeSystem || where == routeMulticast {
		return found{answer: &answer{rcode: mdns.RcodeNameError, lifetime: errorTTL}}, nil
	}
	return found{}, ErrNoNameserver
}

func orUndecided(d network.Decision) network.Decision {
	if !d.Decided() {
		d.Verdict, d.Stage = network.Block, network.StageAfterIntel
		d.Code, d.Reason = "undecided", "no decision was possible"
	}
	return d
}

func ownQuery() network.Decision {
	return network.Decision{
		Verdict: network.Block, Stage: network.StageBeforeIntel, Code: "own-traffic",
		Reason: "gatun's own query came back to it: cut, so that it cannot loop",
	}
}

func causeOf(a *answer) string {
	switch {
	case a.rcode == mdns.RcodeNameError:
		return "no such name"
	case a.failed():
		return "the nameserver failed: " + mdns.RcodeToString[a.rcode]
	case a.an == 0:
		return "no record of that type"
	}
	return "answered"
}

// unanswered is a failure of ours or of all nameservers.
func unanswered(d network.Decision, err error) ending {
	rep := failed(mdns.RcodeServerFailure)
	rep.ede = &mdns.EDNS0_EDE{InfoCode: mdns.ExtendedErrorCodeNoReachableAuthority, ExtraText: cut(oneLine(err), maxReason)}
	if errors.Is(err, ErrBusy) {
		rep.ede.InfoCode = mdns.ExtendedErrorCodeNotReady
	}
	return ending{reply: rep, decision: d, cause: "not resolved: " + oneLine(err)}
}
