package stack

import (
	"context"
	"crypto/sha256"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatun/tun"
)

// TestLargePackets moves bytes between the kernel's TCP and ours through a real device, both ways,
// and compares them. It must have moved packets larger than the MTU, or it shows nothing.
func TestLargePackets(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	const size = 24 << 20
	runtime.LockOSThread() // for good: the namespace ends with the thread
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	dev, err := tun.Open("large0", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"addr add 10.9.0.2/24 dev large0", "addr add fd00:9::2/64 nodad dev large0", "link set large0 up"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	sum := make(chan [sha256.Size]byte, 1)
	s, err := New(Options{Device: dev, Local: func(netip.Addr) bool { return true }, Handler: &handler{t: t, tcp: func(f *TCPFlow) {
		c, err := f.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		h := sha256.New()
		if _, err := io.Copy(io.MultiWriter(h, c), c); err != nil { // it sends back what it gets
			t.Error(err)
		}
		sum <- [sha256.Size]byte(h.Sum(nil))
		c.Close()
	}, udp: func(f *UDPFlow) { f.Drop() }}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	for _, to := range []string{"10.9.0.7:7", "[fd00:9::7]:7"} {
		before := s.Counters()
		c, err := net.Dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(60 * time.Second))
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(i * i >> 7)
		}
		go func() {
			_, _ = c.Write(data)
			_ = c.(*net.TCPConn).CloseWrite()
		}()
		back := sha256.New()
		n, err := io.Copy(back, c)
		c.Close()
		if want := sha256.Sum256(data); err != nil || n != size || <-sum != want || [sha256.Size]byte(back.Sum(nil)) != want {
			t.Fatalf("%s: %d bytes came back, %v: not what was sent", to, n, err)
		}
		after := s.Counters()
		in, out := float64(after.BytesIn-before.BytesIn)/float64(after.PacketsIn-before.PacketsIn), float64(after.BytesOut-before.BytesOut)/float64(after.PacketsOut-before.PacketsOut)
		t.Logf("%s: %.0f bytes per packet read, %.0f per packet written", to, in, out)
		if in < 1500 || out < 1500 {
			t.Errorf("%s: %.0f bytes per packet read, %.0f written: no packet was larger than the MTU", to, in, out)
		}
	}
}
