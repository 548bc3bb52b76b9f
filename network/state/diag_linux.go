package state

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

// conn is one NETLINK_SOCK_DIAG socket with its buffers. One goroutine uses it at a time.
type conn struct {
	fd    int
	seq   uint32
	req   [maxRequest]byte
	reply []byte
}

// The kernel puts as much of a dump into one datagram as there was ever room for in a read of the socket,
// and at least a page or 8 KiB, the lesser of the two. An answer for one flow has a socket or two: to make
// room for hundreds took longer than to look for them.
const (
	largeReply = 32 << 10 // the most
	leastReply = 4 << 10
	mostLeast  = 8 << 10
)

// dial makes a conn in the network namespace of this process.
func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open a socket diagnosis socket: %w", err)
	}
	return newConn(fd)
}

// adopt makes a conn of a duplicate of f, which belongs to the namespace it was made in.
func adopt(f *os.File) (*conn, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var dupErr error
	err = raw.Control(func(of uintptr) {
		fd, dupErr = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 3)
	})
	if err = errors.Join(err, dupErr); err != nil {
		return nil, fmt.Errorf("duplicate the socket diagnosis socket: %w", err)
	}
	return newConn(fd)
}

// newConn takes over fd. Connecting to the kernel makes every other sender's message be
// refused, so that nobody can forge an answer.
func newConn(fd int) (*conn, error) {
	err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil {
		// Answers are queued before a request returns; the limit only ends a lost one.
		limit := unix.NsecToTimeval(int64(time.Second))
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up the socket diagnosis socket: %w", err), unix.Close(fd))
	}
	return &conn{fd: fd, reply: make([]byte, min(max(os.Getpagesize(), leastReply), mostLeast))}, nil
}

// query sends r and appends the sockets of the answer to dst. An exact query without an
// answer returns errNotFound.
func (c *conn) query(dst []Socket, r *request) ([]Socket, error) {
	c.seq++
	if err := retry(func() error { _, err := unix.Write(c.fd, r.append(c.req[:0], c.seq)); return err }); err != nil {
		return dst, fmt.Errorf("ask for sockets: %w", err)
	}
	if r.many && len(c.reply) < largeReply {
		c.reply = make([]byte, largeReply) // and for good: the kernel remembers it
	}
	for {
		var n int
		err := retry(func() (err error) { n, err = unix.Read(c.fd, c.reply); return err })
		if err != nil {
			return dst, fmt.Errorf("read sockets: %w", err)
		}
		var done bool
		if dst, done, err = parseReply(dst, c.reply[:n], c.seq, r.proto); err != nil || done {
			return dst, unsupported(err)
		}
	}
}

// retry repeats a system call that a signal cut short.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// unsupported translates the answers of a kernel without inet_diag for a protocol.
func unsupported(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return ErrUnsupported
	}
	return err
}

// pool lends conns. It holds a fixed number of them, so that look-ups run at the same time
// without a dial per look-up, and a flood of them waits instead of taking files.
type pool struct {
	idle   chan *conn
	closed chan struct{}
}

// openPool makes one conn per file, or count of this process's own.
func openPool(files []*os.File, count int) (*pool, error) {
	if len(files) > 0 {
		count = len(files)
	}
	p := &pool{idle: make(chan *conn, count), closed: make(chan struct{})}
	for i := range count {
		c, err := dialOrAdopt(files, i)
		if err != nil {
			p.close()
			return nil, err
		}
		p.idle <- c
	}
	return p, nil
}

func dialOrAdopt(files []*os.File, i int) (*conn, error) {
	if len(files) == 0 {
		return dial()
	}
	return adopt(files[i])
}

// query lends a conn for one query.
func (p *pool) query(dst []Socket, r *request) ([]Socket, error) {
	select {
	case <-p.closed:
		return dst, os.ErrClosed
	default:
	}
	select {
	case <-p.closed:
		return dst, os.ErrClosed
	case c := <-p.idle:
		dst, err := c.query(dst, r)
		p.idle <- c // never blocks: the channel has room for every conn
		select {
		case <-p.closed:
			p.drain()
		default:
		}
		return dst, err
	}
}

// close ends the pool; conns that are lent end when they come back.
func (p *pool) close() {
	close(p.closed)
	p.drain()
}

func (p *pool) drain() {
	for {
		select {
		case c := <-p.idle:
			unix.Close(c.fd)
		default:
			return
		}
	}
}

// families returns the families whose sockets can carry f: an IPv6 socket may speak IPv4.
func families(f packet.Flow) []uint8 {
	if f.Is6() {
		return []uint8{familyV6}
	}
	return []uint8{familyV4, familyV6}
}
