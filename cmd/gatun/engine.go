package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"gatun/api"
	"gatun/attribution"
	"gatun/config"
	"gatun/dns"
	"gatun/firewall"
	"gatun/firewall/interception"
	"gatun/intel"
	"gatun/netenv"
	"gatun/network"
	"gatun/network/packet"
	"gatun/network/state"
	"gatun/profiles"
	"gatun/stack"
	"gatun/status"
	"gatun/tun"
	"gatun/tun/route"
)

// engineOptions is what `run` and `up` differ in.
type engineOptions struct {
	mode      string
	device    tun.Device
	dialer    *route.Dialer
	owners    *attribution.Finder
	closings  *state.Closings       // nil: nobody says when a socket is closed
	local     func(netip.Addr) bool // a source address that programs here may use
	store     *profiles.Store
	cfg       *config.Config
	state     status.State    // what the network was judged to be when cfg was loaded
	source    config.Source   // where cfg came from; its Data takes run-time changes
	networks  *netenv.Monitor // nil: nothing is known of the networks
	created   <-chan struct{} // the store has made profiles of programs that were seen first
	environ   *environ        // of programs, for profiles
	system    *dns.System     // the system's nameservers
	listCache string          // where copies of filter lists are kept; "": in memory only
	netns     string
	// namesForAll knows the programs whose names count for everybody; nil: none.
	namesForAll func(attribution.Owner) bool
	redirect    *route.DNSListener          // port 53 comes here too; nil: it does not
	kernel      interception.Kernel         // carries permitted flows; nil: all are relayed
	ahead       *ahead                      // permits connections before they begin; nil: nobody does
	diverter    *route.Diverter             // lets the kernel end what is relayed; nil: netstack does
	diverts     func() bool                 // the rules that it needs are there
	translate   func(netip.Addr) netip.Addr // where a destination is really dialled; nil: there
	log         *zap.Logger
	inForce     func()           // a new policy is in force; may be nil
	level       *zap.AtomicLevel // of log, where core/logLevel sets it; nil: fixed
}

// engine is one running firewall: the parts, wired.
type engine struct {
	opt     engineOptions
	started time.Time
	table   *network.Table
	master  *firewall.Master
	gate    *interception.Gate
	relay   *interception.Relay
	names   *dns.Memory
	system  *dns.System
	server  *dns.Server
	known   *knowledge
	stack   *stack.Stack

	prompts *firewall.Prompts
	wake    chan struct{} // something that ends with time was added
	problem lastProblem   // why the newest edit of the file is not in force

	keeping sync.Mutex
	kept    []byte // temporary rules as they were written last

	mu    sync.Mutex // held while the policy changes
	cfg   *config.Config
	state status.State
}

func newEngine(o engineOptions) (*engine, error) {
	e := &engine{opt: o, started: time.Now(), table: network.NewTable(time.Now), cfg: o.cfg, state: o.state, wake: make(chan struct{}, 1)}
	o.environ.finder.Store(o.owners)
	e.master = firewall.New(o.store)
	e.prompts = firewall.NewPrompts(time.Now)
	e.prompts.Remember = e.remember
	e.names = dns.NewMemory(dns.MemoryOptions{Clock: time.Now, Resolver: o.namesForAll, Changed: o.ahead.answered})
	e.system = o.system
	e.known = newKnowledge(ownClient(o.dialer, e.addresses), o.listCache, o.log)
	e.master.Intel, e.master.Tunnels = e.known.store, intel.NewTunnels(time.Now)
	e.server = newNameserver(e)
	e.relay = interception.NewRelay(o.dialer, o.log, func(l *network.Link, cause string) { e.gate.Ended(l, cause) })
	e.relay.Translate, e.relay.Dialed = o.translate, e.dialed
	if o.diverter != nil {
		e.relay.Divert, e.relay.Pipe = o.divert, openPipe
	}
	e.followProbe(o.cfg)
	e.gate = &interception.Gate{
		Table: e.table, Firewall: e.master, Prompts: e.prompts, Owners: o.owners, Names: e.names, Nameserver: e.server,
		Relay: e.relay, Kernel: o.kernel, Log: o.log, Clock: time.Now,
	}
	e.master.HandsBack = o.kernel != nil
	o.ahead.attach(e)
	if err := e.restoreTemporaries(); err != nil {
		return nil, err
	}
	_, err := e.known.configure(o.cfg)
	if err != nil {
		return nil, err
	}
	e.stack, err = stack.New(stack.Options{Device: o.device, Handler: e.gate, Local: o.local, Elsewhere: e.gate.Elsewhere, Logger: o.log})
	return e, err
}

