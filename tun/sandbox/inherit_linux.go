package sandbox

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxInherited bounds the numbers of the descriptors that are passed on.
const maxInherited = 1024

// inheritedFiles finds the descriptors above 2 that whoever started us wanted to be inherited,
// a process substitution of the shell for example: they have no close-on-exec flag, while all
// that this program opens has. Element i stands for descriptor i+3, nil where there is none;
// the files are copies.
func inheritedFiles() ([]*os.File, error) {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, fmt.Errorf("list the open descriptors: %w", err)
	}
	var files []*os.File
	for _, e := range dir {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < 3 || fd >= maxInherited {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC != 0 {
			continue
		}
		duplicate, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return files, fmt.Errorf("descriptor %d: %w", fd, err)
		}
		for len(files) <= fd-3 {
			files = append(files, nil)
		}
		files[fd-3] = os.NewFile(uintptr(duplicate), e.Name())
	}
	return files, nil
}
