// Package state reads the operating system's socket tables: the sockets that may own one flow,
// or all of them.
//
// attribution asks it for one flow at a time and tun/route once at start for a snapshot. It
// reports what the kernel says and nothing else: it does not know processes, keeps no copy of
// a table between two calls and never changes or closes a socket.
package state

import (
	"errors"
	"net/netip"
	"os"

	"gatun/network/packet"
)

// ErrUnsupported says that this system offers no socket table that can be asked for one flow.
// attribution then falls back to a portable, slower source.
var ErrUnsupported = errors.New("socket tables cannot be queried on this system")

// State is the state of a socket, numbered as in Linux (include/net/tcp_states.h). Datagram
// sockets are Established when they are connected and Closed when they are not.
type State uint8

// The socket states. The zero value is the state of no socket.
const (
	Unknown State = iota
	Established
	SynSent
	SynReceived
	FinWait1
	FinWait2
	TimeWait
	Closed
	CloseWait
	LastAck
	Listen
	Closing
	NewSynReceived
)

// String returns the state as ss(8) and RFC 9293 spell it.
func (s State) String() string {
	names := [...]string{"unknown", "established", "syn-sent", "syn-received", "fin-wait-1", "fin-wait-2",
		"time-wait", "closed", "close-wait", "last-ack", "listen", "closing", "new-syn-received"}
	if int(s) >= len(names) {
		return names[0]
	}
	return names[s]
}

// Socket is one row of a socket table. Addresses are never IPv4-mapped and carry no zone: an
// IPv6 socket that speaks IPv4 shows its IPv4 addresses. An address that is not bound is the
// unspecified address of the socket's family.
type Socket struct {
	Proto  packet.Proto
	Local  netip.AddrPort // for ping sockets the port is the echo identifier, for raw sockets 0
	Remote netip.AddrPort
	State  State
	Inode  uint64 // 0: the socket belongs to no file any more, or not yet
	Cookie uint64 // never used twice until reboot; 0 where the table does not tell
	UID    uint32 // file-system user at the time the socket was made; not its present owner
	CGroup uint64 // cgroup v2 id at the time the socket was made; 0 where the table does not tell
	Device uint32 // the interface the socket is bound to, 0 = any
	V6Only bool   // an IPv6 socket that cannot speak IPv4
	Raw    bool   // a raw socket: it may send any packet of Proto
}

// Options say which network namespace's tables are read.
type Options struct {
	// Files are NETLINK_SOCK_DIAG sockets made inside the namespace whose tables are wanted;
	// one per look-up that may run at a time. Table works on duplicates: the caller keeps
	// and closes its own. Empty means the namespace of this process.
	Files []*os.File
	// ProcNet is the directory that shows that namespace's icmp, icmp6, raw and raw6 tables:
	// "/proc/PID/net" of a process inside it. Empty means /proc/self/net if Files is empty,
	// and no such tables if it is not.
	ProcNet string
	// Device is the interface index of the TUN. A TCP socket that a program bound to it
	// (SO_BINDTODEVICE) can only be looked up by this index. 0 leaves such sockets unfound.
	Device uint32
}

// New opens the socket tables of this process's own network namespace.
func New() (*Table, error) { return Open(Options{}) }

// NewFromFD opens the socket tables of another network namespace through f, a
// NETLINK_SOCK_DIAG socket made inside it. procNet is "/proc/PID/net" of a process in it.
func NewFromFD(f *os.File, procNet string) (*Table, error) {
	return Open(Options{Files: []*os.File{f}, ProcNet: procNet})
}
