package route

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"gatun/network/packet"
	"gatun/tun/resend"
)

// divertBacklog is how many connections may wait to be taken: a burst, while we are not scheduled.
const divertBacklog = 4096

// divertWithin is how long the kernel may take to end a connection. It does so within the system call that
// sends the SYN, but where its own work is put off; after a second the program sends its SYN again.
const divertWithin = 900 * time.Millisecond

// divertLook is after which part of that it is looked whether the program is gone: it has reset what the
// kernel answered.
const divertLook = divertWithin / 20

// DiverterFiles are what a Diverter works with. They belong to the network namespace in which they were
// opened, and may be handed to another process.
type DiverterFiles struct {
	Port      uint16
	Listeners []*os.File // IPv4, and IPv6 where there is one
	Raw       []*os.File // the same
	Conntrack []*os.File
}

// OpenDiverterFiles opens them in the network namespace of the calling thread, which needs CAP_NET_ADMIN and
// CAP_NET_RAW there. mark is Names.DivertMark.
func OpenDiverterFiles(mark uint32) (f DiverterFiles, err error) {
	defer func() {
		if err != nil {
			f.Close()
			f = DiverterFiles{}
		}
	}()
	raw, err := resend.Open(mark)
	if err != nil {
		return f, err
	}
	f.Raw = raw.Files()
	for port := uint16(firstDivertPort); port <= lastDivertPort; port++ {
		f.Port = port
		if f.Listeners, err = listenDiverted(port, len(f.Raw) == 2); err == nil {
			break
		}
	}
	if err != nil {
		return f, err
	}
	f.Conntrack, err = openConntrack(originConns)
	return f, err
}

// Close gives the files back.
func (f DiverterFiles) Close() {
	for _, list := range [][]*os.File{f.Listeners, f.Raw, f.Conntrack} {
		for _, file := range list {
			_ = file.Close()
		}
	}
}

func listenDiverted(port uint16, v6 bool) ([]*os.File, error) {
	at := []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)}
	if v6 {
		at = append(at, netip.AddrPortFrom(netip.IPv6Loopback(), port))
	}
	var files []*os.File
	for _, a := range at {
		f, err := listenDivertedAt(a)
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
			return nil, fmt.Errorf("listen on %v for connections that are relayed: %w", a, err)
		}
		files = append(files, f)
	}
	return files, nil
}

// listenDivertedAt opens a listener outside of the runtime's poller: nobody is to be woken for a connection
// that its own goroutine takes.
func listenDivertedAt(at netip.AddrPort) (*os.File, error) {
	fam := familyOf(at.Addr())
	fd, err := unix.Socket(fam.domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	set := func(level, option int) {
		if err == nil {
			err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, option, 1))
		}
	}
	set(unix.SOL_SOCKET, unix.SO_REUSEADDR)
	set(unix.IPPROTO_TCP, unix.TCP_NODELAY) // what is accepted has these too
	set(unix.SOL_SOCKET, unix.SO_OOBINLINE) // urgent bytes stay in the stream, as netstack has them
	if at.Addr().Is4() {
		set(unix.SOL_IP, unix.IP_FREEBIND) // in a new namespace lo may not be up yet
	} else {
		set(unix.SOL_IPV6, unix.IPV6_V6ONLY)
		set(unix.SOL_IPV6, unix.IPV6_FREEBIND) // ::1 comes and goes with the sysctl disable_ipv6
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, sockaddr(at)))
	}
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, divertBacklog))
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "diverted"), nil
}

// Diverter lets the kernel end connections whose SYN is held, at sockets of ours: it sends the SYN once
// more, a rule of the guard leads it to a listener on loopback, and connection tracking leads all the rest
// of the connection there. The program sees the server that it asked; its packets do not come to the TUN
// device any more. Methods may be called from any goroutine.
type Diverter struct {
	dialer  *Dialer
	files   DiverterFiles
	raw     *resend.Sockets
	origins *origins
	forgets bool

	mu       sync.Mutex
	expected diverting

	arming sync.Mutex
	armed  map[*os.File]*watcher // listeners, and what looks after them
}

