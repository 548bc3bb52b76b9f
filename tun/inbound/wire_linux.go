package inbound

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// wire asks the kernel one question at a time. Answers of connection tracking are marked as parts of
// more that never comes, so no library reads them.
type wire struct {
	mu  sync.Mutex
	fd  int // -1 when closed
	seq uint32
	buf [16 << 10]byte
}

// openWire connects to the kernel: every other sender is refused. Answers are queued before a request
// returns; the limit only ends a lost one.
func openWire(protocol int) (*wire, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("%w: netlink socket: %w", ErrUnsupported, err)
	}
	limit := unix.NsecToTimeval(2e9)
	if err := errors.Join(unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: netlink socket: %w", ErrUnsupported, err), unix.Close(fd))
	}
	return &wire{fd: fd}, nil
}

func (w *wire) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fd >= 0 {
		_ = unix.Close(w.fd)
		w.fd = -1
	}
}

// ask sends one message and returns a copy of what its one answer carries, or the kernel's error.
func (w *wire) ask(typ, flags uint16, data []byte) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seq++
	b := append(make([]byte, netlinkHeader, netlinkHeader+len(data)), data...)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], typ)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(b[8:], w.seq)
	if err := unix.Send(w.fd, b, 0); err != nil {
		return nil, err
	}
	for {
		n, _, err := unix.Recvfrom(w.fd, w.buf[:], 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, err
		case n < netlinkHeader+4 || binary.NativeEndian.Uint32(w.buf[8:]) != w.seq:
			continue
		}
		if binary.NativeEndian.Uint16(w.buf[4:]) != unix.NLMSG_ERROR {
			size := min(int(binary.NativeEndian.Uint32(w.buf[:])), n)
			return append([]byte(nil), w.buf[netlinkHeader:max(size, netlinkHeader)]...), nil
		}
		if e := int32(binary.NativeEndian.Uint32(w.buf[netlinkHeader:])); e != 0 {
			return nil, unix.Errno(-e)
		}
		return nil, nil
	}
}
