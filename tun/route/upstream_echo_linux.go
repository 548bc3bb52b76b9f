package route

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

// EchoSocket sends echo requests to one host. Send may be called from any goroutine, Serve
// from one.
type EchoSocket struct {
	d      *Dialer
	f      *os.File
	raw    syscall.RawConn
	fam    family
	remote netip.Addr
	plain  bool   // a raw socket, on which identifiers are our own affair
	id     uint16 // of the raw socket

	ttl, tos uint8 // as last set on the socket; guarded by the descriptor's write lock
}

func (d *Dialer) listenEcho(local, remote netip.Addr) (*EchoSocket, error) {
	s, err := d.openEcho(local, remote, unix.SOCK_DGRAM)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EPROTONOSUPPORT) {
		s, err = d.openEcho(local, remote, unix.SOCK_RAW)
	}
	return s, err
}

func (d *Dialer) openEcho(local, remote netip.Addr, kind int) (*EchoSocket, error) {
	s := &EchoSocket{d: d, fam: familyOf(remote), remote: remote, plain: kind == unix.SOCK_RAW}
	fd, err := unix.Socket(s.fam.domain, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, s.fam.icmpProto)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := s.prepare(fd, d.source(local, remote)); err != nil {
		unix.Close(fd)
		return nil, err
	}
	s.f = os.NewFile(uintptr(fd), "icmp")
	if s.raw, err = s.f.SyscallConn(); err != nil {
		s.f.Close()
		return nil, err
	}
	return s, nil
}

func (s *EchoSocket) prepare(fd int, source netip.Addr) error {
	if err := s.d.mark(fd); err != nil {
		return err
	}
	for _, opt := range []int{s.fam.recvErr, s.fam.recvTTL} {
		if err := unix.SetsockoptInt(fd, s.fam.level, opt, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	if s.plain {
		if err := s.prepareRaw(fd); err != nil {
			return err
		}
	}
	if source.IsValid() {
		err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(source, 0)))
		if err != nil && err != unix.EADDRNOTAVAIL && err != unix.EINVAL {
			return os.NewSyscallError("bind", err)
		}
	}
	// Connected, the socket gets only this host's replies, and the errors about requests to it.
	return os.NewSyscallError("connect", unix.Connect(fd, sockaddr(netip.AddrPortFrom(s.remote, 0))))
}

// prepareRaw chooses an identifier and lets only echo replies in. The program's own identifier
// would be wrong: on this host the kernel would give it the reply a second time.
func (s *EchoSocket) prepareRaw(fd int) error {
	var id [2]byte
	rand.Read(id[:])
	s.id = binary.BigEndian.Uint16(id[:])
	if s.fam.domain == unix.AF_INET6 {
		var filter unix.ICMPv6Filter
		for i := range filter.Data {
			filter.Data[i] = ^uint32(0)
		}
		filter.Data[s.fam.reply>>5] &^= 1 << (s.fam.reply & 31)
		return os.NewSyscallError("setsockopt ICMP6_FILTER", unix.SetsockoptICMPv6Filter(fd, unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &filter))
	}
	const icmpFilter = 1 // ICMP_FILTER of linux/icmp.h: a mask of the types that are kept out
	mask := int(int32(^uint32(1 << s.fam.reply)))
	return os.NewSyscallError("setsockopt ICMP_FILTER", unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, mask))
}

// Send sends one request and never waits. A request that is too big for its path is a
// *packet.ICMPError with the path's MTU.
func (s *EchoSocket) Send(seq uint16, payload []byte, ttl, tos uint8) error {
	b := appendEcho(make([]byte, 0, echoHeaderLen+len(payload)), s.remote, s.id, seq, payload)
	var sendErr error
	err := s.raw.Write(func(fd uintptr) bool {
		s.setHeader(int(fd), ttl, tos)
		sendErr = unix.Send(int(fd), b, unix.MSG_DONTWAIT)
		if e, ok := sendErr.(syscall.Errno); ok && pendingError(e) {
			sendErr = unix.Send(int(fd), b, unix.MSG_DONTWAIT)
		}
		if sendErr == unix.EMSGSIZE {
			mtu, _ := unix.GetsockoptInt(int(fd), s.fam.level, s.fam.mtu)
			sendErr = packet.TooBig(netip.Addr{}, uint32(mtu))
		}
		return true
	})
	if err != nil {
		return closedError(err)
	}
	return sendErr
}

func (s *EchoSocket) setHeader(fd int, ttl, tos uint8) {
	if ttl != s.ttl && ttl != 0 && unix.SetsockoptInt(fd, s.fam.level, s.fam.ttl, int(ttl)) == nil {
		s.ttl = ttl
	}
	if tos != s.tos && unix.SetsockoptInt(fd, s.fam.level, s.fam.tos, int(tos)) == nil {
		s.tos = tos
	}
}

// Serve calls reply for each echo reply and report for each ICMP error about one of our
// requests, until the socket is closed; then it returns os.ErrClosed. The payload is valid
// during the call only.
func (s *EchoSocket) Serve(reply func(seq uint16, payload []byte, ttl uint8), report func(seq uint16, e *packet.ICMPError)) error {
	err := s.raw.Read(func(fd uintptr) bool {
		for s.receive(int(fd), reply) {
		}
		for s.reportOne(int(fd), report) {
		}
		return false
	})
	return closedError(err)
}

// receive reads one reply and reports whether there may be more.
func (s *EchoSocket) receive(fd int, reply func(seq uint16, payload []byte, ttl uint8)) (more bool) {
	batch := s.d.batch()
	defer s.d.batches.Put(batch)
	n, oobn, _, _, err := unix.Recvmsg(fd, batch.data[0][:], batch.oobs[0][:], unix.MSG_DONTWAIT)
	if err != nil {
		return err != unix.EAGAIN
	}
	b := batch.data[0][:n]
	if s.plain && s.fam.domain == unix.AF_INET { // a raw IPv4 socket shows the IP header
		b = skipIPv4Header(b)
	}
	id, seq, payload, err := parseEcho(b, s.fam.reply)
	if err == nil && (!s.plain || id == s.id) {
		reply(seq, payload, ttlOf(batch.oobs[0][:oobn]))
	}
	return true
}

func skipIPv4Header(b []byte) []byte {
	if len(b) < 20 {
		return nil
	}
	if n := int(b[0]&15) * 4; n <= len(b) {
		return b[n:]
	}
	return nil
}

func ttlOf(oob []byte) uint8 {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range msgs {
		if len(m.Data) >= 4 && (m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_TTL ||
			m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT) {
			return uint8(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return 0
}

// reportOne reads one message of the error queue and reports whether there was one. The kernel
// gives back the start of the request that the error is about: its header names the sequence.
func (s *EchoSocket) reportOne(fd int, report func(seq uint16, e *packet.ICMPError)) bool {
	var quoted [128]byte
	q, err := readErrQueue(fd, quoted[:])
	if err != nil {
		return err == unix.EINTR
	}
	if q.icmp == nil {
		return true
	}
	typ := byte(packet.ICMP4Echo)
	if s.remote.Is6() {
		typ = packet.ICMP6Echo
	}
	id, seq, _, err := parseEcho(quoted[:q.n], typ)
	if err == nil && (!s.plain || id == s.id) {
		report(seq, q.icmp)
	}
	return true
}

// Close ends Serve. It may be called more than once.
func (s *EchoSocket) Close() error { return s.f.Close() }
