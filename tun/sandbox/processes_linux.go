package sandbox

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// signalAll signals every process of the network namespace except the calling one. Being in
// the namespace is what counts, not descent: a process that was double-forked is found too.
// It returns how many there were.
func signalAll(netns uint64, sig syscall.Signal) int {
	want := fmt.Sprintf("net:[%d]", netns)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	n := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if ns, err := os.Readlink("/proc/" + e.Name() + "/ns/net"); err != nil || ns != want {
			continue
		}
		if syscall.Kill(pid, sig) == nil {
			n++
		}
	}
	return n
}

// netnsInode is the inode of the calling process's network namespace, its name in the system.
func netnsInode() (uint64, error) {
	var st syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/net", &st); err != nil {
		return 0, fmt.Errorf("stat the network namespace: %w", err)
	}
	return st.Ino, nil
}
