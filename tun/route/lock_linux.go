package route

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lockNames is how many abstract names an instance tries. Abstract socket names belong to a
// network namespace but to no user: anybody may take one. A name that a stranger holds is not
// an instance, and must not keep gatun from starting.
const lockNames = 8

// lock makes this process the only instance in its network namespace and on its state
// directory ("" for none). The kernel lets go of both when the process ends.
func lock(dir string) (release func(), err error) {
	sock, err := lockNamespace()
	if err != nil {
		return nil, err
	}
	if dir == "" {
		return func() { _ = unix.Close(sock) }, nil
	}
	f, err := os.OpenFile(filepath.Join(dir, "route.lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		_ = unix.Close(sock)
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = unix.Close(sock)
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("state directory %s is in use: %w", dir, ErrAlreadyRunning)
		}
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	return func() { _ = f.Close(); _ = unix.Close(sock) }, nil
}

// lockNamespace binds the first free name and looks behind every other one.
func lockNamespace() (int, error) {
	bound := -1
	for i := range lockNames {
		addr := &unix.SockaddrUnix{Name: fmt.Sprintf("@gatun/up/%d", i)}
		if bound < 0 {
			fd, err := bindName(addr)
			if err == nil {
				bound = fd
				continue
			}
			if !errors.Is(err, unix.EADDRINUSE) {
				return -1, fmt.Errorf("lock network namespace: %w", err)
			}
		}
		if heldByInstance(addr) {
			if bound >= 0 {
				_ = unix.Close(bound)
			}
			return -1, fmt.Errorf("in this network namespace: %w", ErrAlreadyRunning)
		}
	}
	if bound < 0 {
		return -1, errors.New("lock network namespace: other users hold all the socket names @gatun/up/0 to 7 (see ss -xl)")
	}
	return bound, nil
}

func bindName(addr *unix.SockaddrUnix) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if err := errors.Join(unix.Bind(fd, addr)); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	if err := unix.Listen(fd, 1); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// heldByInstance reports whether root or our own user listens on the name.
func heldByInstance(addr *unix.SockaddrUnix) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, addr); err != nil {
		// A full queue means that somebody listens, and only an instance is asked that often.
		return errors.Is(err, unix.EAGAIN)
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return err == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid())
}

// syncDir makes a rename in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync state directory: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}
