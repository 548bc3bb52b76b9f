package handback

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"gatun/network/packet"

	"golang.org/x/sys/unix"
)

// rawSockets send whole packets, marked so that they take the main table's way at once.
type rawSockets struct{ v4, v6 *rawSocket }

type rawSocket struct {
	*os.File
	fd syscall.RawConn
}

func openRaw(mark uint32) (*rawSockets, error) {
	v4, err := openRawFamily(unix.AF_INET, unix.SOL_IP, unix.IP_HDRINCL, mark)
	if err != nil {
		return nil, err
	}
	v6, err := openRawFamily(unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_HDRINCL, mark)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		v6, err = nil, nil
	}
	if err != nil {
		return nil, errors.Join(err, v4.Close())
	}
	return &rawSockets{v4: v4, v6: v6}, nil
}

func openRawFamily(family, level, option int, mark uint32) (*rawSocket, error) {
	// IPPROTO_RAW only sends: nothing is queued that nobody would read.
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("raw socket: %w", typed(err))
	}
	if err := errors.Join(unix.SetsockoptInt(fd, level, option, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark))); err != nil {
		return nil, errors.Join(fmt.Errorf("raw socket: CAP_NET_RAW and CAP_NET_ADMIN are needed: %w", typed(err)), unix.Close(fd))
	}
	file := os.NewFile(uintptr(fd), "raw socket")
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("raw socket: %w", err), file.Close())
	}
	return &rawSocket{file, raw}, nil
}

// send sends the packet b of f.
func (r *rawSockets) send(f packet.Flow, b []byte) error {
	s := r.v4
	var to unix.Sockaddr
	if f.Remote.Addr().Is4() {
		to = &unix.SockaddrInet4{Addr: f.Remote.Addr().As4()}
	} else {
		s, to = r.v6, &unix.SockaddrInet6{Addr: f.Remote.Addr().As16()}
	}
	if s == nil {
		return fmt.Errorf("%s: %w: no IPv6", f, ErrUnsupported)
	}
	var sent error
	err := s.fd.Control(func(fd uintptr) {
		_, sent = uninterrupted(func() (int, error) { return 0, unix.Sendto(int(fd), b, 0, to) })
	})
	if err == nil {
		err = sent
	}
	if err != nil {
		return fmt.Errorf("%s: send the held packet again: %w", f, err)
	}
	return nil
}

func (r *rawSockets) close() {
	_ = r.v4.Close()
	if r.v6 != nil {
		_ = r.v6.Close()
	}
}
