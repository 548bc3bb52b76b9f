package route

import (
	"net/netip"
	"slices"
)

// HostState is what a plan depends on: the links, addresses and main routes of the machine.
// It is a value; the Manager reads it from the kernel, tests write it down.
type HostState struct {
	Links  []Link
	Addrs  []Addr
	Routes []MainRoute
	// NoIPv6 is set where the kernel has no IPv6 or has it disabled for the whole namespace.
	NoIPv6 bool
	// NoCounts is set where connection tracking cannot count.
	NoCounts bool
	// Forwards is set where the machine is a router too: for containers, virtual machines or a LAN.
	Forwards bool
}

// Link is a network interface.
type Link struct {
	Index    int
	Name     string
	Loopback bool
	Up       bool
}

// Addr is an address of an interface with the length of its subnet.
type Addr struct {
	Link       string
	Prefix     netip.Prefix
	Deprecated bool // may be used by old flows, not by new ones
	Temporary  bool // IPv6 privacy address
	Tentative  bool // not usable yet (duplicate address detection)
}

// MainRoute is a unicast route of the main table.
type MainRoute struct {
	Dst     netip.Prefix
	Link    string
	Gateway netip.Addr
	Src     netip.Addr // the preferred source, if the route has one
	Metric  int
}

// link returns the link of that name.
func (h HostState) link(name string) (Link, bool) {
	i := slices.IndexFunc(h.Links, func(l Link) bool { return l.Name == name })
	if i < 0 {
		return Link{}, false
	}
	return h.Links[i], true
}

// source picks the address that the kernel would have used for r if the route still led
// through its own interface: the route's own, else one in the gateway's subnet, else one of the
// interface, else none. Among equals the order of rank decides.
func (h HostState) source(r MainRoute) netip.Addr {
	if r.Src.IsValid() {
		return r.Src
	}
	return h.pick(r.Dst.Addr().Is6(), func(a Addr) int {
		switch {
		case a.Link != r.Link:
			return 0
		case r.Gateway.IsValid() && a.Prefix.Masked().Contains(r.Gateway):
			return 3
		case r.Dst.Bits() > 0 && a.Prefix.Masked() == r.Dst:
			return 2
		}
		return 1
	})
}

// anySource picks an address of the family when no route says which, so that a program gets a
// real address of the machine and never one of the TUN device.
func (h HostState) anySource(v6 bool, tun string) netip.Addr {
	return h.pick(v6, func(a Addr) int {
		if l, ok := h.link(a.Link); !ok || l.Loopback || a.Link == tun {
			return 0
		}
		return 1
	})
}

// pick returns the usable global address with the highest weight; 0 excludes. Fresh beats
// deprecated, temporary beats stable (who has privacy addresses wants them used), first wins.
func (h HostState) pick(v6 bool, weight func(Addr) int) netip.Addr {
	var best netip.Addr
	top := 0
	for _, a := range h.Addrs {
		ip := a.Prefix.Addr()
		if ip.Is6() != v6 || a.Tentative || ip.IsLoopback() || ip.IsLinkLocalUnicast() && v6 {
			continue
		}
		w := weight(a) * 4
		if w == 0 {
			continue
		}
		if !a.Deprecated {
			w += 2
		}
		if a.Temporary {
			w++
		}
		if w > top {
			best, top = ip, w
		}
	}
	return best
}

// locals returns every address that a program on this machine may use as its source towards
// the TUN device. Loopback is not among them: it never enters a TUN device honestly.
func (h HostState) locals() map[netip.Addr]struct{} {
	set := make(map[netip.Addr]struct{}, len(h.Addrs))
	for _, a := range h.Addrs {
		if ip := a.Prefix.Addr(); !ip.IsLoopback() {
			set[ip] = struct{}{}
		}
	}
	return set
}
