package attribution

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestFakeTags puts marks of all kinds into a proc of files.
func TestFakeTags(t *testing.T) {
	p, _, f := fake(t, 501, 502, 503, 504)
	sandbox := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(sandbox, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to, name string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(p.root, name)); err != nil {
			t.Fatal(err)
		}
	}
	write(".flatpak-info", "[Application]\nname=org.example.App\n")
	p.born(10, 1, "editor", 10, 501)
	link(sandbox, "10/root")
	if got := expect(t, f, fromPort(501), 10, Exact, CauseOne); got.Flatpak != "org.example.App" {
		t.Errorf("flatpak %q", got.Flatpak)
	}
	// The same mark in the root that everybody has means nothing.
	p.born(11, 1, "editor", 11, 502)
	link("/", "11/root")
	p.write("11/cgroup", "0::/user.slice/snap.firefox.firefox-1.scope\n")
	if got := expect(t, f, fromPort(502), 11, Exact, CauseOne); got.Flatpak != "" || got.Snap != "firefox" || got.CGroup != "/user.slice/snap.firefox.firefox-1.scope" {
		t.Errorf("flatpak %q, snap %q, cgroup %q", got.Flatpak, got.Snap, got.CGroup)
	}
	// A mark that is a link leads nowhere.
	p.born(12, 1, "editor", 12, 503)
	other := t.TempDir()
	if err := os.Symlink(filepath.Join(sandbox, ".flatpak-info"), filepath.Join(other, ".flatpak-info")); err != nil {
		t.Fatal(err)
	}
	link(other, "12/root")
	if got := expect(t, f, fromPort(503), 12, Exact, CauseOne); got.Flatpak != "" {
		t.Errorf("flatpak through a link: %q", got.Flatpak)
	}
	// The script is looked up below the root and the directory of the process.
	write("srv/tool.py", "")
	p.born(13, 1, "python3", 13, 504)
	link(sandbox, "13/root")
	link("/srv", "13/cwd")
	p.write("13/cmdline", "python3\x00-u\x00tool.py\x00")
	if got := expect(t, f, fromPort(504), 13, Exact, CauseOne); got.Script != "/srv/tool.py"+suffixForeign {
		t.Errorf("script %q: here is no such file", got.Script)
	}
}

// tagged starts python with the arguments, which may name scripts that print their socket,
// and returns its facts.
func tagged(t *testing.T, f *Finder, dir string, env []string, name string, args ...string) *Process {
	t.Helper()
	h := startIn(t, dir, env, name, args...)
	return expect(t, f, udpFlow(h.line()), h.pid(), Exact, CauseOne)
}

func startIn(t *testing.T, dir string, env []string, name string, args ...string) *helper {
	t.Helper()
	full := append([]string{"-C", dir}, append(env, append([]string{name}, args...)...)...)
	return start(t, "env", full...) // env executes it: the same process
}

// TestLiveScripts runs one script in the ways in which people do, and as attackers would.
func TestLiveScripts(t *testing.T) {
	real := needPython(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	tool := filepath.Join(dir, "tool.py")
	body := "#!" + real + "\n" + prelude + "s = udp(); say(name(s)); wait()\n"
	if err := errors.Join(os.WriteFile(tool, []byte(body), 0o755), os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o755),
		os.Symlink(filepath.Join(dir, "a/b/c"), filepath.Join(dir, "link")), os.WriteFile(filepath.Join(dir, "a/tool.py"), []byte(body), 0o755)); err != nil {
		t.Fatal(err)
	}
	f := newFinder(t)
	moved := "import os; os.chdir('/')\n" + body
	if err := os.WriteFile(filepath.Join(dir, "moved.py"), []byte(moved), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		args []string
		want string
	}{
		{"executed by its first line", []string{tool}, tool},
		{"by an absolute path", []string{real, "-u", tool, "x"}, tool},
		{"by a relative path", []string{real, "-B", "./tool.py"}, tool},
		{"program in the arguments", []string{real, "-c", strings.TrimPrefix(body, "#!"+real+"\n"), tool}, ""},
		{"a link and .. lead elsewhere than the text says", []string{real, "link/../../tool.py"}, filepath.Join(filepath.Dir(dir), "tool.py") + suffixForeign},
		{"it has moved on: nothing is claimed", []string{real, "moved.py"}, ""},
	} {
		if got := tagged(t, f, dir, nil, c.args[0], c.args[1:]...); got.Script != c.want {
			t.Errorf("%s: script %q, want %q", c.what, got.Script, c.want)
		}
	}
	if got := tagged(t, f, dir, nil, "sh", "-c", "exec "+real+" "+tool); got.Script != tool || got.Path != real {
		t.Errorf("executed by a shell: %q of %q", got.Script, got.Path)
	}
}

