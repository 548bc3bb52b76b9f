package attribution

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"gatun/network/packet"
)

// tally counts how look-ups compare with the truth, which the program wrote into the payload.
type tally struct {
	mu           sync.Mutex
	right, total int
	wrong        []string
	causes       map[string]int
}

func (c *tally) add(token string, o Owner) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total++
	c.causes[o.Cause]++
	path, pid, _ := strings.Cut(strings.TrimSpace(token), " ")
	switch {
	case o.Process.Kind == KindUnidentified:
	case o.Process.Path == path && strconv.Itoa(o.Process.PID) == pid:
		c.right++
	default:
		c.wrong = append(c.wrong, fmt.Sprintf("%s: got %d %s (%s)", token, o.Process.PID, o.Process.Path, o.Cause))
	}
}

func (c *tally) check(t *testing.T, total int, share float64) {
	t.Helper()
	t.Logf("%d flows, right %.2f %%, wrong %d, causes %v", c.total, 100*float64(c.right)/float64(c.total), len(c.wrong), c.causes)
	if len(c.wrong) > 0 {
		t.Errorf("wrong: %v", c.wrong[:min(5, len(c.wrong))])
	}
	if c.total < total || float64(c.right) < share*float64(total) {
		t.Errorf("%d of %d flows are right", c.right, total)
	}
}

// fiveBinaries starts five different binaries. Each forks a child per flow, of which about
// eight live at a time over all.
func fiveBinaries(t *testing.T, flows int, body string) []*helper {
	real := needPython(t)
	t.Setenv("PYTHONHOME", "/usr")
	var helpers []*helper
	for i := range 5 {
		binary := filepath.Join(t.TempDir(), fmt.Sprintf("tool%d", i))
		if out, err := exec.Command("cp", real, binary).CombinedOutput(); err != nil {
			t.Fatal(err, string(out))
		}
		helpers = append(helpers, start(t, binary, "-c", prelude+fmt.Sprintf(`
alive = 0
for _ in range(%d):
    if alive == 2: os.wait(); alive -= 1
    if os.fork() == 0:
        token = ("%%s %%d\n" %% (os.readlink("/proc/self/exe"), os.getpid())).encode()
        try:
%s
        finally: os._exit(0)
    alive += 1
while alive: os.wait(); alive -= 1
say("done"); wait()`, flows/5, body)))
	}
	return helpers
}

func flowCount(standard int) int {
	if n, err := strconv.Atoi(os.Getenv("ATTRIBUTION_FLOWS")); err == nil {
		return n
	}
	return standard
}

// TestTruthTCP compares the owners of short-lived TCP flows with the truth. As a held flow
// does, each waits for the answer to its look-up. ATTRIBUTION_FLOWS sets how many.
func TestTruthTCP(t *testing.T) {
	flows := flowCount(300)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, c := newFinder(t), &tally{causes: map[string]int{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				flow := packet.Flow{Proto: packet.TCP, Local: addr(conn.RemoteAddr().String()), Remote: addr(conn.LocalAddr().String())}
				o := f.Find(t.Context(), flow)
				buf := make([]byte, 512)
				n, _ := conn.Read(buf)
				c.add(string(buf[:n]), o)
				conn.Write([]byte("x"))
			})
		}
	})
	for _, h := range fiveBinaries(t, flows, fmt.Sprintf(`
            s = socket.create_connection(("127.0.0.1", %d)); s.send(token); s.recv(1)`, addr(l.Addr().String()).Port())) {
		h.line()
	}
	l.Close()
	wg.Wait()
	c.check(t, flows, 0.999)
}

// TestTruthFireAndForget sends a datagram per process, which ends at once. Many owners cannot
// be known any more; none may be wrong.
func TestTruthFireAndForget(t *testing.T) {
	flows := flowCount(300)
	server, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	if err := server.SetReadBuffer(4 << 20); err != nil {
		t.Fatal(err)
	}
	f, c := newFinder(t), &tally{causes: map[string]int{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 512)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			token := string(buf[:n])
			flow := packet.Flow{Proto: packet.UDP, Local: netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), Remote: addr(server.LocalAddr().String())}
			wg.Go(func() { c.add(token, f.Find(t.Context(), flow)) })
		}
	})
	for _, h := range fiveBinaries(t, flows, fmt.Sprintf(`
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(token, ("127.0.0.1", %d))`, addr(server.LocalAddr().String()).Port())) {
		h.line()
	}
	server.Close()
	wg.Wait()
	c.check(t, flows*9/10, 0)
}
