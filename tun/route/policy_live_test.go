//go:build linux

package route

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatun/network/packet"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// asUser runs a Python script and returns how many packets arrived at the server.
func (l *lab) asUser(uid uint32, script string) int {
	l.t.Helper()
	before := l.packets("any")
	cmd := exec.Command("/usr/bin/python3", "-c", "import socket\n"+script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if out, err := cmd.CombinedOutput(); err != nil && !strings.Contains(string(out), "Operation not permitted") {
		l.t.Fatalf("%s: %v: %s", script, err, out)
	}
	time.Sleep(20 * time.Millisecond)
	return l.packets("any") - before
}

// passes is asUser for nobody. Neighbours are looked for at any time, which passes the guard and is
// counted too: only what passes each of three times is the script's.
func (l *lab) passes(script string, wanted bool) (n int) {
	for range 3 {
		if n = l.asUser(nobody, script); n == 0 || wanted {
			break
		}
	}
	return n
}

// What stays on the link passes per scope, never per program; what keeps the link alive (DHCP,
// neighbour discovery) passes whatever the policy.
func TestLiveLinkLocalPolicy(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.atServer(l.serveFar)
		// A link-local address answers nobody until duplicate address detection is over.
		l.sh("for i in $(seq 200); do [ -z \"$(ip -o -6 addr show tentative)$(ip -n srv -o -6 addr show tentative)\" ] && break; sleep 0.05; done")
		link6 := strings.Fields(l.sh("ip -n srv -o -6 addr show dev eth0 scope link"))[3]
		link6, _, _ = strings.Cut(link6, "/")
		sends := map[string]string{
			"multicast": `socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("224.0.0.251", 5353))`,
			"multicast v6": `s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("eth0")); s.sendto(b"x", ("ff02::fb", 5353))`,
			"broadcast": `s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
s.sendto(b"x", ("10.77.0.255", 9)); s.sendto(b"x", ("255.255.255.255", 9))`,
			"link-local": `socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b"x", ("` + link6 + `%eth0", 9))`,
		}
		const dhcp = `s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("` + host4 + `", 68)); s.sendto(b"x", ("` + router4 + `", 67))`
		for name, script := range sends {
			if l.asUser(nobody, script) == 0 {
				t.Errorf("control: %s does not arrive without the guard", name)
			}
		}
		for _, blockLAN := range []bool{false, true} {
			l.openTun(false)
			m := l.manager(func(o *Options) { o.Policy.BlockLAN = blockLAN })
			l.up(m)
			for name, script := range sends {
				if n := l.passes(script, !blockLAN); (n > 0) == blockLAN {
					t.Errorf("blockLAN %v: %s: %d packets", blockLAN, name, n)
				}
			}
			stop := l.run(m)
			m.SetBlockLAN(!blockLAN)
			l.eventually(30*time.Second, "the guard follows the setting", func() bool {
				return strings.Contains(m.Status().LinkLocal, "refused") != blockLAN
			})
			for name, script := range sends {
				if n := l.passes(script, blockLAN); (n > 0) != blockLAN {
					t.Errorf("blockLAN changed from %v: %s: %d packets", blockLAN, name, n)
				}
			}
			stop()
			if l.asUser(0, dhcp) != 1 {
				t.Errorf("blockLAN %v: a DHCP client cannot renew its lease", blockLAN)
			}
			l.sh("ip neigh flush all; ip -n srv neigh flush all")
			own := marked(DefaultMark)
			c, err := own.DialContext(t.Context(), "tcp", at(far6))
			if err != nil {
				t.Errorf("blockLAN %v: neighbour discovery: %v", blockLAN, err)
			} else {
				_ = c.Close()
			}
			if err := m.Down(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A program that takes over the port of a flow of ours that is closed does not take over its
// connection mark.
func TestLiveClosedFlowsCannotBeBorrowed(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		send := func(mark int) string {
			return fmt.Sprintf(`s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(socket.SOL_SOCKET, 36, %d) if %d else None
s.bind(("%s", 40404)); s.sendto(b"x", ("%s", 7000))`, mark, mark, host4, far4)
		}
		l.openTun(false)
		m := l.manager()
		l.up(m)
		if n := l.asUser(0, send(DefaultMark)); n != 1 {
			t.Fatalf("control: our own datagram: %d packets", n)
		}
		if n := l.asUser(nobody, send(0)); n != 0 {
			t.Errorf("%d packets of nobody went out with the mark of our closed flow", n)
		}
		if n := l.asUser(0, send(0)); n != 0 {
			t.Errorf("%d packets of an unmarked socket of our own user went out", n)
		}
	})
}

// Twenty thousand flows fit into the snapshot, at once and piece by piece.
func TestLiveLargeSnapshot(t *testing.T) {
	long(t)
	live(t, func(t *testing.T, l *lab) {
		var flows []packet.Flow
		want := map[packet.Flow]struct{}{}
		for i := range 20000 {
			f := packet.Flow{Proto: packet.TCP, Local: netip.AddrPortFrom(netip.MustParseAddr(host4), uint16(i+1000)), Remote: netip.MustParseAddrPort(far4 + ":443")}
			if i%2 == 1 {
				f.Proto = packet.UDP
				f.Local = netip.AddrPortFrom(netip.MustParseAddr(host6), uint16(i+1000))
				f.Remote = netip.AddrPortFrom(netip.MustParseAddr(far6), uint16(i))
			}
			flows = append(flows, f)
			want[f] = struct{}{}
		}
		g := NewGuard(DefaultNames(), Policy{})
		for _, step := range []string{"new", "adopted"} {
			start := time.Now()
			if err := installGuard(g, flows); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %d flows in %s", step, len(flows), time.Since(start))
		}
		check := func() {
			t.Helper()
			have, err := readFlows(g.Table)
			if err != nil {
				t.Fatal(err)
			}
			got := map[packet.Flow]struct{}{}
			for _, f := range have {
				got[f] = struct{}{}
			}
			if !cmp.Equal(got, want, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })) {
				t.Errorf("the sets have %d flows, want %d, and not the same ones", len(got), len(want))
			}
		}
		check()
		if err := changeFlows(g.Table, nil, flows[:15000]); err != nil {
			t.Fatal(err)
		}
		for _, f := range flows[:15000] {
			delete(want, f)
		}
		check()
	})
}

