//go:build linux

package route

import (
	"context"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// damage is what foreign hands do, and what it spoils.
type damage struct {
	name, script string
	guard        bool // the guard is spoilt: 500 ms, else 1 s
}

var damages = []damage{
	{"nft flush ruleset", "nft flush ruleset", true},
	{"nft delete table", "nft delete table inet gatun", true},
	{"nft flush chain", "nft flush chain inet gatun guard", true},
	{"nft accept on top", "nft insert rule inet gatun guard accept", true},
	{"nft policy accept", "nft 'chain inet gatun guard { policy accept; }'", true},
	{"nft foreign chain", "nft 'add chain inet gatun mine { type filter hook output priority 0; }'", true},
	{"rules flushed", "ip rule flush; ip -6 rule flush; ip rule add lookup main priority 32766; ip rule add lookup default priority 32767; ip -6 rule add lookup main priority 32766", false},
	{"one rule gone", "ip rule del priority 13; ip -6 rule del priority 10", false},
	{"device down", "ip link set gatun0 down", false},
	{"table flushed", "ip route flush table 26465; ip -6 route flush table 26465", false},
	{"floor gone", "ip route del unreachable default table 26465 metric 4000000", false},
	{"route added to the table", "ip route add 198.51.100.0/26 via 10.77.0.1 table 26465", false},
	{"default replaced", "ip route replace default via 10.77.0.1 table 26465", false},
	{"sysctl reset", "sysctl -qw net.ipv4.conf.all.src_valid_mark=0; ip link set gatun0 mtu 1400", false},
}

// healthy reports whether guard, or all the rest, is as it must be.
func (m *Manager) healthy(guard bool) bool {
	if guard { // made anew: the manager's own is the goroutine's that repairs it
		p := m.opts.Policy
		p.DNSPort = m.Status().DNSPort
		return verifyGuard(NewGuard(m.opts.Names, p)) == nil
	}
	host, err := readHost()
	if err != nil {
		return false
	}
	have, err := listRoutes(m.opts.Names)
	if err != nil {
		return false
	}
	want := routes(m.opts.Names, host)
	for _, r := range want {
		if _, ok := have[r]; !ok {
			return false
		}
	}
	listed, err := listRules()
	if err != nil {
		return false
	}
	for _, r := range rules(m.opts.Names, host) {
		if !slices.ContainsFunc(listed, func(l listedRule) bool { return l.rule == r && l.ours(m.opts.Names) }) {
			return false
		}
	}
	mark, _ := getSysctl("net.ipv4.conf.all.src_valid_mark")
	return len(have) == len(want) && mark == "1" && linkReady(LinkSetup{Link: DeviceName, MTU: m.opts.Policy.MTU})
}

// floodScript sends datagrams to both far addresses all the time, as an ordinary program.
const floodScript = `
import socket, time
s = [(socket.socket(f, socket.SOCK_DGRAM), a) for f, a in ((socket.AF_INET, "` + far4 + `"), (socket.AF_INET6, "` + far6 + `"))]
while True:
    for sock, a in s:
        try: sock.sendto(b"x", (a, 7000))
        except OSError: pass
    time.sleep(0.0003)
`

// flood starts the sender as nobody, and returns what ends it.
func (l *lab) flood() (stop func()) {
	l.t.Helper()
	cmd := exec.Command("/usr/bin/python3", "-c", floodScript)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
}

func TestLiveForeignHandsAreRepaired(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		before := l.machine()
		stopFlood := l.flood()
		l.eventually(patience, "control: the flood arrives without the guard", func() bool { return l.packets("far") > 10 })
		stopFlood()
		l.openTun(false)
		m := l.manager()
		l.up(m)
		stop := l.run(m)
		defer l.flood()()
		arrived := l.packets("far")
		order := slices.Clone(damages)
		late := 0
		for range 3 {
			rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			for _, d := range order {
				limit := time.Second
				if d.guard {
					limit = 500 * time.Millisecond
				}
				if m.healthy(d.guard) == false {
					t.Fatalf("not healthy before %s", d.name)
				}
				l.sh(d.script)
				took := l.eventually(patience, d.name+" is repaired", func() bool { return m.healthy(d.guard) })
				t.Logf("%-26s repaired in %s", d.name, took.Round(time.Millisecond))
				if took > limit {
					late++
				}
				if n := l.packets("far"); n != arrived {
					t.Errorf("%s: %d packets of ordinary traffic leaked", d.name, n-arrived)
					arrived = n
				}
			}
		}
		l.eventually(patience, "all is on", func() bool { return m.Status().State == On && m.healthy(true) && m.healthy(false) })
		// The machine that runs the tests may stall now and then; gatun may not be late as a rule.
		if late > len(damages)*3/20 {
			t.Errorf("%d of %d repairs took longer than promised", late, 3*len(damages))
		}
		repairs := m.Status().Repairs
		time.Sleep(300 * time.Millisecond)
		if m.Status().Repairs != repairs {
			t.Errorf("repairs go on without a cause: %d, then %d", repairs, m.Status().Repairs)
		}
		if repairs < uint64(3*len(damages))/2 {
			t.Errorf("only %d repairs counted", repairs)
		}
		stop()
		if err := m.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		// The rules that "ip rule flush" took were put back by the lab, with its protocol.
		if diff := cmp.Diff(before, l.machine()); diff != "" {
			t.Errorf("after down (-before +after):\n%s", diff)
		}
	})
}

