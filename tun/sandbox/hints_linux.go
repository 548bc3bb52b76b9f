package sandbox

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// hostSettings are the switches that forbid user namespaces, as the text of their files; ""
// where the file does not exist.
type hostSettings struct {
	appArmorRestricts string // kernel.apparmor_restrict_unprivileged_userns (Ubuntu)
	unprivilegedClone string // kernel.unprivileged_userns_clone (Debian)
	maxUserNamespaces string // user.max_user_namespaces
	maxNetNamespaces  string // user.max_net_namespaces
	root              bool
}

func readHostSettings(root bool) hostSettings {
	read := func(path string) string { return strings.TrimSpace(readText("/proc/sys/" + path)) }
	return hostSettings{
		appArmorRestricts: read("kernel/apparmor_restrict_unprivileged_userns"),
		unprivilegedClone: read("kernel/unprivileged_userns_clone"),
		maxUserNamespaces: read("user/max_user_namespaces"),
		maxNetNamespaces:  read("user/max_net_namespaces"),
		root:              root,
	}
}

// explain adds to an error of namespace set-up what to do about it. step is what failed.
func explain(step string, err error, host hostSettings) error {
	refused := errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES)
	hint := ""
	switch {
	case host.maxUserNamespaces == "0":
		hint = "user namespaces are switched off: sudo sysctl -w user.max_user_namespaces=15000"
	case host.maxNetNamespaces == "0":
		hint = "network namespaces are switched off: sudo sysctl -w user.max_net_namespaces=15000"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, unix.EUSERS):
		hint = "too many user namespaces, or too deep in one another: end some, or raise user.max_user_namespaces (it is " + host.maxUserNamespaces + ")"
	case refused && !host.root && host.unprivilegedClone == "0":
		hint = "only root may make user namespaces here: sudo sysctl -w kernel.unprivileged_userns_clone=1, or run gatun as root"
	case refused && !host.root && host.appArmorRestricts == "1":
		hint = "AppArmor forbids user namespaces to programs without a profile: give gatun one (a profile with `userns,`), or " +
			"sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or run gatun as root"
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENOSYS):
		hint = "this kernel has no user or network namespaces (CONFIG_USER_NS, CONFIG_NET_NS)"
	case refused:
		hint = "something above us forbids user namespaces; in a container allow unshare and mount in its seccomp profile " +
			"(docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined), and leave a chroot"
	}
	if hint == "" {
		return fmt.Errorf("%s: %w", step, err)
	}
	return fmt.Errorf("%s: %w: %s", step, err, hint)
}
