package handback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gatun/network/packet"
	"gatun/tun"
	"gatun/tun/route"

	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"
)

// A live test runs in a child process that has network and mount namespaces of its own: the whole
// process is "the host", and nothing is left when it ends. The server is a further namespace behind
// two veth pairs; the guard, the rules and the routes are those of tun/route itself.
const liveEnv = "GATUN_HANDBACK_LIVE"

// patience is for what is not a promise about time: a busy machine may take long.
const patience = 20 * time.Second

const serverName = "gthb-srv"

// live runs body in a lab of its own.
func live(t *testing.T, body func(t *testing.T, l *lab)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("needs /dev/net/tun: ", err)
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft(8) to look at the rules: ", err)
	}
	if os.Getenv(liveEnv) == t.Name() {
		body(t, newLab(t))
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=150s")
	cmd.WaitDelay = 5 * time.Second // a grandchild may hold the output
	cmd.Env = append(os.Environ(), liveEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("in the namespace: %v", err)
	}
}

// The lab's addresses: the host on two networks, the router of each, and two servers far away, the
// second behind the second network.
const (
	host4, host6       = "10.78.0.2", "fd78::2"
	router4, router6   = "10.78.0.1", "fd78::1"
	second4, second6   = "10.79.0.2", "fd79::2"
	secondR4, secondR6 = "10.79.0.1", "fd79::1"
	far4, far6         = "198.51.100.1", "2001:db8:1::1"
	other4, other6     = "198.51.100.129", "2001:db8:2::1"
	echoPort           = 7000
)

var fars = []string{far4, far6}

type lab struct {
	t      *testing.T
	server netns.NsHandle
	dev    tun.Device
	m      *route.Manager
	table  *Table

	mu     sync.Mutex
	seen   map[packet.Flow]int // packets that came to userspace
	failed []error             // what Accept said
	decide func(packet.Flow, []byte) error
	took   []time.Duration // how long a decision took
	ends   chan End
	total  atomic.Int64
}

func newLab(t *testing.T) *lab {
	t.Helper()
	for _, m := range []struct{ target, kind string }{{"/", ""}, {"/run", "tmpfs"}} {
		flags := uintptr(unix.MS_REC | unix.MS_PRIVATE)
		if m.kind != "" {
			flags = 0
		}
		if err := unix.Mount("gthb", m.target, m.kind, flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	l := &lab{t: t, seen: map[packet.Flow]int{}, ends: make(chan End, 300_000)}
	l.sh(`sysctl -qw net.ipv6.conf.default.dad_transmits=0 net.ipv4.ip_local_port_range='1024 65000'
		ip netns add ` + serverName + `
		ip netns exec ` + serverName + ` sysctl -qw net.ipv6.conf.default.dad_transmits=0 net.core.somaxconn=8192
		ip link add eth0 type veth peer name eth0 netns ` + serverName + `
		ip link add eth1 type veth peer name eth1 netns ` + serverName + `
		ip link set lo up; ip link set eth0 up; ip link set eth1 up
		ip addr add ` + host4 + `/24 dev eth0; ip addr add ` + host6 + `/64 dev eth0 nodad
		ip addr add ` + second4 + `/24 dev eth1; ip addr add ` + second6 + `/64 dev eth1 nodad
		ip route add default via ` + router4 + `; ip -6 route add default via ` + router6 + `
		ip route add 198.51.100.128/25 via ` + secondR4 + `; ip -6 route add 2001:db8:2::/48 via ` + secondR6)
	for _, c := range []string{"link set lo up", "link set eth0 up", "link set eth1 up",
		"addr add " + router4 + "/24 dev eth0", "addr add " + router6 + "/64 dev eth0 nodad",
		"addr add " + secondR4 + "/24 dev eth1", "addr add " + secondR6 + "/64 dev eth1 nodad",
		"addr add " + far4 + "/32 dev lo", "addr add " + far6 + "/128 dev lo nodad",
		"addr add " + other4 + "/32 dev lo", "addr add " + other6 + "/128 dev lo nodad"} {
		l.sh("ip -n " + serverName + " " + c)
	}
	h, err := netns.GetFromName(serverName)
	if err != nil {
		t.Fatal(err)
	}
	l.server = h
	l.eventually("addresses without tentative", func() bool {
		return !strings.Contains(l.sh("ip addr; ip -n "+serverName+" addr"), "tentative")
	})
	for _, far := range []string{far4, far6, other4, other6} {
		l.eventually("the server is reached", func() bool {
			_, err := net.DialTimeout("tcp", net.JoinHostPort(far, "9"), 50*time.Millisecond)
			return errors.Is(err, syscall.ECONNREFUSED)
		})
	}
	return l
}

// sh runs a script in the host's namespace and returns its output.
func (l *lab) sh(script string) string {
	l.t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s\n%v: %s", script, err, out)
	}
	return string(out)
}

// eventually waits for ok, and returns how long that took.
func (l *lab) eventually(what string, ok func() bool) time.Duration {
	l.t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > patience {
			l.t.Fatalf("not within %s: %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(start)
}

// atServer runs f on a thread inside the server's namespace. Sockets made there stay there.
func (l *lab) atServer(f func()) {
	l.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		l.t.Fatal(err)
	}
	defer home.Close()
	if err := netns.Set(l.server); err != nil {
		l.t.Fatal(err)
	}
	defer func() {
		if err := netns.Set(home); err != nil {
			panic(err) // the thread must not go back to the pool
		}
	}()
	f()
}

// up brings the device, the guard and the table up, and decides with Accept.
func (l *lab) up(change ...func(*Options)) *Table {
	l.t.Helper()
	dev, err := tun.Open(route.DeviceName, 1500)
	if err != nil {
		l.t.Fatal(err)
	}
	logger := zaptest.NewLogger(l.t, zaptest.Level(zap.WarnLevel))
	m, err := route.New(route.Options{StateDir: l.t.TempDir(), Policy: route.Policy{UID: 0, MTU: 1500}, Logger: logger})
	if err != nil {
		l.t.Fatal(err)
	}
	l.dev, l.m = dev, m
	if err := m.Up(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
	l.table = l.open(change...)
	l.decide = l.table.Accept
	go l.read()
	return l.table
}

func (l *lab) options(change ...func(*Options)) Options {
	n := route.DefaultNames()
	o := Options{Device: n.Device, Mark: n.OldMark, Mask: n.Mask, SocketMark: n.BackMark, LastingMark: n.LastingMark, OwnMark: n.Mark, Ended: func(e End) { l.ends <- e },
		Logger: zaptest.NewLogger(l.t, zaptest.Level(zap.WarnLevel))}
	for _, c := range change {
		c(&o)
	}
	return o
}

// open opens a table and runs it until the test ends.
func (l *lab) open(change ...func(*Options)) *Table {
	l.t.Helper()
	table, err := Open(l.options(change...))
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- table.Run(ctx) }()
	l.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("Run: %v", err)
		}
		if err := table.Close(); err != nil {
			l.t.Errorf("Close: %v", err)
		}
	})
	return table
}

