package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"gatun/e2e/lab"
)

// proveReadme takes the first block of commands of the README and executes them line by line as
// uid 65534 in a clean clone, where example.org is the lab's, with a module cache that is already
// filled and no way to another one.
func proveReadme(b *bench) (err error) {
	l, err := b.lab(lab.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	root, err := lab.Root()
	if err != nil {
		return err
	}
	commands, err := readmeCommands(filepath.Join(root, "README.md"))
	if err != nil {
		return err
	}
	clone := filepath.Join(l.Dir, "clone")
	if out, err := exec.Command("git", "clone", "-q", root, clone).CombinedOutput(); err != nil {
		return fmt.Errorf("git clone: %w: %s", err, out)
	}
	home := filepath.Join(l.Dir, "home")
	for _, dir := range []string{home, filepath.Join(home, "mod")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if out, err := exec.Command("chown", "-R", fmt.Sprint(lab.Nobody, ":", lab.Nobody), clone, home).CombinedOutput(); err != nil {
		return fmt.Errorf("chown: %w: %s", err, out)
	}
	for i, command := range commands {
		if b.small && i > 0 {
			break // .ci/run executes the test command itself
		}
		begin := time.Now()
		out, err := asNobody(l, clone, home, command)
		if err != nil {
			return fmt.Errorf("%s: %w: %s", command, err, last(out, 3000))
		}
		if i == 0 && !strings.Contains(out, "hello from example.org") {
			return fmt.Errorf("%s printed %q, not the page", command, out)
		}
		b.note(command, fmt.Sprintf("ok in %s", time.Since(begin).Round(time.Second)))
	}
	return nil
}

// readmeCommands are the lines of the first code block, without their comments.
func readmeCommands(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	_, rest, _ := strings.Cut(string(text), "\n```")
	_, rest, _ = strings.Cut(rest, "\n")
	block, _, ok := strings.Cut(rest, "\n```")
	if !ok {
		return nil, fmt.Errorf("%s has no block of commands", file)
	}
	var commands []string
	for _, line := range strings.Split(block, "\n") {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line != "" {
			commands = append(commands, line)
		}
	}
	return commands, nil
}

// asNobody runs a shell command in the host namespace; the module cache is bound into a place
// that nobody may read, in the mount namespace of this command only.
func asNobody(l *lab.Lab, dir, home, command string) (string, error) {
	mod, err := exec.Command("go", "env", "GOMODCACHE").Output()
	if err != nil {
		return "", err
	}
	gobin, err := exec.LookPath("go")
	if err != nil {
		return "", err
	}
	script := fmt.Sprintf(`mount --bind %q %q
exec setpriv --reuid %d --regid %d --clear-groups sh -ec %q`,
		strings.TrimSpace(string(mod)), filepath.Join(home, "mod"), lab.Nobody, lab.Nobody, command)
	env := []string{
		"HOME=" + home, "GOMODCACHE=" + filepath.Join(home, "mod"), "GOCACHE=" + filepath.Join(home, "cache"), "GOPATH=" + home,
		"GOPROXY=off", "GOFLAGS=-mod=readonly -buildvcs=false", "XDG_RUNTIME_DIR=" + home, "TMPDIR=" + home, "GOTMPDIR=",
		"CURL_CA_BUNDLE=" + l.CAFile(), "PATH=" + filepath.Dir(gobin) + ":/usr/sbin:/usr/bin:/sbin:/bin",
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	out, err := l.Host.Command(ctx, lab.Spec{Env: env, Dir: dir}, "sh", "-ec", script).CombinedOutput()
	return string(out), err
}

func last(s string, n int) string { return s[max(0, len(s)-n):] }
