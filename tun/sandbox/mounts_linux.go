package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const hostResolvConf = "/etc/resolv.conf"

// setUpMounts gives this mount namespace its own resolv.conf and hides the sockets of the
// host's resolvers. It returns what could not be done but leaves a working sandbox.
func setUpMounts(conf []byte) (warnings []string, err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make the mounts private: %w", err)
	}
	target, missing := resolvePath(hostResolvConf)
	hidden, err := hideResolvers()
	if err != nil {
		return nil, err
	}
	switch {
	case below(hidden, target):
		err = writeBelow(target, conf)
	case missing:
		err = overlayFile(target, conf)
		if err != nil {
			return []string{fmt.Sprintf("the host has no %s and it cannot be made inside (%v): programs will find no nameserver", hostResolvConf, err)}, nil
		}
	default:
		err = bindFile(target, conf)
	}
	return nil, err
}

// resolvePath follows symbolic links also where the last target does not exist.
func resolvePath(path string) (target string, missing bool) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real, false
	}
	for range 8 {
		link, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(link) {
			link = filepath.Join(filepath.Dir(path), link)
		}
		path = link
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(dir, filepath.Base(path))
	}
	return path, true
}

// hideResolvers mounts an empty directory over those of nscd and systemd-resolved: their
// sockets work across network namespaces, so names would be resolved outside of the firewall.
// The C library falls back to DNS without them.
func hideResolvers() (hidden []string, err error) {
	seen := map[string]bool{}
	for _, dir := range []string{"/run/nscd", "/var/run/nscd", "/run/systemd/resolve", "/var/run/systemd/resolve"} {
		real, err := filepath.EvalSymlinks(dir)
		if err != nil || seen[real] {
			continue
		}
		seen[real] = true
		if err := mountTmpfs(real); err != nil {
			return nil, err
		}
		hidden = append(hidden, real)
	}
	return hidden, nil
}

func mountTmpfs(dir string) error {
	err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=256k")
	if err != nil {
		return fmt.Errorf("mount an empty %s: %w", dir, err)
	}
	return nil
}

func below(dirs []string, path string) bool {
	for _, dir := range dirs {
		if path == dir || strings.HasPrefix(path, dir+"/") {
			return true
		}
	}
	return false
}

// writeBelow writes a file into a directory that is ours already.
func writeBelow(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return writeFile(path, content)
}

// writeFile makes a world-readable file whatever the umask is.
func writeFile(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}

// withScratch runs f with an empty file system mounted on a directory that target is not
// below, and detaches it again: what f has bound elsewhere stays.
func withScratch(target string, f func(dir string) error) error {
	var last error = unix.ENOENT
	for _, dir := range []string{"/tmp", "/dev/shm", "/run", "/var/tmp", "/proc"} {
		if below([]string{dir}, target) {
			continue
		}
		if last = mountTmpfs(dir); last != nil {
			continue
		}
		err := f(dir)
		if detach := unix.Unmount(dir, unix.MNT_DETACH); err == nil && detach != nil {
			err = fmt.Errorf("unmount %s: %w", dir, detach)
		}
		return err
	}
	return fmt.Errorf("no directory to prepare files in: %w", last)
}

// bindFile puts a file of ours over target without touching the host's file.
func bindFile(target string, content []byte) error {
	return withScratch(target, func(dir string) error {
		file := dir + "/resolv.conf"
		if err := writeFile(file, content); err != nil {
			return err
		}
		if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind our resolv.conf over %s: %w", target, err)
		}
		return nil
	})
}

// overlayFile makes a file where the host has none, by an overlay on its directory; the
// kernel allows that in a user namespace since 5.11.
func overlayFile(target string, content []byte) error {
	parent := filepath.Dir(target)
	return withScratch(target, func(dir string) error {
		for _, d := range []string{"/upper", "/work"} {
			if err := os.Mkdir(dir+d, 0o755); err != nil {
				return err
			}
		}
		if err := writeFile(dir+"/upper/"+filepath.Base(target), content); err != nil {
			return err
		}
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work,userxattr", parent, dir, dir)
		if err := unix.Mount("overlay", parent, "overlay", 0, options); err != nil {
			return fmt.Errorf("overlay %s: %w", parent, err)
		}
		return nil
	})
}
