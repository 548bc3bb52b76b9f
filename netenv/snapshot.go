// Package netenv knows the networks that this machine is connected to.
//
// cmd runs one Monitor and hands its Snapshots to package status, which rates them. The package
// judges nothing, imports nothing of ours and sends no packet.
package netenv

import (
	"net/netip"
	"time"
)

// Interface is one network interface.
type Interface struct {
	Name  string
	Index int
	MAC   string // "02:00:5e:10:00:01"; "" where it has none
	Kind  string // ethernet, wireless, wireguard, tun, bridge, veth, ppp, loopback, other
	Up    bool
	Addrs []netip.Prefix
}

// Gateway is a router that a default route leads to.
type Gateway struct {
	Addr      netip.Addr
	MAC       string // from the neighbour table; "" while unknown
	Interface string
}

// Snapshot is what is known at one moment. It is immutable.
type Snapshot struct {
	Interfaces []Interface
	Gateways   []Gateway
	VPN        bool // traffic leads into an interface of another VPN
	At         time.Time
}
