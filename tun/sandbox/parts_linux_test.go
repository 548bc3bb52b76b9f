package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestIdentity(t *testing.T) {
	one := func(id, n int) syscall.SysProcIDMap {
		return syscall.SysProcIDMap{ContainerID: id, HostID: id, Size: n}
	}
	for _, c := range []struct {
		name  string
		own   int
		all   bool
		table string
		want  []syscall.SysProcIDMap
	}{
		{"user", 1000, false, "         0          0 4294967295\n", []syscall.SysProcIDMap{one(1000, 1)}},
		{"root", 0, true, "         0          0 4294967295\n", []syscall.SysProcIDMap{one(0, 4294967295)}},
		{"root of a rootless container: only ids that exist there", 0, true, "0 1000 1\n1 100000 65536\n",
			[]syscall.SysProcIDMap{one(0, 1), one(1, 65536)}},
		{"unreadable table", 0, true, "", []syscall.SysProcIDMap{one(0, 1)}},
		{"broken table", 0, true, "0 0\n", []syscall.SysProcIDMap{one(0, 1)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, identity(c.own, c.all, c.table)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestExplainSaysWhatToDo(t *testing.T) {
	open := hostSettings{maxUserNamespaces: "96000", maxNetNamespaces: "96000"}
	with := func(f func(*hostSettings)) hostSettings { h := open; f(&h); return h }
	for _, c := range []struct {
		name string
		err  error
		host hostSettings
		want string
	}{
		{"switched off", syscall.ENOSPC, with(func(h *hostSettings) { h.maxUserNamespaces = "0" }), "sysctl -w user.max_user_namespaces="},
		{"no net namespaces", syscall.ENOSPC, with(func(h *hostSettings) { h.maxNetNamespaces = "0" }), "sysctl -w user.max_net_namespaces="},
		{"used up", syscall.ENOSPC, open, "too many user namespaces"},
		{"too deep", unix.EUSERS, open, "too deep"},
		{"Debian's switch", syscall.EPERM, with(func(h *hostSettings) { h.unprivilegedClone = "0" }), "kernel.unprivileged_userns_clone=1"},
		{"Ubuntu's AppArmor at clone", syscall.EPERM, with(func(h *hostSettings) { h.appArmorRestricts = "1" }), "kernel.apparmor_restrict_unprivileged_userns=0"},
		{"Ubuntu's AppArmor later", &setUpError{"bring lo up: operation not permitted", syscall.EACCES},
			with(func(h *hostSettings) { h.appArmorRestricts = "1" }), "kernel.apparmor_restrict_unprivileged_userns=0"},
		{"root is not restricted by it", syscall.EPERM, with(func(h *hostSettings) { h.appArmorRestricts, h.root = "1", true }), "seccomp"},
		{"container", syscall.EPERM, open, "seccomp"},
		{"kernel without", syscall.EINVAL, open, "CONFIG_USER_NS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := explain("make the namespaces", c.err, c.host)
			if !strings.Contains(err.Error(), c.want) || !errors.Is(err, c.err) {
				t.Errorf("got %q, want it to wrap the cause and to say %q", err, c.want)
			}
		})
	}
	if got := explain("x", syscall.EIO, open).Error(); got != "x: input/output error" {
		t.Errorf("no advice is better than wrong advice: %q", got)
	}
}

func TestLookUp(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	runnable, plain := file("b/tool", 0o755), file("a/tool", 0o644)
	only := file("a/text", 0o644)
	path := filepath.Dir(plain) + ":" + filepath.Dir(runnable)
	for _, c := range []struct {
		name, command, path, want string
		err                       error
		code                      int
	}{
		{"first executable, not first file", "tool", path, runnable, nil, 0},
		{"found but not executable", "text", path, "", syscall.EACCES, ExitNotExecutable},
		{"not found", "nope", path, "", syscall.ENOENT, ExitNotFound},
		{"empty name", "", path, "", syscall.ENOENT, ExitNotFound},
		{"empty path", "tool", "", "", syscall.ENOENT, ExitNotFound},
		{"a path is taken as it is", runnable, "", runnable, nil, 0},
		{"a directory", dir, path, dir, syscall.EISDIR, ExitNotExecutable},
		{"a path to nothing", dir + "/x/y", path, dir + "/x/y", syscall.ENOENT, ExitNotFound},
		{"a file as a directory", only + "/y", path, only + "/y", syscall.ENOTDIR, ExitNotExecutable},
		{"PATH with a file in it", "tool", only + ":" + filepath.Dir(runnable), runnable, nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := lookUp(c.command, c.path)
			if got != c.want || !errors.Is(err, c.err) {
				t.Errorf("got %q, %v; want %q, %v", got, err, c.want, c.err)
			}
			if err != nil && spawnCode(err) != c.code {
				t.Errorf("code %d, want %d", spawnCode(err), c.code)
			}
		})
	}
}

func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		status syscall.WaitStatus
		want   int
	}{{0, 0}, {3 << 8, 3}, {255 << 8, 255}, {9, 137}, {15, 143}, {11 | 0x80, 139}} {
		if got := exitCode(c.status); got != c.want {
			t.Errorf("status %#x: code %d, want %d", uint32(c.status), got, c.want)
		}
	}
}

