package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// rawCommand writes hand-made packets (root only): "raw spoof|badsum|tiny|overlap|route ADDR:PORT"
// sends -n UDP datagrams with a source that nobody here has, a wrong checksum, a fragment too
// small for its header, fragments that overlap, or a source route.
func rawCommand(args []string) (result, error) {
	var src string
	n := 5
	rest, err := flags("raw", args, 2, func(fs *flag.FlagSet) {
		fs.StringVar(&src, "src", "", "the true source address")
		fs.IntVar(&n, "n", n, "how many")
	})
	if err != nil {
		return result{}, err
	}
	to, err := netip.ParseAddrPort(rest[1])
	if err != nil {
		return result{}, err
	}
	from, err := netip.ParseAddr(src)
	if err != nil {
		return result{}, err
	}
	fd, err := unix.Socket(familyOf(to.Addr()), unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return result{}, err
	}
	defer unix.Close(fd)
	base := uint16(time.Now().UnixMilli()) // a fragment must not meet those of an earlier call
	for i := range n {
		packets, err := evil(rest[0], from, to, base+uint16(i))
		if err != nil {
			return result{}, err
		}
		for _, p := range packets {
			if err := unix.Sendto(fd, p, 0, sockaddr(netip.AddrPortFrom(to.Addr(), 0))); err != nil {
				return failed(err), nil
			}
		}
	}
	time.Sleep(300 * time.Millisecond) // the TUN's counters are read after this
	return result{Result: "sent", Remote: to.String()}, nil
}

func evil(kind string, from netip.Addr, to netip.AddrPort, id uint16) ([][]byte, error) {
	udp := udpSegment(netip.AddrPortFrom(from, 40000+id%1000), to, make([]byte, 64))
	switch kind {
	case "good":
	case "spoof":
		from = netip.MustParseAddr("203.0.113.77")
		if to.Addr().Is6() {
			from = netip.MustParseAddr("2001:db8:77::77")
		}
		udp = udpSegment(netip.AddrPortFrom(from, 40000+id%1000), to, make([]byte, 64))
	case "badsum":
		udp[6] ^= 0x55
	case "tiny":
		return [][]byte{ipPacket(from, to.Addr(), id, udp[:4], fragment{more: true}), ipPacket(from, to.Addr(), id, udp[8:], fragment{offset: 8})}, nil
	case "overlap":
		return [][]byte{ipPacket(from, to.Addr(), id, udp[:48], fragment{more: true}), ipPacket(from, to.Addr(), id, udp[24:], fragment{offset: 24})}, nil
	case "fragments":
		return [][]byte{ipPacket(from, to.Addr(), id, udp[:48], fragment{more: true}), ipPacket(from, to.Addr(), id, udp[48:], fragment{offset: 48})}, nil
	case "route":
		return [][]byte{sourceRouted(from, to.Addr(), id, udp)}, nil
	default:
		return nil, fmt.Errorf("no raw packet %q", kind)
	}
	return [][]byte{ipPacket(from, to.Addr(), id, udp, fragment{})}, nil
}

type fragment struct {
	offset int
	more   bool
}

func (f fragment) is() bool { return f.more || f.offset > 0 }

// ipPacket puts an IP header before a payload; for IPv6 a fragment gets its extension header.
func ipPacket(from, to netip.Addr, id uint16, payload []byte, f fragment) []byte {
	if to.Is6() {
		b := make([]byte, 40, 48+len(payload))
		b[0], b[6], b[7] = 0x60, unix.IPPROTO_UDP, 64
		if f.is() {
			b[6] = unix.IPPROTO_FRAGMENT
			ext := make([]byte, 8)
			ext[0] = unix.IPPROTO_UDP
			binary.BigEndian.PutUint16(ext[2:], uint16(f.offset)|bit(f.more, 1))
			binary.BigEndian.PutUint32(ext[4:], uint32(id))
			b = append(b, ext...)
		}
		b = append(b, payload...)
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		copy(b[8:], from.AsSlice())
		copy(b[24:], to.AsSlice())
		return b
	}
	b := ip4Header(from, to, id, 20)
	binary.BigEndian.PutUint16(b[6:], uint16(f.offset/8)|bit(f.more, 0x2000))
	return finish4(b, payload)
}

