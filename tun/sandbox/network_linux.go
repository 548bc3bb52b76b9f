package sandbox

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"gatun/tun"
)

// interior is what the supervisor hands out of its network namespace.
type interior struct {
	deviceFD, diagFD int
	closingsFD       int
	// mac and ifIndex describe the pair when deviceFD is a packet socket: the address of the
	// program's end, the index of the far end. mac is nil for a TUN device.
	mac      net.HardwareAddr
	ifIndex  int
	warnings []string
}

func (i *interior) warn(format string, args ...any) {
	i.warnings = append(i.warnings, fmt.Sprintf(format, args...))
}

func (i *interior) close() {
	for _, fd := range []int{i.deviceFD, i.diagFD, i.closingsFD} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// setUpNetwork makes the interface of this network namespace, its addresses and its routes.
// After it, everything the namespace sends to any address but its own comes out of deviceFD.
func setUpNetwork(mtu int, kind Link, sysctls []sysctl) (*interior, error) {
	in := &interior{deviceFD: -1, diagFD: -1, closingsFD: -1}
	if err := in.build(mtu, kind, sysctls); err != nil {
		in.close()
		return nil, err
	}
	return in, nil
}

func (i *interior) build(mtu int, kind Link, sysctls []sysctl) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	link, err := i.makeLink(h, mtu, kind)
	if err != nil {
		return err
	}
	if err := i.address(h, link); err != nil {
		return err
	}
	i.setSysctls(sysctls)
	i.diagFD, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return fmt.Errorf("open a socket diagnosis socket: %w", err)
	}
	i.closingsFD, err = listenForClosings()
	return err
}

// closingGroups are the groups that report closed UDP sockets: SKNLGRP_INET_UDP_DESTROY and
// SKNLGRP_INET6_UDP_DESTROY (linux/sock_diag.h).
const closingGroups = 1<<(2-1) | 1<<(4-1)

// listenForClosings joins the groups here, because only the namespace's owner may.
func listenForClosings() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return -1, fmt.Errorf("listen for closed sockets: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: closingGroups}); err != nil {
		return -1, errors.Join(fmt.Errorf("listen for closed sockets: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func (i *interior) makeLink(h *netlink.Handle, mtu int, kind Link) (netlink.Link, error) {
	var tunErr error
	if kind != LinkVeth {
		if i.deviceFD, tunErr = openTUN(); tunErr == nil {
			link, err := h.LinkByName(DeviceName)
			if err != nil {
				return nil, fmt.Errorf("find %s: %w", DeviceName, err)
			}
			if err := h.LinkSetMTU(link, mtu); err != nil {
				return nil, fmt.Errorf("set the MTU of %s to %d: %w", DeviceName, mtu, err)
			}
			if err := h.LinkSetTxQLen(link, tun.QueueLength); err != nil {
				i.warn("%s keeps its short queue: %v", DeviceName, err)
			}
			return link, nil
		}
		if kind == LinkTUN {
			return nil, fmt.Errorf("open /dev/net/tun: %w", tunErr)
		}
	}
	link, err := i.makePair(h, mtu)
	if err != nil && tunErr != nil {
		return nil, fmt.Errorf("%w, and /dev/net/tun cannot be used instead: %w", err, tunErr)
	}
	return link, err
}

func openTUN() (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	ifr, err := unix.NewIfreq(DeviceName)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	for _, offload := range []uint16{unix.IFF_VNET_HDR, 0} {
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | offload)
		if err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != unix.EINVAL {
			break
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// makePair is the stand-in for a TUN device: a veth pair with a packet socket on the far end.
// The near end does no ARP, so it sends every packet to its own address: the far end's
// network layer takes them for somebody else's and drops them, only the packet socket sees
// them, and there are no neighbours to answer for.
func (i *interior) makePair(h *netlink.Handle, mtu int) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = DeviceName, mtu
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: DeviceName + "p", PeerMTU: uint32(mtu)}
	if err := h.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("make a veth pair: %w", err)
	}
	near, err := h.LinkByName(DeviceName)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", DeviceName, err)
	}
	far, err := h.LinkByName(DeviceName + "p")
	if err != nil {
		return nil, fmt.Errorf("find %sp: %w", DeviceName, err)
	}
	if err := segmentOnlyTCP(DeviceName); err != nil {
		return nil, fmt.Errorf("switch off offloads of %s: %w", DeviceName, err)
	}
	if err := h.LinkSetARPOff(near); err != nil {
		return nil, fmt.Errorf("switch off ARP of %s: %w", DeviceName, err)
	}
	i.quietIPv6(h, far)
	if err := h.LinkSetUp(far); err != nil {
		return nil, fmt.Errorf("bring %sp up: %w", DeviceName, err)
	}
	i.deviceFD, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		i.deviceFD = -1
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	i.mac, i.ifIndex = near.Attrs().HardwareAddr, far.Attrs().Index
	return near, nil
}

