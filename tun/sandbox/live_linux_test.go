package sandbox

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatun/network/packet"
	"gatun/tun"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// helperEnv makes the test binary play a part: the command of a sandbox, or a caller that dies.
const helperEnv = "GATUN_SANDBOX_HELPER"

func TestMain(m *testing.M) {
	if IsChild() {
		ChildMain()
	}
	switch os.Getenv(helperEnv) {
	case "probe":
		probe()
	case "caller":
		caller()
	case "foreground":
		foreground()
	default:
		endIgnored()
		os.Exit(m.Run())
	}
}

// endIgnored lets our children begin with every signal at its default: a shell starts what is in
// its background with SIGINT ignored, and what is ignored stays so by design.
func endIgnored() {
	for _, sig := range relayed() {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
}

// self is the test binary, also for a user who may not read its directory.
const self = "/proc/self/exe"

// facts is what a command finds out about its surroundings.
type facts struct {
	UID, GID   int
	Status     map[string]string
	NetNS      string
	Interfaces map[string][]string
	Resolv     string
	Escapes    map[string]string // attempt -> error, "" if it worked
	FDs        []string
	Dir        string
}

// probe is the command: it prints its facts.
func probe() {
	f := facts{UID: os.Getuid(), GID: os.Getgid(), Status: map[string]string{}, Interfaces: map[string][]string{}, Escapes: map[string]string{}}
	for line := range strings.Lines(readText("/proc/thread-self/status")) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			f.Status[k] = strings.TrimSpace(v)
		}
	}
	f.NetNS, _ = os.Readlink("/proc/self/ns/net")
	f.Dir, _ = os.Getwd()
	ifs, _ := net.Interfaces()
	for _, i := range ifs {
		addrs, _ := i.Addrs()
		f.Interfaces[i.Name] = []string{fmt.Sprint(i.MTU)}
		for _, a := range addrs {
			f.Interfaces[i.Name] = append(f.Interfaces[i.Name], a.String())
		}
	}
	f.Resolv = readText("/etc/resolv.conf")
	f.FDs = inheritedNumbers()
	attempt := func(name string, err error) {
		f.Escapes[name] = ""
		if err != nil {
			f.Escapes[name] = err.Error()
		}
	}
	out, err := exec.Command("ip", "route", "del", "default").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	attempt("ip route del default", err)
	_, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	attempt("packet socket", err)
	attempt("unmount resolv.conf", unix.Unmount("/etc/resolv.conf", unix.MNT_DETACH))
	attempt("unmount the root", unix.Unmount("/", unix.MNT_DETACH))
	attempt("ptrace the supervisor", unix.PtraceAttach(os.Getppid()))
	_, err = os.OpenFile(fmt.Sprintf("/proc/%d/mem", os.Getppid()), os.O_RDWR, 0)
	attempt("write the supervisor's memory", err)
	attempt("enter the host's network", enterHostNetwork())
	attempt("raise an ambient capability", unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_NET_ADMIN, 0, 0))
	// The loopback of the host: the parent test listens on this port there.
	if port := os.Getenv("HOST_PORT"); port != "" {
		c, err := net.DialTimeout("tcp", "127.0.0.1:"+port, 2*time.Second)
		attempt("connect to the host's loopback", err)
		if err == nil {
			c.Close()
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(f); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// inheritedNumbers are the open descriptors without close-on-exec.
func inheritedNumbers() []string {
	var open []string
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		n, _ := strconv.Atoi(e.Name())
		if flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			open = append(open, e.Name())
		}
	}
	return open
}

