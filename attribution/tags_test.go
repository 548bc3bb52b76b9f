package attribution

import (
	"strings"
	"testing"
)

// TestScriptOf reads command lines as the interpreters do. What cannot be understood has no
// script: its user chose the words.
func TestScriptOf(t *testing.T) {
	for in, want := range map[string]string{
		"python3.11 python3 /opt/x.py -v":                    "/opt/x.py",
		"python3 python3 -u -W ignore -Xdev x.py":            "x.py",
		"python3 python3 -uW ignore x.py":                    "x.py",
		"python3 python3 -c print(1) /opt/x.py":              "",
		"python3 python3 -uc print(1) /opt/x.py":             "",
		"python3 python3 -m http.server /opt/x.py":           "",
		"python3 python3 --check-hash-based-pycs never x.py": "x.py",
		"python3 python3 --unknown /opt/x.py evil.py":        "",
		"python3 python3 -Z /opt/x.py":                       "",
		"python3 python3 -- -x.py":                           "-x.py",
		"python3 python3 -":                                  "",
		"python3 python3 -- -":                               "",
		"python3 python3":                                    "",
		"python3 python3 -u":                                 "",
		"python3 python3 -W":                                 "",
		"pypy3.10 pypy3 a.py":                                "a.py",
		"python3-config python3-config x":                    "",
		"node node app.js x":                                 "app.js",
		"node18 node --max-old-space-size=99 -r ./a.js b.js": "b.js",
		"node node --require ./a.js --inspect b.js":          "b.js",
		"node node -e 1 /opt/x.js":                           "",
		"node node --eval 1 /opt/x.js":                       "",
		"node node --icu-data-dir /opt/x.js evil.js":         "",
		"nodejs node -C dev a.js":                            "a.js",
		"dash sh /etc/rc x":                                  "/etc/rc",
		"bash bash -eo pipefail x.sh":                        "x.sh",
		"bash bash +x -O extglob --norc x.sh":                "x.sh",
		"bash bash --rcfile /opt/x.sh evil.sh":               "evil.sh",
		"bash bash -c /opt/x.sh":                             "",
		"bash bash -lc /opt/x.sh":                            "",
		"bash bash -s /opt/x.sh":                             "",
		"bash -bash":                                         "",
		"zsh zsh -f x.zsh":                                   "x.zsh",
		"busybox busybox sh x.sh":                            "x.sh",
		"busybox sh x.sh":                                    "x.sh",
		"busybox busybox wget x.sh":                          "",
		"busybox busybox":                                    "",
		"perl perl -w -I lib -Ilib -Mstrict x.pl":            "x.pl",
		"perl5.36.0 perl -pe 1 /opt/x.pl":                    "",
		"perl perl -S x.pl":                                  "",
		"ruby3.2 ruby -rjson -r set -W0 x.rb":                "x.rb",
		"ruby ruby -C /tmp x.rb":                             "",
		"ruby ruby --enable=yjit x.rb":                       "x.rb",
		"curl curl /opt/x.py":                                "",
	} {
		words := strings.Fields(in)
		if got := scriptOf(words[0], words[1:]); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := scriptOf("python3", []string{"python3", "", "/opt/x.py"}); got != "" {
		t.Errorf("an empty argument is no option: %q", got)
	}
	if scriptOf("busybox", nil) != "" || scriptOf("python3", nil) != "" {
		t.Error("a script out of no arguments")
	}
}

func TestCgroupPath(t *testing.T) {
	for in, want := range map[string]string{
		"0::/system.slice/nginx.service\n":                      "/system.slice/nginx.service",
		"4:memory:/m\n1:name=systemd:/system.slice/a.service\n": "/system.slice/a.service",
		"1:name=systemd:/system.slice/a.service\n0::/b\n":       "/b",
		"4:memory:/m\n3:cpu:/c\n":                               "/m",
		"1:name=systemd:/system.slice/a.service\n0::/\n":        "/system.slice/a.service",
		"0::/a:b c\n": "/a:b c",
		"0::/\n":      "",
		"no colon":    "",
		"":            "",
	} {
		if got := cgroupPath([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestPackageNames(t *testing.T) {
	for in, want := range map[string]string{
		"[Application]\nname=org.example.App\nruntime=x\n":             "org.example.App",
		"# x\n[Instance]\nname=evil\n[Application]\nname = org.b.C \n": "org.b.C",
		"name=evil\n":      "",
		"[Application]\n":  "",
		"\x00\xff[[[\n==":  "",
		"[Application]\nx": "",
	} {
		if got := flatpakApp([]byte(in)); got != want {
			t.Errorf("flatpak of %q: %q, want %q", in, got, want)
		}
	}
	for _, c := range []struct{ cgroup, path, want string }{
		{"/user.slice/user@1000.service/app.slice/snap.firefox.firefox-7d.scope", "/snap/core22/9/bin/bash", "firefox"},
		{"/system.slice/snap.lxd.daemon.service", "/snap/lxd/1/bin/lxd", "lxd"},
		{"/system.slice/snap.foo_two.app.service", "", "foo_two"},
		{"", "/snap/firefox/2/usr/lib/firefox/firefox", "firefox"},
		{"", "/var/lib/snapd/snap/vlc/2/vlc", "vlc"},
		{"", "/snap/bin/firefox", ""},
		{"", "/snap/firefox", ""},
		{"/system.slice/snap.evil", "/usr/bin/x", ""},
		{"/", "/home/u/snap/firefox/x", ""},
	} {
		if got := snapName(c.cgroup, c.path); got != c.want {
			t.Errorf("snap of %q, %q: %q, want %q", c.cgroup, c.path, got, c.want)
		}
	}
	environ := []string{"A", "APPIMAGE=/home/u/Editor.AppImage", "APPDIR=/tmp/.mount_EdXy/"}
	for path, want := range map[string]string{
		"/tmp/.mount_EdXy/usr/bin/editor": "/home/u/Editor.AppImage",
		"/tmp/.mount_EdXyz/usr/bin/x":     "",
		"/usr/bin/curl":                   "", // started by the AppImage, not in it
	} {
		if got := appImage(environ, path); got != want {
			t.Errorf("AppImage of %s: %q, want %q", path, got, want)
		}
	}
	for _, bad := range [][]string{nil, {"APPIMAGE=/x"}, {"APPDIR=/", "APPIMAGE=/x"}, {"APPDIR=", "APPIMAGE=/x"}, {"APPDIR=/tmp", "APPIMAGE=x"}} {
		if got := appImage(bad, "/tmp/.mount_x/a"); got != "" {
			t.Errorf("AppImage of %q: %q", bad, got)
		}
	}
}

func FuzzScript(f *testing.F) {
	for _, seed := range []string{"python3\x00-u\x00x.py", "bash\x00-eo\x00pipefail\x00x", "node\x00--require\x00a\x00b", "busybox\x00sh\x00x", "perl\x00-I\x00l\x00x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		args := strings.Split(text, "\x00")
		for _, program := range []string{"python3", "node", "bash", "perl", "ruby", "busybox"} {
			got := scriptOf(program, args)
			found := got == ""
			for _, a := range args {
				found = found || a == got
			}
			if !found {
				t.Errorf("%s %q: script %q out of nothing", program, args, got)
			}
		}
		cgroupPath([]byte(text))
		flatpakApp([]byte(text))
	})
}
