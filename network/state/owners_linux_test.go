package state

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

// openOwners attaches the hooks, or skips the test with the reason why they cannot be had.
func openOwners(t testing.TB, o OwnersOptions) *Owners {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	owners, err := OpenOwners(o)
	if errors.Is(err, ErrNoHooks) && len(availableHooks()) == 0 {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { owners.Close() })
	return owners
}

// availableHooks is not empty if this kernel should have everything that the hooks need.
func availableHooks() string {
	root, err := cgroupRoot()
	if err != nil {
		return ""
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return ""
	}
	return root
}

// dummy makes a network namespace with a device that swallows packets, and runs f in it.
func dummy(t testing.TB, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	done := make(chan error, 1)
	go func() { done <- inNetNS(func() error { return dummyDevice(f) }) }()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// inNetNS runs f in a new network namespace.
func inNetNS(f func() error) error {
	runtime.LockOSThread()
	back, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer back.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	defer func() {
		if unix.Setns(int(back.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // else the thread ends with the goroutine
		}
	}()
	return f()
}

func dummyDevice(f func()) error {
	for _, line := range []string{
		"link add d0 type veth peer name d1", "addr add 10.203.8.1/24 dev d0", "addr add fd00:203::1/64 dev d0 nodad",
		"link set lo up", "link set d1 up", "link set d0 up", "neigh add 10.203.8.9 dev d0 lladdr 02:00:00:00:00:01",
		"neigh add fd00:203::9 dev d0 lladdr 02:00:00:00:00:01",
	} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w %s", line, err, out)
		}
	}
	f()
	return nil
}

// TestOwnersSeeSenders compares what is said about flows of this process with what is true.
func TestOwnersSeeSenders(t *testing.T) {
	dummy(t, func() {
		o := openOwners(t, OwnersOptions{})
		for _, to := range []string{"udp 10.203.8.9:4000", "udp [fd00:203::9]:4000", "tcp 10.203.8.9:4000", "tcp [fd00:203::9]:4000"} {
			network, address, _ := strings.Cut(to, " ")
			f := sendTo(t, network, netip.MustParseAddrPort(address))
			s, found := o.Sender(f)
			if !found || int(s.PID) != os.Getpid() || !s.Certain || s.UID != 0 || s.NetNS != o.hooks.netns {
				t.Errorf("%s: %+v, %v", f, s, found)
			}
			i, found := o.Image(s.ImageID)
			if exe, _ := os.Executable(); !found || i.Path != exe || i.Elsewhere || i.Jailed || i.Parent != os.Getppid() || i.CGroup == "" {
				t.Errorf("%s: %+v, %v", f, i, found)
			}
			var st unix.Stat_t
			if unix.Stat("/proc/self/exe", &st); i.Inode != st.Ino || i.Device != st.Dev {
				t.Errorf("binary %d on %d, want %d on %d", i.Inode, i.Device, st.Ino, st.Dev)
			}
			f.Remote = netip.AddrPortFrom(f.Remote.Addr(), 4001)
			if s, found := o.Sender(f); found {
				t.Errorf("%s, which nobody sent: %+v", f, s)
			}
		}
	})
}

