package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gatun/attribution"
	"gatun/config"
	"gatun/dns"
	"gatun/netenv"
	"gatun/network"
	"gatun/profiles"
	"gatun/status"
)

func nameserverConfig(t *testing.T, text string) *config.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gatun.yaml")
	if err := os.WriteFile(file, []byte("version: 1\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(config.Source{File: file, CheckRule: profiles.CheckRule, CheckResolver: dns.CheckResolver})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestDNSConfig(t *testing.T) {
	resolver := func(text string) dns.Resolver {
		r, err := dns.ParseResolver(text)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if got, want := dnsConfig(nameserverConfig(t, "")), (dns.Config{RetryRate: 5 * time.Minute}); !cmp.Equal(got, want, cmp.Comparer(func(a, b dns.Resolver) bool { return a == b })) {
		t.Errorf("by default %+v, want %+v", got, want)
	}
	got := dnsConfig(nameserverConfig(t, "dns:\n  nameservers: [192.0.2.1, \"tcp://192.0.2.2:5353\"]\n  noAssignedNameservers: on\n  noMulticastDNS: on\n  useStaleCache: on\n  dontResolveSpecialDomains: off\n"))
	want := dns.Config{
		Nameservers: []dns.Resolver{resolver("192.0.2.1"), resolver("tcp://192.0.2.2:5353")}, RetryRate: 5 * time.Minute,
		NoAssigned: true, NoMulticast: true, UseStale: true, ResolveSpecial: true,
	}
	if !cmp.Equal(got, want, cmp.Comparer(func(a, b dns.Resolver) bool { return a == b })) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestNameserversOfProfiles: a program is answered by the nameservers of its own profile, and only
// a program whose profile has any.
func TestNameserversOfProfiles(t *testing.T) {
	cfg := nameserverConfig(t, `dns: {nameservers: [192.0.2.1]}
profiles:
  - name: kids
    match: [{path: /usr/bin/game}]
    dns: {nameservers: [192.0.2.7, "tcp://192.0.2.8"]}
  - name: toys
    match: [{path: /usr/bin/toy}]
    dns: {nameservers: [192.0.2.7, "tcp://192.0.2.8"]}
  - name: other
    match: [{path: /usr/bin/other}]
    filter: {blockLAN: on}
`)
	store, err := profiles.NewStore(cfg, status.State{}, profiles.Options{})
	if err != nil {
		t.Fatal(err)
	}
	own := &resolverLists{lists: map[string][]dns.Resolver{}}
	of := func(path string) []dns.Resolver {
		return own.of(store.For(attribution.Owner{
			Process:    &attribution.Process{PID: 1, Path: path, Name: path, Kind: attribution.KindProgram},
			Confidence: attribution.Exact,
		}))
	}
	game, toy := of("/usr/bin/game"), of("/usr/bin/toy")
	if len(game) != 2 || game[0].Addr != netip.MustParseAddrPort("192.0.2.7:53") || game[1].Scheme != dns.SchemeTCP {
		t.Fatalf("got %v", game)
	}
	if &game[0] != &toy[0] || len(own.lists) != 1 {
		t.Error("the same list was read twice")
	}
	for _, path := range []string{"/usr/bin/other", "/usr/bin/unknown"} {
		if list := of(path); list != nil {
			t.Errorf("%s has %v", path, list)
		}
	}
	for i := range 3 * maxResolverLists {
		own.of(&profiles.Settings{Nameservers: []string{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i+1)).String()}})
	}
	if len(own.lists) > maxResolverLists {
		t.Errorf("%d lists are kept", len(own.lists))
	}
}

func TestStyleOfCanary(t *testing.T) {
	for _, c := range []struct {
		style profiles.BlockStyle
		code  string
		want  dns.BlockStyle
	}{
		{profiles.NXDomain, "rule", dns.NXDomain}, {profiles.Refused, "rule", dns.Refused}, {profiles.Zero, "list", dns.Zero},
		{profiles.Refused, "bypass-canary", dns.NXDomain}, {profiles.Zero, "bypass-canary", dns.NXDomain},
	} {
		if got := styleOf(&profiles.Settings{BlockStyle: c.style}, network.Decision{Code: c.code}); got != c.want {
			t.Errorf("%v, %s: got %v, want %v", c.style, c.code, got, c.want)
		}
	}
}

// TestWhereabouts: only another router or a portal makes it another place.
func TestWhereabouts(t *testing.T) {
	gateway := func(addr, mac string) netenv.Snapshot {
		return netenv.Snapshot{Gateways: []netenv.Gateway{{Addr: netip.MustParseAddr(addr), MAC: mac, Interface: "eth0"}}}
	}
	home := gateway("192.168.1.1", "02:00:00:00:00:01")
	same := home
	same.At, same.Interfaces, same.Online = time.Now(), []netenv.Interface{{Name: "docker0"}}, netenv.Online
	portal := home
	portal.Online = netenv.Portal
	var place whereabouts
	steps := func(list ...netenv.Snapshot) (moved bool) {
		place = whereabouts{}
		for _, s := range list {
			moved = place.moved(s)
		}
		return moved
	}
	unknown := gateway("192.168.1.1", "")
	for what, list := range map[string][]netenv.Snapshot{
		"a new interface": {home, same}, "a MAC that was learnt": {unknown, home}, "a MAC that was forgotten": {home, unknown}, "and learnt again": {home, unknown, home},
	} {
		if steps(list...) {
			t.Errorf("%s is another place", what)
		}
	}
	if !steps(home, unknown, gateway("192.168.1.1", "02:00:00:00:00:02")) {
		t.Error("a router that comes after another one was forgotten is the same place")
	}
	for what, s := range map[string]netenv.Snapshot{
		"another router of the same address": gateway("192.168.1.1", "02:00:00:00:00:02"), "another address": gateway("192.168.1.2", "02:00:00:00:00:01"),
		"a portal": portal, "no router": {},
	} {
		if !steps(home, s) {
			t.Errorf("%s is the same place", what)
		}
	}
}
