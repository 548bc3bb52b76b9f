package attribution

import (
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxEnviron bounds what is read of an environment.
const maxEnviron = 256 << 10

// tags takes the facts that name a program better than its binary does. They are read once per
// image and only where they can be.
//
// None of them binds against the user himself: who may run a program under another name, in a
// mount namespace or with arguments of his choice can claim them. What is excluded here is
// that he claims what belongs to somebody else's file.
func (r *factReader) tags(dir int, p *Process, now *running) {
	file, script := p.Path, scriptOf(p.Name, p.Args)
	if strings.HasSuffix(file, suffixForeign) {
		file, script = "", "" // whatever that binary is
	}
	p.Snap = snapName(p.CGroup, file)
	if inAppImage(file) && now.environ != nil {
		p.AppImage = appImage(readEnviron(now.environ), file)
	}
	root, err := unix.Openat(dir, "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(root)
	var st unix.Stat_t
	if unix.Fstat(root, &st) == nil && (st.Ino != r.root.Ino || st.Dev != r.root.Dev) {
		p.Flatpak = readFlatpak(root)
	}
	if script != "" {
		p.Script = scriptPath(dir, root, script)
	}
}

// readFlatpak reads the mark that Flatpak leaves in the root of its sandboxes. Who makes a root
// of his own can put anything there, also a pipe that never says a word.
func readFlatpak(root int) string {
	fd, err := unix.Openat(root, ".flatpak-info", unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	file := os.NewFile(uintptr(fd), ".flatpak-info")
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	buf := make([]byte, 16<<10)
	n, _ := file.ReadAt(buf, 0)
	return flatpakApp(buf[:n])
}

// scriptPath returns the absolute path of the script of a process, "" if there is no such
// file: a program that rewrote its arguments, or moved on to another directory.
//
// A path with ".." behind a symbolic link, or in a mount namespace of its own, may be another
// file than its text says: then it is marked as foreign. An interpreter that a user brought
// himself runs what he likes, whatever its arguments say: it speaks for his scripts only.
func scriptPath(dir, root int, script string) string {
	full := script
	if !path.IsAbs(full) {
		cwd, err := readLink(dir, "cwd")
		if err != nil || strings.HasSuffix(cwd, suffixDeleted) {
			return ""
		}
		full = cwd + "/" + script
	}
	var binary, theirs, ours unix.Stat_t
	if err := statIn(root, full, &theirs); err != nil || theirs.Mode&unix.S_IFMT != unix.S_IFREG {
		return ""
	}
	if unix.Fstatat(dir, "exe", &binary, 0) != nil || binary.Uid != 0 && binary.Uid != theirs.Uid {
		return ""
	}
	full = path.Clean(full)
	if unix.Stat(full, &ours) != nil || ours.Ino != theirs.Ino || ours.Dev != theirs.Dev {
		return full + suffixForeign
	}
	return full
}

// statIn stats a path as the process with that root directory sees it, absolute symbolic links
// included. Kernels before 5.6 cannot do that and see them as we do.
func statIn(root int, name string, st *unix.Stat_t) error {
	fd, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err == unix.ENOSYS {
		return unix.Fstatat(root, strings.TrimLeft(name, "/"), st, 0)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fstat(fd, st)
}

// readEnviron reads the environment of an image: bound to its memory, so that it is never that
// of another one.
func readEnviron(file *os.File) []string {
	text := make([]byte, 0, 8<<10)
	for len(text) < maxEnviron {
		if cap(text)-len(text) < 1<<10 {
			text = append(text, make([]byte, len(text))...)[:len(text)]
		}
		n, err := file.ReadAt(text[len(text):cap(text)], int64(len(text)))
		text = text[:len(text)+n]
		if n == 0 || err != nil {
			break
		}
	}
	return parseArgs(text)
}

// environ reads the environment of p, nil if p has ended, runs another program by now, or may
// not be read.
func (o osFinder) environ(p *Process) []string {
	c, err := openProgram(o.tree.root, p.PID)
	if err != nil {
		return nil
	}
	defer c.release()
	file := openEnviron(c.dir)
	if file == nil {
		return nil
	}
	defer file.Close()
	environ := readEnviron(file)
	exe, err := readLink(c.dir, "exe")
	if err != nil || exe+foreign(c.dir, exe) != p.Path || !o.facts.isSame(c.dir, p.Started) {
		return nil
	}
	return environ
}

func (o osFinder) alive(pid int, started time.Time) bool {
	c, err := openProgram(o.tree.root, pid)
	if err != nil {
		return false
	}
	defer c.release()
	return o.facts.isSame(c.dir, started)
}

// isSame reports whether the process behind dir is the one that started then and still
// runs.
func (r *factReader) isSame(dir int, started time.Time) bool {
	text, err := readAt(dir, "stat", 8<<10)
	if err != nil {
		return false
	}
	s, err := parseStat(text)
	return err == nil && !s.ended && r.started(s).Equal(started)
}
