package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// newLab builds a lab without gatun, or skips where there is no root.
func newLab(t *testing.T, opt Options) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: " + ErrNotRoot.Error())
	}
	if opt.Dir == "" {
		dir, err := os.MkdirTemp("", "gatun-lab-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		opt.Dir = dir
	}
	opt.Bins.Peer = filepath.Join(opt.Dir, "peer")
	build := exec.Command("go", "build", "-o", opt.Bins.Peer, "../peer")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	l, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// TestDirect is the control of all stories: without gatun every server answers, what is refused
// is refused, what is dead is dead, and the router counts exactly the packets that were sent.
func TestDirect(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{})
	ctx := context.Background()
	for _, c := range []struct{ args, want, data string }{
		{"tcp -say hello " + Server4 + ":7", "connected", "hello"},
		{"tcp -say hello [" + Server6 + "]:7", "connected", "hello"},
		{"tcp -say hello " + Far4 + ":7", "connected", "hello"},
		{"tcp " + Server4 + ":81", "ECONNREFUSED", ""},
		{"tcp [" + Server6 + "]:81", "ECONNREFUSED", ""},
		{"tcp " + Dead4 + ":80", "EHOSTUNREACH", ""},
		{"udp " + Second4 + ":7", "answer", ""},
		{"udp [" + Second6 + "]:7", "answer", ""},
		{"udp -size 4000 " + Far4 + ":7", "answer", ""},
		{"udp " + Server4 + ":8", "ECONNREFUSED", ""},
		{"ping " + Far4, "answer", ""},
		{"ping " + Far6, "answer", ""},
		{"ping -timeout 200ms " + Dead4, "timeout", ""},
		{"dns example.org " + Resolver4, "NOERROR", Server4},
		{"dns -type AAAA -tcp a.b.example.net " + Resolver6, "NOERROR", Second6},
		{"dns nothing.invalid " + Resolver4, "NXDOMAIN", ""},
		{"quic " + l.CAFile() + " " + Server4 + ":4433", "answer", ""},
	} {
		r, err := l.Peer(ctx, l.Host, strings.Fields(c.args)...)
		if err != nil {
			t.Fatal(err)
		}
		if r.Result != c.want || r.Data != c.data || r.PID == 0 || time.Since(r.Start) > time.Minute || time.Since(r.Start) < -2*time.Second {
			t.Errorf("%s: %+v, want %s %q", c.args, r, c.want, c.data)
		}
	}
	if n, err := l.Asked("a.b.example.net"); n != 1 || err != nil {
		t.Errorf("a.b.example.net was asked %d times (%v), want 1", n, err)
	}
}

func TestCount(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{})
	ctx := context.Background()
	if err := l.ResetCounters(); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"udp 198.51.100.10:7", "ping 198.51.100.10", "ping 2001:db8:2::10", "udp [2001:db8:2::10]:7"} {
		if _, err := l.Peer(ctx, l.Host, strings.Fields(args)...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Peer(ctx, l.Twin, "udp", "198.51.100.10:7"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		proto, dst string
		want       int
	}{
		{"udp", Server4 + ":7", 1}, {"udp", "[" + Server6 + "]:7", 1}, {"icmp", Server4, 1}, {"icmp", Server6, 1},
		{"udp", Server4, 1}, {"any", Server4, 2}, {"tcp", "*", 0}, {"udp", "*:7", 2}, {"udp", Server4 + ":8", 0},
	} {
		m, err := ParseMatch(c.proto, c.dst)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := l.Count(m); n != c.want || err != nil {
			t.Errorf("%s %s: %d packets (%v), want %d", c.proto, c.dst, n, err, c.want)
		}
	}
	if n, err := l.Count(Match{Proto: "udp", Twin: true, Port: 7}); n != 1 || err != nil {
		t.Errorf("the twin sent 1, counted %d (%v)", n, err)
	}
}

// TestTricks is the positive control of the leak stories: without gatun each trick works.
func TestTricks(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{})
	for name := range TrickNames() {
		for _, proto := range []string{"tcp", "udp", "icmp"} {
			for src, dst := range map[string]string{Host4: Second4, Host6: Second6} {
				args := []string{"trick", "-src", src, name, proto, fmt.Sprintf("[%s]:7", dst)}
				if !strings.Contains(dst, ":") {
					args[len(args)-1] = dst + ":7"
				}
				r, err := l.Peer(context.Background(), l.Host, args...)
				if err != nil {
					t.Fatal(err)
				}
				if r.Result != "answer" {
					t.Errorf("%v: %+v", args, r)
				}
			}
		}
	}
}

func TestRouterAdvertisement(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{LateV6: true})
	r, err := l.Peer(context.Background(), l.Host, "tcp", "-timeout", "300ms", "["+Server6+"]:7")
	if err != nil || r.Result == "connected" {
		t.Fatalf("before the advertisement: %+v, %v", r, err)
	}
	if _, err := l.PeerAs(context.Background(), l.Router, 0, "ra", "br0", "2001:db8:1::/64"); err != nil {
		t.Fatal(err)
	}
	err = Wait(30*time.Second, "IPv6 after the advertisement", func() (bool, error) {
		r, err := l.Peer(context.Background(), l.Host, "tcp", "-timeout", "300ms", "["+Server6+"]:7")
		return r.Result == "connected", err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestRaw: without gatun the good fragments arrive; what is evil is sent and counted, so that a
// count of zero behind gatun means something.
func TestRaw(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{})
	for _, kind := range []string{"good", "spoof", "badsum", "tiny", "overlap", "fragments", "route"} {
		for src, dst := range map[string]string{Host4: Server4 + ":9", Host6: "[" + Server6 + "]:9"} {
			if err := l.ResetCounters(); err != nil {
				t.Fatal(err)
			}
			r, err := l.PeerAs(context.Background(), l.Host, 0, "raw", "-src", src, kind, dst)
			if err != nil || r.Result != "sent" {
				t.Errorf("%s to %s: %+v %v", kind, dst, r, err)
				continue
			}
			n, err := l.Count(Match{})
			if n < 5 || err != nil {
				t.Errorf("%s to %s: %d packets at the router (%v), want at least 5", kind, dst, n, err)
			}
		}
	}
}

func TestParseMatch(t *testing.T) {
	for _, bad := range [][2]string{{"tcp", "nonsense"}, {"tcp", "*:x"}, {"udp", "1.2.3"}} {
		if m, err := ParseMatch(bad[0], bad[1]); err == nil {
			t.Errorf("%q gave %+v", bad, m)
		}
	}
}

func BenchmarkNew(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("skipped: " + ErrNotRoot.Error())
	}
	dir := b.TempDir()
	peer := filepath.Join(dir, "peer")
	if out, err := exec.Command("go", "build", "-o", peer, "../peer").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	for b.Loop() {
		l, err := New(Options{Dir: dir, Bins: Binaries{Peer: peer}})
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
