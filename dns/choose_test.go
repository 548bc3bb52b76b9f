package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"gatun/attribution"
	"gatun/network"
)

// resolverAt is a resolver that nobody asks.
func resolverAt(scheme Scheme, last byte) Resolver {
	return Resolver{Scheme: scheme, Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, last}), 53)}
}

// TestChoose: who is asked, for each kind of name under each setting.
func TestChoose(t *testing.T) {
	var (
		plain, tcp = resolverAt(SchemeDNS, 1), resolverAt(SchemeTCP, 2)
		dot, doh   = resolverAt(SchemeDoT, 3), resolverAt(SchemeHTTPS, 4)
		system     = resolverAt(SchemeDNS, 5)
		corp, deep = resolverAt(SchemeDNS, 6), resolverAt(SchemeDoT, 7)
		near       = resolverAt(SchemeDNS, 8)
		both       = resolverAt(SchemeDNS, 9)
		router     = Resolver{Scheme: SchemeDNS, Addr: netip.MustParseAddrPort("192.168.1.1:53")}
		vpn        = Resolver{Scheme: SchemeDNS, Addr: netip.MustParseAddrPort("10.8.0.1:53"), Search: "vpn.example", SearchOnly: true}
	)
	corp.Search, corp.SearchOnly = "corp.example,other.example", true
	deep.Search, deep.SearchOnly = "a.corp.example", true
	both.Search = "both.example"
	near.LinkLocal = true
	names := map[Resolver]string{plain: "plain", tcp: "tcp", dot: "dot", doh: "doh", system: "system", corp: "corp", deep: "deep", near: "near", both: "both", router: "router", vpn: "vpn"}
	for _, c := range []struct {
		name   string
		config Config
		own    []Resolver // of the program's profile
		asked  map[string]string
	}{
		{"nothing set", Config{}, nil, map[string]string{
			"www.example": "system", "host.local": "multicast system", "nas.home.arpa": "system", "captive.apple.com": "system uncached local-ok",
			"x.localhost": "local", "abc.onion": "local", "gatun": "local", "1.0.0.10.in-addr.arpa": "system", "9.9.254.169.in-addr.arpa": "multicast system",
			"nas.lan": "system", "x.corp": "system", "x.home": "system", "x.intranet": "system", "x.private": "system", "x.localdomain": "system",
			"lan": "system", "": "system", "1.8.e.f.ip6.arpa": "multicast system", "example": "system",
		}},
		{"plain", Config{Nameservers: []Resolver{plain, tcp}}, nil, map[string]string{
			"www.example": "plain,tcp system", "host.local": "multicast system", "captive.apple.com": "system plain,tcp uncached local-ok",
			"nas.lan": "system", "lan": "plain,tcp system", "": "plain,tcp system",
		}},
		{"without the system's", Config{Nameservers: []Resolver{plain}, NoAssigned: true}, nil, map[string]string{
			"www.example": "plain", "nas.home.arpa": "system", "captive.apple.com": "plain uncached",
		}},
		{"only encrypted", Config{Nameservers: []Resolver{dot, doh}}, nil, map[string]string{
			"www.example": "dot,doh", "nas.home.arpa": "system", "captive.apple.com": "system dot,doh uncached local-ok",
		}},
		{"encrypted and plain", Config{Nameservers: []Resolver{dot, plain}}, nil, map[string]string{"www.example": "dot,plain system"}},
		{"nothing in the clear", Config{Nameservers: []Resolver{plain, dot, corp, deep}, NoInsecure: true}, nil, map[string]string{
			"www.example": "dot", "nas.home.arpa": "nobody", "captive.apple.com": "dot uncached", "x.corp.example": "dot", "x.a.corp.example": "deep local-ok",
		}},
		{"nothing in the clear, nothing set", Config{NoInsecure: true}, nil, map[string]string{"www.example": "nobody"}},
		{"search", Config{Nameservers: []Resolver{plain, corp, deep, both}}, nil, map[string]string{
			"www.example": "plain,both system", "corp.example": "corp local-ok", "x.corp.example": "corp local-ok", "xcorp.example": "plain,both system",
			"a.corp.example": "deep corp local-ok", "b.a.corp.example": "deep corp local-ok", "other.example": "corp local-ok",
			`b\.corp.example`: "plain,both system", "x.both.example": "both local-ok", "example": "plain,both system",
		}},
		{"only for search", Config{Nameservers: []Resolver{corp}}, nil, map[string]string{"www.example": "system", "corp.example": "corp local-ok"}},
		{"search and encrypted", Config{Nameservers: []Resolver{corp, dot}}, nil, map[string]string{"www.example": "dot", "corp.example": "corp local-ok"}},
		{"of this network", Config{Nameservers: []Resolver{plain, near}}, nil, map[string]string{
			"www.example": "plain,near system", "nas.home.arpa": "near system", "host.local": "multicast near system",
		}},
		{"a host of this network", Config{Nameservers: []Resolver{router, vpn}, NoAssigned: true}, nil, map[string]string{
			"www.example": "router", "nas.lan": "router system", "host.local": "multicast router system", "x.vpn.example": "vpn local-ok",
		}},
		{"no multicast", Config{NoMulticast: true}, nil, map[string]string{"host.local": "system"}},
		{"special names like others", Config{Nameservers: []Resolver{plain}, ResolveSpecial: true}, nil, map[string]string{
			"abc.onion": "plain system", "host.local": "plain system", "x.gatun": "local", "localhost": "local",
		}},
		{"of the profile", Config{Nameservers: []Resolver{plain}}, []Resolver{dot}, map[string]string{"www.example": "dot", "nas.home.arpa": "system"}},
		{"plain of the profile", Config{Nameservers: []Resolver{dot}}, []Resolver{plain}, map[string]string{"www.example": "plain system"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, func(o *Options) {
				o.Config = c.config
				o.System = func() []Resolver { return []Resolver{system} }
				o.Nameservers = func(attribution.Owner) []Resolver { return c.own }
			})
			for name, want := range c.asked {
				got := r.choose(owner("/bin/a", 0), name)
				var parts []string
				if got.multicast {
					parts = append(parts, "multicast")
				}
				for _, g := range got.groups {
					var group []string
					for _, s := range g {
						group = append(group, names[s])
					}
					parts = append(parts, strings.Join(group, ","))
				}
				if len(parts) == 0 {
					parts = append(parts, map[bool]string{true: "local", false: "nobody"}[got.where == routeLocal])
				}
				if got.uncached {
					parts = append(parts, "uncached")
				}
				if got.local && !network.LocalName(name) {
					parts = append(parts, "local-ok")
				}
				if strings.Join(parts, " ") != want {
					t.Errorf("%q: got %q, want %q", name, strings.Join(parts, " "), want)
				}
			}
		})
	}
}

