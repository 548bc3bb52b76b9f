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
		// Two senders that get the same port within moments are told apart by nobody.
		"netns exec " + l.sender + " sysctl -qw net.ipv4.ip_local_port_range=1024\t65535",
		"-n " + l.sender + " link set v0 up", "-n " + l.receiver + " link set v0 up",
	} {
		if out, err := exec.Command("ip", strings.Split(line, " ")...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v %s", line, err, out)
		}
	}
	return l
}

// in runs f in a network namespace; what f starts and opens stays in it.
func (l *lab) in(name string, f func()) {
	l.t.Helper()
	done := make(chan error)
	go func() { done <- inNetNS(name, f) }()
	if err := <-done; err != nil {
		l.t.Fatal(err)
	}
}

func inNetNS(name string, f func()) error {
	runtime.LockOSThread()
	back, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer back.Close()
	there, err := os.Open("/run/netns/" + name)
	if err != nil {
		return err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	defer func() {
		if unix.Setns(int(back.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // else the thread ends with the goroutine
		}
	}()
	f()
	return nil
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
	raw, err := server.SyscallConn()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := errors.Join(raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) // nothing is lost on a busy machine
	}), err); err != nil {
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
			c.check(t, flows, 0.995) // 0.999 and more on a machine that is not busy
			slices.Sort(took)
			t.Logf("look-up p50 %v, p99 %v", took[len(took)/2], took[len(took)*99/100])
		})
	}
}

// exchange is a lab whose datagrams are looked up as they arrive; each carries the words that
// its sender gave it.
type exchange struct {
	*lab
	f     *Finder
	to    netip.AddrPort
	found chan finding
}

type finding struct {
	text string
	flow packet.Flow
	o    Owner
}

func newExchange(t *testing.T) *exchange {
	x := &exchange{lab: newLab(t), found: make(chan finding, 64)}
	x.f, _ = x.finder(x.sender)
	x.to = x.receive(func(text string, flow packet.Flow) {
		x.found <- finding{text, flow, x.f.Find(context.Background(), flow)}
	})
	return x
}

// peer is how a Python program writes the receiver's address.
func (x *exchange) peer() string { return fmt.Sprintf("(%q, %d)", x.to.Addr(), x.to.Port()) }

// next waits for the owner of the next datagram.
func (x *exchange) next() finding {
	x.t.Helper()
	select {
	case got := <-x.found:
		return got
	case <-time.After(10 * time.Second):
		x.t.Fatal("no datagram arrived")
		return finding{}
	}
}

// expect wants the next datagram to be from the process whose number it carries.
func (x *exchange) expect(cause string) *Process {
	x.t.Helper()
	got := x.next()
	if strconv.Itoa(got.o.Process.PID) != got.text || got.o.Confidence != Exact || got.o.Cause != cause {
		x.t.Errorf("%s from %s: got %+v, %s, %q", got.flow, got.text, got.o.Process, got.o.Confidence, got.o.Cause)
	}
	return got.o.Process
}

// TestSeenForkShared sends through one socket from a process and its forks, of which one ends
// at once: each datagram is that of its sender.
func TestSeenForkShared(t *testing.T) {
	x := newExchange(t)
	h := x.script(fmt.Sprintf(`
for connected in (True, False):
    wait()
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if connected: s.connect(%[1]s)
    else: s.bind(("10.203.7.1", 0))
    def send():
        text = str(os.getpid()).encode()
        s.send(text) if connected else s.sendto(text, %[1]s)
    if os.fork() == 0: send(); os._exit(0)
    os.wait(); say("sent")
    wait(); send()
    wait()
    child = os.fork()
    if child == 0: send(); time.sleep(60); os._exit(0)
    wait(); os.kill(child, 9); os.wait(); s.close()
wait()`, x.peer()))
	for range 2 {
		h.tell("fork")
		if p := x.expect(CauseSeen); p.Parent != h.pid() {
			t.Errorf("the child of %d is %+v", h.pid(), p)
		}
		h.line()
		time.Sleep(shared) // so that the two are not taken for each other
		h.tell("send")
		if p := x.expect(CauseSeen); p.PID != h.pid() {
			t.Errorf("the parent %d is %+v", h.pid(), p)
		}
		time.Sleep(shared)
		h.tell("fork")
		x.expect(CauseSeen)
		h.tell("end")
	}
}

// shared is more than what a packet may be on its way while its flow has two senders.
const shared = 100 * time.Millisecond

