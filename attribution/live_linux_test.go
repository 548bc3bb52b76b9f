package attribution

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gatun/network/packet"
	"gatun/network/state"
)

const python = "/usr/bin/python3"

func needPython(t testing.TB) string {
	t.Helper()
	path, err := filepath.EvalSymlinks(python)
	if err != nil {
		t.Skip("the helpers need " + python)
	}
	return path
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// newFinder makes a Finder over this machine's tables. It has no survey unless the test runs
// one.
func newFinder(t testing.TB) *Finder {
	t.Helper()
	table, err := state.New()
	if err != nil {
		t.Fatal(err)
	}
	f := New(Options{State: table})
	t.Cleanup(func() { table.Close(); f.Close() })
	return f
}

// helper is a process that a test controls: it prints lines and waits for lines.
type helper struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func start(t testing.TB, name string, args ...string) *helper {
	t.Helper()
	h := &helper{t: t, cmd: exec.Command(name, args...)}
	h.cmd.Stderr = os.Stderr
	h.in, _ = h.cmd.StdinPipe()
	out, _ := h.cmd.StdoutPipe()
	h.out = bufio.NewReader(out)
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.stop)
	return h
}

// script starts a Python program; say(…) prints a line, wait() reads one.
func script(t testing.TB, body string) *helper {
	t.Helper()
	needPython(t)
	return start(t, python, "-c", prelude+body)
}

const prelude = `
import os, sys, socket, array, time
def say(*a): print(*a, flush=True)
def wait(): return sys.stdin.readline().strip()
def name(s):
    a = s.getsockname(); return "[%s]:%d" % a[:2] if ":" in a[0] else "%s:%d" % a[:2]
def udp(address="127.0.0.1", port=0):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((address, port)); return s
`

func (h *helper) pid() int { return h.cmd.Process.Pid }

func (h *helper) line() string {
	h.t.Helper()
	line, err := h.out.ReadString('\n')
	if err != nil {
		h.t.Fatalf("the helper ended: %v", err)
	}
	return strings.TrimSpace(line)
}

func (h *helper) tell(line string) { fmt.Fprintln(h.in, line) }

// stop ends the helper and the children that it forked.
func (h *helper) stop() {
	h.in.Close()
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", h.pid()))
	for _, child := range strings.Fields(string(children)) {
		pid, _ := strconv.Atoi(child)
		if p, err := os.FindProcess(pid); err == nil && pid > 1 {
			p.Kill()
		}
	}
	h.cmd.Process.Kill()
	h.cmd.Wait()
}