// TestProfilesDoNotShare: programs whose profiles have other nameservers get other answers, and
// neither sees what the other's had said.
func TestProfilesDoNotShare(t *testing.T) {
	up := func(addr string) *upstreamSpy {
		return answering(t, func(q *mdns.Msg) *mdns.Msg {
			return respond(t, q, mdns.RcodeSuccess, q.Question[0].Name+" 300 IN A "+addr)
		})
	}
	global, kids, work := up("198.51.100.1"), up("198.51.100.2"), up("198.51.100.3")
	lists := map[string][]Resolver{"/bin/kids": {kids.resolver()}, "/bin/work": {work.resolver()}, "/bin/kids2": {kids.resolver()}}
	r := newRig(t, func(o *Options) {
		o.Nameservers = func(w attribution.Owner) []Resolver { return slices.Clone(lists[w.Process.Path]) } // equal, not the same
	}, global.resolver())
	for range 2 {
		for path, want := range map[string]string{"/bin/a": "198.51.100.1", "/bin/kids": "198.51.100.2", "/bin/work": "198.51.100.3", "/bin/kids2": "198.51.100.2"} {
			if got := values(r.queryAs(t, owner(path, 0), ask("v.example", mdns.TypeA))); got != want {
				t.Errorf("%s got %s, want %s", path, got, want)
			}
		}
	}
	if global.queries.Load() != 1 || kids.queries.Load() != 1 || work.queries.Load() != 1 {
		t.Errorf("asked %d, %d, %d times; want once each", global.queries.Load(), kids.queries.Load(), work.queries.Load())
	}
	cached := r.Cached("v.")
	if len(cached) != 3 {
		t.Fatalf("cached %+v", cached)
	}
	shared := 0
	for _, e := range cached {
		if e.Shared {
			shared++
		}
	}
	if shared != 1 {
		t.Errorf("%d of the answers are for everybody, want 1", shared)
	}
	var sources []string
	for _, n := range r.Nameservers() {
		sources = append(sources, string(n.Source))
	}
	if slices.Sort(sources); strings.Join(sources, " ") != "configured profile profile" {
		t.Errorf("nameservers of %v", sources)
	}
	// However many lists come by, what is kept is bounded, and nobody gets another's answer.
	for i := range 3 * maxLists {
		x := resolverAt(SchemeDNS, byte(i))
		x.Addr = netip.AddrPortFrom(x.Addr.Addr(), uint16(1000+i))
		lists["/bin/x"] = []Resolver{x}
		r.choose(owner("/bin/x", 0), "v.example")
		if len(r.upstream.lineups) > maxLists {
			t.Fatalf("%d lists", len(r.upstream.lineups))
		}
	}
	if got := values(r.queryAs(t, owner("/bin/kids", 0), ask("v.example", mdns.TypeA))); got != "198.51.100.2" {
		t.Errorf("got %s", got)
	}
}

