package sandbox

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// rerun runs this test binary again through wrap, from a place every user can reach.
func rerun(t *testing.T, pattern string, wrap ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user or to make a namespace")
	}
	dir := t.TempDir()
	// Other users must reach the copy: the parents of a test's directory are root's.
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	binary := filepath.Join(dir, "sandbox.test")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", exe, binary).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	work := filepath.Join(dir, "tmp")
	if err := os.Mkdir(work, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(work, 0o777); err != nil {
		t.Fatal(err)
	}
	argv := append(wrap, binary, "-test.run", pattern, "-test.v", "-test.count=1", "-test.timeout=90s")
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "TMPDIR="+work)
	out, err := cmd.CombinedOutput()
	passed := strings.Count(string(out), "--- PASS: Test")
	if err != nil || passed == 0 {
		t.Fatalf("%v, %d passed:\n%s", err, passed, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "--- SKIP") || strings.Contains(line, "cannot be opened") {
			t.Log(strings.TrimSpace(line))
		}
	}
	t.Logf("%d tests passed there", passed)
}

const asNobody = "setpriv --reuid 65534 --regid 65534 --clear-groups"

// elsewhere leaves tests that run other ones again, in other surroundings, out of the short run,
// which is for the race detector: it has seen them.
func elsewhere(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("long: the whole run has it")
	}
}

// TestAsNobody runs every live test without any privilege; where /dev/net/tun is root's that
// is the veth link.
func TestAsNobody(t *testing.T) {
	elsewhere(t)
	rerun(t, "^TestLive", strings.Fields(asNobody)...)
}

