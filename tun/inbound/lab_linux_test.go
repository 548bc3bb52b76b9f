package inbound

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gatun/network/packet"
	"gatun/tun"
	"gatun/tun/route"

	"github.com/vishvananda/netns"
	"go.uber.org/zap/zaptest"
)

// A live test runs in a child process with namespaces of its own: the whole process is "the host",
// and nothing is left when it ends. Its peer is a further namespace behind a veth pair; the guard is
// that of tun/route itself.
const liveEnv = "GATUN_INBOUND_LIVE"

// patience is for what is not a promise about time: a busy machine may take long.
const patience = 30 * time.Second

// The lab's addresses, and the ports by which its firewall decides.
const (
	host4, host6                     = "10.79.0.2", "fd79::2"
	acceptPort, dropPort, rejectPort = "1000", "1001", "1002"
	silence                          = 400 * time.Millisecond
)

func live(t *testing.T, body func(*lab)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("needs /dev/net/tun: ", err)
	}
	if os.Getenv(liveEnv) == t.Name() {
		body(newLab(t))
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m30s")
	cmd.Env = append(os.Environ(), liveEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if bytes.Contains(out, []byte("--- SKIP: "+t.Name())) {
		t.Skip("skipped in the namespace, see there")
	}
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("in the namespace: %v", err)
	}
}

// lab is a host whose firewall decides by port.
type lab struct {
	*testing.T
	peer  netns.NsHandle
	flows *Flows
	queue *Queue
	stop  func() // the reader of the queue
	last  atomic.Pointer[packet.Flow]
	stray atomic.Int64
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{T: t}
	runtime.LockOSThread()
	home, err := netns.Get()
	if err == nil {
		l.peer, err = netns.New() // the thread is in it now
	}
	if err == nil {
		err = netns.Set(home)
	}
	runtime.UnlockOSThread()
	if err != nil {
		t.Fatal(err)
	}
	l.sh(fmt.Sprintf(`mount --make-rprivate /; mount -t sysfs none /sys
ip link set lo up
ip link add eth0 type veth peer name eth0p
ip link set eth0p netns /proc/%d/fd/%d
ip address add %s/24 dev eth0; ip address add %s/64 dev eth0 nodad; ip link set eth0 up
ip route add default via 10.79.0.1; ip -6 route add default via fd79::1`, os.Getpid(), l.peer, host4, host6))
	l.atPeer(func() {
		l.sh(`ip link set lo up; ip link set eth0p name eth0; ip address add 10.79.0.1/24 dev eth0; ip address add fd79::1/64 dev eth0 nodad; ip link set eth0 up`)
	})
	l.open()
	l.guard()
	return l
}

func (l *lab) sh(script string) {
	l.Helper()
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		l.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// atPeer runs f on a thread in the peer's namespace.
func (l *lab) atPeer(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(l.peer); err != nil {
			l.Error(err)
			return
		}
		f()
	}()
	<-done
}

func options(t *testing.T) Options {
	n := route.DefaultNames()
	return Options{Number: n.Queue, AcceptMark: n.InMark, Mask: n.Mask, OwnMark: n.Mark, Logger: zaptest.NewLogger(t)}
}

// open begins to read the queue.
func (l *lab) open() {
	l.Helper()
	var err error
	if l.queue, err = Open(options(l.T)); err != nil {
		l.Fatal(err)
	}
	if l.flows, err = OpenFlows(); err != nil {
		l.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.queue.Run(ctx, l.decide) }()
	l.stop = func() {
		cancel()
		if err := <-done; err != nil {
			l.Error(err)
		}
		_ = l.flows.Close()
	}
}

func (l *lab) decide(h *Held) {
	f := h.Flow()
	if !h.Opens() {
		l.stray.Add(1)
		if _, _, lives := l.flows.Look(f); lives {
			h.Accept()
		} else {
			h.Drop()
		}
		return
	}
	l.last.Store(&f)
	switch fmt.Sprint(f.Local.Port()) {
	case acceptPort:
		h.Accept()
	case rejectPort:
		h.Reject()
	default:
		h.Drop()
	}
	h.Drop() // a second verdict does nothing
}

// guard brings the machine's rules in.
func (l *lab) guard() {
	l.Helper()
	d, err := tun.Options{Name: route.DeviceName, MTU: tun.DefaultMTU}.Open()
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = d.Close() })
	m, err := route.New(route.Options{StateDir: l.TempDir(), Policy: route.Policy{MTU: tun.DefaultMTU, Inbound: route.InboundQueued}})
	if err != nil {
		l.Fatal(err)
	}
	if err := m.Up(l.Context()); err != nil {
		l.Fatal(err)
	}
	if s := m.Status(); s.InboundRefused != "" {
		l.Skip("this kernel cannot queue: ", s.InboundRefused)
	}
}

// serve echoes on a port, for TCP and UDP and both families, and counts who came.
func (l *lab) serve(port string) *atomic.Int64 {
	l.Helper()
	came := &atomic.Int64{}
	ln, err := net.Listen("tcp", ":"+port)
	if err != nil {
		l.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			came.Add(1)
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	l.Cleanup(func() { ln.Close() })
	for _, at := range []string{host4, host6} { // the answer comes from the address that was asked
		u, err := net.ListenPacket("udp", net.JoinHostPort(at, port))
		if err != nil {
			l.Fatal(err)
		}
		l.Cleanup(func() { u.Close() })
		go func() {
			b := make([]byte, 2048)
			for {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				came.Add(1)
				_, _ = u.WriteTo(b[:n], from)
			}
		}()
	}
	return came
}

// dial connects from the peer.
func (l *lab) dial(network, host, port string, limit time.Duration) (c net.Conn, err error) {
	l.atPeer(func() { c, err = net.DialTimeout(network, net.JoinHostPort(host, port), limit) })
	return c, err
}

const line = "is anybody there?"

// echo wants the line back.
func echo(c net.Conn, limit time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, err := io.WriteString(c, line); err != nil {
		return err
	}
	b := make([]byte, len(line))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != line {
		return fmt.Errorf("came back as %q", b)
	}
	return nil
}

// each runs body for both families.
func (l *lab) each(body func(t *testing.T, host string)) {
	for _, host := range []string{host4, host6} {
		l.Run(strings.ReplaceAll(host, ":", "."), func(t *testing.T) { body(t, host) })
	}
}

// ask sends one datagram from a socket of its own and wants it back.
func (l *lab) ask(t *testing.T, host, port string, limit time.Duration) error {
	t.Helper()
	c, err := l.dial("udp", host, port, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return echo(c, limit)
}

func timedOut(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}
