package sandbox

import (
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// udpSlots is how many lists the UDP sockets of the command are in. Who owns a datagram is asked of all
// of them: the kernel's own table of 16 384, which namespaces share otherwise, takes longer to walk than
// all the rest of the question. The more lists there are, the more of the processor's cache a walk takes;
// the fewer, the longer is the one that a datagram's socket is looked for in, which only thousands of
// sockets would notice.
const udpSlots = 256

// ownTable moves the calling thread into a further network namespace, whose UDP sockets have a table of
// their own: the kernel makes one for the children of a namespace that says so (Linux 6.2). The process
// is seen where its first thread is, so no other one may move. Whoever cannot have it is slower, and
// nothing else.
func ownTable() {
	if unix.Gettid() != unix.Getpid() {
		return
	}
	if setSysctl("net/ipv4/udp_child_hash_entries", strconv.Itoa(udpSlots)) == nil {
		_ = unix.Unshare(unix.CLONE_NEWNET)
	}
}

// openNetns opens the network namespace of the calling thread.
func openNetns() (*os.File, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	return f, nil
}

// enterNetns takes the calling goroutine into a network namespace, with a thread that ends with it: the
// threads of the process are where it began.
func enterNetns(f *os.File) error {
	runtime.LockOSThread()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	return nil
}
