package resend

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"gatun/network/packet"

	"golang.org/x/sys/unix"
)

// Sockets send whole packets with a mark. Send and Close may be called from any goroutine.
type Sockets struct{ v4, v6 *socket }

type socket struct {
	*os.File
	fd syscall.RawConn
}

// Open opens the sockets in the network namespace of the calling thread. It needs CAP_NET_RAW and
// CAP_NET_ADMIN there. A kernel without IPv6 has one socket only.
func Open(mark uint32) (*Sockets, error) {
	v4, err := openFamily(unix.AF_INET, unix.SOL_IP, unix.IP_HDRINCL, mark)
	if err != nil {
		return nil, err
	}
	v6, err := openFamily(unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_HDRINCL, mark)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		v6, err = nil, nil
	}
	if err != nil {
		return nil, errors.Join(err, v4.Close())
	}
	return &Sockets{v4: v4, v6: v6}, nil
}

// Files returns the sockets as they are handed to another process: IPv4, and IPv6 where there is one.
func (r *Sockets) Files() []*os.File {
	if r.v6 == nil {
		return []*os.File{r.v4.File}
	}
	return []*os.File{r.v4.File, r.v6.File}
}

// FromFiles takes over sockets that Files of another process returned. An error closes them.
func FromFiles(files []*os.File) (*Sockets, error) {
	var all [2]*socket
	for i, f := range files {
		s, err := newSocket(f)
		if err != nil || i >= len(all) {
			for _, f := range files {
				_ = f.Close()
			}
			return nil, errors.Join(fmt.Errorf("want one or two raw sockets, got %d", len(files)), err)
		}
		all[i] = s
	}
	if all[0] == nil {
		return nil, fmt.Errorf("want one or two raw sockets, got none")
	}
	return &Sockets{v4: all[0], v6: all[1]}, nil
}

func newSocket(f *os.File) (*socket, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("raw socket: %w", err), f.Close())
	}
	return &socket{f, raw}, nil
}

func openFamily(family, level, option int, mark uint32) (*socket, error) {
	// IPPROTO_RAW only sends: nothing is queued that nobody would read.
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("raw socket: %w", unsupported(err))
	}
	if err := errors.Join(unix.SetsockoptInt(fd, level, option, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark))); err != nil {
		return nil, errors.Join(fmt.Errorf("raw socket: CAP_NET_RAW and CAP_NET_ADMIN are needed: %w", unsupported(err)), unix.Close(fd))
	}
	return newSocket(os.NewFile(uintptr(fd), "raw socket"))
}

// Send sends the packet b of f, which Whole returned.
func (r *Sockets) Send(f packet.Flow, b []byte) error {
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
		sent = unix.Sendto(int(fd), b, 0, to)
		for sent == unix.EINTR {
			sent = unix.Sendto(int(fd), b, 0, to)
		}
	})
	if err == nil {
		err = sent
	}
	if err != nil {
		return fmt.Errorf("%s: send the held packet again: %w", f, err)
	}
	return nil
}

// Close gives the sockets back.
func (r *Sockets) Close() {
	_ = r.v4.Close()
	if r.v6 != nil {
		_ = r.v6.Close()
	}
}

// unsupported names errors that mean: this kernel, or this process, has no raw sockets.
func unsupported(err error) error {
	for _, e := range []error{unix.EPERM, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
	}
	return err
}
