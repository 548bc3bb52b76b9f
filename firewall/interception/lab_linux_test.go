package interception

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"gatun/network"
	"gatun/network/packet"
	"gatun/stack"
	"gatun/tun"
	"gatun/tun/route"
)

// lab is a namespace whose only way out is a TUN device that a stack and a Relay serve, and
// this process's own namespace, where the servers are: 10.99.x.y is 127.99.x.y there, and
// fd99::1 is ::1. So a test can run the same script from inside, relayed, and from outside,
// direct.
type lab struct {
	t     testing.TB
	ns    string
	relay *Relay
	table *network.Table

	mu     sync.Mutex
	causes map[packet.Flow]string
	count  int
}

var labs atomic.Uint32 // numbers the labs of one run

// permit is a gate without rules.
type permit struct {
	l   *lab
	ctx context.Context
}

func (p permit) link(f packet.Flow) *network.Link {
	l, known := p.l.table.Link(f)
	if known {
		p.l.table.End(l, "replaced")
		l, _ = p.l.table.Link(f)
	}
	return l
}

func (p permit) HandleTCP(f *stack.TCPFlow) {
	p.l.relay.TCP(p.ctx, f, p.link(f.Flow()))
}
func (p permit) HandleUDP(f *stack.UDPFlow)     { p.l.relay.UDP(f, p.link(f.Flow())) }
func (p permit) HandlePing(f *stack.PingFlow)   { p.l.relay.Ping(f, p.link(f.Flow())) }
func (p permit) HandleOther(f *stack.OtherFlow) { f.Drop() }

func (l *lab) ended(k *network.Link, cause string) {
	l.table.End(k, cause)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.causes[k.Flow] = cause
	l.count++
}

// newLab makes a lab; set changes its Relay before it runs.
func newLab(t testing.TB, set ...func(*Relay)) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making a network namespace and a TUN device needs root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("there is no /dev/net/tun")
	}
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	l := &lab{t: t, ns: fmt.Sprintf("gtic-%d-%d", os.Getpid(), labs.Add(1)), table: network.NewTable(time.Now), causes: map[packet.Flow]string{}}
	l.ip("netns", "add", l.ns)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", l.ns).Run() })

	var dev tun.Device
	l.inside(func() {
		var err error
		if dev, err = tun.Open("gtun0", 1500); err != nil {
			t.Error(err)
		}
	})
	if dev == nil {
		t.FailNow()
	}
	for _, c := range []string{
		"addr add 10.79.0.2/24 dev gtun0", "addr add fd79::2/64 dev gtun0 nodad", "link set gtun0 up", "link set lo up",
		"route add default dev gtun0", "-6 route add default dev gtun0",
	} {
		l.ip(append([]string{"-n", l.ns}, strings.Fields(c)...)...)
	}
	// The kernel makes an IPv6 address one of this host in a worker of its own.
	eventually(t, patience, "the address is there", func() bool {
		out, err := exec.Command("ip", "-n", l.ns, "-6", "route", "show", "table", "local").Output()
		return err == nil && strings.Contains(string(out), "local fd79::2 ")
	})
	l.start(dev, set)
	return l
}

func (l *lab) start(dev tun.Device, set []func(*Relay)) {
	l.relay = NewRelay(&route.Dialer{}, zap.NewNop(), l.ended)
	l.relay.Translate = outside
	for _, f := range set {
		f(l.relay)
	}
	ctx, cancel := context.WithCancel(context.Background())
	local := func(a netip.Addr) bool { return a == addr("10.79.0.2") || a == addr("fd79::2") }
	s, err := stack.New(stack.Options{Device: dev, Handler: permit{l, ctx}, Local: local, Logger: zap.NewNop()})
	if err != nil {
		l.t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Run(ctx); err != nil {
			l.t.Errorf("stack: %v", err)
		}
	})
	running.Go(func() {
		if err := l.relay.Run(ctx); !errors.Is(err, context.Canceled) {
			l.t.Errorf("relay: %v", err)
		}
	})
	l.t.Cleanup(func() {
		cancel()
		running.Wait()
		if all, _ := l.relay.Files.Used(OwnerKey{}); all != 0 {
			l.t.Errorf("%d files are not given back", all)
		}
	})
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// outside is where the servers of the namespace really are.
func outside(a netip.Addr) netip.Addr {
	if a == addr("fd99::1") {
		return netip.IPv6Loopback()
	}
	if b := a.As16(); a.Is4() && b[12] == 10 {
		return netip.AddrFrom4([4]byte{127, b[13], b[14], b[15]})
	}
	return a
}

func inside(a netip.AddrPort) netip.AddrPort {
	if a.Addr() == netip.IPv6Loopback() {
		return netip.AddrPortFrom(addr("fd99::1"), a.Port())
	}
	b := a.Addr().Unmap().As4()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, b[1], b[2], b[3]}), a.Port())
}

func (l *lab) ip(args ...string) {
	l.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		l.t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

// inside runs f on a thread in the namespace; the thread is never used again.
func (l *lab) inside(f func()) {
	l.t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		fd, err := unix.Open("/run/netns/"+l.ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		l.t.Errorf("enter the namespace: %v", err)
	}
}

// way is how a test's client reaches its server.
type way struct {
	name string
	dial func(network string, to netip.AddrPort) (net.Conn, error)
}

func direct() way {
	return way{"direct", func(network string, to netip.AddrPort) (net.Conn, error) {
		return net.DialTimeout(network, to.String(), 10*time.Second)
	}}
}

func (l *lab) relayed() way {
	return way{"relayed", func(network string, to netip.AddrPort) (c net.Conn, err error) {
		l.inside(func() { c, err = net.DialTimeout(network, inside(to).String(), 10*time.Second) })
		return c, err
	}}
}

// errnoName shortens an error to what a program can tell apart.
func errnoName(err error) string {
	var e syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	default:
		return err.Error()
	}
}

func eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			t.Errorf("not within %v: %s", within, what)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}
