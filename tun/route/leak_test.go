//go:build linux

package route

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cell is one way to try to get out.
type cell struct{ trick, proto, dst, src string }

func (c cell) String() string { return c.trick + " " + c.proto + " " + c.dst }

// tricks that need CAP_NET_RAW get it, and nothing else.
var capableTricks = map[string]bool{"mark own": true, "mark old": true, "mark own, device": true, "raw": true}

// capturableTricks do not force an interface: they must end in the TUN device.
var capturableTricks = map[string]bool{"plain": true, "source": true, "specific route": true, "mark own": true, "mark old": true}

func leakCells() []cell {
	var cells []cell
	for _, trick := range []string{"plain", "device", "source", "pktinfo", "unicast-if", "dontroute", "specific route", "mark own", "mark old", "mark own, device", "raw"} {
		for _, proto := range []string{"tcp", "udp", "icmp"} {
			for _, c := range []cell{{trick, proto, far4, host4}, {trick, proto, far6, host6}} {
				if trick == "dontroute" { // reaches neighbours only
					c.dst = map[string]string{far4: router4, far6: router6}[c.dst]
				}
				cells = append(cells, c)
			}
		}
	}
	return cells
}

// try attempts c as nobody and returns how many packets arrived at the server.
func (l *lab) try(c cell, script string) (packets int, said string) {
	l.t.Helper()
	return l.tryPort(c, script, echoPort)
}

func (l *lab) tryPort(c cell, script string, port int) (packets int, said string) {
	l.t.Helper()
	before := l.packets("any")
	trickster := l.trickster(script, capableTricks[c.trick])
	if _, err := fmt.Fprintf(trickster.in, "%s\t%s\t%s\t%s\t%d\n", c.trick, c.proto, c.dst, c.src, port); err != nil {
		l.t.Fatalf("%s: %v", c, err)
	}
	said, err := trickster.out.ReadString('\n')
	if said = strings.TrimSpace(said); err != nil || said == "the attempt itself failed" {
		l.t.Fatalf("%s: %v: %s", c, err, said)
	}
	return l.packets("any") - before, said
}

// trickster is a program without privileges that attempts what it is told. It lives as long as the lab:
// its start costs more than an attempt.
type trickster struct {
	in  io.WriteCloser
	out *bufio.Reader
}

// trickster starts one at first need; a capable one may open raw sockets.
func (l *lab) trickster(script string, capable bool) *trickster {
	l.t.Helper()
	if t := l.tricksters[capable]; t != nil {
		return t
	}
	cmd := exec.Command("/usr/bin/python3", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if capable {
		cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_RAW}
	}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			l.t.Errorf("trickster: %v", err)
		}
	})
	l.tricksters[capable] = &trickster{in, bufio.NewReader(out)}
	return l.tricksters[capable]
}

func readTrick(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("testdata/trick.py")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// No socket trick and no route gets a packet past the TUN device. Each cell is its own positive
// control: it must get out while gatun is down.
func TestLiveTricksDoNotLeak(t *testing.T) {
	long(t)
	live(t, func(t *testing.T, l *lab) {
		script := readTrick(t)
		cells := leakCells()
		// DHCP option 121 and on-link public prefixes win over every default route.
		l.sh("ip route add 198.51.100.0/25 via " + router4 + "; ip -6 route add 2001:db8:1::/65 via " + router6)
		arrived := 0
		for _, c := range cells {
			n, said := l.try(c, script)
			if n == 0 {
				t.Errorf("control: %s did not get out without the guard (%s): the cell proves nothing", c, said)
			}
			arrived += n
		}
		l.openTun(false)
		m := l.manager()
		l.up(m)
		stop := l.run(m)
		l.sh("ip route add 198.51.100.0/28 via " + router4 + "; ip -6 route add 2001:db8:1::/66 via " + router6)
		leaked := 0
		for _, c := range cells {
			captured := l.captured.Load()
			n, said := l.try(c, script)
			if capturableTricks[c.trick] && l.captured.Load() == captured {
				t.Errorf("%s was dropped instead of captured (%s)", c, said)
			}
			if n > 0 {
				t.Errorf("leak: %s: %d packets (%s)", c, n, said)
			}
			leaked += n
		}
		if l.captured.Load() == 0 {
			t.Error("nothing was captured either")
		}
		t.Logf("%d cells: %d packets without the guard, %d with it, %d captured", len(cells), arrived, leaked, l.captured.Load())
		stop()
		if err := m.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n, said := l.try(cells[0], script); n == 0 {
			t.Errorf("control after down: %s", said)
		}
	})
}

// The guard alone holds: without rules and routes, after a crash, with the device gone.
func TestLiveGuardAloneHolds(t *testing.T) {
	long(t)
	live(t, func(t *testing.T, l *lab) {
		script := readTrick(t)
		var cells []cell
		for _, c := range leakCells() {
			if c.trick == "plain" || c.trick == "device" || c.trick == "mark own, device" {
				cells = append(cells, c)
			}
		}
		for _, c := range cells {
			if n, said := l.try(c, script); n == 0 {
				t.Errorf("control: %s: %s", c, said)
			}
		}
		none := func(when string) {
			t.Helper()
			for _, c := range cells {
				if n, said := l.try(c, script); n > 0 {
					t.Errorf("%s: leak: %s: %d packets (%s)", when, c, n, said)
				}
			}
		}
		l.openTun(false)
		m := l.manager()
		l.up(m)
		l.sh("ip rule flush; ip -6 rule flush; ip rule add lookup main priority 32766; ip -6 rule add lookup main priority 32766")
		none("rules flushed")
		l.crash(m)
		l.eventually(patience, "the device went with its file", func() bool { return !strings.Contains(l.sh("ip link"), DeviceName) })
		none("crashed, rules flushed")
		l.openTun(false)
		m = l.manager()
		l.up(m)
		l.crash(m)
		none("crashed")
	})
}

// Forwarded traffic of a container is captured or dropped, never let through.
func TestLiveForwardedTrafficDoesNotLeak(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.sh(`ip netns add ctr
			ip link add br0 type veth peer name eth0 netns ctr
			ip addr add 172.31.0.1/24 dev br0
			ip link set br0 up
			ip -n ctr addr add 172.31.0.2/24 dev eth0
			ip -n ctr link set eth0 up
			ip -n ctr link set lo up
			ip -n ctr route add default via 172.31.0.1
			sysctl -qw net.ipv4.ip_forward=1
			nft 'table ip nat { chain post { type nat hook postrouting priority 100; oifname "eth0" masquerade; }; }'`)
		try := func() int {
			before := l.packets("far")
			l.sh(`ip netns exec ctr /usr/bin/python3 -c '
import socket
for i in range(3): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("` + far4 + `", 7000))'`)
			time.Sleep(50 * time.Millisecond)
			return l.packets("far") - before
		}
		if n := try(); n != 3 {
			t.Errorf("control: %d of 3 packets", n)
		}
		for _, rpFilter := range []string{"0", "1"} {
			l.sh("sysctl -qw net.ipv4.conf.all.rp_filter=" + rpFilter + " net.ipv4.conf.br0.rp_filter=" + rpFilter)
			l.openTun(false)
			m := l.manager()
			l.up(m)
			captured := l.captured.Load()
			if n := try(); n != 0 {
				t.Errorf("rp_filter %s: leak: %d packets", rpFilter, n)
			}
			t.Logf("rp_filter %s: captured %d of 3", rpFilter, l.captured.Load()-captured)
			if err := m.Down(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if n := try(); n != 3 {
			t.Errorf("after down: %d of 3 packets", n)
		}
	})
}
