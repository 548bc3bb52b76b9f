package attribution

import (
	"bytes"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const sampleStat = `1234 (a) b (c
d) S 77 1234 900 34816 5678 4194304 100 200 0 0 5 6 7 8 20 0 3 0 424242 1000000 500 18446744073709551615 4096 8192 16384 0 0 0 0 4096 1088 0 0 0 17 1 0 0 0 0 0 20480 24576 28672 32768 32800 32800 36864 0`

func TestParseStat(t *testing.T) {
	got, err := parseStat([]byte(sampleStat))
	want := stat{comm: "a) b (c\nd", parent: 77, session: 900, start: 424242, layout: [4]uint64{4096, 16384, 32768, 36864}}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	thread, err := parseStat([]byte(strings.Replace(sampleStat, " 17 1 ", " -1 1 ", 1)))
	if err != nil || !thread.thread {
		t.Errorf("thread: %+v, %v", thread, err)
	}
	for _, bad := range []string{"", "1 (x", "1 )x(", "1 (x) S", "1 (x) S z 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 5 0 0"} {
		if s, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, s)
		}
	}
}

func TestParseArgs(t *testing.T) {
	for in, want := range map[string][]string{
		"":                               nil,
		"a\x00":                          {"a"},
		"a\x00b c\x00":                   {"a", "b c"},
		"a\x00\x00c\x00":                 {"a", "", "c"},
		"a\x00\x00":                      {"a", ""},
		"nginx: worker\x00\x00\x00":      {"nginx: worker", "", ""},
		"a title without an end":         {"a title without an end"},
		"t" + strings.Repeat("\x00", 99): {"t"},
	} {
		if d := cmp.Diff(want, parseArgs([]byte(in))); d != "" {
			t.Errorf("%q: %s", in, d)
		}
	}
}

func TestParseCgroup(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for in, want := range map[string][2]string{
		"0::/\n":                           {},
		"0::/system.slice/nginx.service\n": {"nginx.service"},
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-firefox-12.scope\n":   {"app-firefox-12.scope"},
		"0::/user.slice/user-1000.slice/user@1000.service\n":                                  {"user@1000.service"},
		"0::/system.slice/docker-" + id + ".scope\n":                                          {"", id},
		"0::/docker/" + id + "\n":                                                             {"", id},
		"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + id + ".scope\n":            {"", id},
		"0::/machine.slice/libpod-" + id + ".scope/container\n":                               {"", id},
		"0::/lxc.payload.web/system.slice/cron.service\n":                                     {"", "web"},
		"12:pids:/system.slice/ssh.service\n1:name=systemd:/system.slice/ssh.service\n0::/\n": {"ssh.service"},
		"4:memory:/process\n0::/\n":                                                           {},
		"0::/system.slice/not-" + id[:63] + "g.scope\n":                                       {"not-" + id[:63] + "g.scope"},
		"no colon": {},
	} {
		unit, container := parseCgroup([]byte(in))
		if unit != want[0] || container != want[1] {
			t.Errorf("%q: unit %q, container %q; want %q", in, unit, container, want)
		}
	}
}

func TestSmallParsers(t *testing.T) {
	if uid, ok := parseUID([]byte("Name:\tx\nUid:\t1000\t33\t0\t0\nGid:\t1\n")); !ok || uid != 33 {
		t.Errorf("user %d %t, want the effective one", uid, ok)
	}
	for _, bad := range []string{"", "\nUid:\t1", "\nUid:\ta b c d\n", "Uid: 1 2 3 4"} {
		if _, ok := parseUID([]byte(bad)); ok {
			t.Errorf("user of %q", bad)
		}
	}
	if n, ok := parseLastPID([]byte("0.00 0.06 0.14 1/93 16316\n")); !ok || n != 16316 {
		t.Errorf("last PID %d %t", n, ok)
	}
	if _, ok := parseLastPID([]byte("x")); ok {
		t.Error("last PID of x")
	}
	if n, ok := parseBootTime([]byte("cpu 1 2\nintr 5\nctxt 1\nbtime 1700000000\nprocesses 1\n")); !ok || n != 1700000000 {
		t.Errorf("boot time %d %t", n, ok)
	}
	if _, ok := parseBootTime([]byte("cpu 1")); ok {
		t.Error("boot time of nothing")
	}
	for in, want := range map[string]uint64{"socket:[123]": 123, "socket:[]": 0, "socket:[12": 0, "pipe:[1]": 0, "socket:[1x]": 0, "socket:[99999999999999999999999]": 0} {
		if n, ok := parseSocketLink([]byte(in)); n != want && ok {
			t.Errorf("%q: %d %t, want %d", in, n, ok, want)
		}
	}
	for in, want := range map[string]string{"/usr/bin/curl": "curl", "/tmp/x (deleted)": "x", "/memfd:a (deleted)": "memfd:a", "/usr/bin/curl" + suffixForeign: "curl", "": "comm"} {
		if got := nameOf(in, "comm"); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzProc(f *testing.F) {
	f.Add([]byte(sampleStat))
	f.Add([]byte("a\x00b\x00"))
	f.Add([]byte("0::/system.slice/nginx.service\n"))
	f.Add([]byte("socket:[123]"))
	f.Add([]byte("x\nUid:\t1 2 3 4\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseStat(b); err == nil && !bytes.Contains(b, []byte(s.comm)) {
			t.Errorf("name %q out of nothing", s.comm)
		}
		if args := parseArgs(b); len(args) > len(b) {
			t.Errorf("%d arguments out of %d bytes", len(args), len(b))
		}
		if n, ok := parseSocketLink(b); ok && !bytes.Contains(b, []byte(strconv.FormatUint(n, 10))) {
			t.Errorf("%q is not socket %d", b, n)
		}
		unit, container := parseCgroup(b)
		if !bytes.Contains(b, []byte(unit)) || !bytes.Contains(b, []byte(container)) {
			t.Errorf("unit %q, container %q", unit, container)
		}
		parseUID(b)
		parseLastPID(b)
		parseBootTime(b)
	})
}
