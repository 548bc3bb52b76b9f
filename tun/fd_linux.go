package tun

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// batchSize bounds how many packets one Read takes: enough to amortise a wake-up, small
// enough that the first packet of a burst does not wait for the last.
const batchSize = 64

// FromFD makes a Device of a TUN descriptor that somebody else opened with IFF_TUN|IFF_NO_PI, and
// IFF_VNET_HDR for the offloading driver, and attached to an interface. mtu and name describe that
// interface, which may live in another network namespace. FromFD owns fd from now on, also when it
// fails.
func FromFD(fd int, mtu int, name string) (Device, error) {
	file, err := adopt(fd, name)
	if err != nil {
		return nil, err
	}
	d, err := driverOf(file, name, mtu)
	if err != nil {
		file.Close()
		return nil, err
	}
	return d, nil
}

// driverOf chooses the driver by what the descriptor can do.
func driverOf(file *os.File, name string, mtu int) (Device, error) {
	large, err := hasVnetHeader(file)
	switch {
	case err != nil:
		return nil, fmt.Errorf("device %s: %w", name, err)
	case large:
		return newOffload(file, name, mtu)
	default:
		return newBatch(file, name, mtu)
	}
}

// adopt makes fd non-blocking, so that reads park in the netpoller and not in a thread, and
// close-on-exec.
func adopt(fd int, name string) (*os.File, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("descriptor %d of %s: %w", fd, name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// batch reads and writes packets on a non-blocking descriptor with one system call each: the
// first read of a batch waits in the netpoller, the others take what is there.
//
// The state of the running call lives in fields because a closure made per call would be one
// allocation per batch.
type batch struct {
	noOffload
	file   *os.File
	raw    syscall.RawConn
	name   string
	mtu    int
	recv   func(fd int, b []byte, i int) (int, error) // packet i of the batch
	send   func(fd int, b []byte) error
	closed atomic.Bool

	in, out transfer
	readFn  func(fd uintptr) bool
	writeFn func(fd uintptr)
}

// transfer is the state of one Read or Write while it runs.
type transfer struct {
	bufs  [][]byte
	sizes []int
	n     int
	err   error
}

func newBatch(file *os.File, name string, mtu int) (*batch, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", name, err)
	}
	d := &batch{file: file, raw: raw, name: name, mtu: mtu, recv: readTUN, send: writeTUN}
	d.readFn, d.writeFn = d.readReady, d.writeAll
	return d, nil
}

func (d *batch) MTU() int       { return d.mtu }
func (d *batch) MaxPacket() int { return d.mtu }
func (d *batch) Name() string   { return d.name }
func (d *batch) BatchSize() int { return batchSize }

func (d *batch) Read(bufs [][]byte, sizes []int) (int, error) {
	if len(bufs) == 0 {
		return 0, nil
	}
	d.in = transfer{bufs: bufs[:min(len(bufs), batchSize)], sizes: sizes}
	err := d.raw.Read(d.readFn)
	n, readErr := d.in.n, d.in.err
	d.in = transfer{}
	switch {
	case n > 0: // an error that came with packets comes back at the next call
		return n, nil
	case d.closed.Load():
		return 0, os.ErrClosed
	case readErr != nil:
		return 0, d.fail("read from", readErr)
	case err != nil:
		// The poller gives up on a descriptor that has nothing to report but an error: that
		// is how a deleted interface looks to a reader that waits.
		return 0, fmt.Errorf("read from %s: %w (%w)", d.name, ErrGone, err)
	}
	return 0, nil
}

// readReady runs in the netpoller's loop: false means "wait until there is something".
func (d *batch) readReady(fd uintptr) bool {
	t := &d.in
	for t.n < len(t.bufs) {
		n, err := d.recv(int(fd), t.bufs[t.n], t.n)
		switch {
		case err == nil && n > 0:
			t.sizes[t.n] = n
			t.n++
		case err == nil, err == unix.ENETDOWN:
			// Nothing came with this call, more may be queued: a packet socket reports an
			// empty frame as 0 bytes and a link that went down once, as an error.
		case err == unix.EAGAIN:
			return t.n > 0
		default:
			t.err = err
			return true
		}
	}
	return true
}

func (d *batch) Write(bufs [][]byte) (int, error) {
	d.out = transfer{bufs: bufs}
	err := d.raw.Control(d.writeFn)
	n, writeErr := d.out.n, d.out.err
	d.out = transfer{}
	switch {
	case err == nil && writeErr == nil:
		return n, nil
	case d.closed.Load():
		return n, os.ErrClosed
	case writeErr != nil:
		return n, d.fail("write to", writeErr)
	}
	return n, d.fail("write to", err)
}

func (d *batch) writeAll(fd uintptr) {
	t := &d.out
	for _, b := range t.bufs {
		err := d.send(int(fd), b)
		switch {
		case err == nil:
			t.n++
		case gone(err):
			t.err = err
			return
		}
	}
}

func (d *batch) fail(verb string, err error) error {
	if gone(err) {
		return fmt.Errorf("%s %s: %w (%w)", verb, d.name, ErrGone, err)
	}
	return fmt.Errorf("%s %s: %w", verb, d.name, err)
}

func (d *batch) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	return d.file.Close()
}

func readTUN(fd int, b []byte, _ int) (int, error) { return quickRead(fd, b) }

func writeTUN(fd int, b []byte) error {
	_, err := quickWrite(fd, b)
	return err
}

// gone reports whether err means that there is no device any more. Every other write error is
// about this packet only: EIO while the link is down, EINVAL for a packet the kernel does not
// like, EAGAIN and ENOBUFS when a queue is full.
func gone(err error) bool {
	return errors.Is(err, unix.EBADFD) || errors.Is(err, unix.EBADF) ||
		errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV)
}
