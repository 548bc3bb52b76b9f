package config

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestUnreadable: what may not be read is refused, not passed over. Root may read everything, so
// one thread becomes somebody else for the file system.
func TestUnreadable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	dir := stateDir(t, "config.json", `{"version": 1}`, "profiles/a.yaml", curlFile)
	file := write(t, t.TempDir(), "gatun.yaml", minimal)
	for _, d := range []string{dir + "/profiles", filepath.Dir(file)} { // found, but not read
		for ; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	src := Source{File: file, Data: OpenData(dir)}
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		_, err := unix.SetfsuidRetUid(4321)
		if err == nil {
			_, err = Load(src)
		}
		result <- err
	}()
	var problems Problems
	if err := <-result; !errors.As(err, &problems) {
		t.Fatalf("error is %v", err)
	}
	want := []string{
		"config.json: permission denied: uid 0 may not read it",
		"gatun.yaml: permission denied: uid 0 may not read it",
		"profiles/a.yaml: permission denied: uid 0 may not read it",
	}
	if diff := cmp.Diff(want, sortedTexts(texts(problems, src))); diff != "" {
		t.Error(diff)
	}
}
