package tun

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// largestPacket is the most that the kernel puts into one packet for a device that has not asked for
// more (GSO_LEGACY_MAX_SIZE, linux/netdevice.h), headers included.
const largestPacket = 64 << 10

// The header in front of each packet (struct virtio_net_hdr, linux/virtio_net.h).
const (
	vnetHeaderLen = 10
	ethernetLen   = 14
	vnetNeedsCsum = 1 // flags: the transport checksum holds only the sum of the pseudo header
	vnetTCP4      = 1 // GSO types
	vnetTCP6      = 4
	tcpChecksumAt = 16
)

// offloads is what the kernel need not do before it hands over a packet: TUN_F_CSUM, TUN_F_TSO4
// and TUN_F_TSO6 (linux/if_tun.h).
const offloads = 1 | 2 | 4

// offload is the driver of a descriptor with a virtio header in front of each packet: the kernel
// hands over and takes TCP packets of up to 64 KiB, which it or the network card cuts into
// segments, and leaves transport checksums out of packets that never were on a wire.
type offload struct {
	*batch
	front    int // bytes in front of a packet: that header, and the link layer's where there is one
	in, out  vnetSide
	unsummed [batchSize]bool // of the packets that were read last
}

func (d *offload) MaxPacket() int      { return largestPacket }
func (d *offload) Unsummed(i int) bool { return d.unsummed[i] }

// vnetSide is what is in front of the packet that is read, or written, and its pieces.
type vnetSide struct {
	header [vnetHeaderLen + ethernetLen]byte
	pieces []unix.Iovec
}

func (s *vnetSide) join(front int, packet ...[]byte) []unix.Iovec {
	s.pieces = s.pieces[:0]
	s.add(s.header[:front])
	for _, b := range packet {
		s.add(b)
	}
	return s.pieces
}

func (s *vnetSide) add(b []byte) {
	piece := unix.Iovec{Base: unsafe.SliceData(b)}
	piece.SetLen(len(b))
	s.pieces = append(s.pieces, piece)
}

// openLarge is Open with the offloading driver.
func (o Options) openLarge() (Device, error) {
	ifr, err := unix.NewIfreq(o.Name)
	if err != nil {
		return nil, openError(o.Name, err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, openError(o.Name, err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		if err == unix.EINVAL { // no such header, or something about the name: the portable driver can tell
			err = errors.ErrUnsupported
		}
		return nil, openError(o.Name, err)
	}
	file := os.NewFile(uintptr(fd), "/dev/net/tun") // not before: it can be polled only now
	d, err := o.prepare(file, fd, ifr.Name())
	if err != nil {
		file.Close()
		return nil, err
	}
	return d, nil
}

func (o Options) prepare(file *os.File, fd int, name string) (Device, error) {
	persist := 0
	if o.Persist {
		persist = 1
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, persist); err != nil {
		return nil, fmt.Errorf("set how long %s stays: %w", name, err)
	}
	if err := configure(name, o.MTU); err != nil {
		return nil, fmt.Errorf("set the MTU of %s to %d: %w", name, o.MTU, err)
	}
	return newOffload(file, name, o.MTU)
}

// newOffload puts the driver on a TUN descriptor that has the header already.
func newOffload(file *os.File, name string, mtu int) (*offload, error) {
	d, err := newVnet(file, name, mtu, vnetHeaderLen)
	if err != nil {
		return nil, err
	}
	var set error
	err = d.raw.Control(func(fd uintptr) { set = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, offloads) })
	if err = errors.Join(err, set); err != nil {
		return nil, fmt.Errorf("switch on the offloads of %s: %w", name, err)
	}
	return d, nil
}

func newVnet(file *os.File, name string, mtu, front int) (*offload, error) {
	b, err := newBatch(file, name, mtu)
	if err != nil {
		return nil, err
	}
	d := &offload{batch: b, front: front}
	b.recv, b.send = d.recv, d.send
	return d, nil
}

// recv reads packet i of a batch.
func (d *offload) recv(fd int, b []byte, i int) (int, error) {
	n, err := quickReadv(fd, d.in.join(d.front, b))
	if err != nil || n < d.front {
		return 0, err
	}
	d.unsummed[i] = d.in.header[0]&vnetNeedsCsum != 0
	return n - d.front, nil
}

// send writes a packet that is as it should be on a wire.
func (d *offload) send(fd int, b []byte) error {
	if !d.address(b) {
		return unix.EINVAL
	}
	clear(d.out.header[:vnetHeaderLen])
	_, err := quickWritev(fd, d.out.join(d.front, b))
	return err
}

// address completes the link layer's header, and reports whether b begins an IP packet.
func (d *offload) address(b []byte) bool {
	if len(b) == 0 {
		return false
	}
	protocol := d.out.header[vnetHeaderLen+ethernetLen-2:]
	switch b[0] >> 4 {
	case 4:
		binary.BigEndian.PutUint16(protocol, unix.ETH_P_IP)
	case 6:
		binary.BigEndian.PutUint16(protocol, unix.ETH_P_IPV6)
	default:
		return false
	}
	return true
}

func (d *offload) WriteLarge(pieces [][]byte, network, headers, mss int) (taken bool, err error) {
	if !d.address(pieces[0]) {
		return false, nil
	}
	h, link := d.out.header[:], d.front-vnetHeaderLen
	h[0], h[1] = vnetNeedsCsum, 0
	switch {
	case mss == 0:
	case pieces[0][0]>>4 == 4:
		h[1] = vnetTCP4
	default:
		h[1] = vnetTCP6
	}
	binary.NativeEndian.PutUint16(h[2:], uint16(link+headers))
	binary.NativeEndian.PutUint16(h[4:], uint16(mss))
	binary.NativeEndian.PutUint16(h[6:], uint16(link+network))
	binary.NativeEndian.PutUint16(h[8:], tcpChecksumAt)
	var sent error
	err = d.raw.Control(func(fd uintptr) { _, sent = quickWritev(int(fd), d.out.join(d.front, pieces...)) })
	clear(d.out.pieces)
	switch {
	case err == nil && !gone(sent):
		return sent == nil, nil
	case d.closed.Load():
		return false, os.ErrClosed
	}
	return false, d.fail("write to", errors.Join(err, sent))
}

// hasVnetHeader reports whether packets of the descriptor carry the header.
func hasVnetHeader(file *os.File) (bool, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return false, err
	}
	ifr, err := unix.NewIfreq("x")
	if err != nil {
		return false, err
	}
	var get error
	err = raw.Control(func(fd uintptr) { get = unix.IoctlIfreq(int(fd), unix.TUNGETIFF, ifr) })
	return ifr.Uint16()&unix.IFF_VNET_HDR != 0, errors.Join(err, get)
}
