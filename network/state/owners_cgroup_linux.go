package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

func ownNetNS() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("this kernel does not number network namespaces (Linux 5.14 does): %w", err)
	}
	return cookie, nil
}

// openHierarchy opens the root of the version 2 control groups: where it is mounted, or on a
// mount of our own that is attached to no directory.
func openHierarchy() (*os.File, error) {
	root, err := cgroupRoot()
	if err == nil {
		return os.Open(root)
	}
	fd, mountErr := detachedMount()
	if mountErr != nil {
		return nil, fmt.Errorf("%w (%w)", err, mountErr)
	}
	return os.NewFile(uintptr(fd), "cgroup2"), nil
}

// detachedMount mounts the hierarchy for this process alone (Linux 5.2).
func detachedMount() (int, error) {
	config, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open cgroup2: %w", err)
	}
	defer unix.Close(config)
	if err := unix.FsconfigCreate(config); err != nil {
		return -1, fmt.Errorf("set up cgroup2: %w", err)
	}
	mount, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mount cgroup2: %w", err)
	}
	defer unix.Close(mount)
	return unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// cgroupRoot finds where the version 2 hierarchy is mounted as a whole.
func cgroupRoot() (string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	return parseCgroupMount(string(text))
}

// parseCgroupMount reads mountinfo: "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 …".
func parseCgroupMount(text string) (string, error) {
	part := ""
	for line := range strings.Lines(text) {
		before, after, found := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if !found || len(fields) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		if fields[3] == "/" {
			return unescape(fields[4]), nil
		}
		part = fields[4]
	}
	if part != "" {
		return "", fmt.Errorf("only a part of the control groups is visible (%s): this process runs in a container", part)
	}
	return "", errors.New("no version 2 control groups are mounted")
}

// unescape undoes the octal escapes of mountinfo.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// groups remembers the paths of control groups. Their numbers are never given to another one.
type groups struct {
	root *os.File

	mu    sync.Mutex
	paths map[uint64]string
}

// maxGroups bounds the paths that are kept.
const maxGroups = 1024

// path returns the path of a control group, "" if it is gone and was not known before.
func (g *groups) path(id uint64) string {
	g.mu.Lock()
	path := g.paths[id]
	g.mu.Unlock()
	if path != "" {
		return path
	}
	if path = g.resolve(id); path == "" {
		return ""
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.paths == nil || len(g.paths) >= maxGroups {
		g.paths = map[uint64]string{}
	}
	g.paths[id] = path
	return path
}

func (g *groups) resolve(id uint64) string {
	const kernfs = 0xfe // FILEID_KERNFS
	handle := unix.NewFileHandle(kernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(int(g.root.Fd()), handle, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	full, err := os.Readlink(descriptor(fd))
	if err != nil || strings.HasSuffix(full, " (deleted)") {
		return ""
	}
	base, err := os.Readlink(descriptor(int(g.root.Fd())))
	if err != nil {
		return ""
	}
	rel, err := filepath.Rel(base, full)
	if err != nil {
		return ""
	}
	return filepath.Join("/", rel)
}

// descriptor is the path by which this process reaches what it has open.
func descriptor(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
