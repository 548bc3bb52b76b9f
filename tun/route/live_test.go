//go:build linux

package route

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// xtables is the warning that nft(8) prints above tables with targets of xtables.
var xtables = regexp.MustCompile(`# Warning: table inet \S+ is managed by iptables-nft, do not touch!\n(table)`)

// The text is the documentation of the guard: nft(8) must understand it as the same rules that
// the netlink translation installs.
func TestLiveGuardTextIsTheGuard(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		queued, err := queueMode(DefaultNames())
		if err != nil {
			t.Log("this kernel has no queue: that rule is not compared:", err)
			queued = InboundDropped
		}
		for _, p := range []Policy{{UID: 0}, {UID: 990, BlockLAN: true}, {DNSPort: 325}, {Inbound: InboundDropped, BlockLAN: true}, {Inbound: queued}} {
			g := NewGuard(DefaultNames(), p)
			if err := installGuard(g, nil); err != nil {
				t.Fatal(err)
			}
			ours := l.sh("nft -s -n list ruleset")
			l.sh("nft flush ruleset")
			file := filepath.Join(t.TempDir(), "guard.nft")
			// nft(8) does not read targets of xtables and stumbles over this one when it prints.
			compat := strings.NewReplacer(`xt target "NFQUEUE"`, "drop")
			ours = xtables.ReplaceAllString(ours, "$1")
			ours = regexp.MustCompile(`(?s)libxtables: [^{}]*?not found\n\s*comment`).ReplaceAllString(ours, "drop comment")
			if err := os.WriteFile(file, []byte(compat.Replace(g.String())+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			l.sh("nft -f " + file)
			if diff := cmp.Diff(l.sh("nft -s -n list ruleset"), ours); diff != "" {
				t.Errorf("nft's reading of the text (-) and the installed guard (+):\n%s", diff)
			}
			if err := verifyGuard(g); err != nil {
				t.Errorf("verify: %v", err)
			}
			l.sh("nft flush ruleset")
			if err := verifyGuard(g); err == nil {
				t.Error("verify finds a guard that is gone")
			}
		}
	})
}

func TestLiveUpDownLeavesTheMachineAsItWas(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.sh("nft add table inet other; nft add chain inet other x; ip rule add fwmark 7 lookup 100; ip route add 203.0.113.0/24 via " + router4)
		before := l.machine()
		for range 2 {
			l.openTun(false)
			m := l.manager()
			start := time.Now()
			l.up(m)
			t.Logf("up took %s", time.Since(start))
			if s := m.Status(); s.State != On || !s.GuardOK || !s.RulesOK {
				t.Errorf("status %+v", s)
			}
			if !m.IsLocal(netip.MustParseAddr(host4)) || m.IsLocal(netip.MustParseAddr(far4)) || m.IsLocal(netip.MustParseAddr("127.0.0.1")) {
				t.Errorf("local addresses: %v", m.LocalAddrs())
			}
			want := Compute(DefaultNames(), mustHost(t), Policy{MTU: 1500}).String()
			if !strings.Contains(want, "dev gatun0 table 26465 src "+host6) {
				t.Errorf("no IPv6 default in the plan:\n%s", want)
			}
			for _, dst := range []string{far4, far6, router4, router6, "203.0.113.5"} {
				if got := l.sh("ip route get " + dst); !strings.Contains(got, "dev gatun0") || !strings.Contains(got, "src "+host4) && !strings.Contains(got, "src "+host6) {
					t.Errorf("ip route get %s: %s", dst, got)
				}
			}
			start = time.Now()
			if err := m.Down(t.Context()); err != nil {
				t.Fatal(err)
			}
			t.Logf("down took %s", time.Since(start))
			if diff := cmp.Diff(before, l.machine()); diff != "" {
				t.Fatalf("after down (-before +after):\n%s", diff)
			}
		}
		if left, _ := filepath.Glob(filepath.Join(l.stateDir, journalFile+"*")); len(left) > 0 {
			t.Errorf("journal left: %v", left)
		}
	})
}

