package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// host is a directory tree with those files.
func host(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for path, text := range files {
		write(t, filepath.Join(root, path), text)
	}
	return root
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const (
	etcConf     = "/etc/resolv.conf"
	uplinkConf  = "/run/systemd/resolve/resolv.conf"
	managerConf = "/run/NetworkManager/no-stub-resolv.conf"
)

// TestSystemResolvers is one table of hosts.
func TestSystemResolvers(t *testing.T) {
	for _, c := range []struct {
		name    string
		files   map[string]string
		up, run string
	}{
		{"plain", map[string]string{etcConf: "nameserver 192.0.2.1\nnameserver 2001:db8::1\n"}, "192.0.2.1:53 [2001:db8::1]:53", "192.0.2.1:53 [2001:db8::1]:53"},
		{"everything in it", map[string]string{etcConf: "# c\n; c\nsearch lan\n  nameserver\t192.0.2.1 # x\noptions ndots:2\nnameserver\nnameserver bad\nnameserver 192.0.2.1\n"}, "192.0.2.1:53", "192.0.2.1:53"},
		{"systemd-resolved", map[string]string{etcConf: "nameserver 127.0.0.53\noptions edns0\n", uplinkConf: "nameserver 192.0.2.9\n"}, "192.0.2.9:53", "127.0.0.53:53"},
		{"NetworkManager with dnsmasq", map[string]string{etcConf: "nameserver 127.0.1.1\n", managerConf: "nameserver 192.0.2.8\n"}, "192.0.2.8:53", "127.0.1.1:53"},
		{"stub and a real one", map[string]string{etcConf: "nameserver 127.0.0.1\nnameserver 192.0.2.7\n"}, "192.0.2.7:53", "127.0.0.1:53 192.0.2.7:53"},
		{"own address", map[string]string{etcConf: "nameserver 100.100.0.1\n", uplinkConf: "nameserver 192.0.2.9\n"}, "192.0.2.9:53", "192.0.2.9:53"},
		{"only stubs", map[string]string{etcConf: "nameserver ::1\n", uplinkConf: "nameserver 127.0.0.53\n"}, "", "[::1]:53"},
		{"unspecified means here", map[string]string{etcConf: "nameserver 0.0.0.0\n"}, "", "127.0.0.1:53"},
		{"link-local", map[string]string{etcConf: "nameserver fe80::1%eth0\n"}, "[fe80::1%eth0]:53", "[fe80::1%eth0]:53"},
		{"no file", nil, "", ""},
		{"empty", map[string]string{etcConf: ""}, "", ""},
		{"huge", map[string]string{etcConf: strings.Repeat("nameserver 192.0.2.1\n", 5000)}, "", ""},
		{"many", map[string]string{etcConf: func() (s string) {
			for i := range 20 {
				s += fmt.Sprintf("nameserver 192.0.2.%d\n", i+1)
			}
			return s
		}()}, "192.0.2.1:53 192.0.2.2:53 192.0.2.3:53 192.0.2.4:53 192.0.2.5:53 192.0.2.6:53 192.0.2.7:53 192.0.2.8:53", "192.0.2.1:53 192.0.2.2:53 192.0.2.3:53 192.0.2.4:53 192.0.2.5:53 192.0.2.6:53 192.0.2.7:53 192.0.2.8:53"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := SystemOptions{Root: host(t, c.files), Own: func(a netip.Addr) bool { return a == netip.MustParseAddr("100.100.0.1") }}
			for stub, want := range map[Stub]string{AvoidStub: c.up, UseStub: c.run} {
				o.Stub = stub
				list, err := SystemResolvers(o)
				var got []string
				for _, r := range list {
					got = append(got, r.Addr.String())
				}
				if strings.Join(got, " ") != want || (want == "") != errors.Is(err, ErrNoSystemResolver) {
					t.Errorf("stub %d: got %v, %v; want %s", stub, got, err, want)
				}
			}
		})
	}
}

func TestSystemReloads(t *testing.T) {
	root := host(t, map[string]string{etcConf: "nameserver 192.0.2.1\n"})
	now := time.Now()
	s := NewSystem(SystemOptions{Root: root}, func() time.Time { return now })
	check := func(want string) {
		t.Helper()
		list := s.Resolvers()
		if want == "" && len(list) == 0 && s.Err() != nil {
			return
		}
		if len(list) != 1 || list[0].Addr.Addr().String() != want {
			t.Fatalf("got %v, want %q", list, want)
		}
	}
	check("192.0.2.1")
	write(t, root+etcConf, "nameserver 192.0.2.22\n")
	check("192.0.2.1") // looked at once a second
	now = now.Add(reloadInterval)
	check("192.0.2.22")
	write(t, root+etcConf, "nameserver 127.0.0.53\n")
	write(t, root+uplinkConf, "nameserver 192.0.2.3\n")
	now = now.Add(reloadInterval)
	check("192.0.2.3")
	if err := os.Remove(root + uplinkConf); err != nil {
		t.Fatal(err)
	}
	now = now.Add(reloadInterval)
	check("")
	write(t, root+etcConf, "nameserver 192.0.2.4\n")
	now = now.Add(reloadInterval)
	check("192.0.2.4")
	now = now.Add(-time.Hour) // the clock was set back
	write(t, root+etcConf, "nameserver 192.0.2.55\n")
	check("192.0.2.55")
}

// TestSystemKnowsAtOnce: the first queries come together, and none of them may find nobody to
// ask because another one is still reading the files.
func TestSystemKnowsAtOnce(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/resolv.conf"), []byte("nameserver 192.0.2.53\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		s := NewSystem(SystemOptions{Root: root}, time.Now)
		var empty atomic.Int32
		var group sync.WaitGroup
		for range 16 {
			group.Go(func() {
				if len(s.Resolvers()) == 0 {
					empty.Add(1)
				}
			})
		}
		if group.Wait(); empty.Load() > 0 {
			t.Fatalf("%d of 16 found no nameserver", empty.Load())
		}
	}
}