// TestOwnInterpreter: an interpreter that a user brought says what he likes.
func TestOwnInterpreter(t *testing.T) {
	needRoot(t)
	real := needPython(t)
	dir := t.TempDir()
	evil, tool := filepath.Join(dir, "python3"), filepath.Join(dir, "tool.py")
	body := prelude + "s = udp(); say(name(s)); wait()\n"
	if out, err := exec.Command("cp", real, evil).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	if err := errors.Join(os.WriteFile(tool, []byte(body), 0o755), os.Chown(evil, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	env := []string{"PYTHONHOME=/usr"}
	if got := tagged(t, newFinder(t), dir, env, evil, tool); got.Script != "" {
		t.Errorf("root's script %q was claimed by the interpreter of a user", got.Script)
	}
	if err := os.Chown(tool, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if got := tagged(t, newFinder(t), dir, env, evil, tool); got.Script != tool {
		t.Errorf("the user's own script: %q", got.Script)
	}
}

// TestScriptMountedOver mounts a script over another in a mount namespace.
func TestScriptMountedOver(t *testing.T) {
	needRoot(t)
	real := needPython(t)
	if _, err := exec.LookPath("unshare"); err != nil {
		t.Skip("needs unshare(1)")
	}
	dir := t.TempDir()
	body := prelude + "s = udp(); say(name(s)); wait()\n"
	good, evil := filepath.Join(dir, "good.py"), filepath.Join(dir, "evil.py")
	if err := errors.Join(os.WriteFile(good, []byte(body), 0o755), os.WriteFile(evil, []byte(body), 0o755)); err != nil {
		t.Fatal(err)
	}
	h := start(t, "unshare", "-m", "sh", "-c", fmt.Sprintf("mount --bind %s %s && exec %s %s", evil, good, real, good))
	if p := expect(t, newFinder(t), udpFlow(h.line()), h.pid(), Exact, CauseOne); p.Script != good+suffixForeign || p.Path != real {
		t.Errorf("script %q of %q, want it marked", p.Script, p.Path)
	}
}

// TestLiveFlatpak gives a program a root of its own, with and without the mark.
func TestLiveFlatpak(t *testing.T) {
	needRoot(t)
	real := needPython(t)
	if _, err := exec.LookPath("unshare"); err != nil {
		t.Skip("needs unshare(1)")
	}
	dir := t.TempDir()
	marked, plain, root := filepath.Join(dir, "marked"), filepath.Join(dir, "plain"), filepath.Join(dir, "root")
	if err := errors.Join(os.Mkdir(marked, 0o755), os.Mkdir(plain, 0o755), os.Mkdir(root, 0o755),
		os.WriteFile(filepath.Join(marked, ".flatpak-info"), []byte("[Application]\nname=org.example.Editor\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	for lower, want := range map[string]string{marked: "org.example.Editor", plain: ""} {
		mount := fmt.Sprintf("mount -t overlay none -o lowerdir=%s:/ %s", lower, root)
		if out, err := exec.Command("unshare", "-m", "sh", "-c", mount).CombinedOutput(); err != nil {
			t.Skipf("no overlay file system here: %s", out)
		}
		h := start(t, "unshare", "-m", "sh", "-c", fmt.Sprintf(`%s && exec chroot %s %s -c "$0"`, mount, root, real), prelude+"s = udp(); say(name(s)); wait()\n")
		if p := expect(t, newFinder(t), udpFlow(h.line()), h.pid(), Exact, CauseOne); p.Flatpak != want || p.Script != "" {
			t.Errorf("%s: flatpak %q, script %q; want %q", lower, p.Flatpak, p.Script, want)
		}
	}
}

// TestLiveAppImage runs a program where an AppImage mounts its own.
func TestLiveAppImage(t *testing.T) {
	real := needPython(t)
	dir := t.TempDir()
	app := filepath.Join(dir, ".mount_EdXy")
	editor := filepath.Join(app, "usr/bin/editor")
	if err := os.MkdirAll(filepath.Dir(editor), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", real, editor).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	f := newFinder(t)
	env := []string{"APPIMAGE=" + dir + "/Editor.AppImage", "APPDIR=" + app, "PYTHONHOME=/usr"}
	body := prelude + "s = udp(); say(name(s)); wait()\n"
	p := tagged(t, f, dir, env, editor, "-c", body)
	if p.AppImage != dir+"/Editor.AppImage" || p.Flatpak != "" || p.Snap != "" {
		t.Errorf("facts %+v", p)
	}
	if child := tagged(t, f, dir, env, real, "-c", body); child.AppImage != "" {
		t.Errorf("what an AppImage starts is not in it: %q", child.AppImage)
	}
	if env := f.Environ(p); !slices.Contains(env, "APPDIR="+app) {
		t.Errorf("environment %q", env)
	}
	other := *p
	other.Started = p.Started.Add(time.Second)
	if f.Environ(&other) != nil || f.Alive(p.PID, other.Started) || !f.Alive(p.PID, p.Started) || f.Alive(1<<30, p.Started) {
		t.Error("a process is taken for another one of its number")
	}
}

// BenchmarkFacts takes all facts of one process, as is done once per image.
func BenchmarkFacts(b *testing.B) {
	r := newFactReader("/proc")
	p, err := openProgram("/proc", os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	defer p.release()
	b.ReportAllocs()
	for b.Loop() {
		now, err := r.read(p.dir, p.pid)
		if err != nil {
			b.Fatal(err)
		}
		now.close()
	}
}
