package sandbox

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// running is a command that has written its first line.
type running struct {
	box   *Box
	lines *bufio.Scanner
	first string
}

func launch(t *testing.T, o Options) running {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	o.Stdout = w
	box := start(t, o)
	if err := box.Go(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.Close()
	run := running{box: box, lines: bufio.NewScanner(r)}
	if !run.lines.Scan() {
		t.Fatalf("the command wrote nothing: %v", run.lines.Err())
	}
	run.first = run.lines.Text()
	return run
}

func TestLiveSignalsReachTheCommand(t *testing.T) {
	needSandbox(t)
	for _, sig := range relayed() {
		t.Run(sig.String(), func(t *testing.T) {
			script := fmt.Sprintf(`trap 'echo got; exit 9' %d; echo ready; while :; do sleep 0.05; done`, int(sig))
			run := launch(t, Options{Argv: sh(script)})
			if err := run.box.Signal(sig); err != nil {
				t.Fatal(err)
			}
			code, err := run.box.Wait(context.Background())
			if code != 9 || err != nil {
				t.Errorf("code %d, %v; want 9", code, err)
			}
		})
	}
}

// TestLiveSignalAfterTheCommand reaches what the command left running.
func TestLiveSignalAfterTheCommand(t *testing.T) {
	needSandbox(t)
	run := launch(t, Options{Argv: sh("sleep 60 & echo ready; exit 6")})
	time.AfterFunc(300*time.Millisecond, func() { _ = run.box.Signal(syscall.SIGTERM) })
	begin := time.Now()
	code, err := run.box.Wait(context.Background())
	if code != 6 || err != nil || time.Since(begin) > 10*time.Second {
		t.Errorf("code %d, %v after %v; want 6", code, err, time.Since(begin))
	}
	if err := run.box.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("a signal to nobody: %v", err)
	}
}

// TestLiveWaitCancelled: TERM first, KILL for who does not listen, all of them.
func TestLiveWaitCancelled(t *testing.T) {
	needSandbox(t)
	run := launch(t, Options{Argv: sh(`trap '' TERM; (setsid sleep 61 &); echo ready; while :; do sleep 0.05; done`)})
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(100*time.Millisecond, cancel)
	begin := time.Now()
	code, err := run.box.Wait(ctx)
	if code != ExitSignal+int(syscall.SIGKILL) || err != nil {
		t.Errorf("code %d, %v; want 137", code, err)
	}
	if took := time.Since(begin); took < grace || took > grace+5*time.Second {
		t.Errorf("took %v, want a little more than %v", took, grace)
	}
	if n := signalAll(run.box.NetNS(), 0); n != 0 {
		t.Errorf("%d processes are left in the namespace", n)
	}
}

// caller is a program that starts a sandbox, tells the namespace, and waits to be killed.
func caller() {
	box, err := Start(context.Background(), Options{Argv: sh("(setsid sleep 62 &) ; exec sleep 62")})
	if err == nil {
		err = box.Go(context.Background())
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(box.NetNS(), box.SupervisorPID())
	time.Sleep(time.Hour) // not select {}: without cgo the runtime would call that a deadlock and end us
}

// TestLiveCallerKilled: nothing keeps running with a dead network.
func TestLiveCallerKilled(t *testing.T) {
	needSandbox(t)
	cmd := exec.Command(self)
	cmd.Env = env(helperEnv + "=caller")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var netns uint64
	var supervisor int
	if _, err := fmt.Fscan(out, &netns, &supervisor); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the command and its child run", func() bool { return signalAll(netns, 0) >= 3 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "all processes of the namespace have ended", func() bool { return signalAll(netns, 0) == 0 })
}

// TestLiveSupervisorKilled: the command dies with it, and Wait says so.
func TestLiveSupervisorKilled(t *testing.T) {
	needSandbox(t)
	run := launch(t, Options{Argv: sh("sleep 63 & echo ready; exec sleep 63")})
	if err := syscall.Kill(run.box.SupervisorPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	code, err := run.box.Wait(context.Background())
	if code != ExitOwnFailure || err == nil {
		t.Errorf("code %d, %v; want 125 and an error", code, err)
	}
	eventually(t, "the command and its child have ended", func() bool { return signalAll(run.box.NetNS(), 0) == 0 })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 600 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("after 30 s not yet: %s", what)
}

// TestLiveDialInside: the inbound way, many at once, a refusal, and after the end.
func TestLiveDialInside(t *testing.T) {
	needSandbox(t)
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("needs python3 as the server inside")
	}
	const server = `
import socket, threading
s = socket.socket(); s.bind(("127.0.0.1", 80)); s.listen(64)
print("ready", flush=True)
def serve(c):
    d = c.recv(100); c.sendall(b"echo " + d); c.close()
for i in range(20):
    c, _ = s.accept(); threading.Thread(target=serve, args=(c,)).start()
`
	run := launch(t, Options{Argv: []string{"python3", "-c", server}})
	waited := make(chan error, 1)
	go func() {
		_, err := run.box.Wait(context.Background())
		waited <- err
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := run.box.DialInside(ctx, 81); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a closed port: %v, want ECONNREFUSED", err)
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			conn, err := run.box.DialInside(ctx, 80)
			if err != nil {
				t.Errorf("dial %d: %v", i, err)
				return
			}
			defer conn.Close()
			fmt.Fprintf(conn, "hello %d", i)
			got, err := io.ReadAll(conn)
			if want := fmt.Sprintf("echo hello %d", i); err != nil || string(got) != want {
				t.Errorf("got %q, %v; want %q", got, err, want)
			}
		})
	}
	wg.Wait()
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if _, err := run.box.DialInside(ctx, 80); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end: %v, want net.ErrClosed", err)
	}
}

