package attribution

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
	"gatun/network/state"
)

var (
	labSender   = netip.MustParseAddr("10.203.7.1")
	labReceiver = netip.MustParseAddr("10.203.7.2")
)

// lab is two network namespaces with a cable between them: programs send in one, the test
// receives in the other.
type lab struct {
	t                testing.TB
	sender, receiver string
}

// newLab makes them. Loopback would not do: the hooks leave it alone.
func newLab(t testing.TB) *lab {
	t.Helper()
	needRoot(t)
	needPython(t)
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip(8)")
	}
	id := strconv.Itoa(os.Getpid())
	l := &lab{t: t, sender: "gtbpf-s" + id, receiver: "gtbpf-r" + id}
	t.Cleanup(func() {
		for _, n := range []string{l.sender, l.receiver} {
			exec.Command("ip", "netns", "del", n).Run()
		}
	})
	for _, line := range []string{
		"netns add " + l.sender, "netns add " + l.receiver,
		"-n " + l.sender + " link set lo up", "-n " + l.receiver + " link set lo up",
		"-n " + l.sender + " link add v0 type veth peer name v0 netns " + l.receiver,
		"-n " + l.sender + " addr add " + labSender.String() + "/24 dev v0",
		"-n " + l.receiver + " addr add " + labReceiver.String() + "/24 dev v0",
		"-n " + l.sender + " link set v0 up", "-n " + l.receiver + " link set v0 up",
	} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v %s", line, err, out)
		}
	}
	return l
}

// in runs f in a network namespace; what f starts and opens stays in it.
func (l *lab) in(name string, f func()) {
	l.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		fd, err := unix.Open("/run/netns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
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
		l.t.Fatal(err)
	}
}

// finder makes a Finder with hooks whose own namespace is that of the name.
func (l *lab) finder(name string) (f *Finder, owners *state.Owners) {
	l.t.Helper()
	var table *state.Table
	var err error
	l.in(name, func() {
		if table, err = state.New(); err != nil {
			return
		}
		owners, err = state.OpenOwners(state.OwnersOptions{Local: func(a netip.Addr) bool { return a == labReceiver }})
	})
	if errors.Is(err, state.ErrNoHooks) {
		l.t.Skip(err)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	f = New(Options{State: table, Senders: owners})
	l.t.Cleanup(func() { f.Close(); table.Close(); owners.Close() })
	return f, owners
}

// receive calls got for every datagram that arrives until the test ends.
func (l *lab) receive(got func(text string, f packet.Flow)) netip.AddrPort {
	l.t.Helper()
	var server *net.UDPConn
	var err error
	l.in(l.receiver, func() {
		server, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(labReceiver, 0)))
	})
	if err != nil {
		l.t.Fatal(err)
	}
	if err := server.SetReadBuffer(4 << 20); err != nil {
		l.t.Fatal(err)
	}
	local := addr(server.LocalAddr().String())
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 512)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			flow := packet.Flow{Proto: packet.UDP, Local: netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), Remote: local}
			got(strings.TrimSpace(string(buf[:n])), flow)
		}
	})
	l.t.Cleanup(func() { server.Close(); wg.Wait() })
	return local
}

// script starts a Python program in the sender's namespace.
func (l *lab) script(body string) (h *helper) {
	l.t.Helper()
	l.in(l.sender, func() { h = script(l.t, body) })
	return h
}

// shells are five programs of their own that can send a datagram: copies of bash.
func shells(t testing.TB) []string {
	t.Helper()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("needs bash(1)")
	}
	code, err := os.ReadFile(bash)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range 5 {
		name := filepath.Join(t.TempDir(), fmt.Sprintf("shell%d", i))
		if err := os.WriteFile(name, code, 0o755); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	return names
}

// flock starts programs that execute, send one datagram and end, eight at a time.
func (l *lab) flock(count int, to netip.AddrPort) {
	l.t.Helper()
	h := l.script(fmt.Sprintf(`
tools = %q.split(":")
alive = 0
for i in range(%d):
    if alive == 8: os.wait(); alive -= 1
    tool = tools[i %% len(tools)]
    os.posix_spawn(tool, [tool, "-c", 'echo "$0 $$" > /dev/udp/%s/%d', tool], os.environ)
    alive += 1
while alive: os.wait(); alive -= 1
say("done"); wait()`, strings.Join(shells(l.t), ":"), count, to.Addr(), to.Port()))
	if h.line() != "done" {
		l.t.Fatal("the programs did not run")
	}
}

// TestSeenFireAndForget names processes that send one datagram and end: in the namespace that
// is watched, and in another one whose packets are forwarded.
func TestSeenFireAndForget(t *testing.T) {
	for name, watched := range map[string]func(*lab) string{
		"same namespace":  func(l *lab) string { return l.sender },
		"other namespace": func(l *lab) string { return l.receiver },
	} {
		t.Run(name, func(t *testing.T) {
			flows := flowCount(1000)
			l := newLab(t)
			f, _ := l.finder(watched(l))
			c := &tally{causes: map[string]int{}}
			var took []time.Duration
			all := make(chan struct{})
			to := l.receive(func(text string, flow packet.Flow) {
				start := time.Now()
				o := f.Find(context.Background(), flow)
				took = append(took, time.Since(start))
				c.add(text, o)
				if len(took) == flows {
					close(all)
				}
			})
			l.flock(flows, to)
			select {
			case <-all:
			case <-time.After(10 * time.Second):
				t.Error("datagrams are missing")
			}
			c.check(t, flows, 0.999)
			slices.Sort(took)
			t.Logf("look-up p50 %v, p99 %v", took[len(took)/2], took[len(took)*99/100])
		})
	}
}
