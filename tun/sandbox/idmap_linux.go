package sandbox

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// identity maps ids to themselves: every id of the caller's own namespace if the caller may
// map foreign ids, so that file ownership inside is what it is outside, else only its own.
// table is /proc/self/uid_map or gid_map: a mapping may only name ids that exist out here.
func identity(own int, mayMapAll bool, table string) []syscall.SysProcIDMap {
	single := []syscall.SysProcIDMap{{ContainerID: own, HostID: own, Size: 1}}
	if !mayMapAll {
		return single
	}
	var all []syscall.SysProcIDMap
	for line := range strings.Lines(table) {
		var inside, outside, count int
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err != nil {
			return single
		}
		all = append(all, syscall.SysProcIDMap{ContainerID: inside, HostID: inside, Size: count})
	}
	if len(all) == 0 {
		return single
	}
	return all
}

// idMaps are the mappings for a child of this process.
func idMaps() (uids, gids []syscall.SysProcIDMap) {
	all := mayMapForeignIDs()
	return identity(os.Geteuid(), all, readText("/proc/self/uid_map")),
		identity(os.Getegid(), all, readText("/proc/self/gid_map"))
}

// mayMapForeignIDs asks for the capabilities the kernel wants of who writes such a mapping.
func mayMapForeignIDs() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	const want = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
	return os.Geteuid() == 0 && data[0].Effective&want == want
}

func readText(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}
