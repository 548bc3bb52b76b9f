package attribution

import (
	"bytes"
	"path"
	"slices"
	"strings"
)

// interpreter is how a family of interpreters reads its command line, as far as it takes to
// find the script. An option that is in none of the lists ends the search without a script:
// an identity is given only to a command line that was understood, because its user chose it.
type interpreter struct {
	names []string
	flags string // options of one letter that stand alone
	rest  string // those that take the rest of the argument, if there is any
	value string // those that take a value: the rest of the argument or the next one
	next  string // those that take the next argument, also in the middle of others
	stop  string // those with which no file is run, or one that is searched for elsewhere

	long      []string // long options that stand alone; with "=" every one does
	longValue []string // those that take the next argument
}

func interpreters() []interpreter {
	return []interpreter{
		{names: []string{"python", "pypy"}, flags: "bBdEhiIOPqRsSuvVxt3", value: "WX", stop: "cm",
			longValue: []string{"--check-hash-based-pycs"}},
		{names: []string{"node", "nodejs"}, value: "rC", stop: "epvhic",
			long:      []string{"--inspect", "--inspect-brk", "--no-warnings", "--no-deprecation", "--enable-source-maps", "--expose-gc", "--trace-warnings", "--preserve-symlinks", "--preserve-symlinks-main", "--use-openssl-ca", "--use-system-ca", "--experimental-strip-types"},
			longValue: []string{"--require", "--import", "--loader", "--experimental-loader", "--conditions"}},
		{names: []string{"sh", "bash", "dash", "zsh", "ksh", "mksh", "ash"}, flags: "abefhiklmnprtuvxBCEHPTV", next: "oO", stop: "csD",
			long:      []string{"--norc", "--noprofile", "--posix", "--login", "--restricted", "--verbose", "--noediting"},
			longValue: []string{"--rcfile", "--init-file"}},
		{names: []string{"perl"}, flags: "acfnpstTuUvVwWX", rest: "0CdDFilmM", value: "I", stop: "eESxh"},
		{names: []string{"ruby"}, flags: "acdlnpsvwUy", rest: "0FiKTW", value: "IrE", stop: "eCXSxh", long: []string{"--yjit", "--jit", "--verbose"}},
	}
}

// scriptOf returns the script that a command line names, as it is written there, "" if the
// program is no interpreter or runs no file.
func scriptOf(program string, args []string) string {
	if program == "busybox" {
		if len(args) > 0 && path.Base(args[0]) == "busybox" {
			args = args[1:]
		}
		if len(args) == 0 {
			return ""
		}
		if program = path.Base(args[0]); program != "sh" && program != "ash" {
			return ""
		}
	}
	program = strings.TrimRight(program, "0123456789.")
	list := interpreters()
	i := slices.IndexFunc(list, func(k interpreter) bool { return slices.Contains(k.names, program) })
	if i < 0 || len(args) < 2 {
		return ""
	}
	return list[i].script(args[1:])
}

func (k *interpreter) script(args []string) string {
	for len(args) > 0 {
		arg := args[0]
		switch {
		case arg == "--":
			return first(args[1:])
		case strings.HasPrefix(arg, "--"):
			if slices.Contains(k.longValue, arg) {
				args = args[min(2, len(args)):]
				continue
			}
			if !strings.Contains(arg, "=") && !slices.Contains(k.long, arg) {
				return ""
			}
		case arg == "-" || arg == "":
			return ""
		case arg[0] == '-' || arg[0] == '+' && k.next != "":
			taken, understood := k.letters(arg[1:])
			if !understood {
				return ""
			}
			args = args[min(taken, len(args)-1):]
		default:
			return arg
		}
		args = args[1:]
	}
	return ""
}

// letters reads an argument of one-letter options and says how many of the next arguments
// belong to it.
func (k *interpreter) letters(letters string) (taken int, understood bool) {
	for i := range len(letters) {
		has := func(set string) bool { return strings.IndexByte(set, letters[i]) >= 0 }
		last := i == len(letters)-1
		switch {
		case has(k.stop):
			return 0, false
		case has(k.rest):
			return taken, true
		case has(k.next):
			taken++
		case has(k.value) && last:
			return taken + 1, true
		case has(k.value):
			return taken, true
		case !has(k.flags):
			return 0, false
		}
	}
	return taken, true
}

func first(list []string) string {
	if len(list) == 0 || list[0] == "-" {
		return ""
	}
	return list[0]
}

// cgroupPath reads the control group of /proc/PID/cgroup: that of version 2 if it says
// something, else of the named systemd hierarchy, else the first that is not the root.
func cgroupPath(text []byte) string {
	found, rank := "", 0
	for line := range bytes.Lines(text) {
		number, rest, _ := bytes.Cut(bytes.TrimSuffix(line, []byte{'\n'}), []byte{':'})
		controllers, dir, ok := bytes.Cut(rest, []byte{':'})
		r := 1
		switch {
		case !ok || len(dir) < 2:
			continue
		case string(number) == "0":
			r = 3
		case string(controllers) == "name=systemd":
			r = 2
		}
		if r > rank {
			found, rank = string(dir), r
		}
	}
	return found
}

// flatpakApp reads the name of the application from .flatpak-info.
func flatpakApp(text []byte) string {
	section := ""
	for line := range bytes.Lines(text) {
		s := strings.TrimSpace(string(line))
		if strings.HasPrefix(s, "[") {
			section = s
			continue
		}
		if key, value, ok := strings.Cut(s, "="); ok && section == "[Application]" && strings.TrimSpace(key) == "name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// snapName returns the snap that a process belongs to: what its control group says, because a
// snap runs programs of its base snap too, else the snap that its binary is in.
func snapName(cgroup, file string) string {
	for part := range strings.SplitSeq(cgroup, "/") {
		if rest, found := strings.CutPrefix(part, "snap."); found && isUnit(part) {
			name, _, _ := strings.Cut(rest, ".")
			return name
		}
	}
	for _, dir := range []string{"/snap/", "/var/lib/snapd/snap/"} {
		if rest, found := strings.CutPrefix(file, dir); found {
			if name, _, below := strings.Cut(rest, "/"); below && name != "bin" {
				return name
			}
		}
	}
	return ""
}

// inAppImage reports whether a binary can be in a mounted or unpacked AppImage: only then the
// environment is worth reading.
func inAppImage(file string) bool {
	return strings.Contains(file, "/.mount_") || strings.Contains(file, "/appimage_extracted_")
}

// appImage returns the AppImage file of a binary in it. The variables are inherited by every
// program that the AppImage starts, so they count only for binaries below its directory.
func appImage(environ []string, file string) string {
	image, dir := "", ""
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		switch name {
		case "APPIMAGE":
			image = value
		case "APPDIR":
			dir = path.Clean(value)
		}
	}
	if dir == "" || dir == "/" || dir == "." || !path.IsAbs(image) || !strings.HasPrefix(file, dir+"/") {
		return ""
	}
	return path.Clean(image)
}
