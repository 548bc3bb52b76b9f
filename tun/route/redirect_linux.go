package route

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"gatun/network/packet"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dnsBuffer holds a burst of queries while the reader is not scheduled.
const dnsBuffer = 4 << 20

// listenLoopback opens the two sockets of one family.
func listenLoopback(family string, at netip.AddrPort) (*net.UDPConn, *net.TCPListener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) {
			if family == "6" {
				// ::1 comes and goes with the sysctl disable_ipv6; the rules stay.
				err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
			}
		}); e != nil {
			return e
		}
		return err
	}}
	lc.SetMultipathTCP(false) // a program's SYN asks for none
	pc, err := lc.ListenPacket(context.Background(), "udp"+family, at.String())
	if err != nil {
		return nil, nil, err
	}
	udp := pc.(*net.UDPConn)
	_ = udp.SetReadBuffer(dnsBuffer) // what the kernel grants is enough for ordinary machines
	_ = forceBuffer(udp, dnsBuffer)
	l, err := lc.Listen(context.Background(), "tcp"+family, at.String())
	if err != nil {
		return udp, nil, err
	}
	return udp, l.(*net.TCPListener), nil
}

// forceBuffer goes beyond net.core.rmem_max, where that is permitted.
func forceBuffer(c *net.UDPConn, size int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size) })
	return errors.Join(err, set)
}

func noSuchFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// origins asks connection tracking where flows were sent before they were translated. Its sockets
// are lent, so that a flood of questions waits instead of taking files.
type origins struct {
	idle   chan *originConn
	closed chan struct{}
}

// originConn is one socket with its buffers. One goroutine uses it at a time.
type originConn struct {
	f     *os.File // keeps fd open
	fd    int
	seq   uint32
	ask   [ctQuestion]byte
	reply [8 << 10]byte
}

const originConns = 4

// openOrigins fails where the kernel does not let us ask.
func openOrigins() (*origins, error) {
	files, err := openConntrack(originConns)
	if err != nil {
		return nil, err
	}
	o := newOrigins(files)
	nobody := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), firstDNSPort)
	if _, err := o.find(packet.Flow{Proto: packet.UDP, Local: nobody, Remote: nobody}); !errors.Is(err, errNoEntry) {
		o.close()
		return nil, fmt.Errorf("the kernel does not say where redirected flows were sent: %w", err)
	}
	return o, nil
}

// openConntrack opens sockets to the connection tracking of this network namespace.
func openConntrack(count int) ([]*os.File, error) {
	var files []*os.File
	for range count {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return nil, errors.Join(os.NewSyscallError("socket NETLINK_NETFILTER", err), closeFiles(files))
		}
		files = append(files, os.NewFile(uintptr(fd), "conntrack"))
		// Connected to the kernel, every other sender is refused. Answers are queued before the
		// question returns; the limit only ends a lost one.
		limit := unix.NsecToTimeval(int64(time.Second))
		if err := errors.Join(unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)); err != nil {
			return nil, errors.Join(fmt.Errorf("set up the socket to connection tracking: %w", err), closeFiles(files))
		}
	}
	return files, nil
}

func closeFiles(files []*os.File) (err error) {
	for _, f := range files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// newOrigins takes over sockets of openConntrack.
func newOrigins(files []*os.File) *origins {
	o := &origins{idle: make(chan *originConn, len(files)), closed: make(chan struct{})}
	for _, f := range files {
		o.idle <- &originConn{f: f, fd: int(f.Fd())}
	}
	return o
}

// find returns the flow as it was before the translation; f is as the listener sees it.
func (o *origins) find(f packet.Flow) (packet.Flow, error) {
	return o.ask(func(b []byte, seq uint32) []byte { return appendQuestion(b, seq, f) }, nil)
}

// forget makes connection tracking see the flow anew. f is as the program knows it. It is no error if it
// is not known.
func (o *origins) forget(f packet.Flow) error {
	_, err := o.ask(func(b []byte, seq uint32) []byte { return appendForget(b, seq, f) }, nil)
	if errors.Is(err, errNoEntry) || errors.Is(err, errDone) {
		return nil
	}
	return err
}

// state is that of the connection f, as the program knows it; 0 where there is none.
func (o *origins) state(f packet.Flow) (state uint8) {
	if _, err := o.ask(func(b []byte, seq uint32) []byte { return appendState(b, seq, f) }, func(reply []byte) { state = parseState(reply) }); err != nil {
		return 0
	}
	return state
}

// ask returns the answer to one question, which look may see whole.
func (o *origins) ask(question func(b []byte, seq uint32) []byte, look func(reply []byte)) (packet.Flow, error) {
	var c *originConn
	select {
	case c = <-o.idle:
	case <-o.closed:
		return packet.Flow{}, os.ErrClosed
	}
	defer o.put(c)
	c.seq++
	if _, err := uninterrupted(func() (int, error) { return unix.Write(c.fd, question(c.ask[:0], c.seq)) }); err != nil {
		return packet.Flow{}, fmt.Errorf("ask connection tracking: %w", err)
	}
	for {
		n, err := uninterrupted(func() (int, error) { return unix.Read(c.fd, c.reply[:]) })
		if err != nil {
			return packet.Flow{}, fmt.Errorf("read from connection tracking: %w", err)
		}
		if found, ok, err := parseEntry(c.reply[:n], c.seq); ok || err != nil {
			if err == nil && look != nil {
				look(c.reply[:n])
			}
			return found, err
		}
	}
}

func uninterrupted(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}

// put takes a socket back, which is the last one's end if close came first.
func (o *origins) put(c *originConn) {
	o.idle <- c // never blocks: there is room for every one
	select {
	case <-o.closed:
		o.drain()
	default:
	}
}

// close gives back the sockets. Questions that are under way end on their own.
func (o *origins) close() {
	close(o.closed)
	o.drain()
}

func (o *origins) drain() {
	for {
		select {
		case c := <-o.idle:
			_ = c.f.Close()
		default:
			return
		}
	}
}

// redirected recognises the entries of connection tracking that a redirect has made or that keep
// one from being made: port 53, translated to a port of our listeners, or on loopback.
type redirected struct {
	keep uint16 // entries that lead to this port stay
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (r redirected) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != unix.IPPROTO_UDP && f.Forward.Protocol != unix.IPPROTO_TCP {
		return false
	}
	if f.Forward.DstPort != dnsPort {
		// A reply on loopback that comes after the entry of its question was deleted makes one of its
		// own, the wrong way round: the next questions of that socket would be replies to it.
		return r.keep != 0 && f.Forward.Protocol == unix.IPPROTO_UDP && f.Forward.SrcPort == dnsPort && f.Forward.SrcIP.IsLoopback()
	}
	port := f.Reverse.SrcPort
	if f.Reverse.SrcIP.IsLoopback() && port >= firstDNSPort && port <= lastDNSPort {
		return port != r.keep
	}
	// A connection over TCP that is open goes on where it is.
	return r.keep != 0 && f.Forward.Protocol == unix.IPPROTO_UDP && f.Forward.DstIP.IsLoopback() && port == dnsPort
}

// forgetRedirected makes the kernel look at port 53 anew: sockets that are in use stay translated,
// or not translated, for as long as connection tracking remembers them.
func forgetRedirected(keep uint16) error {
	var errs []error
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, redirected{keep}); err != nil {
			errs = append(errs, fmt.Errorf("delete entries of connection tracking: %w", err))
		}
	}
	return errors.Join(errs...)
}
