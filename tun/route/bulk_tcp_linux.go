package route

import (
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// drainState is the state of one Drain.
type drainState struct {
	take func(r io.Reader, n int)
	err  error
	one  [1]byte
	from waitingBytes
	try  func(fd uintptr) bool
}

// waitingBytes reads what the kernel has received already.
type waitingBytes struct{ fd int }

// Read implements io.Reader. It never blocks: it is asked only for what is there.
func (w *waitingBytes) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := quickly(unix.SYS_READ, w.fd, b)
	switch {
	case err != nil:
		return 0, os.NewSyscallError("read", err)
	case n == 0:
		return 0, io.ErrUnexpectedEOF
	}
	return n, nil
}

// Drain waits until bytes are there, and calls take with a reader of n of them that does not block
// and is valid during the call. What take leaves stays. Without a call the error says why, as in
// Fill; io.EOF is the server's FIN.
func (c *TCPConn) Drain(take func(r io.Reader, n int)) error {
	if c.drain == nil {
		c.drain = &drainState{try: c.tryDrain}
	}
	s := c.drain
	s.take, s.err = take, nil
	err := c.raw.Read(s.try)
	s.take = nil
	if err != nil {
		return closedError(err)
	}
	return s.err
}

func (c *TCPConn) tryDrain(fd uintptr) bool {
	s := c.drain
	for {
		n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		if err != nil {
			s.err = os.NewSyscallError("ioctl", err)
			return true
		}
		if n > 0 {
			s.from.fd = int(fd)
			s.take(&s.from, n)
			return true
		}
		n, _, err = unix.Recvfrom(int(fd), s.one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR, err == nil && n > 0:
		case err == unix.EAGAIN:
			return false
		case err != nil:
			s.err = os.NewSyscallError("read", err)
			return true
		default:
			s.err = io.EOF
			return true
		}
	}
}

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