const daemonEnv = "GATUN_ROUTE_DAEMON"

// TestDaemonHelper is not a test: it is the process that TestLiveSIGKILL kills.
func TestDaemonHelper(t *testing.T) {
	dir := os.Getenv(daemonEnv)
	if dir == "" {
		t.Skip("only runs as the helper of TestLiveSIGKILL")
	}
	l := &lab{t: t, stateDir: dir}
	l.openTun(os.Getpid()%2 == 0)
	m := l.manager()
	l.up(m)
	fmt.Println("UP")
	_ = m.Run(t.Context())
}

// A process that is killed at any moment leaves the machine closed, the next one adopts what
// it finds, and recover removes it.
func TestLiveSIGKILL(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		before := l.machine()
		stopFlood := l.flood()
		l.eventually(patience, "control: the flood arrives without the guard", func() bool { return l.packets("far") > 10 })
		defer stopFlood()
		var arrived int
		var slowest time.Duration
		for i := range 25 {
			out := &strings.Builder{}
			daemon := exec.Command("/proc/self/exe", "-test.run=^TestDaemonHelper$", "-test.v")
			daemon.Env = append(os.Environ(), daemonEnv+"="+l.stateDir)
			daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			daemon.Stderr = out
			stdout, err := daemon.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if err := daemon.Start(); err != nil {
				t.Fatal(err)
			}
			if i%5 == 0 { // the first one, and some later, come all the way up
				buf, said := make([]byte, 4096), ""
				for !strings.Contains(said, "UP") && err == nil {
					var n int
					n, err = stdout.Read(buf)
					said += string(buf[:n])
				}
				if err != nil {
					t.Fatalf("daemon %d: %v: %s %s", i, err, said, out)
				}
				slowest = max(slowest, time.Since(start))
				if i == 0 {
					arrived = l.packets("far")
				}
			} else {
				time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
			}
			_ = daemon.Process.Kill()
			_ = daemon.Wait()
			if n := l.packets("far"); n != arrived {
				t.Errorf("kill %d: %d packets leaked", i, n-arrived)
				arrived = n
			}
		}
		t.Logf("25 kills; slowest start to healthy %s", slowest)
		stopFlood()
		if err := Recover(l.stateDir, DefaultNames()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, l.machine()); diff != "" {
			t.Errorf("after recover (-before +after):\n%s", diff)
		}
	})
}

// A service that is bound to an interface (SO_BINDTODEVICE) can answer: its lookups carry the
// interface and would find nothing in our table.
func TestLiveBoundServicesAnswer(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		bound := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			if cerr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), "eth0") }); cerr != nil {
				return cerr
			}
			return err
		}}
		for _, to := range []string{host4, host6} {
			ln, err := bound.Listen(t.Context(), "tcp", at(to))
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					go func() { _, _ = io.Copy(c, c) }()
				}
			}()
		}
		visit := func(when string) (flows []net.Conn) {
			t.Helper()
			l.atServer(func() {
				for _, to := range []string{host4, host6} {
					c, err := net.DialTimeout("tcp", at(to), patience)
					if err == nil {
						err = echoes(c)
						flows = append(flows, c)
					}
					if err != nil {
						t.Errorf("%s: %s: %v", when, to, err)
					}
				}
			})
			return flows
		}
		flows := visit("before up")
		l.openTun(false)
		m := l.manager()
		l.up(m)
		for _, c := range flows {
			if err := echoes(c); err != nil {
				t.Errorf("open before up: %s: %v", c.LocalAddr(), err)
			}
		}
		visit("up")
		if err := m.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}
