//go:build unix

package interception

import "golang.org/x/sys/unix"

// fileLimit is how many files this process may open.
func fileLimit() int {
	const most = 1 << 20 // "unlimited" is no number to plan with
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || uint64(l.Cur) > most {
		return most
	}
	return int(l.Cur)
}