// NewDiverter takes the files over, also with an error. Its connections are parked with those of d.
// forgets says that a held SYN leaves an entry of connection tracking on its way into the device.
func NewDiverter(files DiverterFiles, d *Dialer, forgets bool) (*Diverter, error) {
	v := &Diverter{dialer: d, files: files, forgets: forgets, expected: diverting{}, armed: map[*os.File]*watcher{}}
	raw, err := resend.FromFiles(files.Raw)
	if err != nil {
		files.Close()
		return nil, err
	}
	v.raw = raw
	for _, l := range files.Listeners {
		var set error
		if c, err := l.SyscallConn(); err == nil {
			_ = c.Control(func(fd uintptr) { set = unix.SetNonblock(int(fd), true) })
		}
		if set != nil {
			files.Close()
			return nil, os.NewSyscallError("fcntl", set)
		}
	}
	v.origins = newOrigins(files.Conntrack)
	return v, nil
}

// Port is Policy.DivertPort, 0 of a nil Diverter.
func (v *Diverter) Port() uint16 {
	if v == nil {
		return 0
	}
	return v.files.Port
}

// Divert lets the kernel end the connection f that syn began, and returns our end of it. With an error the
// connection is as it was: ctx's, syscall.ECONNABORTED where the program is gone, or ErrNotDiverted where the
// kernel did not end it.
func (v *Diverter) Divert(ctx context.Context, f packet.Flow, syn []byte) (*TCPConn, error) {
	b, err := resend.Whole(f, syn)
	if err != nil {
		return nil, err
	}
	if h, err := packet.Parse(b); err != nil || h.TCPFlags&tcpOpening != tcpSYN {
		return nil, fmt.Errorf("%s: %w: this is no SYN", f, ErrNotDiverted)
	}
	listener := v.listener(f)
	if listener == nil {
		return nil, fmt.Errorf("%s: %w: no IPv6", f, ErrNotDiverted)
	}
	a := &arrival{fd: make(chan int, 1)}
	if !v.expect(f, a) {
		return nil, fmt.Errorf("%s: %w: it is expected already", f, ErrNotDiverted)
	}
	if v.forgets {
		err = v.origins.forget(f)
	}
	if err == nil {
		err = v.raw.Send(f, b)
	}
	var fd int
	if err == nil {
		fd, err = v.await(ctx, listener, f, a)
	}
	if err != nil {
		// What was sent has left an entry that leads all packets of the program to the listener.
		return nil, errors.Join(err, v.giveUp(f, a), v.origins.forget(f))
	}
	file := os.NewFile(uintptr(fd), "tcp")
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return newTCPConn(v.dialer, file, raw, f.Local), nil
}

func (v *Diverter) listener(f packet.Flow) *os.File {
	if !f.Is6() {
		return v.files.Listeners[0]
	}
	if len(v.files.Listeners) < 2 {
		return nil
	}
	return v.files.Listeners[1]
}

func (v *Diverter) expect(f packet.Flow, a *arrival) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.expected[f] != nil {
		return false
	}
	v.expected[f] = a
	return true
}

// giveUp takes back what was expected, and resets it if it has come all the same.
func (v *Diverter) giveUp(f packet.Flow, a *arrival) error {
	v.mu.Lock()
	if v.expected[f] == a {
		delete(v.expected, f)
	}
	v.mu.Unlock()
	select {
	case fd := <-a.fd:
		return resetSocket(fd)
	default:
		return nil
	}
}