func ip4Header(from, to netip.Addr, id uint16, n int) []byte {
	b := make([]byte, n)
	b[0], b[8], b[9] = 0x40|byte(n/4), 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[4:], id)
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.AsSlice())
	return b
}

func finish4(b, payload []byte) []byte {
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(payload)))
	binary.BigEndian.PutUint16(b[10:], ^sum(0, b))
	return append(b, payload...)
}

// sourceRouted is a datagram with loose source routing (IPv4) or a routing header (IPv6) over
// the second address of the server.
func sourceRouted(from, to netip.Addr, id uint16, payload []byte) []byte {
	if to.Is4() {
		b := ip4Header(from, to, id, 28)
		copy(b[20:], []byte{131, 7, 4, 198, 51, 100, 11, 0})
		return finish4(b, payload)
	}
	ext := make([]byte, 24)
	ext[0], ext[1], ext[2], ext[3] = unix.IPPROTO_UDP, 2, 0, 1
	via := netip.MustParseAddr("2001:db8:2::11").As16()
	copy(ext[8:], via[:])
	b := ipPacket(from, to, id, append(ext, payload...), fragment{})
	b[6] = unix.IPPROTO_ROUTING
	return b
}

func bit(on bool, v uint16) uint16 {
	if on {
		return v
	}
	return 0
}

func udpSegment(from, to netip.AddrPort, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	b = append(b, payload...)
	acc := uint32(unix.IPPROTO_UDP) + uint32(len(b))
	acc = add(add(acc, from.Addr().AsSlice()), to.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[6:], ^sum(acc, b))
	return b
}

func add(acc uint32, b []byte) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		acc += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		acc += uint32(b[len(b)-1]) << 8
	}
	return acc
}

func sum(acc uint32, b []byte) uint16 {
	acc = add(acc, b)
	for acc > 0xffff {
		acc = acc>>16 + acc&0xffff
	}
	return uint16(acc)
}

// advertiseCommand sends one IPv6 router advertisement with a prefix: "ra DEVICE PREFIX".
func advertiseCommand(args []string) (result, error) {
	rest, err := flags("ra", args, 2, nil)
	if err != nil {
		return result{}, err
	}
	prefix, err := netip.ParsePrefix(rest[1])
	if err != nil {
		return result{}, err
	}
	c, err := icmp.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		return result{}, err
	}
	defer c.Close()
	dev, err := net.InterfaceByName(rest[0])
	if err != nil {
		return result{}, err
	}
	p := c.IPv6PacketConn()
	if err := p.SetMulticastHopLimit(255); err != nil {
		return result{}, err
	}
	body := make([]byte, 12+32)
	body[0] = 64                                   // hop limit
	binary.BigEndian.PutUint16(body[2:], 1800)     // router lifetime
	body[12], body[13] = 3, 4                      // prefix information
	body[14], body[15] = byte(prefix.Bits()), 0xc0 // on-link, autonomous
	binary.BigEndian.PutUint32(body[16:], 3600)
	binary.BigEndian.PutUint32(body[20:], 3600)
	copy(body[28:], prefix.Addr().AsSlice())
	b, err := (&icmp.Message{Type: ipv6.ICMPTypeRouterAdvertisement, Body: &icmp.RawBody{Data: body}}).Marshal(nil)
	if err != nil {
		return result{}, err
	}
	if _, err := p.WriteTo(b, &ipv6.ControlMessage{IfIndex: dev.Index}, &net.UDPAddr{IP: net.ParseIP("ff02::1"), Zone: dev.Name}); err != nil {
		if _, err = c.WriteTo(b, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: dev.Name}); err != nil {
			return result{}, err
		}
	}
	return result{Result: "sent"}, nil
}
