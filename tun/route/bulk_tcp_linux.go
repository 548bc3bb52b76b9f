package route

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offer writes as much of b as finds room now.
func (c *TCPConn) Offer(b []byte) (int, error) {
	if c.offer == nil {
		c.offer = &offerState{try: c.tryOffer}
	}
	s := c.offer
	s.b, s.n, s.err = b, 0, nil
	err := c.raw.Write(s.try)
	s.b = nil
	if err != nil {
		return s.n, closedError(err)
	}
	return s.n, s.err
}

// offerState is the state of one Offer.
type offerState struct {
	b   []byte
	n   int
	err error
	try func(fd uintptr) bool
}

func (c *TCPConn) tryOffer(fd uintptr) bool {
	s := c.offer
	for s.n < len(s.b) {
		n, err := quickly(unix.SYS_WRITE, int(fd), s.b[s.n:])
		switch {
		case err == nil:
			s.n += n
		case err == syscall.EAGAIN:
			return true
		default:
			s.err = os.NewSyscallError("write", err)
			return true
		}
	}
	return true
}

// WaitWritable returns nil when Offer or Write would find room, or fail.
func (c *TCPConn) WaitWritable() error {
	err := c.raw.Write(func(fd uintptr) bool {
		poll := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(poll[:], 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
	if err != nil {
		return closedError(err)
	}
	return nil
}

// quickly reads into b or writes it, on a descriptor that does not block, without telling Go's
// scheduler: it would give the processor of a call that takes more than 20 µs to another thread.
func quickly(call uintptr, fd int, b []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch errno {
		case 0:
			return int(n), nil
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}
