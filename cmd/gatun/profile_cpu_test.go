package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestProfileCPU: a profile is written only where the environment names a file, and nothing that
// this program starts inherits the name.
func TestProfileCPU(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cpu")
	t.Setenv(profileVariable, file)
	stop, err := profileCPU()
	if err != nil {
		t.Fatal(err)
	}
	if got, set := os.LookupEnv(profileVariable); set {
		t.Errorf("the variable is still %q", got)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil || !bytes.HasPrefix(b, []byte{0x1f, 0x8b}) { // a profile is compressed by gzip
		t.Errorf("no profile: %.10x %v", b, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if stop, err = profileCPU(); err != nil || stop() != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("a profile was written unasked: %v", err)
	}
}

func TestProfileCPUSaysWhatIsWrong(t *testing.T) {
	t.Setenv(profileVariable, filepath.Join(t.TempDir(), "not", "there"))
	if _, err := profileCPU(); err == nil || !strings.Contains(err.Error(), profileVariable) {
		t.Errorf("got %v", err)
	}
}
