//go:build !unix

package config

import (
	"errors"
	"os"
)

func openFile(path string) (*os.File, error) { return os.Open(path) }

// syncDir does nothing: directories cannot be synced here.
func syncDir(string) error { return nil }

// checkFile does not look at access lists yet: there are no owner and mode bits to check.
func checkFile(f *os.File) error {
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("is not a regular file")
	}
	return err
}

func checkDir(f *os.File) error {
	info, err := f.Stat()
	if err == nil && !info.IsDir() {
		err = errors.New("is not a directory")
	}
	return err
}