// start runs every long-lived part in the group.
func (e *engine) start(ctx context.Context, g *errgroup.Group) {
	e.gate.Attach(ctx)
	g.Go(func() error { return e.opt.owners.Run(ctx) })
	g.Go(func() error { return e.gate.Run(ctx) })
	g.Go(func() error { return e.relay.Run(ctx) })
	g.Go(func() error { return e.server.Run(ctx) })
	g.Go(func() error { return e.stack.Run(ctx) })
	if d := e.opt.redirect; d != nil {
		r := &interception.Redirect{Gate: e.gate, UDP: d.UDP, TCP: d.TCP, Original: d.Original, Waits: dns.Waits}
		g.Go(func() error { return r.Run(ctx) })
	}
	g.Go(func() error { return e.watchLists(ctx) })
	g.Go(func() error { return e.followLists(ctx) })
	g.Go(func() error { return e.keepTime(ctx) })
	g.Go(func() error { return e.keepProfiles(ctx) })
	if e.opt.networks != nil {
		g.Go(func() error { return e.opt.networks.Run(ctx) })
		g.Go(func() error { return e.keepNameservers(ctx) })
	}
	g.Go(func() error { return keepSmall(ctx, e.table.LiveCount, e.compact) })
	if e.opt.closings != nil {
		g.Go(func() error { return e.opt.closings.Run(ctx, e.socketClosed, e.gate.SocketsLost) })
	}
}

// socketClosed is told of each UDP socket that a program has closed.
func (e *engine) socketClosed(p packet.Proto, local netip.AddrPort) {
	e.opt.owners.Closed(p, local)
	e.gate.SocketClosed(p, local)
}

// fetch begins to ask others for what the policy wants of them. While the capture is being set up
// our own requests may not find the way around it yet.
func (e *engine) fetch(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error { return e.known.store.Run(ctx) })
}

// compact gives up what only a flood needed.
func (e *engine) compact() {
	e.table.Compact()
	e.opt.owners.Compact()
	e.opt.store.Compact()
	if k, ok := e.opt.kernel.(interface{ Compact() }); ok {
		k.Compact()
	}
}

// control is what the API asks and changes.
func (e *engine) control() *control {
	return &control{owner: e, store: e.opt.store, asked: e.prompts, table: e.table, alive: e.opt.owners.Alive}
}

// serve makes the API of the program that runs this engine.
func (e *engine) serve(d api.Daemon) *api.Server {
	c := e.control()
	c.names, c.lists = nameControl{e.server}, listControl{e.known.store, e.listsUpdated}
	return &api.Server{Daemon: d, Flows: e.table, Why: explainer{e.master}, Control: c, Names: c.names, Lists: c.lists, Database: c.database(d.Status), Log: e.opt.log}
}

