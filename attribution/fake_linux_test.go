package attribution

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gatun/network/packet"
	"gatun/network/state"
)

// fakeProc is a proc file system made of files.
type fakeProc struct {
	t    *testing.T
	root string
	exe  map[string]string
}

func newFakeProc(t *testing.T) *fakeProc {
	p := &fakeProc{t: t, root: t.TempDir(), exe: map[string]string{}}
	p.write("stat", "cpu 1\nbtime 1700000000\n")
	p.lastPID(1)
	return p
}

func (p *fakeProc) write(name, text string) {
	p.t.Helper()
	name = filepath.Join(p.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *fakeProc) lastPID(pid int) { p.write("loadavg", fmt.Sprintf("0.00 0.00 0.00 1/9 %d\n", pid)) }

// binary returns a real file that stands for a binary.
func (p *fakeProc) binary(name string) string {
	if p.exe[name] == "" {
		p.exe[name] = filepath.Join(p.t.TempDir(), name)
		if err := os.WriteFile(p.exe[name], nil, 0o755); err != nil {
			p.t.Fatal(err)
		}
	}
	return p.exe[name]
}

// born adds a process that holds the sockets, from descriptor 3 on.
func (p *fakeProc) born(pid, parent int, binary string, start int, sockets ...uint64) {
	p.t.Helper()
	dir := strconv.Itoa(pid)
	p.write(dir+"/stat", fmt.Sprintf("%d (%s) S %d %d %d%s %d 0 0 0", pid, binary, parent, pid, pid, strings.Repeat(" 0", 15), start))
	p.write(dir+"/cmdline", binary+"\x00")
	p.write(dir+"/environ", "A=b\x00")
	p.write(dir+"/status", "Name:\tx\nUid:\t5 6 7 8\n")
	p.write(dir+"/cgroup", "0::/system.slice/"+binary+".service\n")
	p.write(dir+"/fd/.keep", "")
	os.Remove(filepath.Join(p.root, dir, "fd/.keep"))
	err := os.Symlink(p.binary(binary), filepath.Join(p.root, dir, "exe"))
	for i, inode := range sockets {
		err = errors.Join(err, os.Symlink(socketLink(inode), filepath.Join(p.root, dir, "fd", strconv.Itoa(3+i))))
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.lastPID(pid)
}

func (p *fakeProc) dies(pid int) {
	if err := os.RemoveAll(filepath.Join(p.root, strconv.Itoa(pid))); err != nil {
		p.t.Fatal(err)
	}
}

func socketLink(inode uint64) string { return fmt.Sprintf("socket:[%d]", inode) }

// fakeSockets is a socket table.
type fakeSockets struct {
	rows  map[packet.Flow][]state.Socket
	asked int
	again func() // what happens before it is asked for the second time
	err   error
}

func (s *fakeSockets) Find(dst []state.Socket, f packet.Flow) ([]state.Socket, error) {
	s.asked++
	if s.asked == 2 && s.again != nil {
		s.again()
	}
	return append(dst, s.rows[f]...), s.err
}

// fake is a machine of files: socket n belongs to the flow from port n.
func fake(t *testing.T, inodes ...uint64) (*fakeProc, *fakeSockets, *Finder) {
	p, s := newFakeProc(t), &fakeSockets{rows: map[packet.Flow][]state.Socket{}}
	for _, n := range inodes {
		f := fromPort(uint16(n))
		s.rows[f] = []state.Socket{{Proto: f.Proto, Local: f.Local, Remote: f.Remote, State: state.SynSent, Inode: n}}
	}
	p.born(1, 0, "init", 1)
	f := New(Options{State: s, Proc: p.root, Self: 7})
	t.Cleanup(func() { f.Close() })
	return p, s, f
}

func fromPort(port uint16) packet.Flow {
	return packet.Flow{Proto: packet.TCP, Local: addr("10.0.0.2:" + strconv.Itoa(int(port))), Remote: addr("192.0.2.1:443")}
}

func TestFakeFacts(t *testing.T) {
	p, _, f := fake(t, 501)
	p.born(10, 1, "curl", 4242, 499, 500, 501)
	got := expect(t, f, fromPort(501), 10, Exact, CauseOne)
	want := Process{PID: 10, Started: time.Unix(1700000042, 420e6), Path: p.binary("curl"), Name: "curl", Args: []string{"curl"},
		UID: 6, Parent: 1, Unit: "curl.service", CGroup: "/system.slice/curl.service", Kind: KindProgram, User: got.User}
	if fmt.Sprint(*got) != fmt.Sprint(want) {
		t.Errorf("got  %+v\nwant %+v", *got, want)
	}
	p.write("stat", "cpu 1\nbtime 1700000099\n") // the clock was set
	if again := expect(t, f, fromPort(501), 10, Exact, CauseOne); !again.Started.Equal(got.Started) || again != got {
		t.Errorf("the start time moved with the clock, or unchanged facts were read again")
	}
}

// TestPIDReuse gives the PID, and even the socket and the start time, to another program.
func TestPIDReuse(t *testing.T) {
	p, _, f := fake(t, 501)
	p.born(10, 1, "trusted", 4242, 501)
	expect(t, f, fromPort(501), 10, Exact, CauseOne)
	p.dies(10)
	p.born(10, 1, "evil", 4242, 501)
	if got := expect(t, f, fromPort(501), 10, Exact, CauseOne); got.Name != "evil" {
		t.Errorf("the reused PID kept the name %s", got.Name)
	}
	p.dies(10)
	p.born(10, 1, "other", 4243, 999)
	expect(t, f, fromPort(501), 0, None, CauseNoHolder)
}

func TestNobody(t *testing.T) {
	p, s, f := fake(t, 501)
	p.born(10, 1, "curl", 4242, 500)
	expect(t, f, fromPort(501), 0, None, CauseNoHolder)
	if s.asked != 4 {
		t.Errorf("the table was asked %d times in two look-ups; want a second time for each socket without a holder", s.asked)
	}
	expect(t, f, fromPort(502), 0, None, CauseNoSocket)
	flow := fromPort(503)
	s.rows[flow] = []state.Socket{{Proto: packet.TCP, State: state.TimeWait}}
	expect(t, f, flow, 0, None, CauseClosed)
	s.rows[flow] = append(s.rows[flow], state.Socket{Inode: 500})
	expect(t, f, flow, 0, Ambiguous, CauseManySockets)
	s.err = errors.New("broken")
	expect(t, f, flow, 0, None, CauseFailed)
}

// TestBornBetween finds a process that was not there at the first look, though the table of
// processes was just read.
func TestBornBetween(t *testing.T) {
	p, _, f := fake(t, 501, 502)
	p.born(10, 1, "curl", 10, 501)
	expect(t, f, fromPort(501), 10, Exact, CauseOne)
	p.born(11, 1, "wget", 20, 502)
	expect(t, f, fromPort(502), 11, Exact, CauseOne)
	p.born(12, 10, "curl", 30, 501) // a child that inherited at the same number
	expect(t, f, fromPort(501), 10, Inherited, CauseInherited)
	p.dies(12)
	expect(t, f, fromPort(501), 10, Exact, CauseOne)
}

// TestPIDsWrapAround births processes below the last PID.
func TestPIDsWrapAround(t *testing.T) {
	p, _, f := fake(t, 501, 502)
	p.born(30000, 1, "curl", 10, 501)
	expect(t, f, fromPort(501), 30000, Exact, CauseOne)
	p.born(300, 30000, "helper", 20, 501, 502)
	expect(t, f, fromPort(502), 300, Exact, CauseOne)
	expect(t, f, fromPort(501), 0, Ambiguous, CauseShared)
}

// TestSystemdHandsOver leaves a socket open in systemd that it passed to a service.
func TestSystemdHandsOver(t *testing.T) {
	for comm, want := range map[string]Confidence{"systemd": Exact, "supervisord": Ambiguous} {
		p, s := newFakeProc(t), &fakeSockets{rows: map[packet.Flow][]state.Socket{}}
		s.rows[fromPort(501)] = []state.Socket{{Proto: packet.TCP, Inode: 501}}
		p.born(1, 0, "init", 1, 501)
		p.write("1/comm", comm+"\n")
		p.born(10, 1, "service", 10, 501)
		f := New(Options{State: s, Proc: p.root})
		defer f.Close()
		if o := f.Find(t.Context(), fromPort(501)); o.Confidence != want {
			t.Errorf("%s: %+v of %+v, want %s", comm, o, o.Process, want)
		}
	}
}

// TestOwnRawSocket has a ping by raw socket beside the raw socket of our relay.
func TestOwnRawSocket(t *testing.T) {
	p, s, f := fake(t)
	p.born(7, 1, "gatun", 10, 600)
	p.born(20, 1, "ping", 20, 601)
	p.born(21, 1, "fping", 21, 602)
	flow := packet.Flow{Proto: packet.ICMP, Local: addr("10.0.0.2:9"), Remote: addr("192.0.2.1:0")}
	ours, ping, fping := state.Socket{Raw: true, Inode: 600}, state.Socket{Raw: true, Inode: 601}, state.Socket{Raw: true, Inode: 602}
	s.rows[flow] = []state.Socket{ours, ping}
	expect(t, f, flow, 20, Exact, CauseOne)
	s.rows[flow] = []state.Socket{ping, ours, fping}
	expect(t, f, flow, 0, Ambiguous, CauseManySockets)
	s.rows[flow] = []state.Socket{ours}
	expect(t, f, flow, 7, Exact, CauseSelf)
	// Nothing but a ping of ours comes back: the sockets that may send any protocol send what was held.
	flow = packet.Flow{Proto: 47, Local: addr("10.0.0.2:0"), Remote: addr("192.0.2.1:0")}
	s.rows[flow] = []state.Socket{ours}
	expect(t, f, flow, 0, 0, CauseNoSocket)
	s.rows[flow] = []state.Socket{ours, ping}
	expect(t, f, flow, 20, Exact, CauseOne)
}

// TestExecSeen changes the program of a process without its PID or start time.
func TestExecSeen(t *testing.T) {
	p, _, f := fake(t, 501)
	p.born(10, 1, "sh", 10, 501)
	before := expect(t, f, fromPort(501), 10, Exact, CauseOne)
	exe := filepath.Join(p.root, "10/exe")
	if err := errors.Join(os.Remove(exe), os.Symlink(p.binary("curl"), exe)); err != nil {
		t.Fatal(err)
	}
	after := expect(t, f, fromPort(501), 10, Exact, CauseOne)
	if after.Name != "curl" || before.Name != "sh" || !after.Started.Equal(before.Started) {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

func TestThreadsAreNotProcesses(t *testing.T) {
	p, _, f := fake(t, 501)
	p.born(10, 1, "java", 10, 501)
	expect(t, f, fromPort(501), 10, Exact, CauseOne)
	p.born(11, 1, "java", 11, 501) // /proc/TID is there, though it is not listed
	p.write("11/stat", "11 (java) S 1 10 10"+strings.Repeat(" 0", 15)+" 11"+strings.Repeat(" 0", 15)+" -1 0 0")
	expect(t, f, fromPort(501), 10, Exact, CauseOne)
}

// TestCacheBounds lets many programs own sockets: handles must not pile up.
func TestCacheBounds(t *testing.T) {
	var inodes []uint64
	for n := range uint64(3 * maxPrograms) {
		inodes = append(inodes, 1000+n)
	}
	p, _, f := fake(t, inodes...)
	for i, inode := range inodes {
		p.born(100+i, 1, "many", 10+i, inode)
	}
	before := openFiles(t)
	for i, inode := range inodes {
		if o := f.Find(t.Context(), fromPort(uint16(inode))); o.Process.PID != 100+i {
			t.Fatalf("socket %d: %+v of %+v", inode, o, o.Process)
		}
	}
	if now := openFiles(t) - before; now > 3*maxPrograms+maxHandles+4 {
		t.Errorf("%d files are open", now)
	}
	f.Close()
	if now := openFiles(t) - before; now > 2 {
		t.Errorf("%d files are open after Close", now)
	}
}

func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestUnsupported falls back to the portable source, which knows this machine and not the
// fake one.
func TestUnsupported(t *testing.T) {
	_, s, f := fake(t, 501)
	s.err = state.ErrUnsupported
	expect(t, f, fromPort(501), 0, None, CauseNoSocket)
}

func TestRunEnds(t *testing.T) {
	p, _, f := fake(t, 501)
	p.born(10, 1, "a", 10, 501)
	p.born(11, 1, "b", 11, 500, 501)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	waitFor(t, func() bool { return len(f.os.surveyor.holders(501)) == 2 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := f.os.surveyor.partners(10); !slices.Equal(got, []int{11}) {
		t.Errorf("partners %v", got)
	}
}

func TestGenerations(t *testing.T) {
	c := newCache("")
	for n := range uint64(5 * inodeGeneration / 2) {
		c.remember(n, place{1, int(n)})
	}
	if _, found := c.place(5*inodeGeneration/2 - 1); !found {
		t.Error("the newest place is forgotten")
	}
	if _, found := c.place(0); found || len(c.young)+len(c.old) > 2*inodeGeneration {
		t.Errorf("%d places are kept", len(c.young)+len(c.old))
	}
	c.forget()
	if _, found := c.place(5*inodeGeneration/2 - 1); found || len(c.young)+len(c.old) > 0 {
		t.Errorf("%d places are kept after all were forgotten", len(c.young)+len(c.old))
	}
	c.remember(7, place{1, 2})
	if at, found := c.place(7); !found || at != (place{1, 2}) {
		t.Errorf("after all were forgotten: %v, %v", at, found)
	}
}

// TestLateBirth: the kernel gives a number away some time before its process can be seen. Who comes
// late is found all the same, whether it was counted since the last look, or before the first one.
func TestLateBirth(t *testing.T) {
	p, _, f := fake(t, 501, 502, 503, 504)
	p.lastPID(12) // 10, 11 and 12 are on their way
	expect(t, f, fromPort(501), 0, None, CauseNoHolder)
	p.born(11, 1, "curl", 4242, 501)
	p.lastPID(12)
	expect(t, f, fromPort(501), 11, Exact, CauseOne)
	p.born(15, 1, "wget", 4243, 502) // 13 and 14 as well
	expect(t, f, fromPort(502), 15, Exact, CauseOne)
	p.born(14, 15, "ssh", 4244, 503)
	p.lastPID(15)
	expect(t, f, fromPort(503), 14, Exact, CauseOne)
	p.dies(11)
	expect(t, f, fromPort(504), 0, None, CauseNoHolder)
	p.born(10, 1, "nc", 4245, 504)
	p.lastPID(15)
	expect(t, f, fromPort(504), 10, Exact, CauseOne)
}

// TestUnbornAreBounded: numbers of processes that have ended long ago are not looked at for ever.
func TestUnbornAreBounded(t *testing.T) {
	p := newFakeProc(t)
	tree := newTree(p.root, 7)
	for pid := 10; pid < 2000; pid += 100 {
		p.lastPID(pid)
		tree.update()
	}
	if n := len(tree.unborn); n > maxUnborn {
		t.Errorf("%d numbers are looked at again, want at most %d", n, maxUnborn)
	}
	for i := range tree.unborn {
		tree.unborn[i].since = time.Now().Add(-unbornAge)
	}
	tree.hurry()
	tree.update()
	if len(tree.unborn) != 0 {
		t.Errorf("after %v there are still %v", unbornAge, tree.unborn)
	}
}

// TestManyNumbersGivenAway: on a machine that starts many programs more numbers are given away than
// can be looked at again. The list of processes has who came late.
func TestManyNumbersGivenAway(t *testing.T) {
	p, _, f := fake(t, 501, 502)
	expect(t, f, fromPort(502), 0, None, CauseNoHolder)
	for last := 10; last < 10+3*maxUnborn; last += maxBirths - 10 {
		p.lastPID(last)
		f.os.tree.update()
	}
	p.born(12, 1, "curl", 4242, 501)
	p.lastPID(10 + 3*maxUnborn)
	expect(t, f, fromPort(501), 12, Exact, CauseOne)
}

// TestBornWhileSearched: whoever was born during the search is found, also where there are processes
// that may not be inspected, as there always are for a user without privileges.
func TestBornWhileSearched(t *testing.T) {
	p, s, f := fake(t, 501)
	f.os.tree.update()
	f.os.tree.hide(1)
	s.again = func() { p.born(12, 1, "curl", 4242, 501) }
	expect(t, f, fromPort(501), 12, Exact, CauseOne)
	f.os.tree.hide(1)
	p.dies(12)
	expect(t, f, fromPort(501), 0, None, CauseHidden)
}

// TestTreeManyLook: a look at all processes that began before a birth and ends after it does not
// undo what another one has seen.
func TestTreeManyLook(t *testing.T) {
	p := newFakeProc(t)
	for pid := 1; pid < 40; pid++ {
		p.born(pid, 0, "old", pid)
	}
	tree := newTree(p.root, 7)
	ctx, stop := context.WithCancel(context.Background())
	var looking sync.WaitGroup
	defer looking.Wait()
	defer stop()
	for range 3 {
		looking.Go(func() {
			for ctx.Err() == nil {
				tree.relist()
			}
		})
	}
	for pid := 100; pid < 200; pid++ {
		p.born(pid, 1, "new", pid)
		tree.update()
		if pids, _ := tree.order(0); !slices.Contains(pids, pid) {
			t.Fatalf("process %d was born and looked at, and is not known", pid)
		}
	}
}
