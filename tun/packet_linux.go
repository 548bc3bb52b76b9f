package tun

import (
	"encoding/binary"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// FromPacketSocket makes a Device of an AF_PACKET SOCK_RAW socket on one end of a veth pair: the
// stand-in where /dev/net/tun cannot be opened. ifindex is the end the socket sends on, peer the
// link-layer address of the other end, where the programs are; both may live in another network
// namespace. FromPacketSocket owns fd from now on, also when it fails.
//
// Only IPv4 and IPv6 packets coming from the peer are read, and only packets that begin with one of
// the two versions are written.
func FromPacketSocket(fd int, ifindex int, peer net.HardwareAddr, mtu int) (Device, error) {
	const name = "packet socket"
	file, err := adopt(fd, name)
	if err != nil {
		return nil, err
	}
	d, err := newVnet(file, name, mtu, vnetHeaderLen+ethernetLen)
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
	copy(d.out.header[vnetHeaderLen:], peer)
	return d, nil
}

// receiveBuffer holds a burst of large packets: unlike a TUN device the socket gives no back
// pressure. The kernel counts what it has allocated for them.
const receiveBuffer = 16 << 20

// preparePacketSocket lets through only what a TUN device would: IP packets sent by the peer.
// The filter comes before the bind, so nothing else is ever queued.
func preparePacketSocket(fd, ifindex int) error {
	const ignoreOutgoing = 23 // PACKET_IGNORE_OUTGOING
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return fmt.Errorf("packet socket: ask for offloads: %w", err)
	}
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
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer) // the kernel takes what it allows
	}
	// The kernel makes the queue of an interface whose carrier came on after it was brought up in a
	// worker of its own: on a busy machine the first packets would come before that, and be dropped.
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		return fmt.Errorf("packet socket: send without a queue: %w", err)
	}
	bind := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifindex}
	if err := unix.Bind(fd, bind); err != nil {
		return fmt.Errorf("packet socket: bind to interface %d: %w", ifindex, err)
	}
	return nil
}

func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}