// await takes connections until the one that a stands for has come. Whoever takes one hands it to who waits
// for it: mostly it is his own, and there when the SYN has been sent.
func (v *Diverter) await(ctx context.Context, listener *os.File, f packet.Flow, a *arrival) (int, error) {
	if err := v.take(listener, f.Is6()); err != nil {
		return 0, err
	}
	select {
	case fd := <-a.fd:
		return fd, nil
	default:
	}
	if err := v.listen(listener, f.Is6()); err != nil {
		return 0, err
	}
	limit := time.NewTimer(divertLook)
	defer limit.Stop()
	for _, last := range []bool{false, true} {
		select {
		case fd := <-a.fd:
			return fd, nil
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-limit.C:
		}
		if !v.expects(f) { // it is being delivered
			return <-a.fd, nil
		}
		if state := v.origins.state(f); state == ctClosed || last && state > ctSYNSent {
			return 0, fmt.Errorf("%s: the program is gone: %w", f, syscall.ECONNABORTED)
		}
		limit.Reset(divertWithin - divertLook)
	}
	return 0, fmt.Errorf("%s: %w", f, ErrNotDiverted)
}

// listen has the connections taken that come later, as long as some are expected.
func (v *Diverter) listen(listener *os.File, is6 bool) error {
	w := v.dialer.watch.Load()
	if w == nil {
		return fmt.Errorf("%w: nobody watches", ErrNotDiverted)
	}
	c, err := listener.SyscallConn()
	if err != nil {
		return err
	}
	var armed error
	err = c.Control(func(fd uintptr) {
		v.arming.Lock()
		defer v.arming.Unlock()
		if v.armed[listener] == w {
			armed = w.again(int(fd))
			return
		}
		v.armed[listener] = w
		armed = w.add(int(fd), func() {
			if v.take(listener, is6) == nil && v.expectsAny() {
				_ = v.listen(listener, is6)
			}
		})
	})
	return errors.Join(err, armed)
}

func (v *Diverter) expectsAny() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.expected) > 0
}

func (v *Diverter) expects(f packet.Flow) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.expected[f] != nil
}

// take hands out all connections that are there.
func (v *Diverter) take(listener *os.File, is6 bool) error {
	c, err := listener.SyscallConn()
	if err != nil {
		return err
	}
	at := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if is6 {
		at = netip.IPv6Loopback()
	}
	for {
		var fd int
		var from unix.Sockaddr
		var failed error
		err := c.Control(func(l uintptr) {
			fd, from, failed = unix.Accept4(int(l), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		})
		switch {
		case err != nil:
			return err
		case failed == unix.EAGAIN:
			return nil
		case failed == unix.EINTR, failed == unix.ECONNABORTED:
			continue
		case failed != nil:
			return os.NewSyscallError("accept", failed)
		}
		v.deliver(fd, packet.Flow{Proto: packet.TCP, Local: addrPort(from), Remote: netip.AddrPortFrom(at, v.files.Port)})
	}
}

// deliver hands a connection to who expects it. Which one it is only connection tracking knows: two that
// leave from one port have different ones here. What nobody expects was not diverted: it is reset.
func (v *Diverter) deliver(fd int, seen packet.Flow) {
	f, err := v.origins.find(seen)
	v.mu.Lock()
	a := v.expected[f]
	if a != nil && err == nil {
		delete(v.expected, f)
		a.fd <- fd // there is room: it is delivered once
		v.mu.Unlock()
		return
	}
	v.mu.Unlock()
	_ = resetSocket(fd)
}

// resetSocket ends a connection by RST.
func resetSocket(fd int) error {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	return os.NewSyscallError("close", unix.Close(fd))
}

// Close gives everything back but the connections. It must not be called while Divert runs.
func (v *Diverter) Close() {
	v.files.Close()
	v.origins.close()
}

// OpenInside makes the network namespace of the calling thread, which is a sandbox's and new, lead
// connections to a Diverter, and returns what that works with.
func OpenInside(n Names) (DiverterFiles, error) {
	files, err := OpenDiverterFiles(n.DivertMark)
	if err != nil {
		return files, err
	}
	if err := sendGuard(insideTable(n, files.Port), nil, func(*nftables.Conn, *nftables.Table) {}); err != nil {
		files.Close()
		return DiverterFiles{}, err
	}
	return files, nil
}
