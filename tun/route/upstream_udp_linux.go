package route

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

// UDPSocket is an unconnected upstream socket. Send may be called from any goroutine, Serve
// from one.
type UDPSocket struct {
	d         *Dialer
	fd        int
	refs      atomic.Int32 // calls that use fd, and one while it is open
	closed    atomic.Bool
	poller    atomic.Pointer[udpPoller]
	calls     udpCalls
	fam       family
	defTTL    uint8
	discover  atomic.Int32 // how mtuDiscover is set; see setDF
	broadcast atomic.Bool  // SO_BROADCAST is set
	single    atomic.Bool  // no trains: this kernel, or the way out, does not take them
}

// The values of discover.
const (
	discoverUnset = iota
	discoverOff
	discoverOn
)

func (d *Dialer) listenUDP(local netip.Addr) (*UDPSocket, error) {
	fam := familyOf(local)
	fd, err := unix.Socket(fam.domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &UDPSocket{d: d, fd: fd, fam: fam}
	s.refs.Store(1)
	if err := s.prepare(fd, d.source(local, local)); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return s, nil
}

func (s *UDPSocket) prepare(fd int, source netip.Addr) error {
	if err := s.d.mark(fd); err != nil {
		return err
	}
	for _, opt := range []int{s.fam.recvErr, s.fam.recvTOS} {
		if err := unix.SetsockoptInt(fd, s.fam.level, opt, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	if s.fam.domain == unix.AF_INET6 {
		_ = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
	}
	ttl, err := unix.GetsockoptInt(fd, s.fam.level, s.fam.ttl)
	if err != nil {
		return os.NewSyscallError("getsockopt TTL", err)
	}
	s.defTTL = uint8(ttl)
	return bindUDP(fd, s.fam, source)
}

// bindUDP gives the socket its port now, so that it cannot change between two datagrams.
func bindUDP(fd int, fam family, source netip.Addr) error {
	if source.IsValid() {
		err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(source, 0)))
		if err != unix.EADDRNOTAVAIL && err != unix.EINVAL {
			return os.NewSyscallError("bind", err)
		}
	}
	unspecified := netip.IPv4Unspecified()
	if fam.domain == unix.AF_INET6 {
		unspecified = netip.IPv6Unspecified()
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(netip.AddrPortFrom(unspecified, 0))))
}

// setDF changes a property of the whole socket, since IPv4 has no control message for it. A
// socket whose programs mix both kinds at the same time may send a datagram with the other
// setting; that is a lost optimisation of path MTU discovery and not a wrong answer.
func (s *UDPSocket) setDF(df bool) {
	state, v := int32(discoverOff), s.fam.discoverOff
	if df {
		state, v = discoverOn, s.fam.discoverOn
	}
	if s.discover.Load() != state && unix.SetsockoptInt(s.fd, s.fam.level, s.fam.mtuDiscover, v) == nil {
		s.discover.Store(state)
	}
}

// mayBroadcast lets the socket send to a broadcast address, and reports whether that is news. Whether
// a program may is policy, decided before.
func (s *UDPSocket) mayBroadcast() bool {
	return !s.broadcast.Swap(true) && unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1) == nil
}

// pathMTU asks the kernel by a connected socket; an unconnected one has no path. 0 is "unknown".
func (d *Dialer) pathMTU(fam family, to netip.AddrPort) uint32 {
	fd, err := unix.Socket(fam.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	if d.mark(fd) != nil || unix.Connect(fd, sockaddr(to)) != nil {
		return 0
	}
	mtu, err := unix.GetsockoptInt(fd, fam.level, fam.mtu)
	if err != nil {
		return 0
	}
	return uint32(mtu)
}

const (
	batchSize    = 8
	maxDatagram  = 1 << 16
	batchOOBSize = 64
)

// recvBatch is the memory of one recvmmsg call. It is large, but only the pages that datagrams
// fill are ever touched, and it is borrowed only while datagrams are there.
type recvBatch struct {
	msgs  [batchSize]mmsghdr
	iovs  [batchSize]unix.Iovec
	names [batchSize]unix.RawSockaddrInet6
	oobs  [batchSize][batchOOBSize]byte
	data  [batchSize][maxDatagram]byte

	fault    unix.Msghdr // for the error queue
	faultTo  unix.RawSockaddrInet6
	faultOOB [256]byte
}

type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

func (d *Dialer) batch() *recvBatch {
	if b, ok := d.batches.Get().(*recvBatch); ok {
		return b
	}
	b := new(recvBatch)
	for i := range b.msgs {
		b.iovs[i].Base = &b.data[i][0]
		b.iovs[i].SetLen(maxDatagram)
		b.msgs[i].hdr.Name = (*byte)(unsafe.Pointer(&b.names[i]))
		b.msgs[i].hdr.Iov = &b.iovs[i]
		b.msgs[i].hdr.SetIovlen(1)
		b.msgs[i].hdr.Control = &b.oobs[i][0]
	}
	return b
}

// closedError translates the poller's error: it knows deadlines and closed descriptors, and
// names the second in a way that only package os can see.
func closedError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return os.ErrClosed
}

// receive takes one batch and reports whether there may be more.
func (s *UDPSocket) receive(fd int, b *recvBatch, datagram func(b []byte, from netip.AddrPort, tos uint8)) (more bool) {
	for i := range b.msgs {
		b.msgs[i].hdr.Namelen = unix.SizeofSockaddrInet6
		b.msgs[i].hdr.SetControllen(batchOOBSize)
	}
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[0])), batchSize, unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return errno != unix.EAGAIN // the pending error is taken by this; the queue explains it
	}
	for i := range b.msgs[:n] {
		m := &b.msgs[i]
		datagram(b.data[i][:m.n], rawAddrPort(&b.names[i]), tosOf(b.oobs[i][:m.hdr.Controllen]))
	}
	return n == batchSize
}

func rawAddrPort(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
	if sa.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), port)
}

// tosOf reads the one control message that we ask for. IPv4 carries it as a byte, IPv6 as an
// int; both are wanted in native order, and a TOS fits in the low byte.
func tosOf(oob []byte) uint8 {
	if len(oob) < unix.CmsgLen(1) {
		return 0
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	switch {
	case h.Level == unix.SOL_IP && h.Type == unix.IP_TOS:
		return oob[unix.CmsgLen(0)]
	case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_TCLASS && len(oob) >= unix.CmsgLen(4):
		return uint8(binary.NativeEndian.Uint32(oob[unix.CmsgLen(0):]))
	default:
		return 0
	}
}

// reportOne reads one message of the error queue and reports whether there was one.
// It looks at each wake-up and mostly in vain, which is why it does not use readErrQueue.
func (s *UDPSocket) reportOne(fd int, b *recvBatch, report func(peer netip.AddrPort, e *packet.ICMPError)) bool {
	b.fault = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&b.faultTo)), Namelen: unix.SizeofSockaddrInet6, Control: &b.faultOOB[0]}
	b.fault.SetControllen(len(b.faultOOB))
	_, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.fault)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if errno != 0 {
		return errno == unix.EINTR
	}
	e := queuedError(b.faultOOB[:b.fault.Controllen])
	if e != nil && b.fault.Namelen >= unix.SizeofSockaddrInet4 {
		report(rawAddrPort(&b.faultTo), e)
	}
	return true
}

// LocalPort is the port that peers see, 0 when the socket is closed.
func (s *UDPSocket) LocalPort() uint16 {
	if !s.hold() {
		return 0
	}
	defer s.drop()
	sa, err := unix.Getsockname(s.fd)
	if err != nil {
		return 0
	}
	return addrPort(sa).Port()
}
