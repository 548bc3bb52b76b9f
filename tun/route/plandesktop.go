package route

import (
	"fmt"
	"net/netip"
	"slices"
)

// Command is one line of a route plan for macOS or Windows, in the words of route(8),
// pfctl(8) or netsh. Package route only computes these plans; applying them is later work.
type Command string

// Neither system has policy routing: their own sockets are bound to the real interface
// (IP_BOUND_IF, IP_UNICAST_IF) and everybody else follows the table. So the plan covers every
// destination of the table with two routes that are one bit longer, the defaults included:
// a more specific route that DHCP pushes is captured when the plan is computed again.

// halves returns the two prefixes that cover p and win over it. A host route has none.
func halves(p netip.Prefix) []netip.Prefix {
	bits := p.Bits() + 1
	if bits > p.Addr().BitLen() {
		return nil
	}
	upper := p.Addr().AsSlice()
	upper[(bits-1)/8] |= 0x80 >> ((bits - 1) % 8)
	hi, _ := netip.AddrFromSlice(upper)
	return []netip.Prefix{netip.PrefixFrom(p.Addr(), bits), netip.PrefixFrom(hi, bits)}
}

// captured returns the destinations that have to lead into the TUN device and those that
// cannot be captured by a longer route.
func captured(n Names, h HostState, v6 bool) (routes, hosts []netip.Prefix) {
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if v6 {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	routes = halves(all)
	for _, r := range mainRoutes(n, h, v6) {
		if r.Dst.Addr().IsLinkLocalUnicast() || r.Dst.Addr().IsMulticast() {
			continue
		}
		if two := halves(r.Dst); two != nil {
			routes = append(routes, two...)
		} else {
			hosts = append(hosts, r.Dst)
		}
	}
	return routes, hosts
}

// ComputeDarwin returns the plan for macOS: the pf guard first, then the device, then routes.
func ComputeDarwin(n Names, h HostState, p Policy) Plan {
	var ops []Op
	add := func(format string, args ...any) { ops = append(ops, Command(fmt.Sprintf(format, args...))) }
	for _, line := range []string{
		"pass out quick on lo0 all",
		"pass out quick on " + n.Device + " all",
		fmt.Sprintf("pass out quick proto { tcp udp } all user %d", p.UID),
		"pass out quick proto udp from any port 68 to any port 67",
		"pass out quick inet6 proto icmp6 all icmp6-type { routersol, neighbrsol, neighbradv }",
	} {
		add("pfctl -a %s rule: %s", n.NftTable, line)
	}
	if !p.BlockLAN {
		add("pfctl -a %s rule: pass out quick to { 224.0.0.0/4, 255.255.255.255, ff00::/8, fe80::/10 }", n.NftTable)
	}
	add("pfctl -a %s rule: block drop out all", n.NftTable)
	add("ifconfig %s mtu %d up", n.Device, p.MTU)
	for _, v6 := range families(h) {
		family := "-inet"
		if v6 {
			family = "-inet6"
		}
		routes, hosts := captured(n, h, v6)
		for _, dst := range routes {
			add("route -q -n add %s %s -interface %s", family, dst, n.Device)
		}
		for _, dst := range hosts {
			add("route -q -n change %s %s -interface %s", family, dst, n.Device)
		}
	}
	return Plan{Ops: ops}
}

// ComputeWindows returns the plan for Windows: the filter guard first, then the interface with
// the lowest metric, then routes.
func ComputeWindows(n Names, h HostState, p Policy) Plan {
	var ops []Op
	add := func(format string, args ...any) { ops = append(ops, Command(fmt.Sprintf(format, args...))) }
	permits := []string{"loopback", "interface " + n.Device, "app gatun.exe", "udp local-port 68 remote-port 67",
		"udp local-port 546 remote-port 547", "icmpv6 type 133 135 136"}
	if !p.BlockLAN {
		permits = append(permits, "remote 224.0.0.0/4 255.255.255.255 ff00::/8 fe80::/10")
	}
	for _, what := range permits {
		add("wfp sublayer %s permit outbound %s", n.NftTable, what)
	}
	add("wfp sublayer %s block outbound all", n.NftTable)
	for _, v6 := range families(h) {
		family := "ipv4"
		if v6 {
			family = "ipv6"
		}
		add("netsh interface %s set interface interface=%s metric=0 mtu=%d store=active", family, n.Device, p.MTU)
		routes, hosts := captured(n, h, v6)
		for _, dst := range slices.Concat(routes, hosts) {
			add("netsh interface %s add route prefix=%s interface=%s metric=0 store=active", family, dst, n.Device)
		}
	}
	return Plan{Ops: ops}
}