func mustHost(t *testing.T) HostState {
	t.Helper()
	h, err := readHost()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// Recover undoes any prefix of the set-up, with the journal and without it, with a device that
// went with its process and one that stayed.
func TestLiveRecoverFromEveryOperation(t *testing.T) {
	long(t)
	live(t, func(t *testing.T, l *lab) {
		before := l.machine()
		crash := errors.New("crash")
		total := len(Compute(DefaultNames(), mustHost(t), Policy{}).Ops) + 1 // + the default route per family once the device is there
		steps := 0
		for stop := 1; stop <= total+10; stop++ {
			persistent, lost := stop%2 == 0, stop%3 == 0
			l.openTun(persistent)
			n := 0
			m := l.manager(func(o *Options) {
				o.AfterOp = func(Op) error {
					if n++; n == stop {
						return crash
					}
					return nil
				}
			})
			err := m.Up(t.Context())
			if err != nil && !errors.Is(err, crash) {
				t.Fatal(err)
			}
			if err != nil && m.Status().State != Degraded {
				t.Errorf("state after a failed step: %s", m.Status().State)
			}
			if l.sh("nft list ruleset") == "" {
				t.Errorf("after operation %d there is no guard", n)
			}
			l.crash(m)
			if lost {
				if err := removeJournal(l.stateDir); err != nil {
					t.Fatal(err)
				}
				l.sh("sysctl -e -qw net.ipv4.conf.all.src_valid_mark=0 net.netfilter.nf_conntrack_acct=0") // only the journal knows
			}
			for range 2 { // idempotent
				if err := Recover(l.stateDir, DefaultNames()); err != nil {
					t.Fatalf("recover after operation %d: %v", n, err)
				}
			}
			l.eventually(patience, "the device is gone", func() bool { return !strings.Contains(l.sh("ip link"), DeviceName) })
			if diff := cmp.Diff(before, l.machine()); diff != "" {
				t.Fatalf("recover after operation %d (-before +after):\n%s", n, diff)
			}
			if steps = stop; err == nil {
				break
			}
		}
		t.Logf("recovered from %d prefixes", steps)
		if steps < 15 {
			t.Errorf("only %d prefixes", steps)
		}
	})
}

func TestLiveRecoverKnowsOverriddenNamesAndForeignSysctl(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		before := l.machine()
		l.openTun(true)
		m := l.manager(func(o *Options) { o.Names = DefaultNames().WithMark(0x00100000).WithTable(4242) })
		l.up(m)
		l.crash(m)
		if err := Recover(l.stateDir, DefaultNames()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, l.machine()); diff != "" {
			t.Errorf("other mark and table (-before +after):\n%s", diff)
		}
		// Whoever set the value to 1 before us keeps it, whoever changes it later too.
		l.sh("sysctl -qw net.ipv4.conf.all.src_valid_mark=1")
		l.openTun(true)
		m = l.manager()
		l.up(m)
		l.crash(m)
		l.openTun(true)
		m = l.manager()
		l.up(m) // adopts: the journal's old value must not become ours
		if err := m.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := l.sh("sysctl -n net.ipv4.conf.all.src_valid_mark"); got != "1\n" {
			t.Errorf("sysctl is %q, was 1", got)
		}
	})
}

func TestLiveCrashKeepsTheFirstSysctlValue(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		before := l.machine()
		for range 3 {
			l.openTun(true)
			m := l.manager()
			l.up(m)
			l.crash(m)
		}
		if err := Recover(l.stateDir, DefaultNames()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, l.machine()); diff != "" {
			t.Errorf("after three crashes (-before +after):\n%s", diff)
		}
	})
}

