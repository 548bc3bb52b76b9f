package route

import (
	"context"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// control sets what every socket of ours carries.
func (d *Dialer) control(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = d.mark(int(fd)) }); e != nil {
		return e
	}
	return err
}

func (d *Dialer) mark(fd int) error {
	if d.Mark == 0 {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(d.Mark)); err != nil {
		return os.NewSyscallError("setsockopt SO_MARK (needs CAP_NET_ADMIN)", err)
	}
	return nil
}

// dialTCP does by hand what net.Dialer does, because the error queue, which names the hop that
// answered, must be read before the socket is closed. It holds one descriptor while it waits:
// a scan of silent hosts keeps many of these open.
func (d *Dialer) dialTCP(ctx context.Context, source netip.Addr, remote netip.AddrPort, ttl uint8) (*TCPConn, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	fam := familyOf(remote.Addr())
	fd, err := unix.Socket(fam.domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := d.prepareTCP(fd, fam, source, ttl); err != nil {
		unix.Close(fd)
		return nil, err
	}
	err = unix.Connect(fd, sockaddr(remote))
	if err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	// From here on the runtime's poller owns the descriptor. It must not see the socket before
	// connect: an unconnected one is reported as hung up at once.
	f := os.NewFile(uintptr(fd), "tcp")
	raw, err := f.SyscallConn()
	if err == nil {
		err = awaitConnect(ctx, f, raw)
	}
	if err == nil {
		err = settle(raw, fam, ttl)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return newTCPConn(d, f, raw, remote), nil
}

func (d *Dialer) prepareTCP(fd int, fam family, source netip.Addr, ttl uint8) error {
	if err := d.mark(fd); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, fam.level, fam.recvErr, 1); err != nil {
		return os.NewSyscallError("setsockopt RECVERR", err)
	}
	if ttl != 0 {
		if err := unix.SetsockoptInt(fd, fam.level, fam.ttl, int(ttl)); err != nil {
			return os.NewSyscallError("setsockopt TTL", err)
		}
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	// The kernel's slow probes (2 h) find servers that vanished; without them a flow to one
	// would be kept for ever, because the program's own probes end at our stack.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) // urgent bytes stay in the stream
	if source.IsValid() {
		return bindSource(fd, source)
	}
	return nil
}

// bindSource binds the address but no port: the kernel picks that in connect, where it may use
// one port towards many destinations.
func bindSource(fd int, source netip.Addr) error {
	_ = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(source, 0)))
	switch err {
	case nil, unix.EADDRNOTAVAIL, unix.EINVAL: // not an address of this host: a forwarded or spoofed one
		return nil
	default:
		return os.NewSyscallError("bind", err)
	}
}

// awaitConnect blocks until the handshake ended one way or the other.
func awaitConnect(ctx context.Context, f *os.File, raw syscall.RawConn) error {
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	var result error
	err := raw.Write(func(fd uintptr) bool {
		var done bool
		done, result = connected(int(fd))
		return done
	})
	if !stop() {
		return context.Cause(ctx) // the deadline is set or about to be: the socket is spoilt
	}
	if err != nil {
		return err
	}
	return result
}

// connected asks for the state of the handshake. It looks instead of trusting the poller's
// event, because an event that came before the caller began to wait is lost.
func connected(fd int) (done bool, err error) {
	e, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return true, os.NewSyscallError("getsockopt", err)
	}
	if e != 0 {
		if q, err := readErrQueue(fd, nil); err == nil && q.icmp != nil {
			return true, q.icmp
		}
		return true, os.NewSyscallError("connect", syscall.Errno(e))
	}
	_, err = unix.Getpeername(fd)
	return err == nil, nil
}

// settle puts back what only the connect needed. On an established connection an ICMP error is
// a hint; RECVERR would make it the end.
func settle(raw syscall.RawConn, fam family, ttl uint8) error {
	return raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), fam.level, fam.recvErr, 0)
		if ttl != 0 {
			_ = unix.SetsockoptInt(int(fd), fam.level, fam.ttl, -1)
		}
	})
}
