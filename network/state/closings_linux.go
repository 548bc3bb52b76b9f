package state

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

// closingsBuffer is room for about 20 000 closings that nobody has read yet.
const closingsBuffer = 8 << 20

// Closings is the kernel's word that UDP sockets of one network namespace have been closed
// (sock_diag destroy groups, Linux 4.2 and later). A TCP socket needs none: the next
// connection begins with a SYN.
type Closings struct {
	f *os.File
}

// OpenClosings listens in the network namespace of this process, which needs CAP_NET_ADMIN.
func OpenClosings() (*Closings, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("listen for closed sockets: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: ClosingGroups}); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for closed sockets: %w", err), unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), "closings")
	defer f.Close()
	return AdoptClosings(f)
}

// AdoptClosings listens through a duplicate of f, a NETLINK_SOCK_DIAG socket that was bound to
// ClosingGroups in another network namespace. The caller keeps f.
func AdoptClosings(f *os.File) (*Closings, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("listen for closed sockets: %w", err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, closingsBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, closingsBuffer) // as much as is allowed
	}
	// Only a descriptor that was non-blocking when it was wrapped waits in the netpoller.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for closed sockets: %w", err), unix.Close(fd))
	}
	return &Closings{f: os.NewFile(uintptr(fd), "closings")}, nil
}

// Run calls closed with the protocol and the local address of every socket that was closed, in
// order, until ctx ends; the address may be unspecified. lost is called when the kernel had to
// throw closings away. Both are called in Run's goroutine.
func (c *Closings) Run(ctx context.Context, closed func(packet.Proto, netip.AddrPort), lost func()) error {
	defer context.AfterFunc(ctx, func() { _ = c.f.Close() })()
	raw, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, largeReply)
	var sockets []Socket
	for {
		var n int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, rerr = unix.Read(int(fd), buf) // who sends is the kernel, always
			return rerr != unix.EAGAIN
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("listen for closed sockets: %w", err)
		case rerr == unix.ENOBUFS:
			lost()
			continue
		case rerr == unix.EINTR:
			continue
		case rerr != nil:
			return fmt.Errorf("listen for closed sockets: %w", rerr)
		}
		sockets, _, err = parseReply(sockets[:0], buf[:n], sequenceOf(buf[:n]), packet.UDP)
		if err != nil {
			lost() // it cannot be read: as good as thrown away
		}
		for _, s := range sockets {
			closed(s.Proto, s.Local)
		}
	}
}

// sequenceOf is the sequence number of the first message in b: a multicast answers no question.
func sequenceOf(b []byte) uint32 {
	if len(b) < headerLen {
		return 0
	}
	return binary.NativeEndian.Uint32(b[8:])
}