// TestOwnersArrival: of what stays on this machine only what goes to one port is noted.
func TestOwnersArrival(t *testing.T) {
	dummy(t, func() {
		o := openOwners(t, OwnersOptions{Arrival: 325})
		for _, at := range []string{"127.0.0.1:325", "127.0.0.1:326", "[::1]:325", "[::1]:326"} {
			pc, err := net.ListenPacket("udp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer pc.Close()
			l, err := net.Listen("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			to := netip.MustParseAddrPort(at)
			for _, network := range []string{"udp", "tcp"} {
				f := sendTo(t, network, to)
				s, found := o.Sender(f)
				if want := to.Port() == 325; found != want || want && (int(s.PID) != os.Getpid() || !s.Certain) {
					t.Errorf("%s: %+v, noted %t, want %t", f, s, found, want)
				}
			}
		}
		for _, address := range []string{"10.203.8.9:4000", "[fd00:203::9]:325"} {
			f := sendTo(t, "udp", netip.MustParseAddrPort(address))
			if _, found := o.Sender(f); !found {
				t.Errorf("%s: not noted", f)
			}
		}
	})
}

// sendTo sends one packet from this thread and returns its flow; a connection is only begun.
func sendTo(t testing.TB, network string, to netip.AddrPort) packet.Flow {
	t.Helper()
	f := packet.Flow{Proto: packet.UDP, Remote: to}
	family, kind := unix.AF_INET, unix.SOCK_DGRAM
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(to.Port()), Addr: as4(to.Addr())}
	if to.Addr().Is6() {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	if network == "tcp" {
		f.Proto, kind = packet.TCP, unix.SOCK_STREAM|unix.SOCK_NONBLOCK
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS {
		t.Fatal(err)
	}
	if network == "udp" {
		if _, err := unix.Write(fd, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch n := name.(type) {
	case *unix.SockaddrInet4:
		f.Local = netip.AddrPortFrom(netip.AddrFrom4(n.Addr), uint16(n.Port))
	case *unix.SockaddrInet6:
		f.Local = netip.AddrPortFrom(netip.AddrFrom16(n.Addr), uint16(n.Port))
	}
	return f
}

func as4(a netip.Addr) (b [4]byte) {
	if a.Is4() {
		b = a.As4()
	}
	return b
}

// TestOwnersPing: the socket of ping is claimed when it is made.
func TestOwnersPing(t *testing.T) {
	dummy(t, func() {
		o := openOwners(t, OwnersOptions{})
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		echo := []byte{8, 0, 0, 0, 0x12, 0x34, 0, 1}
		binary.BigEndian.PutUint16(echo[2:], ^uint16(0x0800+0x1234+1))
		if err := unix.Sendto(fd, echo, 0, &unix.SockaddrInet4{Addr: [4]byte{10, 203, 8, 9}}); err != nil {
			t.Fatal(err)
		}
		f := packet.Flow{Proto: packet.ICMP, Local: netip.MustParseAddrPort("10.203.8.1:4660"), Remote: netip.MustParseAddrPort("10.203.8.9:0")}
		if s, found := o.Sender(f); !found || int(s.PID) != os.Getpid() {
			t.Errorf("%+v, %v", s, found)
		}
	})
}

// TestOwnersLeaveOursAlone: with Ours this process is as if it were not watched.
func TestOwnersLeaveOursAlone(t *testing.T) {
	dummy(t, func() {
		o := openOwners(t, OwnersOptions{Ours: true})
		f := sendTo(t, "udp", netip.MustParseAddrPort("10.203.8.9:4000"))
		if s, found := o.Sender(f); found {
			t.Errorf("%+v", s)
		}
	})
}

// TestOwnersForeign: what is sent in another namespace never counts for an address of ours.
func TestOwnersForeign(t *testing.T) {
	ours := netip.MustParseAddr("10.203.8.1")
	var one, two *Owners
	dummy(t, func() {
		one = openOwners(t, OwnersOptions{Local: func(a netip.Addr) bool { return a == ours }})
		two = openOwners(t, OwnersOptions{Local: func(netip.Addr) bool { return false }})
	})
	dummy(t, func() {
		f := sendTo(t, "udp", netip.MustParseAddrPort("10.203.8.9:4000"))
		if s, found := one.Sender(f); found {
			t.Errorf("a foreign sender passed for ours: %+v", s)
		}
		s, found := two.Sender(f)
		if !found || int(s.PID) != os.Getpid() || s.NetNS == two.hooks.netns {
			t.Errorf("forwarded: %+v, %v", s, found)
		}
	})
}

// TestMain is also the process that TestOwnersEnd kills.
func TestMain(m *testing.M) {
	if to := os.Getenv("GATUN_STATE_CONNECT"); to != "" {
		otherProgram(to)
	}
	if os.Getenv("GATUN_OWNERS_CHILD") == "" {
		os.Exit(m.Run())
	}
	o, err := OpenOwners(OwnersOptions{Root: os.Getenv("GATUN_OWNERS_ROOT")})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	for _, l := range o.links {
		info, err := l.Info()
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println(info.Program)
	}
	fmt.Println("open")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	_ = o.Close()
	fmt.Println("closed")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
}

// child is another process with hooks.
type child struct {
	cmd      *exec.Cmd
	out      *bufio.Scanner
	in       *os.File
	programs []ebpf.ProgramID
	err      string
}

// startChild starts it in a control group, watching the processes below it.
func startChild(t *testing.T, group string) *child {
	t.Helper()
	c := &child{cmd: exec.Command(os.Args[0])}
	c.cmd.Env = append(os.Environ(), "GATUN_OWNERS_CHILD=1", "GATUN_OWNERS_ROOT="+group)
	dir, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	c.cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c.cmd.Stdin, c.in, c.out = read, write, bufio.NewScanner(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read.Close()
	t.Cleanup(func() { write.Close(); c.cmd.Process.Kill(); c.cmd.Wait() })
	for c.out.Scan() {
		line := c.out.Text()
		if line == "open" {
			return c
		}
		if text, found := strings.CutPrefix(line, "error "); found {
			c.err = text
			return c
		}
		id, err := strconv.ParseUint(line, 10, 32)
		if err != nil {
			t.Fatalf("the child says %q", line)
		}
		c.programs = append(c.programs, ebpf.ProgramID(id))
	}
	t.Fatal("the child ended")
	return nil
}

// group makes a control group of the test's own.
func group(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root := availableHooks()
	if root == "" {
		t.Skip("needs version 2 control groups and kernel type information")
	}
	dir := filepath.Join(root, fmt.Sprintf("gtbpf-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-")))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		waitFor(t, func() bool { return os.Remove(dir) == nil || errors.Is(unix.Access(dir, 0), unix.ENOENT) })
	})
	return dir
}

// waitFor polls a condition that the kernel brings about by itself.
func waitFor(t *testing.T, ready func() bool) {
	t.Helper()
	for range 1000 {
		if ready() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it did not come to pass in 10 s")
}

// attached returns the programs at a hook of a control group.
func attached(t *testing.T, dir string, hook ebpf.AttachType) []ebpf.ProgramID {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := link.QueryPrograms(link.QueryOptions{Target: int(f.Fd()), Attach: hook})
	if err != nil {
		t.Fatal(err)
	}
	var ids []ebpf.ProgramID
	for _, p := range r.Programs {
		ids = append(ids, p.ID)
	}
	return ids
}

func hooksOfOwners() []ebpf.AttachType {
	return []ebpf.AttachType{
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP4Sendmsg,
		ebpf.AttachCGroupUDP6Sendmsg, ebpf.AttachCGroupInetSockCreate, ebpf.AttachCGroupInetEgress,
	}
}

// TestOwnersEnd: no program stays, whether the process closes the hooks or is killed, and what
// others had at the same hooks is there before, during and after.
func TestOwnersEnd(t *testing.T) {
	for _, end := range []string{"close", "kill"} {
		t.Run(end, func(t *testing.T) {
			dir := group(t)
			other := foreignProgram(t, dir, 2) // BPF_F_ALLOW_MULTI
			c := startChild(t, dir)
			if c.err != "" || len(c.programs) != len(hooksOfOwners()) {
				t.Fatalf("programs %v, error %q", c.programs, c.err)
			}
			for i, hook := range hooksOfOwners() {
				if at := attached(t, dir, hook); !slices.Contains(at, c.programs[i]) {
					t.Errorf("%s: %v, want %d", hook, at, c.programs[i])
				}
			}
			if at := attached(t, dir, ebpf.AttachCGroupInetEgress); !slices.Contains(at, other) {
				t.Errorf("the program of others is gone: %v", at)
			}
			if end == "kill" {
				c.cmd.Process.Kill()
			} else {
				fmt.Fprintln(c.in)
			}
			for _, hook := range hooksOfOwners() {
				waitFor(t, func() bool {
					return !slices.ContainsFunc(attached(t, dir, hook), func(id ebpf.ProgramID) bool { return slices.Contains(c.programs, id) })
				})
			}
			if at := attached(t, dir, ebpf.AttachCGroupInetEgress); !slices.Contains(at, other) {
				t.Errorf("the program of others is gone: %v", at)
			}
		})
	}
}

// TestOwnersYield: where somebody has a hook for himself alone, the hooks are not to be had,
// and his program stays.
func TestOwnersYield(t *testing.T) {
	dir := group(t)
	other := foreignProgram(t, dir, 0)
	c := startChild(t, dir)
	if !strings.Contains(c.err, ErrNoHooks.Error()) || !strings.Contains(c.err, "egress") {
		t.Errorf("error %q", c.err)
	}
	if at := attached(t, dir, ebpf.AttachCGroupInetEgress); !slices.Contains(at, other) {
		t.Errorf("the program of others is gone: %v", at)
	}
}

// foreignProgram attaches a program of somebody else to the egress hook.
func foreignProgram(t *testing.T, dir string, flags uint32) ebpf.ProgramID {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "others", Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(f.Fd()), Program: p, Attach: ebpf.AttachCGroupInetEgress, Flags: flags})
	if err != nil {
		t.Fatal(err)
	}
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return id
}

// TestOwnersOutside: a process that is not below the control group sees nothing, and says so.
func TestOwnersOutside(t *testing.T) {
	dir := group(t)
	if _, err := OpenOwners(OwnersOptions{Root: dir}); !errors.Is(err, ErrNoHooks) || !strings.Contains(err.Error(), "outside") {
		t.Errorf("got %v", err)
	}
}

func TestCgroupMount(t *testing.T) {
	for text, want := range map[string]string{
		"30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n":                                                         "/sys/fs/cgroup",
		"24 1 0:22 / /sys rw - sysfs sysfs rw\n35 33 0:30 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 none rw\n":                     "/sys/fs/cgroup/unified",
		"1 2 0:26 /a/b /mnt rw - cgroup2 none rw\n3 2 0:26 / /a\\040b rw - cgroup2 none rw\n":                                           "/a b",
		"1 2 0:26 /docker/1 /sys/fs/cgroup ro - cgroup2 none rw\n":                                                                      "container",
		"36 35 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\nbroken\n\n37 35 0:32 / /cgroup2 rw - tmpfs cgroup2 rw,size=1": "no version 2",
	} {
		got, err := parseCgroupMount(text)
		if err != nil {
			got = err.Error()
		}
		if got != want && !(err != nil && strings.Contains(got, want)) {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// TestDetachedHierarchy reads the hierarchy where nobody has mounted it.
func TestDetachedHierarchy(t *testing.T) {
	dir := group(t)
	fd, err := detachedMount()
	if err != nil {
		t.Skip(err)
	}
	g := groups{root: os.NewFile(uintptr(fd), "cgroup2")}
	defer g.root.Close()
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := g.path(binary.NativeEndian.Uint64(handle.Bytes())), "/"+filepath.Base(dir); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestRecordLayouts compares the Go types with the offsets that the hooks use.
func TestRecordLayouts(t *testing.T) {
	for name, sizes := range map[string][2]int{
		"flowKey": {binary.Size(flowKey{}), keySize}, "flowRecord": {binary.Size(flowRecord{}), recSize},
		"imageRecord": {binary.Size(imageRecord{}), imgSize}, "ImageID": {binary.Size(ImageID{}), idSize},
	} {
		if sizes[0] != sizes[1] {
			t.Errorf("%s has %d bytes for Go and %d for the hooks", name, sizes[0], sizes[1])
		}
	}
	k := keyOf(packet.Flow{Proto: packet.UDP, Local: netip.MustParseAddrPort("192.0.2.1:258"), Remote: netip.MustParseAddrPort("[2001:db8::1]:53")}, here)
	b, err := binary.Append(nil, binary.NativeEndian, k)
	if err != nil || b[keyProto] != 17 || b[keyHere] != 1 || b[keyLocalPort] != 1 || b[keyLocalPort+1] != 2 || b[keyRemotePort+1] != 53 ||
		b[keyLocal+10] != 0xff || b[keyLocal+12] != 192 || b[keyRemote] != 0x20 || b[keyRemote+15] != 1 {
		t.Errorf("key % x, %v", b, err)
	}
}

func TestImagePath(t *testing.T) {
	r := imageRecord{PathDone: 1}
	r.PathLen = uint32(copy(r.Path[:], "curl\x00bin\x00usr\x00"))
	if got := r.path(); got != "/usr/bin/curl" {
		t.Errorf("got %q", got)
	}
	r.PathDone = 0
	if got := r.path(); got != "" {
		t.Errorf("a path that leads nowhere: %q", got)
	}
}

// TestTold: a sender that was asked about is done with, unless it sent again.
func TestTold(t *testing.T) {
	second := uint64(time.Second)
	key, a, b := flowKey{Proto: 17}, teller{1, ImageID{PID: 1}}, teller{1, ImageID{PID: 2}}
	record := func(other teller, sent, many uint64) *flowRecord {
		return &flowRecord{OtherCookie: other.cookie, OtherID: other.id, Other: sent, OtherMany: many}
	}
	asked := func(about teller, last, many uint64) *flowRecord {
		return &flowRecord{Cookie: about.cookie, ID: about.id, Last: last, Many: many}
	}
	var told told
	told.add(key, asked(a, 10*second, 0), 12*second)
	for _, c := range []struct {
		r    *flowRecord
		want time.Duration
	}{
		{record(a, 9*second, 0), shortDoubt},
		{record(a, 10*second, 0), shortDoubt},
		{record(a, 10*second+1, 0), longDoubt}, // sent before it was asked about, but noted after that
		{record(a, 11*second, 0), longDoubt},   // sent again
		{record(b, 9*second, 0), longDoubt},    // somebody else
		{record(a, otherOpen, 1), longDoubt},   // still being noted
		{record(a, 10*second-hookSlack, 1), shortDoubt + hookSlack},
		{record(a, 10*second-hookSlack/2, 1), longDoubt}, // perhaps sent again
	} {
		if got := told.doubt(key, c.r); got != c.want {
			t.Errorf("%+v: %v, want %v", c.r, got, c.want)
		}
	}
	if got := told.doubt(flowKey{Proto: 6}, record(a, 9*second, 0)); got != longDoubt {
		t.Errorf("another flow: %v", got)
	}
	for _, c := range []struct {
		at   uint64
		want time.Duration
	}{{20*second + hookSlack - 1, longDoubt}, {20*second + hookSlack, shortDoubt + hookSlack}} {
		told.add(key, asked(a, 20*second, 1), c.at)
		if got := told.doubt(key, record(a, 20*second, 1)); got != c.want {
			t.Errorf("asked at %d: %v, want %v", c.at, got, c.want)
		}
	}
	for i := range 3 * maxTold {
		told.add(flowKey{Proto: 1, RemPort: [2]byte{byte(i >> 8), byte(i)}}, asked(b, second, 0), second)
	}
	if len(told.young)+len(told.old) > 2*maxTold {
		t.Errorf("%d flows are remembered", len(told.young)+len(told.old))
	}
}

// BenchmarkOwners measures what the hooks cost those who send, and a look-up. The device
// swallows everything, so that nothing but the way through IP is measured.
func BenchmarkOwners(b *testing.B) {
	dummy(b, func() {
		to := netip.MustParseAddrPort("10.203.8.9:4000")
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		defer unix.Close(fd)
		sa := &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
		var plain, hooked [3]time.Duration
		measure := func(into *[3]time.Duration) {
			const n = 5000
			for kind, act := range []func(int){
				func(int) { unix.Sendto(fd, []byte("x"), 0, sa) },
				func(i int) { sa.Port = 1000 + i; unix.Sendto(fd, []byte("x"), 0, sa); sa.Port = 4000 },
				func(i int) { sendTo(b, "udp", to) },
			} {
				start := processTime()
				for i := range n {
					act(i)
				}
				into[kind] += (processTime() - start) / n
			}
		}
		const rounds = 10
		for range rounds {
			measure(&plain)
			o, err := OpenOwners(OwnersOptions{})
			if err != nil {
				b.Skip(err)
			}
			measure(&hooked)
			if err := o.Close(); err != nil {
				b.Fatal(err)
			}
		}
		for kind, name := range []string{"datagram", "datagram-of-a-new-flow", "socket+connect+datagram"} {
			b.ReportMetric(float64(plain[kind].Nanoseconds())/rounds, name+"-plain-ns")
			b.ReportMetric(float64(hooked[kind].Nanoseconds())/rounds, name+"-hooked-ns")
		}
		o := openOwners(b, OwnersOptions{})
		f := sendTo(b, "udp", to)
		var took []time.Duration
		for range 20000 {
			start := time.Now()
			if _, found := o.Sender(f); !found {
				f = sendTo(b, "udp", to)
			}
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "look-up-p50-ns")
		b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "look-up-p99-ns")
	})
}

// processTime is what this process has used so far of a processor.
func processTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
