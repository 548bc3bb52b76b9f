package netenv

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	vnetlink "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// dumpTries bounds how often a listing is repeated that changed while it was read.
	dumpTries = 5
	// known are the states of a neighbour whose MAC the kernel uses.
	known = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT
	// unusable is a next hop whose link is down or without carrier.
	unusable = unix.RTNH_F_DEAD | unix.RTNH_F_LINKDOWN
	sysNet   = "/sys/class/net"
)

// listing is what the kernel was asked.
type listing struct {
	links  []vnetlink.Link
	addrs  []vnetlink.Addr
	hops   []hop        // of the default routes of the main table
	leads  map[int]bool // indexes of links that some route of any table leads to
	outs   map[int]bool // indexes of links that a default route of any table leads to
	neighs []vnetlink.Neigh
	// wireless tells the wireless among the devices that call themselves Ethernet.
	wireless func(name string, index int) bool
}

// hop is one way to a gateway.
type hop struct {
	neighbour
	metric int
}

func (k *kernel) look() (Snapshot, error) {
	k.mu.Lock()
	broken, allLost := k.broken, k.allLost
	k.broken, k.allLost, k.seen.looking = map[int]bool{}, false, true
	k.mu.Unlock()
	for n := range k.macs {
		if allLost || broken[n.index] {
			delete(k.macs, n)
		}
	}
	l, err := k.list()
	if err != nil {
		// The notes above are used up: without them a MAC might outlive its network.
		clear(k.macs)
		return Snapshot{}, err
	}
	s := k.assemble(l)
	s.At = time.Now()
	return s, nil
}

// list asks the kernel for everything. Routes and neighbours come last: a link they name is
// then there, or went away, which is notified.
func (k *kernel) list() (listing, error) {
	l := listing{wireless: wirelessIn(sysNet)}
	var err error
	if l.links, err = list("links", k.ask.LinkList); err != nil {
		return l, err
	}
	if l.addrs, err = list("addresses", func() ([]vnetlink.Addr, error) { return k.ask.AddrList(nil, vnetlink.FAMILY_ALL) }); err != nil {
		return l, err
	}
	l.leads, l.outs = map[int]bool{}, map[int]bool{}
	for _, family := range []int{vnetlink.FAMILY_V4, vnetlink.FAMILY_V6} {
		hops, err := list("routes", func() ([]hop, error) { return k.routes(family, &l) })
		if err != nil {
			return l, err
		}
		l.hops = append(l.hops, hops...)
	}
	if len(l.hops) == 0 {
		return l, nil
	}
	l.neighs, err = list("neighbours", func() ([]vnetlink.Neigh, error) { return k.ask.NeighList(0, vnetlink.FAMILY_ALL) })
	return l, err
}

// list repeats a listing until it is consistent.
func list[T any](what string, read func() ([]T, error)) ([]T, error) {
	for range dumpTries {
		out, err := read()
		if errors.Is(err, vnetlink.ErrDumpInterrupted) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", what, err)
		}
		return out, nil
	}
	return nil, fmt.Errorf("list %s: they changed each time while they were read", what)
}

// routes walks all tables of a family: a big table is not kept.
func (k *kernel) routes(family int, l *listing) ([]hop, error) {
	var hops []hop
	all := &vnetlink.Route{Table: unix.RT_TABLE_UNSPEC}
	err := k.ask.RouteListFilteredIter(family, all, vnetlink.RT_FILTER_TABLE, func(r vnetlink.Route) bool {
		if r.Type != unix.RTN_UNICAST || r.Table == unix.RT_TABLE_LOCAL || stays(r.Dst) {
			return true
		}
		for _, n := range nextHops(r) {
			l.leads[n.LinkIndex] = true
			if !isDefault(r.Dst) || n.Flags&unusable != 0 {
				continue
			}
			l.outs[n.LinkIndex] = true
			if gw, ok := gatewayOf(n); ok && r.Table == unix.RT_TABLE_MAIN {
				hops = append(hops, hop{neighbour{gw, n.LinkIndex}, r.Priority})
			}
		}
		return true
	})
	return hops, err
}

// stays reports whether a destination is link-local: every interface has such a route.
func stays(dst *net.IPNet) bool {
	return dst != nil && (dst.IP.IsLinkLocalUnicast() || dst.IP.IsMulticast()) && !isDefault(dst)
}

func isDefault(dst *net.IPNet) bool {
	if dst == nil {
		return true
	}
	ones, _ := dst.Mask.Size()
	return ones == 0
}

func nextHops(r vnetlink.Route) []*vnetlink.NexthopInfo {
	if len(r.MultiPath) > 0 {
		return r.MultiPath
	}
	return []*vnetlink.NexthopInfo{{LinkIndex: r.LinkIndex, Gw: r.Gw, Via: r.Via, Flags: r.Flags}}
}