func addr(s string) netip.AddrPort {
	a := netip.MustParseAddrPort(s)
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func udpFlow(local string) packet.Flow {
	remote := "127.0.0.9:9"
	if addr(local).Addr().Is6() {
		remote = "[::1]:9"
	}
	return packet.Flow{Proto: packet.UDP, Local: addr(local), Remote: addr(remote)}
}

// expect asks for the owner twice, without and with a warm cache, and compares.
func expect(t *testing.T, f *Finder, flow packet.Flow, pid int, c Confidence, cause string) *Process {
	t.Helper()
	var o Owner
	for _, temper := range []string{"cold", "warm"} {
		o = f.Find(t.Context(), flow)
		got := 0
		if o.Process.Kind != KindUnidentified {
			got = o.Process.PID
		}
		if got != pid || o.Confidence != c || o.Cause != cause {
			t.Fatalf("%s: %s: got process %d (%s), %s, %q; want %d, %s, %q", temper, flow, got, o.Process.Path, o.Confidence, o.Cause, pid, c, cause)
		}
	}
	return o.Process
}

func TestFacts(t *testing.T) {
	path := needPython(t)
	l, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := addr(l.Addr().String()).Port()
	h := script(t, fmt.Sprintf(`
four = socket.create_connection(("127.0.0.1", %[1]d)); say(name(four))
six = socket.create_connection(("::1", %[1]d)); say(name(six))
both = socket.socket(socket.AF_INET6); both.connect(("::ffff:127.0.0.1", %[1]d)); say(name(both))
wild = udp("0.0.0.0"); say("127.0.0.1:%%d" %% wild.getsockname()[1])
dual = udp("::"); say("127.0.0.1:%%d" %% dual.getsockname()[1])
bound = udp("::1"); say(name(bound))
wait()`, port))
	f := newFinder(t)
	var p *Process
	for i, kind := range []string{"tcp4", "tcp6", "tcp mapped", "udp any", "udp dual", "udp bound"} {
		local := addr(h.line())
		flow := udpFlow(local.String())
		if i < 3 {
			flow = packet.Flow{Proto: packet.TCP, Local: local, Remote: netip.AddrPortFrom(local.Addr(), port)}
		}
		t.Run(kind, func(t *testing.T) { p = expect(t, f, flow, h.pid(), Exact, CauseOne) })
	}
	if p == nil {
		t.Fatal("no owner was found")
	}
	if p.Path != path || p.Name != filepath.Base(path) || p.Kind != KindProgram || p.Parent != os.Getpid() || int(p.UID) != os.Getuid() || p.User == "" {
		t.Errorf("facts: %+v, want path %s, parent %d", p, path, os.Getpid())
	}
	if len(p.Args) != 3 || p.Args[1] != "-c" {
		t.Errorf("arguments: %q", p.Args)
	}
	if age := time.Since(p.Started); age < -2*time.Second || age > 30*time.Second {
		t.Errorf("started %s ago", age)
	}
	if other := newFinder(t).Find(t.Context(), udpFlow("127.0.0.1:1")); other.Cause != CauseNoSocket {
		t.Errorf("nobody's port: %+v", other)
	}
}

func TestSelf(t *testing.T) {
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := expect(t, newFinder(t), udpFlow(c.LocalAddr().String()), os.Getpid(), Exact, CauseSelf)
	if p.Kind != KindSelf {
		t.Errorf("kind %d", p.Kind)
	}
}

func TestClosedAndLate(t *testing.T) {
	h := script(t, `s = udp(); say(name(s)); wait(); s.close(); say("closed"); wait()`)
	f, local := newFinder(t), h.line()
	expect(t, f, udpFlow(local), h.pid(), Exact, CauseOne)
	late, cancel := context.WithCancel(t.Context())
	cancel()
	if o := f.Find(late, udpFlow(local)); o.Cause != CauseTimeout || o.Process == nil {
		t.Errorf("cancelled: %+v", o)
	}
	h.tell("close")
	h.line()
	expect(t, f, udpFlow(local), 0, None, CauseNoSocket)
}

// TestForked shares a socket by fork alone, then ends the parent.
func TestForked(t *testing.T) {
	h := script(t, `
s = udp(); say(name(s)); wait()
child = os.fork()
if child == 0:
    time.sleep(60); os._exit(0)
say(child); wait(); s.close(); say("closed"); wait(); os.kill(child, 9)`)
	f, flow := newFinder(t), udpFlow(h.line())
	expect(t, f, flow, h.pid(), Exact, CauseOne)
	h.tell("fork")
	child, _ := strconv.Atoi(h.line())
	expect(t, f, flow, h.pid(), Inherited, CauseInherited)
	expect(t, newFinder(t), flow, h.pid(), Inherited, CauseInherited)
	h.tell("close")
	h.line()
	expect(t, f, flow, child, Exact, CauseOne)
	h.tell("end")
}

// TestForkedAndExecuted leaves the socket open across exec: two programs hold it.
func TestForkedAndExecuted(t *testing.T) {
	h := script(t, `
s = udp(); s.set_inheritable(True); say(name(s)); wait()
child = os.fork()
if child == 0:
    os.execv("/bin/sleep", ["sleep", "60"])
time.sleep(0.2); say(child); wait(); os.kill(child, 9); os.wait(); say("killed"); wait()`)
	f, flow := newFinder(t), udpFlow(h.line())
	expect(t, f, flow, h.pid(), Exact, CauseOne)
	h.tell("fork")
	h.line()
	expect(t, f, flow, 0, Ambiguous, CauseShared)
	expect(t, newFinder(t), flow, 0, Ambiguous, CauseShared)
	h.tell("kill")
	h.line()
	expect(t, f, flow, h.pid(), Exact, CauseOne)
}

// TestPassed passes a socket by SCM_RIGHTS to a child that is another program. The descriptor
// numbers differ.
func TestPassed(t *testing.T) {
	h := script(t, `
ours, theirs = socket.socketpair(); theirs.set_inheritable(True)
child = os.fork()
if child == 0:
    os.execv(sys.executable, ["receiver", "-c", """
import socket, sys, array
pad = open("/dev/null")
c = socket.socket(fileno=%d)
_, anc, _, _ = c.recvmsg(1, 64)
c.send(b"x"); c.recv(1)""" % theirs.fileno()])
time.sleep(0.3)
s = udp(); say(name(s), child); wait()
socket.send_fds(ours, [b"x"], [s.fileno()]); ours.recv(1); say("passed"); wait()
s.close(); say("closed"); wait(); os.kill(child, 9)`)
	f := newFinder(t)
	words := strings.Fields(h.line())
	flow := udpFlow(words[0])
	child, _ := strconv.Atoi(words[1])
	expect(t, f, flow, h.pid(), Exact, CauseOne)
	h.tell("pass")
	h.line()
	expect(t, f, flow, 0, Ambiguous, CauseShared)
	expect(t, newFinder(t), flow, 0, Ambiguous, CauseShared)
	h.tell("close")
	h.line()
	expect(t, f, flow, child, Exact, CauseOne)
	h.tell("end")
}

// TestPassedToStranger passes a socket to a process of another session and another parent.
// Only a survey is sure to find it; from then on the two are known to share.
func TestPassedToStranger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broker")
	receiver := script(t, fmt.Sprintf(`
l = socket.socket(socket.AF_UNIX); l.bind(%q); l.listen()
if os.fork(): wait(); os._exit(0)
os.setsid()
say(os.getpid()); c, _ = l.accept()
fds = [socket.recv_fds(c, 1, 1)[1][0] for _ in range(2)]
c.send(b"x"); c.recv(1)`, path))
	receiver.line()
	sender := script(t, fmt.Sprintf(`
os.setsid()
c = socket.socket(socket.AF_UNIX); c.connect(%q)
a, b = udp(), udp(); say(name(a)); say(name(b)); wait()
socket.send_fds(c, [b"x"], [a.fileno()]); socket.send_fds(c, [b"x"], [b.fileno()]); c.recv(1); say("passed"); wait()`, path))
	f := newFinder(t)
	first, second := udpFlow(sender.line()), udpFlow(sender.line())
	expect(t, f, first, sender.pid(), Exact, CauseOne)
	sender.tell("pass")
	sender.line()
	f.os.surveyor.survey(t.Context())
	expect(t, f, first, 0, Ambiguous, CauseShared)
	expect(t, f, second, 0, Ambiguous, CauseShared)
}

