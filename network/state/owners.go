package state

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrNoHooks says that the kernel does not tell who sends at the moment of sending. Its owner
// is then looked up afterwards, which works for every process that lives long enough.
var ErrNoHooks = errors.New("cgroup hooks are not available")

// noHooks wraps ErrNoHooks with the reason why.
func noHooks(format string, a ...any) error {
	return fmt.Errorf("%w: %w", ErrNoHooks, fmt.Errorf(format, a...))
}

// ImageID names one program image of one process for as long as the machine runs: a process
// number is given away again, a start is not, and each exec counts up.
type ImageID struct {
	Start uint64 // of the process, in nanoseconds since boot
	PID   uint32 // the process (thread group) in the initial PID namespace
	Exec  uint32 // how many times it has executed a program, modulo 2^32
}

// Sender is who sent the packets of a flow, as the kernel saw it in the system call itself.
type Sender struct {
	ImageID
	UID    uint32 // effective user while it sent
	Cookie uint64 // of the socket
	NetNS  uint64 // cookie of the network namespace it sent from
	// Certain says that the process that sent is the one that connected the socket or
	// addressed the datagram. Without it the socket was inherited or passed on, or the packet
	// was sent by another one on its behalf: who holds the socket must be asked.
	Certain bool
}

// Image is what the kernel said about a program image while it was sending. Empty fields mean
// that it could not say.
type Image struct {
	// Path is the binary as a process of this mount namespace sees it.
	Path      string
	Elsewhere bool   // the process lives in another mount namespace: Path holds there
	Jailed    bool   // its root directory is not that of this process
	Inode     uint64 // of the binary
	Device    uint64 // of the binary's file system, as stat(2) numbers it
	// Args is its whole command line, zero-terminated strings as in /proc/PID/cmdline; nil if
	// it was longer than what is kept.
	Args   []byte
	Comm   string
	Parent int
	CGroup string    // path in the version 2 hierarchy
	Layout [4]uint64 // code, stack, arguments, end of environment: see attribution
}

// OwnersOptions configure OpenOwners.
type OwnersOptions struct {
	// Root is the directory of the version 2 control group below which processes are
	// watched. Empty: the root of the hierarchy, found by itself.
	Root string
	// Local knows the addresses of this machine. A flow from any other address is forwarded,
	// and may be that of a process in another network namespace; one from a local address is
	// never: anybody may use that address in a namespace of his own. nil: all are local.
	Local func(netip.Addr) bool
	// Mark within Mask is what sockets get whose connection is permitted already (see Permits); 0: none
	// gets one. No other hook and no program gives it to a socket that begins a connection.
	Mark, Mask uint32
	// Arrival is a port of this machine. Of what stays here only datagrams and connections to it are noted; 0:
	// none is.
	Arrival uint16
	// Ours leaves the sockets of this process alone, which saves what the hooks cost it.
	Ours bool
}
