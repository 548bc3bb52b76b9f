// Package netenv knows the networks that this machine is connected to, and how much of the
// Internet can be reached through them.
//
// cmd runs one Monitor, gives it hints, and hands its Snapshots to package status, which rates
// them. The package judges no network and imports nothing of ours. On Linux it listens to netlink
// and never polls; elsewhere it looks at the interfaces every few seconds and knows no gateways.
//
// # Online state
//
// It is judged from four findings (evidence.state, first match wins):
//
//	way      page       names    connections  state
//	nowhere  *          *        *            offline      no address but link-local ones
//	local    *          *        *            limited      addresses, but no default route
//	out      foreign    *        *            portal       something else answered for the test page
//	out      as known   failed   *            semi-online  found by an address known from before
//	out      as known   *        *            online
//	out      failed     *        made         semi-online  only the test page is out of reach
//	out      failed     *        *            limited
//	out      not asked  failed   made         semi-online
//	out      not asked  *        made         online       by hints alone
//	out      not asked  failed   *            limited
//	out      not asked  *        failed       limited
//	out      not asked  *        *            unknown
//
// The way out is what the kernel says. The page is a small one of Probe.URL whose content is
// known, asked over plain HTTP, because a captive portal can only answer what is not encrypted.
// Names are answered where the page's host was resolved, or by hint. Connections are hints alone:
// to make one proves nothing against a portal, which takes every connection, so a foreign page
// beats it.
//
// The check cannot be fooled by this program: its sockets and its queries go around the TUN
// (Probe.Dial, Probe.Resolve), so nobody's SYN is accepted on the network's behalf and no cached
// answer counts. Nor by the network, further than portals go: redirects are not followed, an
// answer has to have exactly the expected content, and of the portal's address only the form is
// believed.
//
// A check is made when the network or the probe has changed, when a hint does not fit the state,
// and, while the state is neither online nor without a way out, again after pauses that double.
// While it is online and nothing hints nothing is sent. What is sent where: the name of the page's
// host to the system's nameservers, and one GET without cookies or a name of the program to it.
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
	// DefaultRoute is whether packets for everywhere have a way to go; where the system does not
	// tell, whether an interface has an address that is good for more than its link.
	DefaultRoute bool
	Nameservers  []netip.Addr // as the system has them, in order
	DNSSuffixes  []string     // search domains that came with them; lower-case
	Online       OnlineState
	PortalURL    string    // where a person can ask the portal for leave; only while Online is Portal
	At           time.Time // when it was found to be so
}

// Equal reports whether both say the same, at whatever time.
func (s Snapshot) Equal(o Snapshot) bool {
	return s.Online == o.Online && s.PortalURL == o.PortalURL && s.sameNetwork(o)
}

// sameNetwork compares what the system says, and not what is reached through it.
func (s Snapshot) sameNetwork(o Snapshot) bool {
	return s.VPN == o.VPN && s.DefaultRoute == o.DefaultRoute && slices.Equal(s.Gateways, o.Gateways) &&
		slices.Equal(s.Nameservers, o.Nameservers) && slices.Equal(s.DNSSuffixes, o.DNSSuffixes) &&
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
