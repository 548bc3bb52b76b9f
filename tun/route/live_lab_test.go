//go:build linux

package route

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"
)

// A live test runs in a child process that has network and mount namespaces of its own: the
// whole process is "the host", so every goroutine and library is in the right place and
// nothing is left when it ends. The server is a further namespace behind a veth pair.
const liveEnv = "GATUN_ROUTE_LIVE"

// patience is for what is not a promise about time: a busy machine may take long.
const patience = 20 * time.Second

// long leaves a test out of the short run, which is for the race detector: it is long because of the
// programs that it starts or of what it waits for.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("long: the whole run has it")
	}
}

// live runs body in a lab of its own.
func live(t *testing.T, body func(t *testing.T, l *lab)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	if os.Getenv(liveEnv) == t.Name() {
		body(t, newLab(t))
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=4m")
	cmd.Env = append(os.Environ(), liveEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("in the namespace: %v", err)
	}
}

// The lab's addresses: the host, its router, and a server that is far away.
const (
	host4, host6     = "10.77.0.2", "fd77::2"
	router4, router6 = "10.77.0.1", "fd77::1"
	far4, far6       = "198.51.100.1", "2001:db8:1::1"
	echoPort         = 7000
	nobody           = 65534
)

// lab is the host namespace (this process) and the server's.
type lab struct {
	t        *testing.T
	server   netns.NsHandle
	stateDir string
	captured atomic.Int64 // packets that came out of the TUN device
	tunFile  *os.File
	answer   func([]byte) bool // turns a captured packet into its answer; nil: silence

	tricksters map[bool]*trickster // by what they may do
}

func newLab(t *testing.T) *lab {
	t.Helper()
	for _, m := range []struct{ target, kind string }{{"/", ""}, {"/run", "tmpfs"}} {
		flags := uintptr(unix.MS_REC | unix.MS_PRIVATE)
		if m.kind != "" {
			flags = 0
		}
		if err := unix.Mount("gatun-test", m.target, m.kind, flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	l := &lab{t: t, stateDir: t.TempDir(), tricksters: map[bool]*trickster{}}
	l.sh(`sysctl -qw net.ipv6.conf.default.dad_transmits=0
		ip netns add srv
		ip netns exec srv sysctl -qw net.ipv6.conf.default.dad_transmits=0
		ip link add eth0 type veth peer name eth0 netns srv
		ip link set lo up
		ip addr add ` + host4 + `/24 dev eth0
		ip addr add ` + host6 + `/64 dev eth0 nodad
		ip link set eth0 up
		ip -n srv link set lo up
		ip -n srv addr add ` + router4 + `/24 dev eth0
		ip -n srv addr add ` + router6 + `/64 dev eth0 nodad
		ip -n srv addr add ` + far4 + `/32 dev lo
		ip -n srv addr add ` + far6 + `/128 dev lo nodad
		ip -n srv link set eth0 up
		ip route add default via ` + router4 + `
		ip -6 route add default via ` + router6 + `
		sysctl -qw net.ipv4.ping_group_range='0 2147483647'
		ip netns exec srv nft -f - <<'END'
		table inet count {
			counter far { }
			counter any { }
			chain pre { type filter hook prerouting priority -300; policy accept;
				iifname "eth0" ip daddr ` + far4 + ` counter name far
				iifname "eth0" ip6 daddr ` + far6 + ` counter name far
				iifname "eth0" icmpv6 type { 133, 134, 135, 136, 143 } accept
				iifname "eth0" counter name any
			}
		}
END
`)
	h, err := netns.GetFromName("srv")
	if err != nil {
		t.Fatal(err)
	}
	l.server = h
	l.waitForAddresses()
	return l
}

// waitForAddresses waits until no address is tentative, so that texts compare, and until both
// families reach the server: a new link takes up to a second.
func (l *lab) waitForAddresses() {
	l.t.Helper()
	l.settled()
	for _, far := range []string{far4, far6} {
		l.eventually(patience, "the server is reached", func() bool {
			_, err := net.DialTimeout("tcp", net.JoinHostPort(far, "9"), 50*time.Millisecond)
			return errors.Is(err, syscall.ECONNREFUSED)
		})
	}
}

// settled waits until no address is tentative. One that is found free later would look like a
// change of ours.
func (l *lab) settled() {
	l.t.Helper()
	l.eventually(patience, "addresses without tentative", func() bool {
		return !strings.Contains(l.sh("ip addr; ip -n srv addr"), "tentative")
	})
}

// sh runs a script in the host namespace and returns its output.
func (l *lab) sh(script string) string {
	l.t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s\n%v: %s", script, err, out)
	}
	return string(out)
}

// eventually waits for ok, and returns how long that took.
func (l *lab) eventually(limit time.Duration, what string, ok func() bool) time.Duration {
	l.t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > limit {
			l.t.Fatalf("not within %s: %s", limit, what)
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

var counterPackets = regexp.MustCompile(`packets (\d+)`)

// packets reads a counter of the server: far (for the far addresses) or any.
func (l *lab) packets(counter string) int {
	l.t.Helper()
	out := l.sh("ip netns exec srv nft list counter inet count " + counter)
	n, err := strconv.Atoi(counterPackets.FindStringSubmatch(out)[1])
	if err != nil {
		l.t.Fatal(err)
	}
	return n
}

// openTun makes the device and reads it, as package tun and the stack will. A persistent one
// outlives its process.
func (l *lab) openTun(persistent bool) {
	l.t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	req, err := unix.NewIfreq(DeviceName)
	if err != nil {
		l.t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		l.t.Fatal(err)
	}
	if persistent {
		if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
			l.t.Fatal(err)
		}
	}
	l.tunFile = os.NewFile(uintptr(fd), "tun")
	go func(f *os.File, answer func([]byte) bool) {
		buf := make([]byte, 65536)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			l.captured.Add(1)
			if answer != nil && answer(buf[:n]) {
				_, _ = f.Write(buf[:n])
			}
		}
	}(l.tunFile, l.answer)
}

// manager returns one with the lab's state directory.
func (l *lab) manager(change ...func(*Options)) *Manager {
	l.t.Helper()
	o := Options{StateDir: l.stateDir, Policy: Policy{UID: 0, MTU: 1500, DNSPort: firstDNSPort},
		Logger: zaptest.NewLogger(l.t, zaptest.Level(zap.WarnLevel))}
	for _, c := range change {
		c(&o)
	}
	m, err := New(o)
	if err != nil {
		l.t.Fatal(err)
	}
	return m
}

func (l *lab) up(m *Manager) {
	l.t.Helper()
	if err := m.Up(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
}

// run starts Run and returns what ends it.
func (l *lab) run(m *Manager) (stop func()) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	l.eventually(patience, "run is watching", func() bool { return m.Status().State == On })
	time.Sleep(50 * time.Millisecond) // the first full look
	return func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("Run: %v", err)
		}
	}
}