// read is the test's Gate: it decides the flow of every packet that begins one.
func (l *lab) read() {
	bufs, sizes := make([][]byte, l.dev.BatchSize()), make([]int, l.dev.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, l.dev.MaxPacket())
	}
	for {
		n, err := l.dev.Read(bufs, sizes)
		if err != nil {
			return
		}
		for i := range n {
			h, err := packet.Parse(bufs[i][:sizes[i]])
			if err != nil || h.Flow.Proto.IsICMP() {
				continue
			}
			l.total.Add(1)
			l.mu.Lock()
			l.seen[h.Flow]++
			decide := l.decide
			l.mu.Unlock()
			if h.Flow.Proto == packet.TCP && h.TCPFlags&packet.TCPSyn == 0 {
				continue
			}
			held := append([]byte(nil), bufs[i][:sizes[i]]...)
			go func() {
				start := time.Now()
				err := decide(h.Flow, held)
				l.mu.Lock()
				defer l.mu.Unlock()
				l.took = append(l.took, time.Since(start))
				if err != nil {
					l.failed = append(l.failed, err)
				}
			}()
		}
	}
}

// packets is how many packets of f came to userspace.
func (l *lab) packets(f packet.Flow) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen[f]
}

func (l *lab) failures() []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// deviceCount is how many packets the device itself has counted.
func (l *lab) deviceCount() int {
	l.t.Helper()
	return l.linkCount(route.DeviceName)
}

// linkCount is how many packets an interface has sent.
func (l *lab) linkCount(link string) int {
	l.t.Helper()
	fields := transmitted.FindStringSubmatch(l.sh("ip -s link show " + link))
	n, err := strconv.Atoi(fields[1])
	if err != nil {
		l.t.Fatal(err)
	}
	return n
}

var transmitted = regexp.MustCompile(`TX:.*\n\s*\d+\s+(\d+)`)

// useServer makes atServer go to another namespace.
func (l *lab) useServer(name string) {
	l.t.Helper()
	h, err := netns.GetFromName(name)
	if err != nil {
		l.t.Fatal(err)
	}
	l.server = h
}

// serve starts TCP and UDP echo servers on the far addresses.
func (l *lab) serve() {
	l.t.Helper()
	l.atServer(func() {
		for _, a := range []string{far4, far6, other4, other6} {
			l.echo(net.JoinHostPort(a, strconv.Itoa(echoPort)))
		}
	})
}

func (l *lab) echo(addr string) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		l.t.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		l.t.Fatal(err)
	}
	go echoDatagrams(pc)
}

// echoDatagrams sends back what comes, until the socket is closed.
func echoDatagrams(pc net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = pc.WriteTo(buf[:n], from)
	}
}

func at(host string) string { return net.JoinHostPort(host, strconv.Itoa(echoPort)) }

// dial connects, and returns the flow as packets name it.
func (l *lab) dial(network, to string) (net.Conn, packet.Flow) {
	l.t.Helper()
	c, err := (&net.Dialer{Timeout: patience}).Dial(network, to)
	if err != nil {
		l.t.Fatalf("%v (Accept: %v)\n%s", err, l.failures(), l.sh("nft list ruleset; ip -s link"))
	}
	l.t.Cleanup(func() { _ = c.Close() })
	return c, flowOfConn(c)
}

func flowOfConn(c net.Conn) packet.Flow {
	p := packet.TCP
	if c.LocalAddr().Network() == "udp" {
		p = packet.UDP
	}
	local, remote := netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(c.RemoteAddr().String())
	return packet.Flow{Proto: p, Local: netip.AddrPortFrom(local.Addr().Unmap(), local.Port()), Remote: netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())}
}

// echoes sends a message and reports whether it came back.
func echoes(c net.Conn, size int) error {
	msg := bytes.Repeat([]byte("g"), size)
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(msg); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	got := make([]byte, len(msg))
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if !bytes.Equal(got, msg) {
		return errors.New("another text came back")
	}
	return nil
}

func at2(host string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(host), port)
}

func flowOfPacketConn(pc net.PacketConn, to string) packet.Flow {
	return packet.Flow{Proto: packet.UDP, Local: netip.MustParseAddrPort(pc.LocalAddr().String()), Remote: netip.MustParseAddrPort(to)}
}
