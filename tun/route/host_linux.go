package route

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dumpTries bounds how often a dump is repeated that changed while it was read.
const dumpTries = 5

// dump repeats a netlink listing until it is consistent.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for try := 1; ; try++ {
		out, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == dumpTries {
			return out, err
		}
	}
}

// readHost reads links, addresses and the main table.
func readHost() (HostState, error) {
	var h HostState
	links, err := dump(netlink.LinkList)
	if err != nil {
		return h, fmt.Errorf("list links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		h.Links = append(h.Links, Link{Index: a.Index, Name: a.Name, Loopback: a.Flags&net.FlagLoopback != 0, Up: a.Flags&net.FlagUp != 0})
	}
	h.NoIPv6 = ipv6Off()
	_, err = getSysctl(countKey)
	h.NoCounts = err != nil
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		if v, err := getSysctl(key); err == nil && v != "0" {
			h.Forwards = true
		}
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return h, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet, a.IP.To4() == nil); ok {
			h.Addrs = append(h.Addrs, Addr{Link: names[a.LinkIndex], Prefix: p,
				Deprecated: a.Flags&unix.IFA_F_DEPRECATED != 0,
				// For IPv4 the same bit means "secondary".
				Temporary: p.Addr().Is6() && a.Flags&unix.IFA_F_TEMPORARY != 0,
				Tentative: a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 && a.Flags&unix.IFA_F_OPTIMISTIC == 0})
		}
	}
	h.Routes, err = readMain(names)
	return h, err
}

func readMain(names map[int]string) ([]MainRoute, error) {
	var out []MainRoute
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
		if err != nil {
			return nil, fmt.Errorf("list main routes: %w", err)
		}
		for _, r := range routes {
			index, gw := r.LinkIndex, r.Gw
			if len(r.MultiPath) > 0 {
				index, gw = r.MultiPath[0].LinkIndex, r.MultiPath[0].Gw
			}
			dst, ok := prefixOf(r.Dst, family == netlink.FAMILY_V6)
			if !ok || r.Type != unix.RTN_UNICAST || names[index] == "" {
				continue
			}
			out = append(out, MainRoute{Dst: dst.Masked(), Link: names[index], Gateway: addrOf(gw), Src: addrOf(r.Src), Metric: r.Priority})
		}
	}
	return out, nil
}

// ipv6Off reports whether the kernel has no IPv6, or has it disabled even on loopback, where
// no route of the family can be added.
func ipv6Off() bool {
	v, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
	return err != nil || strings.TrimSpace(string(v)) == "1"
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// prefixOf converts; nil is the default route of the family.
func prefixOf(n *net.IPNet, v6 bool) (netip.Prefix, bool) {
	if n == nil {
		if v6 {
			return netip.PrefixFrom(netip.IPv6Unspecified(), 0), true
		}
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0), true
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, size := n.Mask.Size()
	if !v6 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones), ok && a.BitLen() == size
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
