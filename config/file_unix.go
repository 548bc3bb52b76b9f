//go:build unix

package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// openFile does not hang on a named pipe that lies where the file should be, and does not follow
// a link that was put there since it was looked at.
func openFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
}

// syncDir makes a rename last.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func checkFile(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("is not a regular file but %s", kind(info.Mode()))
	}
	return checkOwner(f.Name(), info)
}

func checkDir(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("is not a directory")
	}
	return checkOwner(f.Name(), info)
}

func checkOwner(path string, info fs.FileInfo) error {
	if uid, ok := foreign(info); ok {
		return fmt.Errorf("belongs to uid %d: only root or uid %d may own it; run: chown %d %s", uid, os.Geteuid(), os.Geteuid(), path)
	}
	mask := fs.FileMode(0o022)
	if ownGroup(info) {
		mask = 0o002
	}
	if mode := info.Mode().Perm(); mode&mask != 0 {
		return fmt.Errorf("has mode %04o: others may write it; run: chmod go-w %s", mode, path)
	}
	return nil
}

// ownGroup reports whether the group that may write is the own one of an ordinary user: where
// every user has a group of his own, umask 002 is usual and lets nobody else in.
func ownGroup(info fs.FileInfo) bool {
	st, known := info.Sys().(*syscall.Stat_t)
	return known && os.Geteuid() != 0 && int(st.Uid) == os.Geteuid() && int(st.Gid) == os.Getegid()
}

// foreign returns the owner if it is neither root nor the own user.
func foreign(info fs.FileInfo) (uid uint32, ok bool) {
	st, known := info.Sys().(*syscall.Stat_t)
	if !known {
		return 0, false
	}
	return st.Uid, st.Uid != 0 && int(st.Uid) != os.Geteuid()
}

func kind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	default:
		return "a device"
	}
}