func TestReusePort(t *testing.T) {
	const body = `
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s.bind(("127.0.0.1", int(wait()))); say(name(s))
s2 = None
if wait() == "again":
    s2 = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s2.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s2.bind(s.getsockname()); say("again"); wait()`
	one := script(t, body)
	one.tell("0")
	local := one.line()
	flow := udpFlow(local)
	f := newFinder(t)
	one.tell("again")
	one.line()
	expect(t, f, flow, one.pid(), Exact, CauseOne)
	two := script(t, body)
	two.tell(strconv.Itoa(int(flow.Local.Port())))
	two.line()
	expect(t, f, flow, 0, Ambiguous, CauseManySockets)
	expect(t, newFinder(t), flow, 0, Ambiguous, CauseManySockets)
	two.stop()
	expect(t, f, flow, one.pid(), Exact, CauseOne)
}

func TestSetuidAfterOpen(t *testing.T) {
	needRoot(t)
	h := script(t, `s = udp(); say(name(s)); wait(); os.setgid(65534); os.setuid(65534); say("nobody"); wait()`)
	f, flow := newFinder(t), udpFlow(h.line())
	if p := expect(t, f, flow, h.pid(), Exact, CauseOne); p.UID != 0 {
		t.Errorf("before: user %d", p.UID)
	}
	h.tell("setuid")
	h.line()
	if p := expect(t, f, flow, h.pid(), Exact, CauseOne); p.UID != 65534 {
		t.Errorf("after: user %d", p.UID)
	}
}

