package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Binaries are the programs that the lab needs, built once per test run.
type Binaries struct {
	Gatun string // the product; "" where only the lab itself is looked at
	Peer  string // the helper of e2e/peer
}

// Build compiles gatun and the helper into dir, which everybody may search. GATUN_BIN names a
// gatun that is already built and is to be tested as it is.
func Build(dir string) (Binaries, error) {
	root, err := moduleRoot()
	if err != nil {
		return Binaries{}, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return Binaries{}, err
	}
	b := Binaries{Gatun: filepath.Join(dir, "gatun"), Peer: filepath.Join(dir, "peer")}
	if bin := os.Getenv("GATUN_BIN"); bin != "" {
		b.Gatun = bin
	}
	for out, pkg := range map[string]string{b.Gatun: "./cmd/gatun", b.Peer: "./e2e/peer"} {
		if out == os.Getenv("GATUN_BIN") {
			continue
		}
		cmd := exec.Command("go", "build", "-o", out, pkg)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return Binaries{}, fmt.Errorf("go build %s: %w: %s", pkg, err, text)
		}
	}
	return b, nil
}

// Root returns the folder of the module.
func Root() (string, error) { return moduleRoot() }

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		return "", fmt.Errorf("run this inside the module")
	}
	return filepath.Dir(mod), nil
}
