package attribution

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
)

// stat is what is used of /proc/PID/stat.
type stat struct {
	comm    string
	parent  int
	session int
	ended   bool   // a zombie: nobody has asked for its exit status yet
	thread  bool   // the number belongs to a thread, not to a process
	start   uint64 // clock ticks since boot
	layout  [4]uint64
}

// parseStat reads /proc/PID/stat. The second field is the name in parentheses and may hold
// anything, also spaces, parentheses and newlines: the last ")" ends it.
func parseStat(text []byte) (stat, error) {
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return stat{}, errors.New("process status without a name")
	}
	fields := bytes.Fields(text[end+1:])
	const first = 3 // proc(5) numbers the fields from 1; fields[0] is the third
	if len(fields) < 22-first+1 {
		return stat{}, fmt.Errorf("process status of %d fields", len(fields)+first-1)
	}
	s := stat{comm: string(text[open+1 : end]), ended: fields[0][0] == 'Z' || fields[0][0] == 'X'}
	var errs [3]error
	s.parent, errs[0] = strconv.Atoi(string(fields[4-first]))
	s.session, errs[1] = strconv.Atoi(string(fields[6-first]))
	s.start, errs[2] = strconv.ParseUint(string(fields[22-first]), 10, 64)
	if len(fields) > 38-first {
		s.thread = string(fields[38-first]) == "-1" // exit_signal: a thread ends in silence
	}
	for i, number := range [...]int{26, 28, 48, 51} {
		if number-first < len(fields) {
			// Zero for a process that may not be inspected: never equal to another one.
			s.layout[i], _ = strconv.ParseUint(string(fields[number-first]), 10, 64)
		}
	}
	return s, errors.Join(errs[:]...)
}

// parseUID reads the effective user of /proc/PID/status ("Uid: real effective saved fs").
func parseUID(text []byte) (uint32, bool) {
	_, rest, found := bytes.Cut(text, []byte("\nUid:"))
	if !found {
		return 0, false
	}
	line, _, _ := bytes.Cut(rest, []byte{'\n'})
	fields := bytes.Fields(line)
	if len(fields) < 2 {
		return 0, false
	}
	uid, err := strconv.ParseUint(string(fields[1]), 10, 32)
	return uint32(uid), err == nil
}

// parseArgs splits /proc/PID/cmdline. Programs that write their title over it leave one
// string padded with zeros: the padding is not an argument.
func parseArgs(text []byte) []string {
	trimmed := strings.TrimRight(string(text), "\x00")
	if trimmed == "" {
		return nil
	}
	args := strings.Split(trimmed, "\x00")
	// An empty last argument is one more zero than the end of the one before.
	for n := len(text) - len(trimmed) - 1; n > 0 && n <= 8; n-- {
		args = append(args, "")
	}
	return args
}

// parseCgroup reads the systemd unit and the container of /proc/PID/cgroup: of the v2 line if
// it says something, else of the named systemd hierarchy or any other.
func parseCgroup(text []byte) (unit, container string) {
	for line := range strings.Lines(string(text)) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		_, dir, _ := strings.Cut(rest, ":")
		for part := range strings.SplitSeq(dir, "/") {
			if id := containerID(part); id != "" {
				container = id
			} else if isUnit(part) && container == "" {
				unit = part // the innermost: a user's app-x.scope below user@1000.service
			}
		}
		if unit != "" || container != "" {
			return unit, container
		}
	}
	return "", ""
}

func isUnit(name string) bool {
	return strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".scope") || strings.HasSuffix(name, ".socket")
}

// containerID returns the container that a cgroup of this name belongs to: 64 hexadecimal
// digits, alone or as docker-ID.scope, cri-containerd-ID.scope, libpod-ID.scope, or an LXC
// payload.
func containerID(name string) string {
	if lxc, found := strings.CutPrefix(name, "lxc.payload."); found {
		return lxc
	}
	name = strings.TrimSuffix(name, ".scope")
	if i := strings.LastIndexByte(name, '-'); i >= 0 {
		name = name[i+1:]
	}
	if len(name) != 64 || strings.Trim(name, "0123456789abcdef") != "" {
		return ""
	}
	return name
}

// nameOf is the name of a binary for people.
func nameOf(file, comm string) string {
	if file == "" {
		return comm
	}
	return path.Base(strings.TrimSuffix(strings.TrimSuffix(file, suffixForeign), suffixDeleted))
}

// Suffixes of Process.Path. The kernel appends the first. The second is ours: the path holds
// in the mount namespace of the process, here it is another file or none. Without it anyone
// could mount his program over an allowed one in a namespace of his own and get its rules.
const (
	suffixDeleted = " (deleted)"
	suffixForeign = " (other mount namespace)"
)

// parseSocketLink reads the inode of "socket:[123]".
func parseSocketLink(link []byte) (uint64, bool) {
	rest, found := bytes.CutPrefix(link, []byte("socket:["))
	if !found || len(rest) < 2 || rest[len(rest)-1] != ']' {
		return 0, false
	}
	var n uint64
	for _, c := range rest[:len(rest)-1] {
		if c < '0' || c > '9' || n > 1<<60 {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, true
}

// parseLastPID reads the last field of /proc/loadavg: the number most recently given to a
// process or thread.
func parseLastPID(text []byte) (int, bool) {
	text = bytes.TrimSpace(text)
	i := bytes.LastIndexByte(text, ' ')
	if i < 0 {
		return 0, false
	}
	n, err := strconv.Atoi(string(text[i+1:]))
	return n, err == nil && n > 0
}

// parseBootTime reads the btime line of /proc/stat: seconds since 1970.
func parseBootTime(text []byte) (int64, bool) {
	_, rest, found := bytes.Cut(text, []byte("\nbtime "))
	if !found {
		return 0, false
	}
	line, _, _ := bytes.Cut(rest, []byte{'\n'})
	n, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 10, 64)
	return n, err == nil
}
