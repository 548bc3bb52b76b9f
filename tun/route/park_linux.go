package route

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// watcher looks after the parked connections of a Dialer with one epoll instance. The runtime's
// poller needs a goroutine for each connection that it watches, and keeps the memory of both, and
// of its own bookkeeping (about 2 KiB together), for ever.
type watcher struct {
	f   *os.File // the epoll instance, itself in the runtime's poller
	raw syscall.RawConn

	mu     sync.Mutex
	parked []func() // by descriptor: what to call
	count  int
}

const watchBatch = 128

// Watch looks after parked connections and attached UDP sockets until ctx ends. Without it no
// connection can be parked and no socket attached.
func (d *Dialer) Watch(ctx context.Context) error {
	w, err := newWatcher()
	if err != nil {
		return err
	}
	pollers, err := openUDPPollers(runtime.GOMAXPROCS(0))
	if err != nil {
		return errors.Join(err, w.f.Close())
	}
	defer context.AfterFunc(ctx, func() {
		w.f.Close()
		_ = pollers.close()
	})()
	d.watch.Store(w)
	defer d.watch.Store(nil)
	d.pollers.Store(&pollers)
	defer d.pollers.Store(nil)
	var udp error
	var wg sync.WaitGroup
	wg.Go(func() { udp = pollers.run() })
	err = w.run()
	w.f.Close()
	wg.Wait()
	_ = pollers.close()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(err, udp)
}

func newWatcher() (*watcher, error) {
	f, raw, err := newEpoll()
	if err != nil {
		return nil, err
	}
	return &watcher{f: f, raw: raw}, nil
}

// newEpoll makes an epoll instance that is itself in the runtime's poller.
func newEpoll() (*os.File, syscall.RawConn, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that NewFile hands it to the poller
		unix.Close(fd)
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), "epoll")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, raw, nil
}

func (w *watcher) run() error {
	events := make([]unix.EpollEvent, watchBatch)
	var failed error
	err := w.raw.Read(func(fd uintptr) bool {
		for {
			n, err := unix.EpollWait(int(fd), events, 0)
			if err != nil && err != unix.EINTR {
				failed = os.NewSyscallError("epoll_wait", err)
				return true
			}
			if err == nil && n == 0 {
				return false
			}
			for i := range max(n, 0) {
				w.dispatch(int(events[i].Fd))
			}
		}
	})
	return errors.Join(err, failed)
}

// dispatch may meet another connection than the one the event was for, on the same descriptor:
// that one looks, finds nothing, and is parked again.
func (w *watcher) dispatch(fd int) {
	w.mu.Lock()
	var ready func()
	if fd < len(w.parked) {
		ready = w.parked[fd]
	}
	w.mu.Unlock()
	if ready != nil {
		ready()
	}
}

// add arms fd for one event.
func (w *watcher) add(fd int, ready func()) error {
	w.mu.Lock()
	for fd >= len(w.parked) {
		w.parked = append(w.parked, nil)
	}
	w.parked[fd] = ready
	w.count++
	w.mu.Unlock()
	err := w.control(unix.EPOLL_CTL_ADD, fd)
	if err != nil {
		w.forget(fd)
	}
	return err
}

// again arms fd, which was added, for one event more.
func (w *watcher) again(fd int) error { return w.control(unix.EPOLL_CTL_MOD, fd) }

// remove takes fd out, while it is still open.
func (w *watcher) remove(fd int) {
	w.forget(fd)
	_ = w.control(unix.EPOLL_CTL_DEL, fd)
}

func (w *watcher) forget(fd int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.parked[fd] = nil
	if w.count--; w.count == 0 {
		w.parked = nil
	}
}

func (w *watcher) control(op, fd int) error {
	var err error
	e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(fd)}
	if cerr := w.raw.Control(func(ep uintptr) { err = unix.EpollCtl(int(ep), op, fd, &e) }); cerr != nil {
		return cerr
	}
	return err
}

const notParked = -1

// Interrupt makes Fill return os.ErrDeadlineExceeded instead of waiting, until Resume.
func (c *TCPConn) Interrupt() { _ = c.f.SetReadDeadline(time.Unix(1, 0)) }

// Park makes an idle connection cost no goroutine and nothing of the runtime's poller: ready is
// called, once for each Park, when something can be read or the connection broke. ready must not
// block. Until Resume nothing may be used but Peek, CloseWrite, Close, Abort, Broken and Park,
// none of which calls ready. False says that it cannot be parked.
func (c *TCPConn) Park(ready func()) bool {
	w := c.d.watch.Load()
	if w == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	if c.fd != notParked {
		return w.control(unix.EPOLL_CTL_MOD, c.fd) == nil
	}
	fd, err := notParked, error(nil)
	cerr := c.raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if cerr != nil || err != nil {
		return false
	}
	// From here on only the copy holds the connection open.
	c.f.Close()
	c.f, c.raw, c.fd, c.w = nil, nil, fd, w
	if w.add(fd, ready) == nil {
		return true
	}
	_ = c.unpark()
	return false
}

// Peek reports without waiting whether bytes can be read; io.EOF is the server's FIN, another
// error the end of the connection. It takes no byte.
func (c *TCPConn) Peek() (bytes bool, err error) {
	n := 0
	cerr := c.control(func(fd uintptr) {
		var one [1]byte
		n, _, err = unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	})
	switch {
	case cerr != nil:
		return false, cerr
	case err == unix.EAGAIN, err == unix.EINTR:
		return false, nil
	case err != nil:
		return false, os.NewSyscallError("recv", err)
	case n == 0:
		return false, io.EOF
	default:
		return true, nil
	}
}

// Resume undoes Interrupt and Park.
func (c *TCPConn) Resume() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return os.ErrClosed
	case c.fd != notParked:
		c.w.remove(c.fd)
		return c.unpark()
	default:
		return c.f.SetReadDeadline(time.Time{})
	}
}

// unpark hands the descriptor back to the runtime's poller.
func (c *TCPConn) unpark() error {
	f := os.NewFile(uintptr(c.fd), "tcp")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		c.closed = true
	}
	c.f, c.raw, c.fd, c.w = f, raw, notParked, nil
	return err
}

// control calls f with the descriptor, parked or not.
func (c *TCPConn) control(f func(fd uintptr)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return os.ErrClosed
	case c.fd != notParked:
		f(uintptr(c.fd))
		return nil
	default:
		return c.raw.Control(f)
	}
}

// close closes the descriptor once.
func (c *TCPConn) close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return os.ErrClosed
	}
	c.closed = true
	if c.fd == notParked {
		c.mu.Unlock()
		return c.f.Close()
	}
	defer c.mu.Unlock()
	c.w.remove(c.fd)
	err := unix.Close(c.fd)
	c.w = nil
	return err
}
