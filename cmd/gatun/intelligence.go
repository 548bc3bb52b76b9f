package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"gatun/config"
	"gatun/dns"
	"gatun/intel"
	"gatun/network"
	"gatun/status"
	"gatun/tun/route"
)

// knowledge is what the engine knows of names and addresses beside them.
type knowledge struct {
	store   *intel.Store
	remote  *intel.Remote
	changed chan struct{} // what the store says may be another thing
	spec    chan struct{} // other files have to be watched

	// engine.mu guards what follows.
	generation uint64   // of the store whose lists the decisions in force rest on
	paths      []string // that are watched
}

// newKnowledge makes the store of an engine. client goes around the firewall; cache is where lists
// are kept, "" for nowhere.
func newKnowledge(client *http.Client, cache string, log *zap.Logger) *knowledge {
	k := &knowledge{changed: make(chan struct{}, 1), spec: make(chan struct{}, 1)}
	k.remote = intel.NewRemote(intel.RemoteOptions{Client: client, Skip: nobodysBusiness, Logger: log})
	k.store = intel.New(intel.Options{
		CacheDir: cache, Client: client, Logger: log, GeoDirs: intel.GeoDirs(), Remote: k.remote, Changed: func() { signalOn(k.changed) },
	})
	return k
}

// nobodysBusiness knows the names that no server elsewhere can say anything of, or shall hear of.
func nobodysBusiness(name string) bool {
	return network.LocalName(name) || network.ConnectivityName(name) || strings.HasSuffix(name, ".arpa")
}

func signalOn(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// configure takes over what a configuration says, and reports whether decisions may be others now.
// engine.mu is held.
func (k *knowledge) configure(cfg *config.Config) (changed bool, err error) {
	if err := k.store.Configure(intelSpec(cfg)); err != nil {
		return false, err
	}
	k.remote.Configure(cfg.String("filter/remoteIntel"))
	if paths := listPaths(cfg); !slices.Equal(paths, k.paths) {
		k.paths = paths
		signalOn(k.spec)
	}
	return k.moved(), nil
}

// moved reports whether the store says other things than when it was asked last. engine.mu is held.
func (k *knowledge) moved() bool {
	g := k.store.Generation()
	moved := g != k.generation
	k.generation = g
	return moved
}

// intelSpec is what a configuration says of lists and data files.
func intelSpec(cfg *config.Config) intel.Spec {
	spec, _ := intelPlaces(cfg)
	return spec
}

// intelPlaces returns the same, and where the configuration says so, by the lists' IDs.
func intelPlaces(cfg *config.Config) (intel.Spec, map[string]config.Position) {
	geo := cfg.Geo()
	spec := intel.Spec{Country: geo.Country, ASN: geo.ASN}
	at := map[string]config.Position{}
	for _, l := range cfg.Lists() {
		at[l.ID] = l.Position
		spec.Lists = append(spec.Lists, intel.ListSpec{
			ID: l.ID, Category: l.Category, Format: l.Format, Path: l.Path, URL: l.URL, Every: l.Every, Checksum: l.Checksum,
			Source: fmt.Sprintf("%s:%d", l.File, l.Line),
		})
	}
	var seen []string
	for _, c := range cfg.Value("filter/customLists").Rules() {
		if slices.Contains(seen, c.Text) {
			continue
		}
		seen = append(seen, c.Text)
		l := intel.ListSpec{ID: customID(c.Text, at), Category: intel.Custom, Format: intel.AutoFormat, Source: fmt.Sprintf("%s:%d", c.File, c.Line)}
		if strings.Contains(c.Text, "://") {
			l.URL = c.Text
		} else {
			l.Path = c.Text
		}
		at[l.ID] = c.Position
		spec.Lists = append(spec.Lists, l)
	}
	return spec, at
}

// customID names a custom list by its file, so that people know it again.
func customID(text string, taken map[string]config.Position) string {
	place, _, _ := strings.Cut(text, "?")
	base := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
			return r
		}
		return '_'
	}, filepath.Base(place))
	id := "custom-" + base[:min(len(base), 40)]
	for n := 2; ; n++ {
		if _, another := taken[id]; !another {
			return id
		}
		id = fmt.Sprintf("custom%d-%s", n, base[:min(len(base), 40)])
	}
}

// listPaths are the files to be watched.
func listPaths(cfg *config.Config) (paths []string) {
	spec := intelSpec(cfg)
	for _, l := range spec.Lists {
		if l.Path != "" {
			paths = append(paths, l.Path)
		}
	}
	for _, p := range []string{spec.Country, spec.ASN} {
		if p != "" {
			paths = append(paths, p)
		}
	}
	return paths
}

// watchLists has files read again as soon as they change. Where they cannot be watched the store
// looks from time to time.
func (e *engine) watchLists(ctx context.Context) error {
	for ctx.Err() == nil {
		one, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			paths := e.watched()
			if len(paths) == 0 {
				return
			}
			if err := config.Watch(one, paths, e.known.store.Poll); err != nil {
				e.opt.log.Warn("filter lists are looked at every half minute only", zap.Error(err))
			}
		}()
		select {
		case <-ctx.Done():
		case <-e.known.spec:
		}
		cancel()
		<-done
	}
	return nil
}

