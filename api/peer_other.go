//go:build !linux

package api

import (
	"errors"
	"net"
	"os"
)

// credentials are not read here: without them nobody may change anything through the socket.
func credentials(*net.UnixConn) (uid int, err error) {
	return 0, errors.ErrUnsupported
}

func listenPrivate(path string) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

func checkDir(dir string) error {
	_, err := os.Stat(dir)
	return err
}
