package sandbox

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// supervisorCaps are the capabilities, over the new user namespace only, that the supervisor
// keeps across its exec: the network, the mounts (overlayfs works in a directory that only
// CAP_DAC_OVERRIDE can enter), to give them all up, and to find and end every process of the
// namespace.
func supervisorCaps() []uintptr {
	return []uintptr{
		unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_SYS_ADMIN, unix.CAP_DAC_OVERRIDE,
		unix.CAP_SETPCAP, unix.CAP_SYS_PTRACE, unix.CAP_KILL,
	}
}

// The bits of PR_SET_SECUREBITS (linux/securebits.h): uid 0 gets no capabilities by exec, no
// ambient ones can be raised, and neither can be undone.
const secureBits = 1<<0 | 1<<1 | 1<<6 | 1<<7

// dropPrivileges takes every capability from the calling thread and from whatever it starts,
// for good. The caller must have locked the goroutine to the thread; the other threads of the
// supervisor keep theirs.
//
// Attack: the command runs in the user namespace that owns the network namespace. Any
// capability left over, gained through uid 0, a setuid bit or a file capability would let it
// change the routes.
func dropPrivileges() error {
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, secureBits, 0, 0, 0); err != nil {
		return fmt.Errorf("set secure bits: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear the ambient capabilities: %w", err)
	}
	for c := uintptr(0); c < 64; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if err == unix.EINVAL && c > unix.CAP_SETPCAP {
			break // past the last capability of this kernel
		}
		if err != nil {
			return fmt.Errorf("drop capability %d from the bounding set: %w", c, err)
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		return fmt.Errorf("drop the capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

// forbidTracing keeps the command, which has the same user id, out of this process: no ptrace,
// no /proc/PID/mem, no taking of descriptors.
//
// Attack: the thread that starts the command has dropped its capabilities, so the kernel would
// let the command trace it, and through the shared memory reach the threads that have not.
func forbidTracing() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid tracing of the supervisor: %w", err)
	}
	return nil
}