func (e *engine) watched() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.known.paths
}

// followLists decides live flows again when lists or data files have changed.
func (e *engine) followLists(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.known.changed:
			e.listsChanged()
		}
	}
}

func (e *engine) listsChanged() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.listsMoved()
}

// addresses resolves the names of the program's own requests.
func (e *engine) addresses(ctx context.Context, name string) ([]netip.Addr, error) {
	return e.server.Addresses(ctx, name)
}

// listsMoved puts in force what lists and data files say now. e.mu is held.
func (e *engine) listsMoved() {
	if !e.known.moved() {
		return // somebody has seen to it
	}
	e.opt.store.Renew()
	closed := e.policyChanged()
	e.opt.log.Info("filter lists in force", zap.Uint64("revision", e.opt.store.Revision()), zap.Int("flows closed", closed))
}

// ownClient makes the HTTP client of the program's own requests: around the TUN, with names that
// our own nameserver resolves. No proxy of the environment is asked, and no cookie kept.
func ownClient(d *route.Dialer, names func(ctx context.Context, name string) ([]netip.Addr, error)) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return dialName(ctx, d, names, network, address)
		},
		ForceAttemptHTTP2: true, MaxIdleConns: 8, MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute,
		TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 30 * time.Second, ExpectContinueTimeout: time.Second,
	}}
}

// dialEach is how long one address of a name may take where there are others.
const dialEach = 5 * time.Second

func dialName(ctx context.Context, d *route.Dialer, names func(context.Context, string) ([]netip.Addr, error), network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return d.DialContext(ctx, network, address)
	}
	addrs, err := names(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", host, err)
	}
	var failed error
	for i, a := range addrs {
		one, cancel := ctx, context.CancelFunc(func() {})
		if i < len(addrs)-1 {
			one, cancel = context.WithTimeout(ctx, dialEach)
		}
		c, err := d.DialContext(one, network, net.JoinHostPort(a.String(), port))
		cancel()
		if err == nil {
			return c, nil
		}
		if failed == nil || ctx.Err() == nil {
			failed = err
		}
	}
	return nil, failed
}

// module says how intelligence is.
func (k *knowledge) module(needsGeo bool, missing uint64) status.Module {
	m := status.Module{Name: "intelligence"}
	lists := k.store.Status()
	entries, faults := 0, []string{}
	for _, l := range lists {
		entries += l.Entries
		switch {
		case l.Error != "":
			faults = append(faults, "list "+l.ID+": "+l.Error)
		case l.Warning != "":
			faults = append(faults, "list "+l.ID+": "+l.Warning)
		case l.Updated.IsZero():
			faults = append(faults, "list "+l.ID+": not fetched yet")
		}
	}
	parts := []string{"no filter lists"}
	if len(lists) > 0 {
		parts[0] = fmt.Sprintf("%d filter lists, %d entries", len(lists), entries)
	}
	files := k.store.Geo()
	usable := 0
	for _, f := range files {
		if f.Error != "" {
			faults = append(faults, f.Path+": "+f.Error)
		}
		if f.Type != "" {
			usable++
			parts = append(parts, f.Kind+" data of "+f.Built.Format(time.DateOnly))
		}
	}
	if usable == 0 {
		parts = append(parts, "no country and ASN data")
		if needsGeo && k.remote.Status().URL == "" {
			faults = append(faults, "rules about countries and networks do not match: there is no data (geo:)")
		}
	}
	if missing > 0 {
		parts = append(parts, fmt.Sprintf("%d times a rule found no country or network for an address", missing))
	}
	if r := k.remote.Status(); r.URL != "" {
		parts = append(parts, fmt.Sprintf("%s asked %d times, %d failed, %d late", r.URL, r.Asked, r.Failed, r.Late))
		if r.Error != "" {
			faults = append(faults, r.URL+": "+r.Error)
		}
	}
	if m.Message = strings.Join(parts, "; "); len(faults) > 0 {
		m.State, m.Message = status.Warning, strings.Join(faults, "; ")+" ("+m.Message+")"
	}
	return m
}

// queryStamp keeps what is known of the name that is asked for, and after it was resolved of the
// first address that the program may see, else of the first one.
func (f dnsFirewall) queryStamp(q *dns.Query, a *dns.Answer) {
	if f.known == nil || q.Link == nil {
		return
	}
	var (
		cnames []string
		addr   netip.Addr
	)
	if a != nil {
		cnames = a.CNAMEs
		for _, one := range a.Addrs {
			if !addr.IsValid() || slices.Contains(a.Remove, addr) && !slices.Contains(a.Remove, one) {
				addr = one
			}
		}
		if c := q.Link.Comm(); c != nil && (len(cnames) > 0 || addr.IsValid()) { // `why` decides again with it
			full := &network.Communication{Owner: c.Owner, Direction: c.Direction, Entity: c.Entity, Profile: c.Profile}
			full.Entity.CNAMEs, full.Entity.Addr, full.Entity.Local = cnames, addr, a.Local
			q.Link.SetComm(full)
		}
	}
	q.Link.SetStamp(f.known.store.Stamp(q.Name, cnames, addr))
}
