package handback

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"gatun/network/packet"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// The text is the documentation of the rules: nft(8) must understand it as the same rules that the
// netlink translation installs.
func TestLiveTextIsTheRules(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.sh("ip tuntap add dev gatun0 mode tun")
		for _, device := range []string{"", "gatun0"} {
			o, err := l.options(func(o *Options) { o.Device = device; o.Limit = 1234 }).withDefaults()
			if err != nil {
				t.Fatal(err)
			}
			silences, err := install(o)
			if err != nil {
				t.Fatal(err)
			}
			if silences != (device != "") {
				t.Errorf("device %q: silences: %v", device, silences)
			}
			ours := l.sh("nft -s -n list ruleset")
			l.sh("nft flush ruleset")
			file := filepath.Join(t.TempDir(), "rules.nft")
			if err := os.WriteFile(file, []byte(Rules(o)), 0o600); err != nil {
				t.Fatal(err)
			}
			l.sh("nft -c -f " + file)
			l.sh("nft -f " + file)
			if diff := cmp.Diff(l.sh("nft -s -n list ruleset"), ours); diff != "" {
				t.Errorf("nft's reading of the text (-) and the installed rules (+):\n%s", diff)
			}
			for range 2 {
				if err := Recover(o); err != nil {
					t.Error(err)
				}
				if left := l.sh("nft list ruleset"); left != "" {
					t.Errorf("left behind:\n%s", left)
				}
			}
		}
	})
}

// What is handed back completes natively, and after the first packet nothing of it comes to the
// device; through the guard and the rules of tun/route, with every kind of reverse-path filter.
func TestLiveAccept(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up()
		for _, filter := range []string{"0", "1", "2"} {
			l.sh(fmt.Sprintf("for f in all default eth0 eth1 gatun0; do sysctl -qw net.ipv4.conf.$f.rp_filter=%s; done", filter))
			for _, far := range fars {
				for _, network := range []string{"tcp", "udp"} {
					name := fmt.Sprintf("%s to %s, rp_filter %s", network, far, filter)
					before := l.deviceCount()
					c, f := l.dial(network, at(far))
					for i := range 50 {
						if err := echoes(c, 1000+i); err != nil {
							t.Fatalf("%s: exchange %d: %v (Accept: %v)", name, i, err, l.failures())
						}
					}
					if n := l.packets(f); n != 1 {
						t.Errorf("%s: %d packets of the flow came to userspace, want 1", name, n)
					}
					if n := l.deviceCount() - before; n != 1 {
						t.Errorf("%s: %d packets on the device's counter, want 1", name, n)
					}
					_ = c.Close()
				}
			}
		}
		if errs := l.failures(); errs != nil {
			t.Errorf("Accept: %v", errs)
		}
	})
}

// The mark alone lets nobody out: without an entry a packet that carries it is undecided.
func TestLiveMarkIsNotEnough(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up()
		mark := func(d *net.Dialer) {
			d.Control = func(_, _ string, rc syscall.RawConn) error {
				return rc.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(l.table.o.Mark)) })
			}
		}
		for _, far := range fars {
			d := &net.Dialer{Timeout: 200 * time.Millisecond}
			mark(d)
			c, err := d.Dial("tcp", at(far)) // the control: it works, by way of the device
			if err != nil {
				t.Fatal(err)
			}
			if n := l.packets(flowOfConn(c)); n != 1 {
				t.Errorf("%s: %d packets were decided, want 1", far, n)
			}
			_ = c.Close()
		}
		l.mu.Lock()
		l.decide = func(packet.Flow, []byte) error { return nil } // everything is dropped
		l.mu.Unlock()
		for _, far := range fars {
			d := &net.Dialer{Timeout: 200 * time.Millisecond}
			mark(d)
			var timeout net.Error
			if _, err := d.Dial("tcp", at(far)); !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Errorf("%s: %v, want a time-out", far, err)
			}
		}
	})
}

// Without the rights the caller is told that it cannot be had.
func TestLiveWithoutRights(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		if err := syscall.Setuid(65534); err != nil { // for good: this process is the test's own
			t.Fatal(err)
		}
		if _, err := Open(l.options()); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%v, want ErrUnsupported", err)
		}
	})
}

// What was installed is whole: else it would be put back again and again.
func TestLiveWhole(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.up()
		if whole, err := l.table.whole(); err != nil || !whole {
			t.Errorf("whole: %t, %v", whole, err)
		}
		if n := l.table.restored.Load(); n != 0 {
			t.Errorf("put back %d times, nobody took anything away", n)
		}
	})
}