func TestLiveSecondInstance(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		// A stranger who holds the name is no instance.
		squat := exec.Command("/usr/bin/python3", "-c", `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM); s.bind("\0gatun/up/0"); s.listen(8)
print("held", flush=True); sys.stdin.read()`)
		squat.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		stdin, _ := squat.StdinPipe()
		stdout, _ := squat.StdoutPipe()
		if err := squat.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := stdout.Read(make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		l.openTun(false)
		first := l.manager()
		l.up(first)
		_ = stdin.Close()
		_ = squat.Wait()
		other := l.manager(func(o *Options) { o.StateDir = t.TempDir() })
		if err := other.Up(t.Context()); !errors.Is(err, ErrAlreadyRunning) {
			t.Errorf("same namespace, other state directory: %v", err)
		}
		if err := l.manager().Up(t.Context()); !errors.Is(err, ErrAlreadyRunning) {
			t.Errorf("same namespace, same state directory: %v", err)
		}
		if err := Recover(l.stateDir, DefaultNames()); !errors.Is(err, ErrAlreadyRunning) {
			t.Errorf("recover beside a running instance: %v", err)
		}
		var err error
		l.atServer(func() { _, err = lock(l.stateDir) })
		if !errors.Is(err, ErrAlreadyRunning) {
			t.Errorf("other namespace, same state directory: %v", err)
		}
		if s := first.Status(); s.State != On {
			t.Errorf("the first instance: %+v", s)
		}
		if err := first.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.openTun(false)
		l.up(other) // the locks are free again
		if err := other.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// Flows from before up, inbound ones and outgoing ones, live on through up, crash, restart and
// down; new inbound flows work; new outgoing ones go into the TUN device.
func TestLiveOldAndInboundFlows(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.sh("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1")
		l.atServer(l.serveFar)
		l.serve(at(host4))
		l.serve(at(host6))
		var flows []net.Conn
		var names []string
		dial := func(network, to string) net.Conn {
			c, err := net.DialTimeout(network, to, patience)
			if err != nil {
				t.Fatalf("%s %s: %v", network, to, err)
			}
			if err := echoes(c); err != nil {
				t.Fatalf("%s %s: %v", network, to, err)
			}
			return c
		}
		for _, network := range []string{"tcp", "udp"} {
			for _, far := range []string{far4, far6, router4} {
				flows, names = append(flows, dial(network, at(far))), append(names, "out "+network+" "+far)
			}
		}
		l.atServer(func() {
			for _, to := range []string{host4, host6} {
				flows, names = append(flows, dial("tcp", at(to))), append(names, "in tcp "+to)
			}
		})
		alive := func(when string) {
			t.Helper()
			for i, c := range flows {
				if err := echoes(c); err != nil {
					t.Errorf("%s: %s: %v", when, names[i], err)
				}
			}
		}
		inbound := func(when string) {
			t.Helper()
			l.atServer(func() {
				for _, to := range []string{host4, host6} {
					for _, network := range []string{"tcp", "udp"} {
						c, err := net.DialTimeout(network, at(to), patience)
						if err == nil {
							err = echoes(c)
							_ = c.Close()
						}
						if err != nil {
							t.Errorf("%s: new inbound %s to %s: %v", when, network, to, err)
						}
					}
					if c, err := net.DialTimeout("tcp", net.JoinHostPort(to, "9"), patience); !errors.Is(err, syscall.ECONNREFUSED) {
						t.Errorf("%s: inbound to a closed port: %v %v", when, c, err)
					}
					if out, err := exec.Command("/usr/bin/python3", "-c", pingScript, to).CombinedOutput(); err != nil {
						t.Errorf("%s: inbound ping %s: %v %s", when, to, err, out)
					}
				}
			})
		}
		alive("before up")
		l.openTun(true)
		m := l.manager()
		l.up(m)
		if s := m.Status(); s.Snapshot != 8+2 { // our own server's ends of the inbound flows are the same flows
			t.Logf("snapshot has %d flows", s.Snapshot)
		}
		alive("up")
		inbound("up")
		stop := l.run(m)
		alive("running")
		stop()
		l.crash(m)
		alive("after a crash")
		inbound("after a crash")
		captured := l.captured.Load()
		l.openTun(true)
		m = l.manager()
		l.up(m)
		if !m.Status().Adopted {
			t.Error("the crashed instance's guard was not adopted")
		}
		alive("restarted")
		inbound("restarted")
		if c, err := net.DialTimeout("tcp", at(far4), 100*time.Millisecond); err == nil {
			t.Errorf("a new flow got out: %v", c.LocalAddr())
		}
		if l.captured.Load() == captured {
			t.Error("a new flow did not reach the TUN device")
		}
		if err := m.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		alive("after down")
		inbound("after down")
	})
}

