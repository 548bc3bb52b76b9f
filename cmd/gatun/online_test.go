package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatun/api"
	"gatun/config"
	"gatun/dns"
	"gatun/netenv"
	"gatun/network/packet"
	"gatun/status"
	"gatun/tun/handback"
	"gatun/tun/route"
)

// TestTellsOfNetwork: what a failed connection says about the network, and what it does not.
func TestTellsOfNetwork(t *testing.T) {
	hop := netip.MustParseAddr("192.0.2.1")
	for _, c := range []struct {
		port uint16
		err  error
		want bool
	}{
		{443, syscall.ENETUNREACH, true},
		{7, packet.HostUnreachable(hop), true},
		{7, packet.AdminProhibited(hop), true},
		{7, fmt.Errorf("dial: %w", os.NewSyscallError("connect", syscall.ETIMEDOUT)), true},
		{443, syscall.ECONNREFUSED, true},
		{80, syscall.ECONNREFUSED, true},
		{22, syscall.ECONNREFUSED, false},
		{443, syscall.ECONNRESET, false},
		{443, syscall.EMFILE, false},
		{443, errors.New("internal"), false},
	} {
		if got := tellsOfNetwork(c.port, c.err); got != c.want {
			t.Errorf("port %d, %v: %v", c.port, c.err, got)
		}
	}
}

// TestProbe: `run` asks nobody, whatever the settings say.
func TestProbe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gatun.yaml")
	if err := os.WriteFile(file, []byte("version: 1\nnetwork: {onlineCheck: \"http://check.example/#x\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(config.Source{File: file, Data: config.OpenData("")})
	if err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[string]string{"up": "http://check.example/#x", "run": ""} {
		e := &engine{opt: engineOptions{mode: mode, dialer: &route.Dialer{}}, server: dns.New(dns.Options{})}
		if p := e.probe(cfg); p.URL != want || p.Dial == nil || p.Resolve == nil {
			t.Errorf("%s: %q, want %q", mode, p.URL, want)
		}
		e.followProbe(cfg) // nothing is known of the networks: nothing happens
		e.dialed(netip.MustParseAddrPort("198.51.100.1:443"), nil)
		e.inquired(nil)
	}
}

func TestNetworksModule(t *testing.T) {
	for online, want := range map[netenv.OnlineState]struct {
		state status.ModuleState
		says  string
	}{
		netenv.Unknown: {status.OK, "rated danger by default; online: unknown"}, netenv.Online: {status.OK, "online: online"},
		netenv.Offline: {status.Info, "no network"}, netenv.Limited: {status.Info, "nothing in the Internet answers"},
		netenv.SemiOnline: {status.Info, "network/onlineCheck"}, netenv.Portal: {status.Warning, "log in at http://login.example/"},
	} {
		m := networksModule(&api.Status{Rating: "danger", RatingOrigin: "default", Online: online.String(), Portal: "http://login.example/"})
		if m.Name != "networks" || m.State != want.state || !strings.Contains(m.Message, want.says) {
			t.Errorf("%s: %+v, want %s with %q", online, m, want.state, want.says)
		}
	}
	if m := new(engine).networksModule(&api.Status{}); m.State != status.Warning {
		t.Errorf("where nothing is known: %+v", m)
	}
}

// TestSystemNames: who asks because something changed is not told what was read a moment ago.
func TestSystemNames(t *testing.T) {
	root := t.TempDir()
	write := func(text string) {
		if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "etc/resolv.conf"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("nameserver 192.0.2.53\n")
	ask := systemNames(dns.NewSystem(dns.SystemOptions{Root: root}, time.Now))
	if addrs, suffixes := ask(); fmt.Sprint(addrs) != "[192.0.2.53]" || len(suffixes) != 0 {
		t.Errorf("%v, %v", addrs, suffixes)
	}
	write("nameserver 192.0.2.54\nnameserver 2001:db8::53\nsearch home.arpa\n")
	if addrs, suffixes := ask(); fmt.Sprint(addrs) != "[192.0.2.54 2001:db8::53]" || !slices.Equal(suffixes, []string{"home.arpa"}) {
		t.Errorf("after the file was changed: %v, %v", addrs, suffixes)
	}
}

// TestInVain: what the kernel tells of a connection that it carried and that nobody answered says the
// same of the network as the relay would.
func TestInVain(t *testing.T) {
	for _, c := range []struct {
		end  handback.End
		want error
		web  bool // tells of the network where it was for the web
		all  bool // and wherever it was for
	}{
		{end: handback.End{Cause: handback.Closed}},
		{end: handback.End{Cause: handback.Revoked, Attempts: 1}},
		{handback.End{Cause: handback.Closed, Attempts: 1}, syscall.ECONNREFUSED, true, false},
		{handback.End{Cause: handback.Closed, Attempts: 3}, syscall.ETIMEDOUT, true, true},
		{handback.End{Cause: handback.Expired, Attempts: 7}, syscall.ETIMEDOUT, true, true},
	} {
		err := inVain(c.end)
		if err != c.want || err != nil && (tellsOfNetwork(443, err) != c.web || tellsOfNetwork(22, err) != c.all) {
			t.Errorf("%+v: %v", c.end, err)
		}
	}
}
