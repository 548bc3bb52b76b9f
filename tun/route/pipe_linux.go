package route

import (
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// pipeSize is how many pages of memory a pipe may hold on to, in bytes; pages of sockets are larger.
const pipeSize = 256 << 10

// pipeStep is the most that is moved at once.
const pipeStep = 1 << 20

// Pipe moves bytes between two sockets without copying them (splice(2)). One goroutine uses it at a time.
type Pipe struct {
	in, out int
	held    int // bytes in it
}

// OpenPipe opens a pipe: two files.
func OpenPipe() (*Pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize) // a smaller one does as well
	return &Pipe{out: fds[0], in: fds[1]}, nil
}

// Fill waits until from has bytes and takes them. io.EOF is a FIN, os.ErrDeadlineExceeded what Interrupt
// brings about. The pipe must be empty.
func (p *Pipe) Fill(from syscall.Conn) (n int, err error) {
	raw, err := from.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, failed = splice(int(fd), p.in, pipeStep)
		return failed != syscall.EAGAIN
	})
	switch {
	case err != nil:
		return 0, closedError(err)
	case failed != nil:
		return 0, os.NewSyscallError("splice", failed)
	case n == 0:
		return 0, io.EOF
	}
	p.held = n
	return n, nil
}

// Drain writes all that Fill took, and returns how much of it was written. After an error the pipe is of no
// use any more.
func (p *Pipe) Drain(to syscall.Conn) (n int, err error) {
	raw, err := to.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		for p.held > 0 {
			var moved int
			if moved, failed = splice(p.out, int(fd), p.held); failed != nil {
				return failed != syscall.EAGAIN
			}
			p.held -= moved
			n += moved
		}
		return true
	})
	if err != nil {
		return n, closedError(err)
	}
	return n, os.NewSyscallError("splice", failed)
}

// Close gives the files back, with the bytes that are still in it.
func (p *Pipe) Close() {
	_ = unix.Close(p.in)
	_ = unix.Close(p.out)
}

// splice moves bytes without waiting, and without telling Go's scheduler (see quickly).
func splice(from, to, limit int) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(limit), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch errno {
		case 0:
			return int(n), nil
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}
