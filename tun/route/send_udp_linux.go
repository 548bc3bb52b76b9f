package route

import (
	"encoding/binary"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

// The bounds of a train: datagrams of one size to one peer, of which only the last may be shorter,
// that the kernel carries through its layers as one packet and cuts apart at the end (UDP_SEGMENT).
const (
	maxTrain      = 64 // UDP_MAX_SEGMENTS of Linux before 6.9
	maxTrainBytes = 65000
)

// sendOp is one sendmsg call with all the memory that it needs; Dialer pools them.
type sendOp struct {
	hdr  unix.Msghdr
	iovs [maxTrain]unix.Iovec
	name unix.RawSockaddrInet6 // also holds a RawSockaddrInet
	oob  [3 * cmsgIntSpace]byte
}

const cmsgIntSpace = 24 // unix.CmsgSpace(4) on 64-bit; enough on 32-bit

func (d *Dialer) sendOp() *sendOp {
	if op, ok := d.sends.Get().(*sendOp); ok {
		return op
	}
	return new(sendOp)
}

func (op *sendOp) try(fd int) syscall.Errno {
	_, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&op.hdr)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return errno
}

// Send sends datagrams in order until one fails, and returns how many it has sent. It never waits:
// EAGAIN means that the send buffer is full. A datagram that is too big for its path is a
// *packet.ICMPError with the path's MTU. What happens to one on the way comes back through Serve.
func (s *UDPSocket) Send(b [][]byte, to netip.AddrPort, ttl, tos uint8, df bool) (sent int, err error) {
	if err := s.d.check(to.Addr()); err != nil {
		return 0, err
	}
	if !s.hold() {
		return 0, os.ErrClosed
	}
	defer s.drop()
	s.setDF(df)
	op := s.d.sendOp()
	defer s.d.sends.Put(op)
	op.address(to)
	together := maxTrain // datagrams
	for sent < len(b) {
		train := b[sent:]
		train = train[:min(trainLength(train), together)]
		if s.single.Load() {
			train = train[:1]
		}
		errno := s.sendTrain(op, train, ttl, tos)
		switch {
		case errno == 0:
			sent += len(train)
		case len(train) > 1 && s.notTogether(errno, len(train[0])):
			together = 1 // then it shows which of them is wrong, if any is
		case errno == unix.EACCES && s.mayBroadcast(): // once more
		case errno == unix.EMSGSIZE:
			return sent, packet.TooBig(netip.Addr{}, s.d.pathMTU(s.fam, to))
		default:
			return sent, os.NewSyscallError("sendmsg", errno)
		}
	}
	return sent, nil
}

// trainLength returns how many of the datagrams, from the first on, can be one train.
func trainLength(b [][]byte) int {
	size, all := len(b[0]), len(b[0])
	for i := 1; i < min(len(b), maxTrain); i++ {
		all += len(b[i])
		switch {
		case len(b[i]) == 0, len(b[i]) > size, all > maxTrainBytes:
			return i
		case len(b[i]) < size:
			return i + 1
		}
	}
	return min(len(b), maxTrain)
}

// notTogether reports whether a train may have failed because it is one. Where datagrams of a size
// that fits every path failed, no train will ever leave this socket.
func (s *UDPSocket) notTogether(e syscall.Errno, size int) bool {
	const always = packet.MinIPv6MTU - 48
	switch e {
	case unix.EIO, unix.EINVAL, unix.EOPNOTSUPP, unix.ENOPROTOOPT:
		if size <= always {
			s.single.Store(true)
		}
		return true
	case unix.EMSGSIZE:
		return true
	default:
		return false
	}
}

// sendTrain makes one sendmsg call and returns the kernel's answer.
func (s *UDPSocket) sendTrain(op *sendOp, train [][]byte, ttl, tos uint8) syscall.Errno {
	op.fill(train, s.fam, ttl, tos, s.defTTL)
	errno := op.try(s.fd)
	if pendingError(errno) {
		// The kernel may have reported the error of an earlier datagram, perhaps to another
		// peer, and sent nothing; it is in the error queue as well, where report finds it.
		errno = op.try(s.fd)
	}
	clear(op.iovs[:len(train)])
	return errno
}

// pendingError reports whether sendmsg may have failed for an ICMP message that came earlier.
func pendingError(e syscall.Errno) bool {
	switch e {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EPROTO, unix.EMSGSIZE,
		unix.EACCES, unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.EHOSTDOWN, unix.ENONET:
		return true
	default:
		return false
	}
}

func (op *sendOp) address(to netip.AddrPort) {
	op.hdr = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&op.name)), Iov: &op.iovs[0]}
	op.hdr.Namelen = putSockaddr(&op.name, to)
}

func (op *sendOp) fill(train [][]byte, fam family, ttl, tos, defTTL uint8) {
	for i, b := range train {
		op.iovs[i].Base = unsafe.SliceData(b)
		op.iovs[i].SetLen(len(b))
	}
	op.hdr.SetIovlen(len(train))
	n := 0
	if ttl != 0 && ttl != defTTL {
		n += putCmsg(op.oob[n:], fam.level, fam.cmsgTTL, ttl)
	}
	if tos != 0 {
		n += putCmsg(op.oob[n:], fam.level, int32(fam.tos), tos)
	}
	if len(train) > 1 {
		n += putSegment(op.oob[n:], uint16(len(train[0])))
	}
	op.hdr.Control = nil
	if n > 0 {
		op.hdr.Control = &op.oob[0]
	}
	op.hdr.SetControllen(n)
}

func putSockaddr(sa *unix.RawSockaddrInet6, to netip.AddrPort) uint32 {
	port := to.Port()
	if addr := to.Addr(); addr.Is4() {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		*sa4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: addr.As4()}
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa4.Port))[:], port)
		return unix.SizeofSockaddrInet4
	}
	*sa = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: to.Addr().As16()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], port)
	return unix.SizeofSockaddrInet6
}

func putCmsg(b []byte, level int, typ int32, v uint8) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = int32(level), typ
	h.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(b[unix.CmsgLen(0):], uint32(v))
	return unix.CmsgSpace(4)
}

// putSegment says into how long datagrams the message is to be cut.
func putSegment(b []byte, size uint16) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(b[unix.CmsgLen(0):], size)
	return unix.CmsgSpace(2)
}