// TestInNetns runs in a namespace made by ip-netns: /sys is mounted again, /etc/resolv.conf
// is a bind mount.
func TestInNetns(t *testing.T) {
	elsewhere(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	const name = "gtsb-box"
	ipCmd := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	ipCmd("netns", "add", name)
	t.Cleanup(func() { ipCmd("netns", "del", name) })
	const conf = "/etc/netns/" + name
	if err := os.MkdirAll(conf, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		os.RemoveAll(conf)
		os.Remove(filepath.Dir(conf)) // refused if somebody else uses it
	})
	if err := os.WriteFile(conf+"/resolv.conf", []byte("nameserver 192.0.2.2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ipCmd("-n", name, "link", "set", "lo", "up")
	const pattern = "^TestLive(CommandSeesItsOwnWorld|HostIsUntouched|Packets|DialInside)$"
	t.Run("root", func(t *testing.T) { rerun(t, pattern, "ip", "netns", "exec", name) })
	t.Run("nobody", func(t *testing.T) {
		rerun(t, pattern, append([]string{"ip", "netns", "exec", name}, strings.Fields(asNobody)...)...)
	})
}

// hostEnv names the kind of host that TestLookOfHost runs on.
const hostEnv = "GATUN_SANDBOX_HOST"

// hosts are scripts that give a private mount namespace the look of a kind of host; /etc is an
// overlay there, so nothing of the real one changes.
func hosts() map[string]string {
	const overlay = `set -e
mount -t tmpfs tmpfs /mnt; mkdir /mnt/u /mnt/w
mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/u,workdir=/mnt/w /etc
mount -t tmpfs tmpfs /run; rm -f /etc/resolv.conf
`
	return map[string]string{
		"systemd-resolved": overlay + `mkdir -p /run/systemd/resolve; touch /run/systemd/resolve/io.systemd.Resolve
echo nameserver 127.0.0.53 >/run/systemd/resolve/stub-resolv.conf
ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf`,
		"nscd": overlay + `mkdir /run/nscd; touch /run/nscd/socket; echo nameserver 192.0.2.3 >/etc/resolv.conf`,
		"resolvconf": overlay + `mkdir -p /run/resolvconf; echo nameserver 192.0.2.3 >/run/resolvconf/resolv.conf
ln -s /run/resolvconf/resolv.conf /etc/resolv.conf`,
		"file in tmp":   overlay + `echo nameserver 192.0.2.3 >/tmp/gtsb-resolv.conf; ln -s /tmp/gtsb-resolv.conf /etc/resolv.conf`,
		"dangling link": overlay + `mkdir /run/NetworkManager; ln -s /run/NetworkManager/resolv.conf /etc/resolv.conf`,
		"none":          overlay + `true`,
	}
}

// TestOnHostsOfEachKind runs TestLookOfHost where resolv.conf is each of the things it is in
// the wild, as root and without privilege.
func TestOnHostsOfEachKind(t *testing.T) {
	elsewhere(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	if !strings.Contains(readText("/proc/filesystems"), "\toverlay\n") {
		t.Skip("needs the overlay file system to stand in for other hosts' /etc")
	}
	for name, script := range hosts() {
		for who, wrap := range map[string][]string{"root": nil, "nobody": strings.Fields(asNobody)} {
			t.Run(name+"/"+who, func(t *testing.T) {
				t.Cleanup(func() { os.Remove("/tmp/gtsb-resolv.conf") })
				t.Setenv(hostEnv, name)
				unshare := []string{"unshare", "-m", "sh", "-c", script + "\n" + `exec "$@"`, "sh"}
				rerun(t, "^TestLookOfHost$", append(unshare, wrap...)...)
			})
		}
	}
}

func TestLookOfHost(t *testing.T) {
	kind := os.Getenv(hostEnv)
	if kind == "" {
		t.Skip("runs only inside TestOnHostsOfEachKind")
	}
	core, logs := observer.New(zap.WarnLevel)
	defer func() { t.Log(logs.All()) }()
	got := execute(t, Options{Logger: zap.New(core), Argv: sh("cat /etc/resolv.conf; cd /etc; ls passwd; ls -A /run/nscd /run/systemd/resolve 2>/dev/null; true")})
	if !strings.Contains(got.stdout, "nameserver "+GatewayV4().String()) {
		t.Errorf("%s: resolv.conf inside is not ours:\n%s", kind, got.stdout)
	}
	for _, leak := range []string{"127.0.0.53", "192.0.2.3", "socket", "io.systemd.Resolve"} {
		if strings.Contains(got.stdout, leak) {
			t.Errorf("%s: %s of the host is visible inside:\n%s", kind, leak, got.stdout)
		}
	}
	if !strings.Contains(got.stdout, "passwd") {
		t.Errorf("%s: the rest of /etc is gone:\n%s", kind, got.stdout)
	}
}

// foreground is a caller like `gatun run` on a terminal: it relays signals and runs a command
// that counts interrupts.
func foreground() {
	box, err := Start(context.Background(), Options{Argv: sh(
		`n=0; trap 'n=$((n+1))' INT; trap 'echo count $n; exit 3' TERM; echo ready; while :; do sleep 0.05; done`)})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	relay := box.CatchSignals()
	if err := box.Go(ctx); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	relaying := make(chan error, 1)
	go func() { relaying <- relay(ctx) }()
	code, err := box.Wait(ctx)
	cancel()
	fmt.Println("code", code, err, <-relaying)
	os.Exit(0)
}

// TestLiveTerminalInterruptsOnce: Ctrl-C reaches the command once, from the terminal; a signal
// that somebody sends to the caller is relayed.
func TestLiveTerminalInterruptsOnce(t *testing.T) {
	needSandbox(t)
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo terminal: %v", err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo terminal for uid %d: %v", os.Getuid(), err)
	}
	cmd := exec.Command(self)
	cmd.Env = env(helperEnv + "=foreground")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	var seen []string
	lines := bufio.NewScanner(master)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		seen = append(seen, line)
		switch {
		case line == "ready":
			if _, err := master.Write([]byte{3}); err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(500*time.Millisecond, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
		case strings.HasPrefix(line, "code"):
			_ = cmd.Wait()
			if got := strings.Join(seen, "|"); !strings.Contains(got, "count 1|") || line != "code 3 <nil> <nil>" {
				t.Errorf("the terminal shows %q, want one interrupt and code 3", got)
			}
			return
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	t.Fatalf("the terminal ended early: %q", seen)
}

// TestInsideAnotherUserNamespace is the rootless container: root of a namespace in which few
// ids exist.
func TestInsideAnotherUserNamespace(t *testing.T) {
	elsewhere(t)
	needSandbox(t)
	rerun(t, "^TestLive(CommandSeesItsOwnWorld|Packets|ExitCodes)$", "unshare", "-Urm")
}

// TestWhereForbidden: the error of a system without user namespaces says what to do.
func TestWhereForbidden(t *testing.T) {
	needSandbox(t)
	const forbid = `echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"`
	t.Setenv(hostEnv, "forbidden")
	rerun(t, "^TestRefusal$", "unshare", "-Ur", "sh", "-c", forbid, "sh")
}

func TestRefusal(t *testing.T) {
	if os.Getenv(hostEnv) != "forbidden" {
		t.Skip("runs only inside TestWhereForbidden")
	}
	_, err := Start(context.Background(), Options{Argv: []string{"true"}})
	if err == nil || !strings.Contains(err.Error(), "sudo sysctl -w user.max_user_namespaces=") {
		t.Errorf("got %v, want the setting to change", err)
	}
}
