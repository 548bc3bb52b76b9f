package route

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

// UDPSocket is an unconnected upstream socket. Send may be called from any goroutine, Serve
// from one.
type UDPSocket struct {
	d       *Dialer
	f       *os.File
	raw     syscall.RawConn
	fam     family
	defTTL  uint8
	probing atomic.Bool // how mtuDiscover is set; see setDF
	single  atomic.Bool // no trains: this kernel, or the way out, does not take them
}

func (d *Dialer) listenUDP(local netip.Addr) (*UDPSocket, error) {
	fam := familyOf(local)
	fd, err := unix.Socket(fam.domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &UDPSocket{d: d, fam: fam}
	if err := s.prepare(fd, d.source(local, local)); err != nil {
		unix.Close(fd)
		return nil, err
	}
	s.f = os.NewFile(uintptr(fd), "udp")
	if s.raw, err = s.f.SyscallConn(); err != nil {
		s.f.Close()
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
	if err := unix.SetsockoptInt(fd, s.fam.level, s.fam.mtuDiscover, s.fam.discoverOff); err != nil {
		return os.NewSyscallError("setsockopt MTU_DISCOVER", err)
	}
	if s.fam.domain == unix.AF_INET6 {
		_ = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1) // whether a program may is policy, decided before
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
	v := s.fam.discoverOff
	if df {
		v = s.fam.discoverOn
	}
	_ = s.raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), s.fam.level, s.fam.mtuDiscover, v) == nil {
			s.probing.Store(df)
		}
	})
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

// Serve calls datagram for each datagram that arrives and report for each ICMP error about one
// that was sent, until the socket is closed; then it returns os.ErrClosed. While nothing is
// there it holds no buffer. The slice is valid during the call only.
func (s *UDPSocket) Serve(datagram func(b []byte, from netip.AddrPort, tos uint8), report func(peer netip.AddrPort, e *packet.ICMPError)) error {
	// One long call of the poller's read: an edge that comes while the callback works wakes the
	// next wait, so a batch that was not full needs no further look.
	err := s.raw.Read(func(fd uintptr) bool {
		b := s.d.batch()
		for s.receive(int(fd), b, datagram) {
		}
		for s.reportOne(int(fd), b, report) {
		}
		s.d.batches.Put(b)
		return false
	})
	return closedError(err)
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
	var port uint16
	_ = s.raw.Control(func(fd uintptr) {
		if sa, err := unix.Getsockname(int(fd)); err == nil {
			port = addrPort(sa).Port()
		}
	})
	return port
}

// Close ends Serve. It may be called more than once.
func (s *UDPSocket) Close() error { return s.f.Close() }
