package tun

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the packet path are made without telling Go's scheduler. They never block, the
// descriptors are non-blocking, but one that carries 64 KiB through the kernel's stack takes longer
// than the 20 µs after which the scheduler gives the thread's processor to another thread; both then
// pay for the way back. Measured 2026-11-22, docs/decisions/0019.

func quickRead(fd int, b []byte) (int, error) {
	return quick(unix.SYS_READ, fd, unsafe.Pointer(unsafe.SliceData(b)), len(b))
}

func quickWrite(fd int, b []byte) (int, error) {
	return quick(unix.SYS_WRITE, fd, unsafe.Pointer(unsafe.SliceData(b)), len(b))
}

func quickReadv(fd int, pieces []unix.Iovec) (int, error) {
	return quick(unix.SYS_READV, fd, unsafe.Pointer(unsafe.SliceData(pieces)), len(pieces))
}

func quickWritev(fd int, pieces []unix.Iovec) (int, error) {
	return quick(unix.SYS_WRITEV, fd, unsafe.Pointer(unsafe.SliceData(pieces)), len(pieces))
}

func quick(call uintptr, fd int, at unsafe.Pointer, n int) (int, error) {
	for {
		done, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(at), uintptr(n))
		switch errno {
		case 0:
			return int(done), nil
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}