// crash leaves everything as SIGKILL would: the locks go, nothing else is undone.
func (l *lab) crash(m *Manager) {
	m.release()
	_ = l.tunFile.Close()
}

var lifetimes = regexp.MustCompile(` (valid_lft|preferred_lft|expires|age) \S+`)

// machine is what Promise 4 of the design compares, sorted because the kernel keeps no order.
func (l *lab) machine() string {
	l.t.Helper()
	var all []string
	for _, cmd := range []string{"ip -o rule", "ip -o -6 rule", "ip -o route show table all", "ip -o -6 route show table all",
		"ip -o addr", "ip -o link", "nft -s list ruleset", "cat /etc/resolv.conf", "sysctl net.ipv4.conf.all.src_valid_mark",
		"cat /proc/sys/net/netfilter/nf_conntrack_acct 2>/dev/null || echo 0"} {
		lines := strings.Split(lifetimes.ReplaceAllString(l.sh(cmd), ""), "\n")
		if !strings.HasPrefix(cmd, "nft") {
			slices.Sort(lines)
		}
		all = append(all, "# "+cmd)
		all = append(all, lines...)
	}
	return strings.Join(all, "\n")
}

// serve starts TCP and UDP echo servers on addr, in the namespace where it is called.
func (l *lab) serve(addr string) {
	l.t.Helper()
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
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}()
}

// serveFar serves on all of the server's addresses. A wildcard would answer datagrams from the
// wrong one.
func (l *lab) serveFar() {
	for _, a := range []string{far4, far6, router4, router6} {
		l.serve(at(a))
	}
}

func at(host string) string { return net.JoinHostPort(host, fmt.Sprint(echoPort)) }

// echoes reports whether a message comes back over c.
func echoes(c net.Conn) error {
	msg := fmt.Appendf(nil, "%d", time.Now().UnixNano())
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(msg); err != nil {
		return err
	}
	got := make([]byte, len(msg))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, msg) {
		return fmt.Errorf("got %q, want %q", got, msg)
	}
	return nil
}