// TestScopesAreDistinct: two choices share a scope only if the same nameservers are asked.
func TestScopesAreDistinct(t *testing.T) {
	corp := resolverAt(SchemeDNS, 1)
	corp.Search = "corp.example"
	r := newRig(t, func(o *Options) {
		o.System = func() []Resolver { return []Resolver{resolverAt(SchemeDNS, 2)} }
		o.Nameservers = func(w attribution.Owner) []Resolver {
			return map[string][]Resolver{"/bin/b": {resolverAt(SchemeDNS, 3)}, "/bin/c": {resolverAt(SchemeDoT, 3)}}[w.Process.Path]
		}
	}, corp)
	seen := map[uint64]string{}
	look := func(round string) {
		for _, path := range []string{"/bin/a", "/bin/b", "/bin/c"} {
			for _, name := range []string{"www.example", "x.corp.example", "x.local", "x.home.arpa", "captive.apple.com"} {
				c := r.choose(owner(path, 0), name)
				id := fmt.Sprint(round, c.where, c.groups)
				if old, ok := seen[c.scope]; ok && old != id {
					t.Errorf("scope %x is that of %s and of %s", c.scope, old, id)
				}
				seen[c.scope] = id
			}
		}
	}
	look("first ")
	n := len(seen)
	look("first ")
	if len(seen) != n || n < 12 {
		t.Errorf("%d scopes, then %d", n, len(seen))
	}
	r.Configure(Config{NoAssigned: true})
	look("second ")
}

// TestConnectivityNames: a captive portal lies about them, so the system's nameserver is asked
// each time, and what it says is not kept.
func TestConnectivityNames(t *testing.T) {
	configured, system := simple(t), simple(t)
	r := newRig(t, func(o *Options) { o.System = func() []Resolver { return []Resolver{system.resolver()} } }, configured.resolver())
	for i := range 3 {
		reply := r.query(t, ask("captive.apple.com", mdns.TypeA))
		if len(reply.Answer) != 1 || reply.Answer[0].Header().Ttl != 0 {
			t.Fatalf("got %v", reply)
		}
		if system.queries.Load() != int64(i+1) || configured.queries.Load() != 0 {
			t.Fatalf("system asked %d times, configured %d times", system.queries.Load(), configured.queries.Load())
		}
	}
	if len(r.Cached("")) != 0 {
		t.Errorf("cached %v", r.Cached(""))
	}
	r.query(t, ask("www.example", mdns.TypeA))
	if len(r.Cached("")) != 1 || configured.queries.Load() != 1 {
		t.Errorf("positive control: cached %v", r.Cached(""))
	}
}

// TestConfigureKeeps: only a change that matters costs the cache.
func TestConfigureKeeps(t *testing.T) {
	up := simple(t)
	config := Config{Nameservers: []Resolver{up.resolver()}}
	r := newRig(t, nil, up.resolver())
	r.query(t, ask("v.example", mdns.TypeA))
	r.Configure(Config{Nameservers: []Resolver{up.resolver()}})
	if r.query(t, ask("v.example", mdns.TypeA)); up.queries.Load() != 1 {
		t.Error("the same settings cost the cache")
	}
	for i, change := range []func(*Config){
		func(c *Config) { c.NoAssigned = true }, func(c *Config) { c.NoInsecure = true }, func(c *Config) { c.NoMulticast = true },
		func(c *Config) { c.ResolveSpecial = true }, func(c *Config) { c.UseStale = true }, func(c *Config) { c.RetryRate = time.Minute },
		func(c *Config) { c.Nameservers = nil },
	} {
		other := config
		change(&other)
		if config.equal(other) || !other.equal(other) {
			t.Errorf("change %d is not seen", i)
		}
	}
}

// TestMoved: what another network's nameservers said is not served, nor is what they say late.
func TestMoved(t *testing.T) {
	release := make(chan struct{})
	var value atomic.Value
	value.Store("10.0.0.1")
	up := newUpstream(t, func(q *mdns.Msg, _ []byte, _ netip.AddrPort, send func([]byte)) {
		b := packed(t, respond(t, q, mdns.RcodeSuccess, q.Question[0].Name+" 3600 IN A "+value.Load().(string)))
		if strings.HasPrefix(q.Question[0].Name, "late.") && value.Load() == "10.0.0.1" {
			go func() { <-release; send(b) }()
			return
		}
		send(b)
	}, nil)
	r := newRig(t, nil, up.resolver())
	if got := values(r.query(t, ask("v.example", mdns.TypeA))); got != "10.0.0.1" {
		t.Fatalf("got %s", got)
	}
	late := make(chan string)
	go func() { late <- values(r.query(t, ask("late.example", mdns.TypeA))) }()
	eventually(t, "the late one is asked", func() bool { return up.queries.Load() == 2 })
	r.Moved()
	close(release)
	if got := <-late; got != "10.0.0.1" {
		t.Fatalf("got %s", got)
	}
	value.Store("10.0.0.2")
	for _, name := range []string{"v.example", "late.example"} {
		if got := values(r.query(t, ask(name, mdns.TypeA))); got != "10.0.0.2" {
			t.Errorf("%s: got %s of the network before", name, got)
		}
	}
}
