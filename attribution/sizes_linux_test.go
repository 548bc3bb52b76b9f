package attribution

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// TestSizes: a handle says what the name says, follows the process, and stands for no other one.
func TestSizes(t *testing.T) {
	var s sizes
	defer s.close()
	pid := os.Getpid()
	for range 3 {
		if got, want := s.of("/proc", pid), tableSize("/proc", pid); got != want {
			t.Fatalf("%d descriptors by the handle, %d by the name", got, want)
		}
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	sleeper := exec.Command("sleep", "60")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	if n := s.of("/proc", sleeper.Process.Pid); n < 0 {
		t.Errorf("a process that runs has %d descriptors", n)
	}
	_ = sleeper.Process.Signal(syscall.SIGKILL)
	_ = sleeper.Wait()
	for range 2 {
		if n := s.of("/proc", sleeper.Process.Pid); n != sizeOfNobody {
			t.Errorf("a process that has ended has %d descriptors, want that there is none", n)
		}
	}
	before := openFiles(t)
	root := t.TempDir()
	for n := range 3 * maxHandles {
		if err := os.MkdirAll(filepath.Join(root, strconv.Itoa(n), "fd"), 0o755); err != nil {
			t.Fatal(err)
		}
		s.of(root, n)
	}
	if now := openFiles(t) - before; now > maxHandles {
		t.Errorf("%d handles are kept, want at most %d", now, maxHandles)
	}
}
