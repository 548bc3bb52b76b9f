package attribution

import (
	"errors"
	"os"
	"os/user"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxArgs bounds what is kept of a command line. The kernel allows 2 MiB.
const maxArgs = 32 << 10

// factReader reads the facts of processes.
type factReader struct {
	proc string // where proc is mounted
	boot time.Time
	root unix.Stat_t // our root directory: a process with another one is in a sandbox

	mu    sync.Mutex
	users map[uint32]string
}

// newFactReader reads the boot time once: it is computed from the clock, and a start time that
// moved with the clock would make one process two.
func newFactReader(root string) *factReader {
	r := &factReader{proc: root, users: make(map[uint32]string)}
	if text, err := os.ReadFile(root + "/stat"); err == nil {
		seconds, _ := parseBootTime(text)
		r.boot = time.Unix(seconds, 0)
	}
	if err := unix.Stat("/", &r.root); err != nil {
		r.root = unix.Stat_t{}
	}
	return r
}

// errChanging says that a process is executing another program right now.
var errChanging = errors.New("the process is changing its program")

// read takes the facts of the process behind dir. It reads the binary before and after the
// rest, so that the facts of two images are never mixed.
func (r *factReader) read(dir, pid int) (*running, error) {
	for range 3 {
		now, err := r.readOnce(dir, pid)
		switch {
		case err == errChanging:
		case err != nil:
			return nil, err
		case now.stillRuns(dir):
			return now, nil
		default:
			now.close()
		}
	}
	return nil, errChanging
}

func (r *factReader) readOnce(dir, pid int) (*running, error) {
	now := &running{}
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return nil, err
	}
	now.uid = st.Uid
	var err error
	if now.exe, err = readLink(dir, "exe"); err != nil {
		return nil, err
	}
	now.environ = openEnviron(dir)
	if now.cmdline, err = readAt(dir, "cmdline", maxArgs); err != nil {
		now.close()
		return nil, err
	}
	text, err := readAt(dir, "stat", 8<<10)
	if err != nil {
		now.close()
		return nil, err
	}
	s, err := parseStat(text)
	if err != nil {
		now.close()
		return nil, err
	}
	if s.layout[environEnd] == 0 && len(now.cmdline) == 0 {
		// In the middle of exec: the binary is the new one, its arguments are not there yet.
		now.close()
		return nil, errChanging
	}
	now.image = &image{start: s.start, layout: s.layout, process: r.process(dir, pid, s, now)}
	return now, nil
}

// process puts the facts together. Those that cannot be read stay empty: only the binary
// identifies a program.
func (r *factReader) process(dir, pid int, s stat, now *running) *Process {
	p := &Process{
		PID:     pid,
		Started: r.started(s),
		Path:    now.exe + foreign(dir, now.exe),
		Args:    parseArgs(now.cmdline),
		UID:     now.uid,
		Parent:  s.parent,
		Kind:    KindProgram,
	}
	p.Name = nameOf(p.Path, s.comm)
	if text, err := readAt(dir, "status", 16<<10); err == nil {
		if uid, ok := parseUID(text); ok {
			p.UID = uid
		}
	}
	if text, err := readAt(dir, "cgroup", 16<<10); err == nil {
		p.Unit, p.Container = parseCgroup(text)
		p.CGroup = cgroupPath(text)
	}
	p.User = r.user(p.UID)
	r.tags(dir, p, now)
	return p
}

func (r *factReader) started(s stat) time.Time {
	return r.boot.Add(time.Duration(s.start) * (time.Second / clockTicks))
}

// clockTicks is USER_HZ, which is 100 on every architecture that Go runs on.
const clockTicks = 100

// foreign is the suffix for a path that is not the file it names: the process sees another
// file there, in a mount namespace of its own.
func foreign(dir int, exe string) string {
	var theirs, ours unix.Stat_t
	if unix.Fstatat(dir, "exe", &theirs, 0) != nil {
		return ""
	}
	err := unix.Stat(exe, &ours)
	deleted := len(exe) > len(suffixDeleted) && exe[len(exe)-len(suffixDeleted):] == suffixDeleted
	if deleted && err != nil {
		return "" // the kernel says so itself
	}
	if err == nil && ours.Ino == theirs.Ino && ours.Dev == theirs.Dev {
		return ""
	}
	if err != nil && errors.Is(err, unix.EACCES) {
		return "" // below a directory that this user may not enter: no evidence
	}
	return suffixForeign
}

// openEnviron opens the environment of the image that runs now. The file stays bound to the
// memory of that image: after exec it reads as empty. nil if it cannot be used as that sign.
func openEnviron(dir int) *os.File {
	fd, err := unix.Openat(dir, "environ", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	file := os.NewFile(uintptr(fd), "environ")
	var one [1]byte
	if n, err := file.ReadAt(one[:], 0); n != 1 || err != nil {
		file.Close()
		return nil // a process without environment
	}
	return file
}

func readLink(dir int, name string) (string, error) {
	var buf [4096]byte
	n, err := unix.Readlinkat(dir, name, buf[:])
	return string(buf[:max(n, 0)]), err
}

// user returns the name of uid, "" if it has none.
func (r *factReader) user(uid uint32) string {
	r.mu.Lock()
	name, known := r.users[uid]
	r.mu.Unlock()
	if known {
		return name
	}
	if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		name = u.Username
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.users) >= maxUsers {
		clear(r.users)
	}
	r.users[uid] = name
	return name
}

// maxUsers bounds the names that are kept; a user name space can have 2^32 users.
const maxUsers = 1024
