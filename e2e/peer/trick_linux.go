package main

import (
	"flag"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// trick is one way in which a program without privileges tries to send past the TUN: an option
// on its socket before it connects, or a control message on its datagram.
type trick struct {
	socket  func(fd int, dev *net.Interface, src netip.Addr) error
	control func(dev *net.Interface, src netip.Addr) []byte
}

func tricks() map[string]trick {
	return map[string]trick{
		"none":         {},
		"bindtodevice": {socket: func(fd int, dev *net.Interface, _ netip.Addr) error { return unix.BindToDevice(fd, dev.Name) }},
		"bindaddr":     {socket: bindSource},
		"unicastif":    {socket: unicastInterface},
		"dontroute": {socket: func(fd int, _ *net.Interface, _ netip.Addr) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DONTROUTE, 1)
		}},
		"pktinfo-if": {control: func(dev *net.Interface, src netip.Addr) []byte {
			return packetInfo(src, dev.Index, netip.Addr{})
		}},
		"pktinfo-src": {control: func(_ *net.Interface, src netip.Addr) []byte { return packetInfo(src, 0, src) }},
		"pktinfo-both": {socket: bindSource, control: func(dev *net.Interface, src netip.Addr) []byte {
			return packetInfo(src, dev.Index, src)
		}},
	}
}

func bindSource(fd int, _ *net.Interface, src netip.Addr) error {
	return unix.Bind(fd, sockaddr(netip.AddrPortFrom(src, 0)))
}

// unicastInterface sets IP_UNICAST_IF (network byte order) or IPV6_UNICAST_IF.
func unicastInterface(fd int, dev *net.Interface, src netip.Addr) error {
	index := int(uint32(dev.Index)<<24 | uint32(dev.Index)>>24 | uint32(dev.Index)&0xff00<<8 | uint32(dev.Index)>>8&0xff00)
	if src.Is4() {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_UNICAST_IF, index)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_IF, index)
}

func packetInfo(family netip.Addr, ifindex int, src netip.Addr) []byte {
	if family.Is4() {
		info := unix.Inet4Pktinfo{Ifindex: int32(ifindex)}
		if src.IsValid() {
			info.Spec_dst = src.As4()
		}
		return unix.PktInfo4(&info)
	}
	info := unix.Inet6Pktinfo{Ifindex: uint32(ifindex)}
	if src.IsValid() {
		info.Addr = src.As16()
	}
	return unix.PktInfo6(&info)
}

// trickCommand sends one SYN, datagram or echo request with a trick: "trick NAME tcp|udp|icmp
// ADDR:PORT". What the program sees does not matter much; what the router counts does.
func trickCommand(args []string) (result, error) {
	var dev, src string
	rest, err := flags("trick", args, 3, func(fs *flag.FlagSet) {
		fs.StringVar(&dev, "dev", "eth0", "the physical device")
		fs.StringVar(&src, "src", "", "the physical address")
	})
	if err != nil {
		return result{}, err
	}
	tr, ok := tricks()[rest[0]]
	if !ok {
		return result{}, fmt.Errorf("no trick %q", rest[0])
	}
	to, err := netip.ParseAddrPort(rest[2])
	if err != nil {
		return result{}, err
	}
	nic, err := net.InterfaceByName(dev)
	if err != nil {
		return result{}, err
	}
	from, err := netip.ParseAddr(src)
	if err != nil {
		return result{}, err
	}
	if err := tr.send(rest[1], nic, from, to); err != nil {
		return failed(err), nil
	}
	return result{Result: "answer", Remote: to.String()}, nil
}

func (tr trick) send(proto string, dev *net.Interface, src netip.Addr, to netip.AddrPort) error {
	kind, ipproto, payload := unix.SOCK_DGRAM, 0, []byte("trick")
	switch {
	case proto == "tcp":
		kind = unix.SOCK_STREAM
	case proto == "icmp" && to.Addr().Is4():
		ipproto, payload = unix.IPPROTO_ICMP, echoRequest(to.Addr(), 1)
	case proto == "icmp":
		ipproto, payload = unix.IPPROTO_ICMPV6, echoRequest(to.Addr(), 1)
	}
	if proto == "icmp" {
		to = netip.AddrPortFrom(to.Addr(), 0)
	}
	fd, err := unix.Socket(familyOf(to.Addr()), kind, ipproto)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	tv := unix.NsecToTimeval((400 * time.Millisecond).Nanoseconds())
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &tv); err != nil {
			return err
		}
	}
	if tr.socket != nil {
		if err := tr.socket(fd, dev, src); err != nil {
			return fmt.Errorf("the trick itself: %w", err)
		}
	}
	if proto == "tcp" {
		return tr.connect(fd, dev, src, to)
	}
	var oob []byte
	if tr.control != nil {
		oob = tr.control(dev, src)
	}
	if err := unix.Sendmsg(fd, payload, oob, sockaddr(to), 0); err != nil {
		return err
	}
	_, err = unix.Read(fd, make([]byte, 2048))
	return err
}

// connect: a control message has no meaning for a connect; IPV6_PKTINFO as a sticky option has.
func (tr trick) connect(fd int, dev *net.Interface, src netip.Addr, to netip.AddrPort) error {
	if tr.control != nil && src.Is6() {
		info := unix.Inet6Pktinfo{Ifindex: uint32(dev.Index)}
		b := unix.PktInfo6(&info)[unix.SizeofCmsghdr:]
		if err := unix.SetsockoptString(fd, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, string(b)); err != nil {
			return err
		}
	}
	return unix.Connect(fd, sockaddr(to))
}