// gatewayOf reads the router's address; an IPv4 route may name an IPv6 one.
func gatewayOf(n *vnetlink.NexthopInfo) (netip.Addr, bool) {
	ip := n.Gw
	if via, ok := n.Via.(*vnetlink.Via); ok && ip == nil {
		ip = via.Addr
	}
	gw, ok := netip.AddrFromSlice(ip)
	return gw.Unmap(), ok && !gw.IsUnspecified()
}

// assemble makes the Snapshot, and notes what later notifications are measured by.
func (k *kernel) assemble(l listing) Snapshot {
	var s Snapshot
	addrs := map[int][]netip.Prefix{}
	for _, a := range l.addrs {
		if p, ok := prefixOf(a.IPNet); ok {
			addrs[a.LinkIndex] = append(addrs[a.LinkIndex], p)
		}
	}
	names, vpns := map[int]string{}, map[int]bool{}
	for _, link := range l.links {
		a := link.Attrs()
		if slices.Contains(k.ignore, a.Name) {
			continue
		}
		i := Interface{Name: a.Name, Index: a.Index, Kind: kindOf(link, l.wireless), Addrs: addrs[a.Index],
			Up: a.RawFlags&unix.IFF_UP != 0 && a.RawFlags&unix.IFF_RUNNING != 0}
		if len(a.HardwareAddr) == 6 && i.Kind != kindLoopback {
			i.MAC = a.HardwareAddr.String()
		}
		names[i.Index], vpns[i.Index] = i.Name, carriesVPN(i.Kind)
		s.VPN = s.VPN || carriesVPN(i.Kind) && i.Up && l.leads[i.Index]
		s.DefaultRoute = s.DefaultRoute || i.Up && l.outs[i.Index] && i.Kind != kindLoopback
		s.Interfaces = append(s.Interfaces, i)
	}
	sortInterfaces(s.Interfaces)
	s.Gateways = k.routers(l, names)
	gateways := map[neighbour]bool{}
	for _, h := range l.hops {
		gateways[h.neighbour] = true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seen = seen{gateways: gateways, vpns: vpns}
	return s
}

// routers lists the gateways with their MACs. The kernel forgets the MAC of a router that is
// idle for a while. It is kept here as long as the gateway and its link are there without a
// break, because to forget it is no change of the network; what the neighbour table says beats
// what is kept.
func (k *kernel) routers(l listing, names map[int]string) []Gateway {
	now := map[neighbour]string{}
	for _, n := range l.neighs {
		if a, ok := netip.AddrFromSlice(n.IP); ok && n.State&known != 0 && len(n.HardwareAddr) == 6 {
			now[neighbour{a.Unmap(), n.LinkIndex}] = n.HardwareAddr.String()
		}
	}
	slices.SortFunc(l.hops, func(a, b hop) int {
		return cmp.Or(a.metric-b.metric, a.addr.Compare(b.addr), a.index-b.index)
	})
	var out []Gateway
	listed, macs := map[neighbour]bool{}, map[neighbour]string{}
	for _, h := range l.hops {
		name := names[h.index]
		if name == "" || listed[h.neighbour] {
			continue
		}
		listed[h.neighbour] = true
		if mac := cmp.Or(now[h.neighbour], k.macs[h.neighbour]); mac != "" {
			macs[h.neighbour] = mac
		}
		out = append(out, Gateway{Addr: h.addr, MAC: macs[h.neighbour], Interface: name})
	}
	k.macs = macs
	return out
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if a = a.Unmap(); !ok || bits != a.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, ones), true
}

// kindOf names the kind of a link. Virtual ones say it themselves.
func kindOf(link vnetlink.Link, wireless func(string, int) bool) string {
	a := link.Attrs()
	switch kind := link.Type(); kind {
	case "tuntap", "tun":
		if t, ok := link.(*vnetlink.Tuntap); ok && t.Mode == vnetlink.TUNTAP_MODE_TAP {
			return kindTAP
		}
		return kindTUN
	case "wlan":
		return kindWireless
	case "device", "":
	default:
		return kind
	}
	switch {
	case a.Flags&net.FlagLoopback != 0:
		return kindLoopback
	case a.EncapType == kindPPP:
		return kindPPP
	case a.EncapType == "ether" && wireless(a.Name, a.Index):
		return kindWireless
	case a.EncapType == "ether":
		return kindEthernet
	default:
		return kindOther
	}
}

// wirelessIn asks sysfs, which may be mounted for another network namespace: an interface that
// only has the same name is told by its index.
func wirelessIn(dir string) func(name string, index int) bool {
	return func(name string, index int) bool {
		if _, err := os.Stat(filepath.Join(dir, name, "phy80211")); err != nil {
			return false
		}
		b, err := os.ReadFile(filepath.Join(dir, name, "ifindex"))
		return err == nil && strings.TrimSpace(string(b)) == strconv.Itoa(index)
	}
}
