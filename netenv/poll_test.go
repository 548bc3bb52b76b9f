package netenv

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// mac is the usual list of a Mac with a VPN: several utun of the system's own, one that works.
func mac() ([]net.Interface, map[string][]net.Addr) {
	up := net.FlagUp | net.FlagRunning
	cidr := func(texts ...string) []net.Addr {
		var out []net.Addr
		for _, s := range texts {
			ip, n, err := net.ParseCIDR(s)
			if err != nil {
				panic(err)
			}
			out = append(out, &net.IPNet{IP: ip, Mask: n.Mask})
		}
		return out
	}
	return []net.Interface{
			{Index: 9, Name: "utun3", Flags: up | net.FlagPointToPoint},
			{Index: 1, Name: "lo0", Flags: up | net.FlagLoopback},
			{Index: 4, Name: "en0", Flags: up, HardwareAddr: net.HardwareAddr{2, 0, 0x5e, 0x10, 0, 1}},
			{Index: 5, Name: "en1", Flags: net.FlagUp},
			{Index: 7, Name: "utun0", Flags: up | net.FlagPointToPoint},
			{Index: 8, Name: "gatun0", Flags: up},
		}, map[string][]net.Addr{
			"lo0":    cidr("127.0.0.1/8", "::1/128"),
			"en0":    cidr("192.0.2.7/24", "2001:db8::7/64"),
			"utun0":  cidr("fe80::1/64"),
			"utun3":  cidr("10.9.0.2/32"),
			"gatun0": cidr("10.8.0.1/32"),
		}
}

func TestPollerLook(t *testing.T) {
	p := newPoller(Options{Ignore: []string{"gatun0"}})
	list, addrs := mac()
	p.list = func() ([]net.Interface, error) { return list, nil }
	p.addrs = func(i net.Interface) ([]net.Addr, error) { return addrs[i.Name], nil }
	s, err := p.look()
	if err != nil {
		t.Fatal(err)
	}
	want := Snapshot{VPN: true, DefaultRoute: true, Interfaces: []Interface{
		{Name: "lo0", Index: 1, Kind: "loopback", Up: true, Addrs: prefixes("127.0.0.1/8", "::1/128")},
		{Name: "en0", Index: 4, MAC: "02:00:5e:10:00:01", Kind: "ethernet", Up: true, Addrs: prefixes("192.0.2.7/24", "2001:db8::7/64")},
		{Name: "en1", Index: 5, Kind: "ethernet"},
		{Name: "utun0", Index: 7, Kind: "tun", Up: true, Addrs: prefixes("fe80::1/64")},
		{Name: "utun3", Index: 9, Kind: "tun", Up: true, Addrs: prefixes("10.9.0.2/32")},
	}}
	if !s.Equal(want) {
		t.Errorf("got  %+v\nwant %+v", s, want)
	}
	delete(addrs, "utun3")
	if s, err = p.look(); err != nil || s.VPN {
		t.Errorf("a utun of the system counts as a VPN (%v)", err)
	}
	p.addrs = func(net.Interface) ([]net.Addr, error) { return nil, errors.New("gone") }
	if s, err = p.look(); err != nil || len(s.Interfaces) != 0 {
		t.Errorf("interfaces that went away: %+v, %v", s, err)
	}
	p.list = func() ([]net.Interface, error) { return nil, errors.New("no") }
	if _, err = p.look(); err == nil {
		t.Error("no error where nothing can be listed")
	}
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out
}

func TestPollerTellsChanges(t *testing.T) {
	p := newPoller(Options{})
	p.every = 5 * time.Millisecond
	list, addrs := mac()
	after := time.Now().Add(50 * time.Millisecond)
	p.list = func() ([]net.Interface, error) {
		if time.Now().After(after) {
			return list[:1], nil
		}
		return list, nil
	}
	p.addrs = func(i net.Interface) ([]net.Addr, error) { return addrs[i.Name], nil }
	m, err := start(p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	running(t, m)
	receives(t, m)
	if n := len(m.Snapshot().Interfaces); n != 1 {
		t.Errorf("%d interfaces, want 1", n)
	}
	silent(t, m, 50*time.Millisecond)
}

// The system's own list can be read.
func TestPollerHere(t *testing.T) {
	s, err := newPoller(Options{}).look()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(s.Interfaces, func(i Interface) bool { return i.Kind == kindLoopback }) {
		t.Errorf("no loopback in %+v", s.Interfaces)
	}
}

func TestKindByName(t *testing.T) {
	for name, want := range map[string]string{
		"lo0": "other", "en0": "ethernet", "eth0": "ethernet", "Ethernet 2": "ethernet", "Wi-Fi": "wireless", "wlan0": "wireless",
		"utun4": "tun", "tun0": "tun", "tap0": "tap", "wg0": "wireguard", "WireGuard Tunnel": "wireguard", "ppp0": "ppp",
		"bridge100": "bridge", "awdl0": "other", "": "other",
	} {
		if got := kindByName(name, 0); got != want {
			t.Errorf("kindByName(%q) = %q, want %q", name, got, want)
		}
	}
	if got := kindByName("Loopback Pseudo-Interface 1", net.FlagLoopback); got != kindLoopback {
		t.Errorf("the loopback is %q", got)
	}
}