// TestExec keeps the socket, the PID and the start time and changes the program.
func TestExec(t *testing.T) {
	sleep, err := filepath.EvalSymlinks("/bin/sleep")
	if err != nil {
		t.Skip("needs /bin/sleep")
	}
	h := script(t, `s = udp(); s.set_inheritable(True); say(name(s)); wait(); os.execv("/bin/sleep", ["sleep", "60"])`)
	f, flow := newFinder(t), udpFlow(h.line())
	before := expect(t, f, flow, h.pid(), Exact, CauseOne)
	h.tell("exec")
	waitFor(t, func() bool { return strings.Contains(readFile(h.pid(), "cmdline"), "sleep\x0060") })
	after := expect(t, f, flow, h.pid(), Exact, CauseOne)
	if after.Path != sleep || !after.Started.Equal(before.Started) || after.Args[0] != "sleep" {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

func readFile(pid int, name string) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	return string(text)
}

// waitFor polls a condition that another process brings about.
func waitFor(t *testing.T, ready func() bool) {
	t.Helper()
	for range 500 {
		if ready() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the helper did not get there in 5 s")
}

// TestReplacedBinaries covers binaries whose path no longer says what they are.
func TestReplacedBinaries(t *testing.T) {
	real := needPython(t)
	tool := filepath.Join(t.TempDir(), "tool")
	if out, err := exec.Command("cp", real, tool).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	t.Setenv("PYTHONHOME", "/usr")
	body := prelude + `s = udp(); say(name(s)); wait()`
	old := start(t, tool, "-c", body)
	flow := udpFlow(old.line())
	f := newFinder(t)
	if p := expect(t, f, flow, old.pid(), Exact, CauseOne); p.Path != tool {
		t.Errorf("path %q", p.Path)
	}
	if err := os.Rename(tool, tool+".old"); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", real, tool).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	if p := expect(t, f, flow, old.pid(), Exact, CauseOne); p.Path != tool+".old" {
		t.Errorf("renamed: path %q", p.Path)
	}
	os.Remove(tool + ".old")
	if p := expect(t, f, flow, old.pid(), Exact, CauseOne); p.Path != tool+".old (deleted)" || p.Name != "tool.old" {
		t.Errorf("deleted: path %q, name %q", p.Path, p.Name)
	}
	if p := expect(t, newFinder(t), flow, old.pid(), Exact, CauseOne); p.Path != tool+".old (deleted)" {
		t.Errorf("deleted: path %q", p.Path)
	}
}

func TestMemfd(t *testing.T) {
	h := script(t, `
s = udp(); s.set_inheritable(True); say(name(s)); wait()
m = os.memfd_create("hidden"); os.write(m, open("/bin/sleep", "rb").read())
os.execv("/proc/self/fd/%d" % m, ["sleep", "60"])`)
	f, flow := newFinder(t), udpFlow(h.line())
	h.tell("exec")
	waitFor(t, func() bool { return strings.Contains(readFile(h.pid(), "cmdline"), "sleep\x0060") })
	if p := expect(t, f, flow, h.pid(), Exact, CauseOne); p.Path != "/memfd:hidden (deleted)" {
		t.Errorf("path %q", p.Path)
	}
}

// TestOtherMountNamespace mounts a program of its own over an allowed one.
func TestOtherMountNamespace(t *testing.T) {
	needRoot(t)
	real := needPython(t)
	if _, err := exec.LookPath("unshare"); err != nil {
		t.Skip("needs unshare(1)")
	}
	copied := filepath.Join(t.TempDir(), "evil")
	if out, err := exec.Command("cp", real, copied).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	h := start(t, "unshare", "-m", "sh", "-c", fmt.Sprintf(`mount --bind %s %s && exec %s -c "$0"`, copied, real, real),
		prelude+`s = udp(); say(name(s)); wait()`)
	flow := udpFlow(h.line())
	if p := expect(t, newFinder(t), flow, h.pid(), Exact, CauseOne); p.Path != real+suffixForeign {
		t.Errorf("path %q, want it marked", p.Path)
	}
}

// TestManyAtOnce asks for 64 new sockets of two processes at the same time with cold caches.
func TestManyAtOnce(t *testing.T) {
	const body = `
kept = [udp() for _ in range(32)]
for s in kept: say(name(s))
wait()`
	helpers := []*helper{script(t, body), script(t, body)}
	f := newFinder(t)
	var wg sync.WaitGroup
	for _, h := range helpers {
		for range 32 {
			flow := udpFlow(h.line())
			wg.Go(func() {
				if o := f.Find(t.Context(), flow); o.Process.PID != h.pid() || o.Confidence != Exact {
					t.Errorf("%s: %+v %s %q, want %d", flow, o.Process, o.Confidence, o.Cause, h.pid())
				}
			})
		}
	}
	wg.Wait()
}

// TestCompact forgets the places of sockets between look-ups: each is found again.
func TestCompact(t *testing.T) {
	h := script(t, `
kept = [udp() for _ in range(200)]
for s in kept: say(name(s))
wait()`)
	f := newFinder(t)
	for n := range 200 {
		flow := udpFlow(h.line())
		expect(t, f, flow, h.pid(), Exact, CauseOne)
		if n%20 == 0 {
			f.Compact()
			expect(t, f, flow, h.pid(), Exact, CauseOne)
		}
	}
}

func TestPortableOnLinux(t *testing.T) {
	h := script(t, `s = udp(); say(name(s)); wait()`)
	f := New(Options{})
	p := expect(t, f, udpFlow(h.line()), h.pid(), Exact, CauseOne)
	if want, _ := filepath.EvalSymlinks(python); p.Path != want || p.Parent != os.Getpid() {
		t.Errorf("facts %+v", p)
	}
	expect(t, f, packet.Flow{Proto: packet.TCP, Local: addr("127.0.0.1:1"), Remote: addr("127.0.0.1:2")}, 0, None, CauseNoSocket)
}