// Foreign hands do not wait for one another. With guard and rules gone at the same moment some
// packets get out; how many is reported. What counts is that all is back soon after the last.
func TestLiveFiftyDamagesAtOnce(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		stopFlood := l.flood()
		l.eventually(patience, "control: the flood arrives without the guard", func() bool { return l.packets("far") > 10 })
		stopFlood()
		l.openTun(false)
		m := l.manager()
		l.up(m)
		stop := l.run(m)
		defer l.flood()()
		arrived := l.packets("far")
		for range 50 {
			d := damages[rand.IntN(len(damages))]
			_ = exec.Command("sh", "-c", d.script).Run() // what it wants to spoil may be spoilt already
		}
		took := l.eventually(patience, "all is as it was", func() bool { return m.healthy(true) && m.healthy(false) })
		t.Logf("healthy %s after the last of 50; %d repairs", took.Round(time.Millisecond), m.Status().Repairs)
		n := l.packets("far")
		t.Logf("%d packets got out while guard and rules were gone together", n-arrived)
		time.Sleep(200 * time.Millisecond)
		if later := l.packets("far"); later != n {
			t.Errorf("%d packets leaked after all was back", later-n)
		}
		stop()
	})
}

// The network changes: addresses and routes come, IPv6 appears late, the device goes and
// comes back.
func TestLiveNetworkChanges(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.sh("ip -6 addr del " + host6 + "/64 dev eth0")
		l.openTun(false)
		var mu sync.Mutex
		var events []EventKind
		m := l.manager(func(o *Options) {
			o.OnEvent = func(e Event) { mu.Lock(); defer mu.Unlock(); events = append(events, e.Kind) }
		})
		l.up(m)
		stop := l.run(m)
		defer l.flood()()
		arrived := l.packets("far")
		goesThrough := func(what, dst, src string) {
			t.Helper()
			took := l.eventually(patience, what, func() bool {
				out := l.sh("ip route get " + dst + " 2>&1 || true") // without an address of the family nothing can be reached
				return strings.Contains(out, "dev gatun0") && strings.Contains(out, "src "+src)
			})
			t.Logf("%s: %s", what, took.Round(time.Millisecond))
		}
		l.sh("ip -6 addr add fd77::9/64 dev eth0 nodad; ip -6 route replace default dev eth0 via " + router6)
		goesThrough("IPv6 appears", far6, "fd77::9")
		l.sh("ip addr add 10.77.0.9/24 dev eth0; ip addr del " + host4 + "/24 dev eth0") // which may take the other one of its subnet along
		l.sh("ip addr show dev eth0 | grep -q 10.77.0.9 || ip addr add 10.77.0.9/24 dev eth0; ip route replace default dev eth0 via " + router4)
		goesThrough("another address", far4, "10.77.0.9")
		l.sh("ip link add eth1 type veth peer name eth1 netns srv; ip addr add 10.88.0.2/24 dev eth1; ip link set eth1 up; ip -n srv link set eth1 up")
		goesThrough("another interface", "10.88.0.7", "10.88.0.2")
		if n := l.packets("far") - arrived; n != 0 {
			t.Errorf("%d packets leaked", n)
		}
		l.sh("ip link del gatun0")
		l.eventually(patience, "degraded", func() bool { return m.Status().State == Degraded })
		time.Sleep(100 * time.Millisecond)
		_ = l.tunFile.Close()
		l.openTun(false)
		l.eventually(patience, "on again", func() bool { return m.Status().State == On && m.healthy(false) })
		if n := l.packets("far") - arrived; n != 0 {
			t.Errorf("%d packets leaked while the device was gone", n)
		}
		mu.Lock()
		defer mu.Unlock()
		if !slices.Contains(events, DeviceGone) || !slices.Contains(events, Reconfigured) {
			t.Errorf("events: %v", events)
		}
		stop()
	})
}