// address gives the interface its addresses, brings it up and routes everything into it.
// Without IPv6 in the kernel the namespace has none either, which lets nothing out.
func (i *interior) address(h *netlink.Handle, link netlink.Link) error {
	i.quietIPv6(h, link)
	if err := h.AddrAdd(link, hostAddr(AddressV4(), 0)); err != nil {
		return fmt.Errorf("add %s: %w", AddressV4(), err)
	}
	v6 := h.AddrAdd(link, hostAddr(AddressV6(), unix.IFA_F_NODAD))
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", DeviceName, err)
	}
	if err := h.RouteAdd(defaultRoute(link, AddressV4())); err != nil {
		return fmt.Errorf("add the IPv4 default route: %w", err)
	}
	if v6 == nil {
		v6 = h.RouteAdd(defaultRoute(link, AddressV6()))
	}
	if v6 == nil {
		v6 = awaitLocal(h, AddressV6())
	}
	if v6 != nil {
		i.warn("no IPv6 inside: %v", v6)
	}
	return nil
}

// localWithin is far more than the kernel takes for an address, on a busy machine as well.
const localWithin = 5 * time.Second

// awaitLocal waits until a is an address of this namespace. Of IPv6 the kernel makes it one in a
// worker of its own some time after the interface is up: until then what comes for it is dropped.
func awaitLocal(h *netlink.Handle, a netip.Addr) error {
	news, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return fmt.Errorf("watch IPv6 routes: %w", err)
	}
	defer news.Close()
	wait := unix.NsecToTimeval(int64(localWithin))
	if err := news.SetReceiveTimeout(&wait); err != nil {
		return fmt.Errorf("watch IPv6 routes: %w", err)
	}
	local := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL}
	for {
		routes, err := h.RouteListFiltered(netlink.FAMILY_V6, local, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
		if err != nil {
			return fmt.Errorf("list IPv6 routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst == nil {
				continue
			}
			if to, _ := netip.AddrFromSlice(r.Dst.IP); to == a {
				return nil
			}
		}
		if _, _, err := news.Receive(); err != nil {
			return fmt.Errorf("%s is no address of this namespace yet: %w", a, err)
		}
	}
}

// quietIPv6 keeps the kernel from making a link-local address and from asking for routers.
func (i *interior) quietIPv6(h *netlink.Handle, link netlink.Link) {
	const none = 1 // IN6_ADDR_GEN_MODE_NONE
	if err := h.LinkSetIP6AddrGenMode(link, none); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		i.warn("%s keeps a link-local address: %v", link.Attrs().Name, err)
	}
}

func hostAddr(a netip.Addr, flags int) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: flags}
}

func defaultRoute(link netlink.Link, src netip.Addr) *netlink.Route {
	all := netip.PrefixFrom(src, 0).Masked().Addr()
	return &netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: all.AsSlice(), Mask: net.CIDRMask(0, src.BitLen())},
		Src:       src.AsSlice(),
	}
}

// setSysctls allows what a program without capabilities needs in a network of its own: ping
// without raw sockets, and servers on ports below 1024.
func (i *interior) setSysctls(host []sysctl) {
	for _, s := range host {
		if err := setSysctl(s.Name, s.Value); err != nil {
			i.warn("%s is not that of the host inside: %v", s.Name, err)
		}
	}
	// The range may only name groups that exist in this user namespace: all, or just ours.
	const groups = "net/ipv4/ping_group_range"
	if setSysctl(groups, "0 2147483647") != nil {
		if err := setSysctl(groups, fmt.Sprintf("%d %d", os.Getegid(), os.Getegid())); err != nil {
			i.warn("ping does not work inside: %v", err)
		}
	}
	if err := setSysctl(lowPorts, "0"); err != nil {
		i.warn("ports below 1024 cannot be listened on inside: %v", err)
	}
}

// lowPorts is the first port for which a program needs no capability.
const lowPorts = "net/ipv4/ip_unprivileged_port_start"

// sysctl is a setting of a network namespace.
type sysctl struct{ Name, Value string }

// hostSysctls returns what the host's owner has set for programs that open many connections: a
// new namespace has the kernel's 28 000 ports, which such a program fills within a minute.
func hostSysctls() []sysctl {
	var list []sysctl
	for _, name := range []string{"net/ipv4/ip_local_port_range", "net/ipv4/tcp_tw_reuse"} {
		if value := strings.TrimSpace(readText("/proc/sys/" + name)); value != "" {
			list = append(list, sysctl{name, value})
		}
	}
	return list
}

func setSysctl(name, value string) error {
	return os.WriteFile("/proc/sys/"+name, []byte(value), 0)
}
