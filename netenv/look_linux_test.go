package netenv

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nlenc"
	vnetlink "github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const running4 = unix.IFF_UP | unix.IFF_RUNNING

func attrs(name string, index int, flags uint32, encap string) vnetlink.LinkAttrs {
	return vnetlink.LinkAttrs{Name: name, Index: index, RawFlags: flags, EncapType: encap}
}

func kernelOf(ignore ...string) *kernel {
	return &kernel{ignore: ignore, log: zap.NewNop(), macs: map[neighbour]string{}, broken: map[int]bool{}}
}

// The kinds that this machine's kernel may not be able to make: WireGuard, PPP, Wi-Fi.
func TestKindOf(t *testing.T) {
	wireless := func(name string, index int) bool { return name == "wlp1s0" && index == 3 }
	for want, links := range map[string][]vnetlink.Link{
		"ethernet":  {&vnetlink.Device{LinkAttrs: attrs("eth0", 2, 0, "ether")}},
		"wireless":  {&vnetlink.Device{LinkAttrs: attrs("wlp1s0", 3, 0, "ether")}, &vnetlink.GenericLink{LinkType: "wlan"}},
		"wireguard": {&vnetlink.Wireguard{LinkAttrs: attrs("wg0", 4, 0, "none")}},
		"tun":       {&vnetlink.Tuntap{Mode: vnetlink.TUNTAP_MODE_TUN}, &vnetlink.GenericLink{LinkType: "tun"}},
		"tap":       {&vnetlink.Tuntap{Mode: vnetlink.TUNTAP_MODE_TAP}},
		"ppp":       {&vnetlink.GenericLink{LinkType: "ppp"}, &vnetlink.Device{LinkAttrs: attrs("ppp0", 5, 0, "ppp")}},
		"bridge":    {&vnetlink.Bridge{}},
		"veth":      {&vnetlink.Veth{}},
		"bond":      {&vnetlink.Bond{}},
		"vlan":      {&vnetlink.Vlan{}},
		"loopback":  {&vnetlink.Device{LinkAttrs: vnetlink.LinkAttrs{Name: "lo", Flags: net.FlagLoopback, EncapType: "loopback"}}},
		"other":     {&vnetlink.Device{LinkAttrs: attrs("wwan0", 6, 0, "none")}},
	} {
		for _, l := range links {
			if got := kindOf(l, wireless); got != want {
				t.Errorf("%s %q: %s, want %s", l.Type(), l.Attrs().Name, got, want)
			}
		}
	}
}