const pingScript = `
import socket, sys, select
v6 = ":" in sys.argv[1]
open("/proc/sys/net/ipv4/ping_group_range", "w").write("0 2147483647")
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM, 58 if v6 else 1)
s.connect((sys.argv[1], 0))
s.send(bytes([128 if v6 else 8, 0, 0, 0, 0, 1, 0, 1]) + b"hello")
sys.exit(0 if select.select([s], [], [], 1)[0] and s.recv(100)[0] in (0, 129) else "no reply")
`

// An entry of the snapshot goes when its flow has ended, and with it the old path.
func TestLiveSnapshotEnds(t *testing.T) {
	long(t)
	live(t, func(t *testing.T, l *lab) {
		l.atServer(l.serveFar)
		c, err := net.Dial("tcp", at(far4))
		if err != nil {
			t.Fatal(err)
		}
		keep, err := net.Dial("tcp", at(far6))
		if err != nil {
			t.Fatal(err)
		}
		l.openTun(false)
		m := l.manager()
		l.up(m)
		stop := l.run(m)
		if s := m.Status(); s.Snapshot != 2 {
			t.Errorf("snapshot has %d flows, want 2", s.Snapshot)
		}
		_ = c.Close()
		took := l.eventually(30*time.Second, "the entry is gone", func() bool {
			return m.Status().Snapshot == 1 && !strings.Contains(l.sh("nft list set inet gatun est4"), far4)
		})
		t.Logf("entry gone %s after the close", took)
		if err := echoes(keep); err != nil {
			t.Errorf("the other flow: %v", err)
		}
		stop()
		if err := m.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// Hosts with IPv6 switched off, for everything or for new interfaces, and hosts where somebody
// else uses our table.
func TestLiveUnusualHosts(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		for _, c := range []struct{ name, make, undo, probe, want string }{
			{"IPv6 off", "sysctl -qw net.ipv6.conf.all.disable_ipv6=1", "sysctl -qw net.ipv6.conf.all.disable_ipv6=0", far4, "dev gatun0"},
			{"IPv6 off on new interfaces", "sysctl -qw net.ipv6.conf.default.disable_ipv6=1; ip -6 addr replace " + host6 + "/64 dev eth0 nodad", "sysctl -qw net.ipv6.conf.default.disable_ipv6=0", far6, "dev gatun0"},
			{"no default route", "ip route del default; ip -6 route flush default", "ip route add default via " + router4, far4, "src " + host4},
		} {
			l.sh(c.make)
			l.settled()
			before := l.machine()
			l.openTun(false)
			m := l.manager()
			if err := m.Up(t.Context()); err != nil {
				t.Errorf("%s: %v", c.name, err)
			} else if got := l.sh("ip route get " + c.probe); !strings.Contains(got, c.want) {
				t.Errorf("%s: %s", c.name, got)
			}
			if err := m.Down(t.Context()); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			if diff := cmp.Diff(before, l.machine()); diff != "" {
				t.Errorf("%s: after down (-before +after):\n%s", c.name, diff)
			}
			l.sh(c.undo)
			l.settled()
		}
		// IPv6 switched on again gives eth0 its link-local address when duplicate address detection is done.
		l.eventually(30*time.Second, "eth0 has its link-local address", func() bool {
			return l.sh("ip -6 addr show dev eth0 scope link -tentative") != "" && l.sh("ip -6 addr show dev eth0 tentative") == ""
		})
		l.sh("ip route add 203.0.113.0/24 via " + router4 + " table 26465")
		before := l.machine()
		if err := l.manager().Up(t.Context()); err == nil || !strings.Contains(err.Error(), "core/table") {
			t.Errorf("somebody else's routes in our table: %v", err)
		}
		if diff := cmp.Diff(before, l.machine()); diff != "" {
			t.Errorf("a refused up changed something:\n%s", diff)
		}
		l.sh("ip route flush table 26465")
		m := l.manager()
		if err := m.Up(t.Context()); !errors.Is(err, ErrNoDevice) || m.Status().State != Degraded {
			t.Errorf("without a device: %v, %s", err, m.Status().State)
		}
		if err := m.Down(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