// TestSeenPassedOn lets another program send through a socket that its maker keeps: the flow
// belongs to both, and so to neither.
func TestSeenPassedOn(t *testing.T) {
	x := newExchange(t)
	shell := shells(t)[0]
	h := x.script(fmt.Sprintf(`
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(%s); s.set_inheritable(True)
fd = s.fileno()
child = os.posix_spawn(%q, ["x", "-c", "echo $$ >&%%d; read line" %% fd], os.environ)
wait()`, x.peer(), shell))
	_ = h
	if got := x.next(); got.o.Confidence >= Inherited {
		t.Errorf("named %+v, %s, %q", got.o.Process, got.o.Confidence, got.o.Cause)
	}
}

// TestSeenThenExec sends and executes another program: the flow is that of the first.
func TestSeenThenExec(t *testing.T) {
	sleep, err := filepath.EvalSymlinks("/bin/sleep")
	if err != nil {
		t.Skip("needs /bin/sleep")
	}
	x := newExchange(t)
	gate := make(chan struct{})
	real := needPython(t)
	find := x.f
	x.f = nil
	to := x.receive(func(text string, flow packet.Flow) {
		<-gate
		x.found <- finding{text, flow, find.Find(context.Background(), flow)}
	})
	h := x.script(fmt.Sprintf(`
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.set_inheritable(True); s.connect(("%s", %d))
s.send(str(os.getpid()).encode()); os.execv("/bin/sleep", ["sleep", "60"])`, to.Addr(), to.Port()))
	waitFor(t, func() bool { return strings.Contains(readFile(h.pid(), "cmdline"), "sleep\x0060") })
	close(gate)
	if p := x.expect(CauseSeen); p.Path != real || p.Path == sleep {
		t.Errorf("path %q, want %q", p.Path, real)
	}
}

// TestSeenSetuid gives up root between opening and sending.
func TestSeenSetuid(t *testing.T) {
	x := newExchange(t)
	x.script(fmt.Sprintf(`
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(%s)
os.setuid(65534); s.send(str(os.getpid()).encode()); wait()`, x.peer()))
	got := x.next()
	if strconv.Itoa(got.o.Process.PID) != got.text || got.o.Process.UID != 65534 {
		t.Errorf("%s: got %+v, %q", got.text, got.o.Process, got.o.Cause)
	}
}

// TestSeenSharedPort lets two programs send from one port at the same time, which socket
// tables cannot tell apart.
func TestSeenSharedPort(t *testing.T) {
	x := newExchange(t)
	body := fmt.Sprintf(`
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s.bind(("10.203.7.1", 40404))
while wait(): s.sendto(str(os.getpid()).encode(), %s)`, x.peer())
	one, two := x.script(body), x.script(body)
	for range 3 {
		for _, h := range []*helper{one, two} {
			h.tell("send")
			if p := x.expect(CauseSeen); p.PID != h.pid() {
				t.Errorf("got %d, want %d", p.PID, h.pid())
			}
			time.Sleep(shared)
		}
	}
	for range 20 { // at once: right or not named
		one.tell("send")
		two.tell("send")
		for range 2 {
			if got := x.next(); got.o.Confidence >= Inherited && strconv.Itoa(got.o.Process.PID) != got.text {
				t.Errorf("%s was taken for %d: %s, %q", got.text, got.o.Process.PID, got.o.Confidence, got.o.Cause)
			}
		}
	}
}

// BenchmarkSeen measures look-ups of flows whose sender the kernel saw: of a process that is
// known, and the first one of a new process. Run it alone, with -benchtime 1000x.
func BenchmarkSeen(b *testing.B) {
	for name, body := range map[string]string{
		"known-process": `
while wait(): s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((%q, %d)); s.send(str(os.getpid()).encode())`,
		"new-process": `
while wait():
    child = os.fork()
    if child == 0:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((%q, %d)); s.send(str(os.getpid()).encode()); os._exit(0)
    os.wait()`,
	} {
		b.Run(name, func(b *testing.B) {
			l, w := newLab(b), &stopwatch{}
			f, _ := l.finder(l.sender)
			type arrival struct {
				text string
				flow packet.Flow
			}
			arrived := make(chan arrival)
			to := l.receive(func(text string, flow packet.Flow) { arrived <- arrival{text, flow} })
			h := l.script(fmt.Sprintf(body, to.Addr(), to.Port()))
			for b.Loop() {
				h.tell("send")
				a := <-arrived
				pid, _ := strconv.Atoi(a.text)
				w.find(b, f, a.flow, pid)
			}
			w.report(b)
		})
	}
}