// status fills what the engine knows of itself.
func (e *engine) status() api.Status {
	cfg, rating := e.config(), e.rating()
	decided, denied := e.gate.Counts()
	s := api.Status{
		Schema: network.Schema, State: "on", Mode: e.opt.mode, Version: version(), PID: os.Getpid(), Started: e.started.UTC(),
		Config: api.ConfigStatus{File: strings.Join(cfg.Files(), " "), Revision: e.opt.store.Revision(), Problem: e.problem.text(), Warnings: warningTexts(cfg, e.opt.store)},
		Rating: rating.Rating.String(), RatingOrigin: rating.Origin,
		Inbound:   "not controlled",
		Notes:     []string{"loopback traffic is not seen"},
		Resolvers: e.resolvers(cfg),
		Links:     api.LinkCounts{Live: e.table.LiveCount(), Decided: decided, Denied: denied},
		Packets:   packetCounts(e.stack.Counters()),
		Owners:    e.gate.Causes(),
		NetNS:     e.opt.netns,
	}
	e.online(&s)
	e.control().status(&s)
	s.Modules = e.modules(&s)
	return s
}

// permanent reports whether permitted flows are to be handed back.
func (e *engine) permanent() bool { return e.config().Bool("filter/permanentVerdicts") }

// modules says how the engine's parts are.
func (e *engine) modules(s *api.Status) []status.Module {
	policy := status.Module{Name: "policy", Message: fmt.Sprintf("revision %d", s.Config.Revision)}
	switch {
	case s.Config.Problem != "":
		policy.State, policy.Message = status.Error, "the newest edit is not in force: "+s.Config.Problem
	case s.PausedUntil != nil:
		policy.State, policy.Message = status.Warning, "paused until "+s.PausedUntil.Local().Format(time.TimeOnly)
	case len(s.Config.Warnings) > 0:
		policy.State, policy.Message = status.Info, fmt.Sprintf("%d warnings: see `gatun check`", len(s.Config.Warnings))
	}
	resolvers := status.Module{Name: "nameserver", Message: fmt.Sprintf("%d resolvers", len(s.Resolvers))}
	if len(s.Resolvers) == 0 {
		resolvers.State, resolvers.Message = status.Warning, "no resolver is known: names cannot be resolved"
	}
	prompts := status.Module{Name: "prompts"}
	if s.Prompts > 0 {
		prompts.State, prompts.Message = status.Info, fmt.Sprintf("%d wait for an answer: gatun prompt", s.Prompts)
	}
	intelligence := e.known.module(e.opt.store.NeedsGeo(), e.opt.store.GeoMissing())
	return []status.Module{policy, e.networksModule(s), resolvers, intelligence, prompts, e.relayModule()}
}

func warningTexts(cfg *config.Config, store *profiles.Store) []string {
	list := []string{}
	for _, p := range append(cfg.Warnings(), store.Warnings()...) {
		list = append(list, p.Error())
	}
	return list
}

// resolvers lists who is asked: the configured ones, else the system's.
func (e *engine) resolvers(cfg *config.Config) []string {
	list := cfg.Strings("dns/nameservers")
	if len(list) > 0 {
		return list
	}
	for _, r := range e.system.Resolvers() {
		list = append(list, r.String())
	}
	return list
}

// packetCounts names the stack's counters for status and metrics.
func packetCounts(c stack.Counters) map[string]uint64 {
	return map[string]uint64{
		"in": c.PacketsIn, "out": c.PacketsOut, "bytes_in": c.BytesIn, "bytes_out": c.BytesOut,
		"malformed": c.Malformed, "spoofed": c.Spoofed, "source_route": c.SourceRoute, "destination": c.Destination,
		"checksum": c.Checksum, "fragments": c.Fragments, "icmp": c.ICMP, "reassembled": c.Reassembled,
		"held_tcp_limit": c.HeldTCPLimit, "udp_limit": c.UDPLimit, "ping_limit": c.PingLimit, "other_limit": c.OtherLimit,
		"hold_overflow": c.HoldOverflow, "write_errors": c.WriteErrors, "stray_segments": c.StraySegments,
		"abandoned_syns": c.AbandonedSYNs, "reused_tuples": c.ReusedTuples, "undecided": c.Undecided, "panics": c.Panics,
		"held_tcp": uint64(c.HeldTCP), "udp_flows": uint64(c.UDPFlows), "pings": uint64(c.Pings), "others": uint64(c.Others),
	}
}
