//go:build linux

package route

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// dialLab is three namespaces in a row: client - router - server, IPv4 and IPv6. The link
// behind the router is narrower. 10.78.9.0/24 is a black hole in the router; 10.78.8.0/24 has
// no route there.
type dialLab struct{ client, router, server string }

var dialLabs atomic.Uint32 // numbers the labs of one run

func newDialLab(t testing.TB) *dialLab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making network namespaces needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("the ip program (iproute2) is not installed")
	}
	p := fmt.Sprintf("gtrl-%d-%d", os.Getpid(), dialLabs.Add(1))
	l := &dialLab{client: p + "c", router: p + "r", server: p + "s"}
	t.Cleanup(func() {
		for _, n := range []string{l.client, l.router, l.server} {
			_ = exec.Command("ip", "netns", "del", n).Run()
		}
	})
	script := `
netns add C
netns add R
netns add S
-n R link add rc type veth peer name e0 netns C
-n R link add rs mtu 1400 type veth peer name e0 netns S
-n C addr add 10.78.1.2/24 dev e0
-n C addr add fd78:1::2/64 dev e0 nodad
-n R addr add 10.78.1.1/24 dev rc
-n R addr add fd78:1::1/64 dev rc nodad
-n R addr add 10.78.2.1/24 dev rs
-n R addr add fd78:2::1/64 dev rs nodad
-n S addr add 10.78.2.2/24 dev e0
-n S addr add 10.78.2.3/24 dev e0
-n S addr add fd78:2::2/64 dev e0 nodad
-n S link set dev e0 mtu 1400
-n C link set dev e0 up
-n C link set lo up
-n R link set rc up
-n R link set rs up
-n R link set lo up
-n S link set dev e0 up
-n S link set lo up
-n C route add default via 10.78.1.1
-n C -6 route add default via fd78:1::1
-n S route add default via 10.78.2.1
-n S -6 route add default via fd78:2::1
-n R route add blackhole 10.78.9.0/24`
	r := strings.NewReplacer(" C", " "+l.client, " R", " "+l.router, " S", " "+l.server)
	for line := range strings.Lines(strings.TrimSpace(script)) {
		args := strings.Fields(r.Replace(" " + line))
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	l.in(t, l.router, func() {
		for _, s := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			writeSysctl(t, s, "1")
		}
		for _, s := range []string{"ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"} {
			writeSysctl(t, s, "0")
		}
	})
	l.in(t, l.server, func() { writeSysctl(t, "ipv4/icmp_ratelimit", "0"); writeSysctl(t, "ipv6/icmp/ratelimit", "0") })
	return l
}

func writeSysctl(t testing.TB, name, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0o644); err != nil {
		t.Error(err)
	}
}

// in runs f on a thread inside the namespace. The thread is never used again. Sockets that f
// opens stay in the namespace wherever they are used later.
func (l *dialLab) in(t testing.TB, ns string, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		fd, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err == nil {
			// /proc/sys/net shows the namespace of the process's first thread, except here.
			err = unix.Unshare(unix.CLONE_FS)
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Errorf("enter namespace %s: %v", ns, err)
	}
}

func countFiles(t testing.TB) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}
