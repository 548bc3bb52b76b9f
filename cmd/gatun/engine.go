package main

import (
	"context"
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
	"gatun/netenv"
	"gatun/network"
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
	resolvers dns.SystemOptions
	netns     string
	// namesForAll knows the programs whose names count for everybody; nil: none.
	namesForAll func(attribution.Owner) bool
	translate   func(netip.Addr) netip.Addr // where a destination is really dialled; nil: there
	log         *zap.Logger
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
	stack   *stack.Stack

	mu  sync.Mutex
	cfg *config.Config
}

func newEngine(o engineOptions) (*engine, error) {
	e := &engine{opt: o, started: time.Now(), table: network.NewTable(time.Now), cfg: o.cfg}
	e.master = firewall.New(o.store)
	e.names = dns.NewMemory(dns.MemoryOptions{Clock: time.Now, Resolver: o.namesForAll})
	e.system = dns.NewSystem(o.resolvers, time.Now)
	e.server = newNameserver(e)
	e.relay = interception.NewRelay(o.dialer, o.log, func(l *network.Link, cause string) { e.gate.Ended(l, cause) })
	e.relay.Translate = o.translate
	e.gate = &interception.Gate{
		Table: e.table, Firewall: e.master, Prompts: firewall.NewPrompts(time.Now), Owners: o.owners, Names: e.names, Nameserver: e.server,
		Relay: e.relay, Log: o.log, Clock: time.Now,
	}
	var err error
	e.stack, err = stack.New(stack.Options{Device: o.device, Handler: e.gate, Local: o.local, Logger: o.log})
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
	g.Go(func() error { return giveBack(ctx, e.table.LiveCount) })
	if e.opt.closings != nil {
		g.Go(func() error { return e.opt.closings.Run(ctx, e.gate.SocketClosed, e.gate.SocketsLost) })
	}
}

// apply puts a new configuration in force and ends what it no longer permits. An error leaves
// the running policy untouched; the same configuration changes nothing.
func (e *engine) apply(cfg *config.Config) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if cfg.Equal(e.cfg) {
		return nil
	}
	if err := e.opt.store.Swap(cfg, status.Judge(cfg, netenv.Snapshot{}, time.Now())); err != nil {
		return err
	}
	e.cfg = cfg
	e.server.Configure(dnsConfig(cfg))
	closed := e.gate.Reevaluate()
	e.opt.log.Info("configuration in force", zap.Uint64("revision", e.opt.store.Revision()), zap.Int("flows closed", closed))
	return nil
}

// status fills what the engine knows of itself.
func (e *engine) status() api.Status {
	e.mu.Lock()
	cfg := e.cfg
	e.mu.Unlock()
	decided, denied := e.gate.Counts()
	return api.Status{
		Schema: network.Schema, State: "on", Mode: e.opt.mode, Version: version(), PID: os.Getpid(), Started: e.started.UTC(),
		Config:    api.ConfigStatus{File: strings.Join(cfg.Files(), " "), Revision: e.opt.store.Revision(), Warnings: warningTexts(cfg, e.opt.store)},
		Rating:    cfg.String("network/rating"),
		Inbound:   "not controlled",
		Notes:     []string{"loopback traffic is not seen"},
		Resolvers: e.resolvers(cfg),
		Links:     api.LinkCounts{Live: e.table.LiveCount(), Decided: decided, Denied: denied},
		Packets:   packetCounts(e.stack.Counters()),
		Owners:    e.gate.Causes(),
		NetNS:     e.opt.netns,
	}
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
		"abandoned_syns": c.AbandonedSYNs, "undecided": c.Undecided, "panics": c.Panics,
		"held_tcp": uint64(c.HeldTCP), "udp_flows": uint64(c.UDPFlows), "pings": uint64(c.Pings), "others": uint64(c.Others),
	}
}
