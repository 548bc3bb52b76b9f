// Package netenv knows the networks that this machine is connected to.
//
// cmd runs one Monitor and hands its Snapshots to package status, which rates them. The package
// judges nothing, imports nothing of ours and sends no packet. On Linux it listens to netlink
// and never polls; elsewhere it looks at the interfaces every few seconds and knows no gateways.
package netenv

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Interface is one network interface.
type Interface struct {
	Name  string
	Index int
	MAC   string // "02:00:5e:10:00:01"; "" where it has none
	// Kind is ethernet, wireless, wireguard, tun, tap, bridge, veth, ppp, loopback, or the
	// system's own name of another virtual kind (bond, vlan, dummy); other where it has none.
	Kind  string
	Up    bool // switched on, and connected: a pulled cable is not up
	Addrs []netip.Prefix
}

// Gateway is a router that a default route leads to.
type Gateway struct {
	Addr      netip.Addr // without a zone: Interface says where
	MAC       string     // from the neighbour table; "" while unknown
	Interface string
}

// Snapshot is what is known at one moment. It is immutable.
type Snapshot struct {
	Interfaces []Interface // by index, without those of Options.Ignore
	Gateways   []Gateway   // the preferred one first
	VPN        bool        // traffic leads into an interface of another VPN
	At         time.Time   // when it was found to be so
}

// Equal reports whether both say the same, at whatever time.
func (s Snapshot) Equal(o Snapshot) bool {
	return s.VPN == o.VPN && slices.Equal(s.Gateways, o.Gateways) &&
		slices.EqualFunc(s.Interfaces, o.Interfaces, func(a, b Interface) bool {
			return a.Name == b.Name && a.Index == b.Index && a.MAC == b.MAC && a.Kind == b.Kind &&
				a.Up == b.Up && slices.Equal(a.Addrs, b.Addrs)
		})
}

// sortInterfaces gives interfaces and addresses an order of their own, because the system's
// order is no news.
func sortInterfaces(list []Interface) {
	slices.SortFunc(list, func(a, b Interface) int {
		if a.Index != b.Index {
			return a.Index - b.Index
		}
		return strings.Compare(a.Name, b.Name)
	})
	for _, i := range list {
		slices.SortFunc(i.Addrs, netip.Prefix.Compare)
	}
}

// carriesVPN reports whether interfaces of that kind are those of VPNs.
func carriesVPN(kind string) bool {
	return kind == kindWireGuard || kind == kindTUN || kind == kindPPP
}

// The kinds that are told apart. Virtual kinds that are not listed keep the system's name.
const (
	kindEthernet  = "ethernet"
	kindWireless  = "wireless"
	kindWireGuard = "wireguard"
	kindTUN       = "tun"
	kindTAP       = "tap"
	kindBridge    = "bridge"
	kindPPP       = "ppp"
	kindLoopback  = "loopback"
	kindOther     = "other"
)
