package api

import (
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func credentials(c *net.UnixConn) (uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, err
	}
	return int(cred.Uid), nil
}

// listenPrivate binds under a name that nobody else can open, then gives it its mode and its
// name: at no moment does the socket exist with a wider mode.
func listenPrivate(path string) (net.Listener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path + ".new", Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(path+".new", 0o660)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(path + ".new")
		return nil, err
	}
	return l, nil
}

func checkDir(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Uid != 0 && int(st.Uid) != os.Geteuid() || fi.Mode()&0o002 != 0 && fi.Mode()&os.ModeSticky == 0 {
		return errNoDir
	}
	return nil
}
