package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// lookUp finds the file of a command as a shell does: with a slash it is a path, else the
// first executable file in PATH. The error is ENOENT or the reason why what was found cannot
// be executed.
func lookUp(name, path string) (string, error) {
	if name == "" {
		return "", syscall.ENOENT
	}
	if strings.Contains(name, "/") {
		return name, executable(name)
	}
	var found error = syscall.ENOENT
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		file := dir + "/" + name
		if st, err := os.Stat(file); err != nil || st.IsDir() {
			continue // a directory of PATH that we may not search holds no command for us
		}
		err := executable(file)
		if err == nil {
			return file, nil
		}
		found = err
	}
	return "", found
}

func executable(file string) error {
	st, err := os.Stat(file)
	switch {
	case err != nil:
		return errors.Unwrap(err)
	case st.IsDir():
		return syscall.EISDIR
	}
	return unix.Faccessat(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS)
}

// spawn starts the command on the calling thread, whose capabilities it inherits. A text file
// without a #! line runs under sh, as with execvp.
func spawn(argv, env []string) (pid int, err error) {
	file, err := lookUp(argv[0], getenv(env, "PATH"))
	if err != nil {
		return 0, err
	}
	attr := &syscall.ProcAttr{
		Env:   env,
		Files: []uintptr{0, 1, 2},
		// The supervisor's thread lives as long as the supervisor: this covers its being killed.
		Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	}
	pid, err = syscall.ForkExec(file, argv, attr)
	if errors.Is(err, syscall.ENOEXEC) {
		sh := append([]string{"/bin/sh", file}, argv[1:]...)
		pid, err = syscall.ForkExec("/bin/sh", sh, attr)
	}
	return pid, err
}

func getenv(env []string, name string) string {
	value := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			value = v
		}
	}
	return value
}

// spawnCode is a shell's exit code for a command that could not be started.
func spawnCode(err error) int {
	if errors.Is(err, syscall.ENOENT) {
		return ExitNotFound
	}
	return ExitNotExecutable
}

// exitCode is a shell's exit code for how a process ended.
func exitCode(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return ExitSignal + int(ws.Signal())
	}
	return ws.ExitStatus()
}