// TestLiveDiagFindsSockets: the passed out socket sees the command's sockets, and the process
// that owns one can be found from here.
func TestLiveDiagFindsSockets(t *testing.T) {
	needSandbox(t)
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("needs python3 as the server inside")
	}
	run := launch(t, Options{Argv: []string{"python3", "-c", `
import socket, os, time
s = socket.socket(); s.bind(("127.0.0.1", 4567)); s.listen()
print(os.fstat(s.fileno()).st_ino, flush=True)
time.sleep(60)`}})
	want, err := strconv.ParseUint(run.first, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	got := listeners(t, run.box.DiagFD())
	delete(got, run.box.files.Port) // where connections that are relayed arrive
	if len(got) != 1 || got[4567] != uint32(want) {
		t.Errorf("sockets %v, want only 4567 with inode %d", got, want)
	}
	owner := fmt.Sprintf("/proc/%d", run.box.PID())
	fds, err := os.ReadDir(owner + "/fd")
	if err != nil {
		t.Fatalf("we cannot look at the command's descriptors: %v", err)
	}
	found := false
	for _, fd := range fds {
		target, _ := os.Readlink(owner + "/fd/" + fd.Name())
		found = found || target == fmt.Sprintf("socket:[%d]", want)
	}
	if !found {
		t.Error("the socket is not among the command's descriptors")
	}
	if exe, err := os.Readlink(owner + "/exe"); err != nil || !strings.Contains(exe, "python") {
		t.Errorf("exe %q, %v", exe, err)
	}
	if err := run.box.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// listeners asks inet_diag for the listening TCP sockets: port -> inode.
func listeners(t *testing.T, diag *os.File) map[uint16]uint32 {
	t.Helper()
	req := make([]byte, 72) // nlmsghdr + inet_diag_req_v2
	binary.NativeEndian.PutUint32(req[0:], 72)
	binary.NativeEndian.PutUint16(req[4:], unix.SOCK_DIAG_BY_FAMILY)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	req[16], req[17] = unix.AF_INET, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(req[20:], 1<<10) // TCP_LISTEN
	fd := int(diag.Fd())
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16384)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := map[uint16]uint32{}
	for b := buf[:n]; len(b) >= 16; {
		size := int(binary.NativeEndian.Uint32(b))
		if binary.NativeEndian.Uint16(b[4:]) != unix.SOCK_DIAG_BY_FAMILY {
			break
		}
		msg := b[16:size] // struct inet_diag_msg: port at 4, inode at 68
		found[binary.BigEndian.Uint16(msg[4:])] = binary.NativeEndian.Uint32(msg[68:])
		b = b[size:]
	}
	return found
}

// TestLiveInheritedDescriptors: what the caller's shell passed stays, what we opened does not.
func TestLiveInheritedDescriptors(t *testing.T) {
	needSandbox(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	inherited, err := unix.FcntlInt(w.Fd(), unix.F_DUPFD, 37) // without close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	exe, err := os.Executable() // within a shell /proc/self/exe is the shell
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Join(inheritedNumbers(), " ")
	got := execute(t, Options{
		Argv: sh(fmt.Sprintf("echo through >/proc/self/fd/%d; exec %s", inherited, exe)), Env: env(helperEnv + "=probe"),
	})
	unix.Close(inherited)
	b, err := io.ReadAll(r)
	if err != nil || string(b) != "through\n" {
		t.Errorf("through the inherited descriptor came %q, %v", b, err)
	}
	var f facts
	if err := json.Unmarshal([]byte(got.stdout), &f); err != nil {
		t.Fatal(err)
	}
	if have := strings.Join(f.FDs, " "); have != want || !strings.Contains(have, strconv.Itoa(inherited)) {
		t.Errorf("descriptors inside %s, want %s", have, want)
	}
}

// BenchmarkStart is the price of the sandbox: from Start to the command's exec, for a binary
// of this test's size.
func BenchmarkStart(b *testing.B) {
	for name, link := range links(b) {
		b.Run(name, func(b *testing.B) {
			var ready, started time.Duration
			for b.Loop() {
				begin := time.Now()
				box, err := Start(context.Background(), Options{Argv: []string{"true"}, Link: link})
				if err != nil {
					b.Fatal(err)
				}
				ready += time.Since(begin)
				if err := box.Go(context.Background()); err != nil {
					b.Fatal(err)
				}
				started += time.Since(begin)
				if _, err := box.Wait(context.Background()); err != nil {
					b.Fatal(err)
				}
				box.Close()
			}
			b.ReportMetric(float64(ready.Microseconds())/1000/float64(b.N), "ms-ready")
			b.ReportMetric(float64(started.Microseconds())/1000/float64(b.N), "ms-exec")
		})
	}
}
