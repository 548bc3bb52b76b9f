package tun

import (
	"encoding/binary"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// FromPacketSocket makes a Device of an AF_PACKET SOCK_DGRAM socket on one end of a veth pair:
// the stand-in where /dev/net/tun cannot be opened. ifindex is the end the socket sends on,
// peer the link-layer address of the other end, where the programs are; both may live in
// another network namespace. FromPacketSocket owns fd from now on, also when it fails.
//
// The pair must have transmit checksum offload, scatter-gather, TSO and GSO off, or packets arrive with half a
// checksum and larger than mtu. Only IPv4 and IPv6 packets coming from the peer are read, and
// only packets that begin with one of the two versions are written.
func FromPacketSocket(fd int, ifindex int, peer net.HardwareAddr, mtu int) (Device, error) {
	const name = "packet socket"
	file, err := adopt(fd, name)
	if err != nil {
		return nil, err
	}
	d, err := newBatch(file, name, mtu)
	if err != nil {
		file.Close()
		return nil, err
	}
	if err := preparePacketSocket(fd, ifindex); err != nil {
		file.Close()
		return nil, err
	}
	if len(peer) != 6 {
		file.Close()
		return nil, fmt.Errorf("peer %v: want an Ethernet address of 6 bytes", peer)
	}
	to4 := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: ifindex, Halen: 6}
	copy(to4.Addr[:], peer)
	to6 := *to4
	to6.Protocol = htons(unix.ETH_P_IPV6)
	d.send = func(fd int, b []byte) error { return sendPacket(fd, b, to4, &to6) }
	return d, nil
}

// preparePacketSocket lets through only what a TUN device would: IP packets sent by the peer.
// The filter comes before the bind, so nothing else is ever queued.
func preparePacketSocket(fd, ifindex int) error {
	const ignoreOutgoing = 23  // PACKET_IGNORE_OUTGOING
	load := uint32(0xfffff000) // SKF_AD_OFF + SKF_AD_PROTOCOL
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: load},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.ETH_P_IP, Jt: 1},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.ETH_P_IPV6, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return fmt.Errorf("packet socket: attach filter: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, ignoreOutgoing, 1); err != nil {
		return fmt.Errorf("packet socket: ignore outgoing packets (Linux 4.20 or later is needed): %w", err)
	}
	// A burst of the sender must fit: unlike a TUN device the socket gives no back pressure.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20) // the kernel takes what it allows
	}
	bind := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifindex}
	if err := unix.Bind(fd, bind); err != nil {
		return fmt.Errorf("packet socket: bind to interface %d: %w", ifindex, err)
	}
	return nil
}

func sendPacket(fd int, b []byte, to4, to6 *unix.SockaddrLinklayer) error {
	if len(b) == 0 {
		return unix.EINVAL
	}
	to := to4
	switch b[0] >> 4 {
	case 4:
	case 6:
		to = to6
	default:
		return unix.EINVAL
	}
	for {
		if err := unix.Sendto(fd, b, 0, to); err != unix.EINTR {
			return err
		}
	}
}

func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}