func TestGetenvTakesTheLast(t *testing.T) {
	if got := getenv([]string{"PATH=a", "PATHX=b", "PATH=c"}, "PATH"); got != "c" {
		t.Errorf("got %q", got)
	}
}

func TestResolvePathFollowsDanglingLinks(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	link := func(target, name string) string {
		p := filepath.Join(dir, name)
		if err := os.Symlink(target, p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	if err := os.WriteFile(dir+"/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, want string
		missing    bool
	}{
		{dir + "/file", dir + "/file", false},
		{link("file", "relative"), dir + "/file", false},
		{link("nothing", "dangling"), dir + "/nothing", true},
		{link("dangling", "twice"), dir + "/nothing", true},
		{link(dir+"/none/x", "no-directory"), dir + "/none/x", true},
		{dir + "/absent", dir + "/absent", true},
	} {
		if got, missing := resolvePath(c.path); got != c.want || missing != c.missing {
			t.Errorf("%s: got %s, missing %v; want %s, %v", c.path, got, missing, c.want, c.missing)
		}
	}
	loop := link("loop", "loop")
	if _, missing := resolvePath(loop); !missing {
		t.Error("a loop was resolved")
	}
}

func TestBelow(t *testing.T) {
	dirs := []string{"/run/nscd", "/run/systemd/resolve"}
	for path, want := range map[string]bool{
		"/run/systemd/resolve/stub-resolv.conf": true, "/run/systemd/resolve": true,
		"/run/systemd/resolved": false, "/run/systemd": false, "/etc/resolv.conf": false,
	} {
		if got := below(dirs, path); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{}, "no command"},
		{Options{Argv: []string{"x"}, MTU: 1000}, "want 1280 to 65535"},
		{Options{Argv: []string{"x"}, MTU: 70000}, "want 1280 to 65535"},
		{Options{Argv: []string{"x"}, Dir: "/nowhere/at/all"}, "no such file"},
		{Options{Argv: []string{"x"}, Dir: "/proc/version"}, "not a directory"},
	} {
		if _, err := Start(context.Background(), c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.want)
		}
	}
}

// TestControlKeepsBoundariesAndDescriptors covers the largest set-up and a passed descriptor.
func TestControlKeepsBoundariesAndDescriptors(t *testing.T) {
	a, file, err := newControl()
	if err != nil {
		t.Fatal(err)
	}
	defer a.conn.Close()
	fd, err := unix.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	b, err := openControl(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer b.conn.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	big := message{Op: opSetup, MTU: 1500, ResolvConf: make([]byte, maxResolvConf+1024)}
	for _, m := range []message{big, {Op: opStart}} {
		if err := a.send(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.send(message{Op: opReady}, int(w.Fd())); err != nil {
		t.Fatal(err)
	}
	w.Close()
	buf := make([]byte, maxMessage)
	for _, want := range []op{opSetup, opStart} {
		m, fds, err := b.receive(buf)
		if err != nil || m.Op != want || len(fds) != 0 {
			t.Fatalf("got %q, %v, %v; want %q", m.Op, fds, err, want)
		}
		if want == opSetup && len(m.ResolvConf) != len(big.ResolvConf) {
			t.Errorf("%d bytes of resolv.conf arrived", len(m.ResolvConf))
		}
	}
	_, fds, err := b.receive(buf)
	if err != nil || len(fds) != 1 {
		t.Fatalf("descriptors %v, %v", fds, err)
	}
	passed := os.NewFile(uintptr(fds[0]), "passed")
	if flags, _ := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
		t.Error("a received descriptor would be inherited by the command")
	}
	if _, err := passed.WriteString("x"); err != nil {
		t.Error(err)
	}
	passed.Close()
	got := make([]byte, 2)
	if n, _ := r.Read(got); string(got[:n]) != "x" {
		t.Errorf("the passed pipe gave %q", got[:n])
	}
	a.conn.Close()
	if _, _, err := b.receive(buf); err == nil {
		t.Error("the end of the stream is not an error")
	}
}