// The real directory is that of the namespace for which sysfs was mounted.
func TestWirelessIn(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"wlan0/phy80211", "wlan1/phy80211", "eth0"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, index := range map[string]string{"wlan0": "3\n", "eth0": "2\n"} {
		if err := os.WriteFile(filepath.Join(dir, name, "ifindex"), []byte(index), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name  string
		index int
		want  bool
	}{{"wlan0", 3, true}, {"wlan0", 33, false}, {"wlan1", 4, false}, {"eth0", 2, false}, {"eth9", 9, false}} {
		if got := wirelessIn(dir)(c.name, c.index); got != c.want {
			t.Errorf("%s, %d: %v", c.name, c.index, got)
		}
	}
}

func TestVPNIsWhatTrafficLeadsInto(t *testing.T) {
	wg := func(flags uint32) vnetlink.Link {
		return &vnetlink.Wireguard{LinkAttrs: attrs("wg0", 4, flags, "none")}
	}
	tun := &vnetlink.Tuntap{LinkAttrs: attrs("gatun0", 5, running4, "none"), Mode: vnetlink.TUNTAP_MODE_TUN}
	for _, c := range []struct {
		name  string
		links []vnetlink.Link
		leads []int
		want  bool
	}{
		{"wireguard with a route", []vnetlink.Link{wg(running4)}, []int{4}, true},
		{"no route", []vnetlink.Link{wg(running4)}, nil, false},
		{"a route to another", []vnetlink.Link{wg(running4)}, []int{2}, false},
		{"switched off", []vnetlink.Link{wg(0)}, []int{4}, false},
		{"nobody holds the device", []vnetlink.Link{wg(unix.IFF_UP)}, []int{4}, false},
		{"our own", []vnetlink.Link{tun}, []int{5}, false},
		{"our own and wireguard", []vnetlink.Link{tun, wg(running4)}, []int{5, 4}, true},
		{"ppp", []vnetlink.Link{&vnetlink.GenericLink{LinkAttrs: attrs("ppp0", 6, running4, "ppp"), LinkType: "ppp"}}, []int{6}, true},
		{"tap of a virtual machine", []vnetlink.Link{&vnetlink.Tuntap{LinkAttrs: attrs("tap0", 7, running4, "ether"), Mode: vnetlink.TUNTAP_MODE_TAP}}, []int{7}, false},
		{"veth of a container", []vnetlink.Link{&vnetlink.Veth{LinkAttrs: attrs("veth1", 8, running4, "ether")}}, []int{8}, false},
	} {
		l := listing{links: c.links, leads: map[int]bool{}}
		for _, i := range c.leads {
			l.leads[i] = true
		}
		s := kernelOf("gatun0").assemble(l)
		if s.VPN != c.want {
			t.Errorf("%s: VPN %v", c.name, s.VPN)
		}
		if slices.ContainsFunc(s.Interfaces, func(i Interface) bool { return i.Name == "gatun0" }) {
			t.Errorf("%s: our own device is listed", c.name)
		}
	}
}

// The kernel's table forgets idle routers; what is known of a gateway lives as long as it and
// its link do.
func TestGatewayMACOutlivesTheNeighbourEntry(t *testing.T) {
	gw := neighbour{netip.MustParseAddr("192.0.2.1"), 2}
	mac := func(s string) net.HardwareAddr { m, _ := net.ParseMAC(s); return m }
	entry := func(state int, m string) []vnetlink.Neigh {
		return []vnetlink.Neigh{{IP: gw.addr.AsSlice(), LinkIndex: gw.index, State: state, HardwareAddr: mac(m)}}
	}
	const first, second = "02:00:5e:10:00:02", "02:00:5e:10:00:03"
	k := kernelOf()
	look := func(hops []hop, neighs []vnetlink.Neigh) string {
		t.Helper()
		out := k.routers(listing{hops: hops, neighs: neighs}, map[int]string{2: "eth0"})
		if len(out) == 0 {
			return "none"
		}
		return out[0].MAC
	}
	there := []hop{{gw, 100}}
	for i, step := range []struct {
		hops   []hop
		neighs []vnetlink.Neigh
		want   string
	}{
		{there, nil, ""},
		{there, entry(unix.NUD_INCOMPLETE, first), ""},
		{there, entry(unix.NUD_REACHABLE, first), first},
		{there, entry(unix.NUD_STALE, first), first},
		{there, nil, first},                            // collected
		{there, entry(unix.NUD_FAILED, first), first},  // silent
		{there, entry(unix.NUD_DELAY, second), second}, // another router took over
		{there, nil, second},
		{nil, nil, "none"}, // the route went away
		{there, nil, ""},
		{there, entry(unix.NUD_PERMANENT, first), first},
	} {
		if got := look(step.hops, step.neighs); got != step.want {
			t.Errorf("step %d: MAC %q, want %q", i, got, step.want)
		}
	}
}

func TestGatewaysAreOrderedByMetric(t *testing.T) {
	at := func(addr string, index, metric int) hop {
		return hop{neighbour{netip.MustParseAddr(addr), index}, metric}
	}
	k := kernelOf()
	got := k.routers(listing{hops: []hop{
		at("fe80::1", 2, 100), at("192.0.2.9", 3, 600), at("192.0.2.1", 2, 100), at("192.0.2.1", 2, 700), at("192.0.2.5", 99, 1),
	}}, map[int]string{2: "eth0", 3: "wlan0"})
	want := []Gateway{{Addr: netip.MustParseAddr("192.0.2.1"), Interface: "eth0"},
		{Addr: netip.MustParseAddr("fe80::1"), Interface: "eth0"}, {Addr: netip.MustParseAddr("192.0.2.9"), Interface: "wlan0"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v: each once, those of unlisted links not at all", got, want)
	}
}

// message builds a notification: the fixed part with values set at their offsets, then attributes.
func message(t *testing.T, kind netlink.HeaderType, size int, fixed map[int]any, attrs ...netlink.Attribute) netlink.Message {
	t.Helper()
	b := make([]byte, size)
	for at, v := range fixed {
		switch v := v.(type) {
		case uint8:
			b[at] = v
		case uint16:
			nlenc.PutUint16(b[at:at+2], v)
		case uint32:
			nlenc.PutUint32(b[at:at+4], v)
		}
	}
	a, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		t.Fatal(err)
	}
	return netlink.Message{Header: netlink.Header{Type: kind}, Data: append(b, a...)}
}

// A busy network has many notifications that cannot change a Snapshot; none that can may be
// among those that are passed over.
func TestWhichNotificationsMatter(t *testing.T) {
	gw := netip.MustParseAddr("192.0.2.1")
	route := func(kind netlink.HeaderType, bits, rtype uint8, attrs ...netlink.Attribute) netlink.Message {
		return message(t, kind, unix.SizeofRtMsg, map[int]any{1: bits, 7: rtype}, attrs...)
	}
	oif := func(i uint32) netlink.Attribute {
		return netlink.Attribute{Type: unix.RTA_OIF, Data: nlenc.Uint32Bytes(i)}
	}
	neigh := func(kind netlink.HeaderType, family uint8, index uint32, state uint16, addr string) netlink.Message {
		return message(t, kind, unix.SizeofNdMsg, map[int]any{0: family, 4: index, 8: state},
			netlink.Attribute{Type: unix.NDA_DST, Data: netip.MustParseAddr(addr).AsSlice()})
	}
	link := func(kind netlink.HeaderType, family uint8, index, flags uint32) netlink.Message {
		return message(t, kind, unix.SizeofIfInfomsg, map[int]any{0: family, 4: index, 8: flags})
	}
	for _, c := range []struct {
		name    string
		m       netlink.Message
		matters bool
		broken  int
	}{
		{"link up", link(unix.RTM_NEWLINK, 0, 7, running4), true, 0},
		{"no carrier", link(unix.RTM_NEWLINK, 0, 7, unix.IFF_UP), true, 7},
		{"link gone", link(unix.RTM_DELLINK, 0, 7, running4), true, 7},
		{"port left a bridge", link(unix.RTM_DELLINK, unix.AF_BRIDGE, 7, running4), false, 0},
		{"cut link message", netlink.Message{Header: netlink.Header{Type: unix.RTM_NEWLINK}, Data: []byte{0}}, true, 0},
		{"address", netlink.Message{Header: netlink.Header{Type: unix.RTM_NEWADDR}}, true, 0},
		{"address gone", netlink.Message{Header: netlink.Header{Type: unix.RTM_DELADDR}}, true, 0},
		{"default route", route(unix.RTM_NEWROUTE, 0, unix.RTN_UNICAST, oif(2)), true, 0},
		{"default route gone", route(unix.RTM_DELROUTE, 0, unix.RTN_UNICAST, oif(2)), true, 0},
		{"some route", route(unix.RTM_NEWROUTE, 24, unix.RTN_UNICAST, oif(2)), false, 0},
		{"route into a VPN", route(unix.RTM_NEWROUTE, 24, unix.RTN_UNICAST, oif(4)), true, 0},
		{"several hops", route(unix.RTM_NEWROUTE, 24, unix.RTN_UNICAST), true, 0},
		{"local route", route(unix.RTM_NEWROUTE, 32, unix.RTN_LOCAL, oif(4)), false, 0},
		{"cut route", netlink.Message{Header: netlink.Header{Type: unix.RTM_NEWROUTE}, Data: []byte{1}}, true, 0},
		{"gateway's neighbour entry", neigh(unix.RTM_NEWNEIGH, unix.AF_INET, 2, unix.NUD_REACHABLE, "192.0.2.1"), true, 0},
		{"unresolved", neigh(unix.RTM_NEWNEIGH, unix.AF_INET, 2, unix.NUD_FAILED, "192.0.2.1"), false, 0},
		{"same address on another link", neigh(unix.RTM_NEWNEIGH, unix.AF_INET, 3, unix.NUD_REACHABLE, "192.0.2.1"), false, 0},
		{"another host", neigh(unix.RTM_NEWNEIGH, unix.AF_INET, 2, unix.NUD_REACHABLE, "192.0.2.77"), false, 0},
		{"bridge's table", neigh(unix.RTM_NEWNEIGH, unix.AF_BRIDGE, 2, unix.NUD_REACHABLE, "192.0.2.1"), false, 0},
		{"collected", neigh(unix.RTM_DELNEIGH, unix.AF_INET, 2, unix.NUD_STALE, "192.0.2.1"), false, 0},
		{"cut neighbour", netlink.Message{Header: netlink.Header{Type: unix.RTM_NEWNEIGH}, Data: []byte{2}}, true, 0},
	} {
		k := kernelOf()
		k.seen = seen{gateways: map[neighbour]bool{{gw, 2}: true}, vpns: map[int]bool{4: true}}
		if got := k.matter([]netlink.Message{c.m}); got != c.matters {
			t.Errorf("%s: matters %v, want %v", c.name, got, c.matters)
		}
		if (c.broken != 0) != k.broken[7] {
			t.Errorf("%s: broken links %v", c.name, k.broken)
		}
		if !c.matters { // while a look is on, what it will find is not known yet
			k.seen.looking = true
			if !k.matter([]netlink.Message{c.m}) {
				t.Errorf("%s: passed over during a look", c.name)
			}
		}
	}
}
