package tun

import "github.com/songgao/water"

// tapNetwork is the network the tap-windows driver answers ARP for in TUN mode. The adapter's
// real addresses are set by package route.
const tapNetwork = "10.139.0.2/24"

func (o Options) platformParams() water.PlatformSpecificParams {
	return water.PlatformSpecificParams{ComponentID: "tap0901", InterfaceName: o.Name, Network: tapNetwork}
}