// enterHostNetwork tries the namespace of the process that started the sandbox, and that of
// the init process.
func enterHostNetwork() error {
	var errs []error
	for _, pid := range []string{os.Getenv("CALLER_PID"), "1"} {
		fd, err := unix.Open("/proc/"+pid+"/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// run is one sandboxed command with its output.
type run struct {
	box    *Box
	code   int
	stdout string
}

// needSandbox skips where the system forbids what the package is for.
func needSandbox(t testing.TB) {
	t.Helper()
	if err := exec.Command("unshare", "-Urn", "true").Run(); err != nil {
		t.Skipf("this system forbids user namespaces (unshare -Urn: %v)", err)
	}
}

// links are the kinds of link this user can have.
func links(t testing.TB) map[string]Link {
	t.Helper()
	needSandbox(t)
	all := map[string]Link{"veth": LinkVeth}
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err == nil {
		f.Close()
		all["tun"] = LinkTUN
	} else {
		t.Logf("/dev/net/tun cannot be opened by uid %d: only the veth link is tested", os.Getuid())
	}
	return all
}

// start sets up a sandbox and runs a reflector as its stack: every UDP datagram comes back.
func start(t testing.TB, o Options) *Box {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	box, err := Start(ctx, o)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() {
		if err := box.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	go reflect(box.Device())
	return box
}

// reflect answers every UDP packet with itself, ends swapped.
func reflect(d tun.Device) {
	bufs := make([][]byte, d.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, d.MaxPacket())
	}
	sizes := make([]int, len(bufs))
	for {
		n, err := d.Read(bufs, sizes)
		if err != nil {
			return
		}
		for i := range n {
			p := bufs[i][:sizes[i]]
			addrs, size, l4, proto := 12, 4, int(p[0]&15)*4, p[9]
			if p[0]>>4 == 6 {
				addrs, size, l4, proto = 8, 16, 40, p[6]
			}
			if proto != 17 {
				continue
			}
			if d.Unsummed(i) { // what is there is the sum of the pseudo header
				binary.BigEndian.PutUint16(p[l4+6:], packet.Fold(packet.Sum(p[l4:], 0)))
			}
			src := bytes.Clone(p[addrs : addrs+size])
			copy(p[addrs:], p[addrs+size:addrs+2*size])
			copy(p[addrs+size:], src)
			p[l4], p[l4+1], p[l4+2], p[l4+3] = p[l4+2], p[l4+3], p[l4], p[l4+1]
			if _, err := d.Write([][]byte{p}); err != nil {
				return
			}
		}
	}
}

// execute runs a command to its end.
func execute(t testing.TB, o Options) run {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if o.Stdout == nil {
		o.Stdout = w
	}
	box := start(t, o)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := box.Go(ctx); err != nil {
		t.Fatalf("Go: %v", err)
	}
	w.Close()
	code, err := box.Wait(ctx)
	if err != nil {
		t.Fatalf("Wait: %v", err)
	}
	var out bytes.Buffer
	if _, err := out.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	return run{box: box, code: code, stdout: out.String()}
}

func sh(script string) []string { return []string{"/bin/sh", "-c", script} }

func env(extra ...string) []string { return append(os.Environ(), extra...) }

// TestLiveCommandSeesItsOwnWorld is the contract in one table: who the command is, what it has
// and what it cannot do, over both kinds of link.
func TestLiveCommandSeesItsOwnWorld(t *testing.T) {
	for name, link := range links(t) {
		t.Run(name, func(t *testing.T) {
			host, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer host.Close()
			_, port, _ := net.SplitHostPort(host.Addr().String())
			dir, err := filepath.EvalSymlinks(os.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			got := execute(t, Options{
				Argv: []string{self}, Link: link, MTU: 1400, Dir: dir, ResolvConf: []byte("nameserver 192.0.2.1\nsearch a.example\n"),
				Env: env(helperEnv+"=probe", "HOST_PORT="+port, fmt.Sprintf("CALLER_PID=%d", os.Getpid())),
			})
			var f facts
			if err := json.Unmarshal([]byte(got.stdout), &f); err != nil || got.code != 0 {
				t.Fatalf("code %d, %v: %s", got.code, err, got.stdout)
			}
			checkIdentity(t, f, got.box)
			checkNetwork(t, f)
			if f.Dir != dir {
				t.Errorf("working directory %s, want %s", f.Dir, dir)
			}
			for what, err := range f.Escapes {
				if err == "" {
					t.Errorf("the command could %s", what)
				}
			}
			if len(f.Escapes) != 9 {
				t.Errorf("%d attempts were made, want 9: %v", len(f.Escapes), f.Escapes)
			}
			if want := inheritedNumbers(); !slices.Equal(f.FDs, want) {
				t.Errorf("descriptors inside %v, want those this process inherited, %v", f.FDs, want)
			}
		})
	}
}

func checkIdentity(t *testing.T, f facts, box *Box) {
	t.Helper()
	if f.UID != os.Getuid() || f.GID != os.Getgid() {
		t.Errorf("uid %d, gid %d; want %d, %d", f.UID, f.GID, os.Getuid(), os.Getgid())
	}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if f.Status[set] != "0000000000000000" {
			t.Errorf("%s is %s", set, f.Status[set])
		}
	}
	if f.Status["NoNewPrivs"] != "1" {
		t.Errorf("NoNewPrivs is %s", f.Status["NoNewPrivs"])
	}
	if want := fmt.Sprintf("net:[%d]", box.NetNS()); f.NetNS != want {
		t.Errorf("network namespace %s, NetNS says %s", f.NetNS, want)
	}
	if ours, _ := os.Readlink("/proc/self/ns/net"); f.NetNS == ours {
		t.Error("the command is in our own network namespace")
	}
}

func checkNetwork(t *testing.T, f facts) {
	t.Helper()
	want := []string{"1400", AddressV4().String() + "/32", AddressV6().String() + "/128"}
	if got := f.Interfaces[DeviceName]; !slices.Equal(got, want) {
		t.Errorf("%s has %v, want %v", DeviceName, got, want)
	}
	if lo := f.Interfaces["lo"]; !slices.Contains(lo, "127.0.0.1/8") || !slices.Contains(lo, "::1/128") {
		t.Errorf("lo has %v", lo)
	}
	wantResolv := string(resolvConf([]byte("search a.example\n"), GatewayV4(), GatewayV6()))
	if f.Resolv != wantResolv {
		t.Errorf("resolv.conf:\n%s\nwant:\n%s", f.Resolv, wantResolv)
	}
}

// TestLiveHostIsUntouched: nothing of what the sandbox mounts or sets is seen outside.
func TestLiveHostIsUntouched(t *testing.T) {
	needSandbox(t)
	look := func() string {
		return readText("/etc/resolv.conf") + mounts() + readText("/proc/sys/net/ipv4/ping_group_range") +
			readText("/proc/sys/net/ipv4/ip_unprivileged_port_start") + readText("/proc/net/route")
	}
	before := look()
	inside := execute(t, Options{Argv: sh("cat /etc/resolv.conf; ls -A /tmp | wc -l; echo x >>/etc/resolv.conf || true")})
	if !strings.Contains(inside.stdout, GatewayV4().String()) {
		t.Errorf("inside: %s", inside.stdout)
	}
	if after := look(); after != before {
		t.Errorf("the host changed from\n%s\nto\n%s", before, after)
	}
}

// mounts is what is mounted here, but for the network namespaces that others make and remove.
func mounts() string {
	return regexp.MustCompile(`(?m)^nsfs /run/netns/.*\n`).ReplaceAllString(readText("/proc/self/mounts"), "")
}

// TestLivePackets: datagrams of both families reach the device whole and answers come back.
func TestLivePackets(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("needs python3 as the program inside")
	}
	const script = `
import errno, socket
for family, to in ((socket.AF_INET, "192.0.2.7"), (socket.AF_INET6, "2001:db8::7"), (socket.AF_INET, "10.139.0.1")):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(5)
    s.connect((to, 4000))
    for size in (1, 500, 1300):
        s.send(b"x" * size)
        print(to, s.getsockname()[0], len(s.recv(4000)))
    # What QUIC does: one system call, many datagrams. The kernel may refuse it (EIO), it must
    # not hand out one packet larger than the MTU.
    s.setsockopt(socket.SOL_UDP, 103, 1000)
    try:
        s.send(b"x" * 3000)
        for i in range(3):
            assert len(s.recv(4000)) == 1000
    except OSError as e:
        assert e.errno == errno.EIO, e
`
	var want strings.Builder
	for _, pair := range [][2]string{{"192.0.2.7", "10.139.0.2"}, {"2001:db8::7", "fd67:6174:756e::2"}, {"10.139.0.1", "10.139.0.2"}} {
		for _, size := range []int{1, 500, 1300} {
			fmt.Fprintln(&want, pair[0], pair[1], size)
		}
	}
	for name, link := range links(t) {
		t.Run(name, func(t *testing.T) {
			got := execute(t, Options{Argv: []string{"python3", "-c", script}, Link: link})
			if got.stdout != want.String() || got.code != 0 {
				t.Errorf("code %d:\n%s\nwant:\n%s", got.code, got.stdout, want.String())
			}
		})
	}
}

func TestLiveExitCodes(t *testing.T) {
	needSandbox(t)
	dir := t.TempDir()
	for name, content := range map[string]string{"noshebang": "exit 7\n", "text": "", "badinterpreter": "#!/nonexistent/interp\n"} {
		mode := os.FileMode(0o755)
		if name == "text" {
			mode = 0o644
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		argv []string
		want int
	}{
		{"its own code", sh("exit 42"), 42},
		{"success", []string{"true"}, 0},
		{"by signal", sh("kill -KILL $$"), 137},
		{"by TERM", sh("kill -TERM $$"), 143},
		{"no #! line", []string{dir + "/noshebang"}, 7},
		{"not found", []string{"gatun-no-such-command"}, ExitNotFound},
		{"path not found", []string{"./gatun-no-such-command"}, ExitNotFound},
		{"not executable", []string{dir + "/text"}, ExitNotExecutable},
		{"directory", []string{dir}, ExitNotExecutable},
		{"interpreter not found", []string{dir + "/badinterpreter"}, ExitNotFound},
		{"the command's code, not its child's", sh("(sleep 0.2; exit 3) & exit 5"), 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			box := start(t, Options{Argv: c.argv})
			err := box.Go(context.Background())
			var notRun *ExecError
			if errors.As(err, &notRun) {
				if notRun.Code != c.want || notRun.Name != c.argv[0] {
					t.Errorf("%+v, want code %d", notRun, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			code, err := box.Wait(context.Background())
			if code != c.want || err != nil {
				t.Errorf("code %d, %v; want %d", code, err, c.want)
			}
		})
	}
}

// TestLiveWaitsForAllDescendants, also for one that left its parent and its session.
func TestLiveWaitsForAllDescendants(t *testing.T) {
	needSandbox(t)
	begin := time.Now()
	got := execute(t, Options{Argv: sh("(setsid sh -c 'sleep 0.7; echo late' &) ; exit 4")})
	if got.code != 4 || got.stdout != "late\n" || time.Since(begin) < 600*time.Millisecond {
		t.Errorf("code %d, output %q after %v; want 4 and the descendant's output", got.code, got.stdout, time.Since(begin))
	}
}

// TestLiveNothingRunsBeforeGo: until the stack reads, the command does not exist.
func TestLiveNothingRunsBeforeGo(t *testing.T) {
	needSandbox(t)
	file := filepath.Join(t.TempDir(), "ran")
	box := start(t, Options{Argv: []string{"touch", file}})
	if box.PID() != 0 {
		t.Errorf("PID %d before Go", box.PID())
	}
	time.Sleep(100 * time.Millisecond)
	if _, err := os.Stat(file); err == nil {
		t.Fatal("the command ran before Go")
	}
	if err := box.Go(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := box.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

func TestLiveCloseWithoutGo(t *testing.T) {
	needSandbox(t)
	box, err := Start(context.Background(), Options{Argv: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	pid := box.SupervisorPID()
	begin := time.Now()
	if err := box.Close(); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("the supervisor is still there: %v", err)
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("Close took %v", took)
	}
}

func TestLiveStartObeysItsContext(t *testing.T) {
	needSandbox(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Start(ctx, Options{Argv: []string{"true"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestLiveWarningsReachTheLogger(t *testing.T) {
	needSandbox(t)
	core, logs := observer.New(zap.WarnLevel)
	execute(t, Options{Argv: []string{"true"}, Logger: zap.New(core)})
	for _, e := range logs.All() {
		t.Errorf("on this system everything can be set up, got: %s", e.Message)
	}
}

// TestLiveVethSegmentsOnlyTCP: a packet socket can be told about TCP packets that are yet to be cut
// into segments, not about others.
func TestLiveVethSegmentsOnlyTCP(t *testing.T) {
	needSandbox(t)
	if _, err := exec.LookPath("ethtool"); err != nil {
		t.Skip("needs ethtool to look at the interface inside")
	}
	got := execute(t, Options{Link: LinkVeth, Argv: []string{"ethtool", "-k", DeviceName}})
	for feature, want := range map[string]string{
		"tx-checksumming": "on", "tx-tcp-segmentation": "on", "tx-tcp6-segmentation": "on", "generic-segmentation-offload": "on",
		"tx-udp-segmentation": "off", "tx-sctp-segmentation": "off", "tx-udp_tnl-segmentation": "off", "tx-gso-list": "off",
	} {
		if !strings.Contains(got.stdout, feature+": "+want) {
			t.Errorf("%s is not %s:\n%s", feature, want, got.stdout)
		}
	}
}

// TestLivePingAndLowPorts: an unprivileged ping socket and a low port work for a command without
// capabilities.
func TestLivePingAndLowPorts(t *testing.T) {
	needSandbox(t)
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("needs python3 as the program inside")
	}
	got := execute(t, Options{Argv: []string{"python3", "-c", `
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6)
socket.socket().bind(("0.0.0.0", 80))
print("ok")`}})
	if got.stdout != "ok\n" || got.code != 0 {
		t.Errorf("code %d, output %q", got.code, got.stdout)
	}
}

// TestLiveAddressesAreThereAtOnce: what comes for the command as soon as Start returns is not lost.
func TestLiveAddressesAreThereAtOnce(t *testing.T) {
	needSandbox(t)
	want := fmt.Sprintf("%x", AddressV6().AsSlice())
	for range 10 {
		box := start(t, Options{Argv: sh("true")})
		routes, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/ipv6_route", box.SupervisorPID()))
		if err != nil {
			t.Fatal(err)
		}
		local := false
		for _, line := range strings.Split(string(routes), "\n") { // to, length, …, flags, device
			f := strings.Fields(line)
			if len(f) == 10 && f[0] == want && f[1] == "80" {
				flags, err := strconv.ParseUint(f[8], 16, 32)
				local = local || err == nil && flags&unix.RTF_LOCAL != 0
			}
		}
		if !local {
			t.Fatalf("%s is not an address of the namespace:\n%s", AddressV6(), routes)
		}
	}
}