// Another VPN's rule that comes before ours takes nothing out, and is named.
func TestLiveOtherVPN(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.openTun(false)
		m := l.manager()
		l.up(m)
		stop := l.run(m)
		defer l.flood()()
		arrived := l.packets("far")
		l.sh("ip route add default via " + router4 + " table 51820; ip rule add not fwmark 51820 table 51820") // as wg-quick does
		l.eventually(patience, "the conflict is named", func() bool {
			return slices.ContainsFunc(m.Status().Conflicts, func(s string) bool { return strings.Contains(s, "51820") })
		})
		time.Sleep(100 * time.Millisecond)
		if n := l.packets("far") - arrived; n != 0 {
			t.Errorf("%d packets leaked", n)
		}
		stop()
	})
}

// On a machine that forwards status says what becomes of it, and only there.
func TestLiveForwardedIsNamed(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.openTun(false)
		l.sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
		m := l.manager()
		l.up(m)
		if got := m.Status().Forwarded; got != "" {
			t.Errorf("a machine that does not forward: %q", got)
		}
		stop := l.run(m)
		defer stop()
		for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
			l.sh("sysctl -qw " + key + "=1")
			l.eventually(patience, key+" is named", func() bool { return strings.Contains(m.Status().Forwarded, "containers") })
			l.sh("sysctl -qw " + key + "=0")
			l.eventually(patience, key+" is over", func() bool { return m.Status().Forwarded == "" })
		}
	})
}

// One that was there before, as wg-quick leaves them, comes behind ours. Nobody follows it, which is said; rules that lead
// to tables of the system, or are about what is forwarded, are not worth a word.
func TestLiveRulesBehindOurs(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.openTun(false)
		l.sh("ip rule add priority 30000 lookup main suppress_prefixlength 0; ip rule add priority 30001 iif lo0 lookup 78; ip rule add priority 30002 not fwmark 51820 lookup 51820; ip -6 rule add priority 30003 from 2001:db8::1 lookup 77")
		m := l.manager()
		l.up(m)
		got := m.Status().Conflicts
		if len(got) != 2 || !strings.Contains(got[0], "51820") || !strings.Contains(got[1], "lookup 77") {
			t.Errorf("%q, want the rules for tables 51820 and 77", got)
		}
		for _, text := range got {
			if !strings.Contains(text, "is not followed") {
				t.Errorf("%q does not say what becomes of it", text)
			}
		}
		stop := l.run(m)
		defer stop()
		l.sh("ip rule del priority 30002; ip -6 rule del priority 30003")
		l.eventually(patience, "nothing to say", func() bool { return len(m.Status().Conflicts) == 0 })
	})
}

func TestLiveRunEndsWithItsContext(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.openTun(false)
		m := l.manager()
		l.up(m)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := m.Run(ctx); err != nil {
			t.Error(err)
		}
	})
}

// The first change of a burst is looked at without a wait, the others share a look.
func TestRoutesWait(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name string
		seen time.Time
		want time.Duration
	}{
		{"never looked", time.Time{}, 0},
		{"looked long ago", now.Add(-time.Minute), 0},
		{"looked just now", now, debounce},
		{"looked a moment ago", now.Add(-debounce / 4), debounce - debounce/4},
		{"looked when the wait is over", now.Add(-debounce), 0},
	} {
		if got := routesWait(now, c.seen); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
