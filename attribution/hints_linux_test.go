package attribution

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"gatun/network/packet"
	"gatun/network/state"
)

// TestVacated: where a socket is known to have been closed the next one is looked for first.
func TestVacated(t *testing.T) {
	b := newBusy(t, 64)
	for _, fd := range []int{40, 7, 63} {
		b.p.vacate(held{fd, b.at(fd)})
		if inode := b.open(fd); !b.found(fd, inode, 1) {
			t.Errorf("the first look was not at %d, which is known to be free", fd)
		}
	}
	for _, fd := range []int{30, 20} {
		b.p.vacate(held{fd, b.at(fd)})
	}
	inode := b.open(20)
	if fd := b.p.vacantAfter(-1); fd != 20 {
		t.Errorf("the first look is at %d, want at the lowest number that is free", fd)
	}
	if !b.found(20, inode, 1) {
		t.Error("the socket at the lowest free number needed a second look")
	}
}

// TestVacatedInVain: a descriptor that stays empty, or that had got another socket before the closing was
// told, is not looked at for ever.
func TestVacatedInVain(t *testing.T) {
	b := newBusy(t, 64)
	b.p.vacate(held{9, b.at(9)})
	if err := os.Remove(filepath.Join(b.dir, "9")); err != nil {
		t.Fatal(err)
	}
	for range 2 * maxMissed {
		b.p.guess(b.c, 1, 1)
	}
	if fd := b.p.vacantAfter(-1); fd != -1 {
		t.Errorf("%d is still looked at", fd)
	}
	old := b.at(30)
	b.p.found(30, b.open(30))
	b.p.vacate(held{30, old})
	if fd := b.p.vacantAfter(-1); fd != -1 {
		t.Errorf("%d has a new socket and is looked at for the old one's end", fd)
	}
	many := newBusy(t, 2*maxVacant)
	for fd := 3; fd < 3+2*maxVacant; fd++ {
		many.p.vacate(held{fd, many.at(fd)})
	}
	if n := len(many.p.likely.vacant); n != maxVacant {
		t.Errorf("%d free numbers are kept, want %d", n, maxVacant)
	}
}

// at is the socket that was opened at fd last.
func (b *busy) at(fd int) uint64 {
	b.t.Helper()
	inode, isSocket := b.p.socketAt(fd)
	if !isSocket {
		b.t.Fatalf("no socket at %d", fd)
	}
	return inode
}

// TestClosed: what is told of closed sockets reaches the program that had them, and only that.
func TestClosed(t *testing.T) {
	p, s, f := fake(t)
	flow := udpFlow("10.0.0.2:501")
	s.rows[flow] = []state.Socket{{Proto: packet.UDP, Local: flow.Local, Inode: 501}}
	p.born(10, 1, "dig", 10, 500, 501)
	expect(t, f, flow, 10, Exact, CauseOne)
	f.Closed(packet.TCP, flow.Local)
	if _, known := f.os.cache.place(501); !known {
		t.Error("the place of a UDP socket was forgotten for the end of a TCP socket")
	}
	f.Closed(packet.UDP, addr("10.0.0.2:502"))
	f.Closed(packet.UDP, flow.Local)
	f.Closed(packet.UDP, flow.Local)
	dig := f.os.cache.cached(10)
	defer dig.release()
	if fd := dig.vacantAfter(-1); fd != 4 {
		t.Errorf("the next socket is expected at %d, want 4", fd)
	}
	if _, known := f.os.cache.place(501); known || len(f.os.cache.ports) > 0 {
		t.Errorf("a closed socket is remembered: %v", f.os.cache.ports)
	}
	expect(t, f, flow, 10, Exact, CauseOne) // it was not the last one with that port
}

// TestSeenWhileItRan: a program that was seen with the socket while it ran one image is named by that one
// without a second look; one that was not known before, or has executed since, must hold the socket still.
func TestSeenWhileItRan(t *testing.T) {
	p, _, f := fake(t, 501)
	p.born(10, 1, "sh", 10, 501)
	expect(t, f, fromPort(501), 10, Exact, CauseOne)
	fd := filepath.Join(p.root, "10/fd/3")
	named := func(before *image) string {
		t.Helper()
		sh := f.os.cache.cached(10)
		defer sh.release()
		holders, cause := f.withKin(spot{place{10, 3}, sh, before}, 501)
		if len(holders) == 0 {
			return cause
		}
		return holders[0].process.Name
	}
	before := f.os.cache.running(10)
	if before == nil {
		t.Fatal("nobody knows what the program ran")
	}
	if err := os.Remove(fd); err != nil {
		t.Fatal(err)
	}
	if got := named(before); got != "sh" {
		t.Errorf("closed after it was seen: got %q", got)
	}
	if got := named(nil); got != CauseEnded {
		t.Errorf("closed, and nobody knows what it ran when it was seen: got %q", got)
	}
	exe := filepath.Join(p.root, "10/exe")
	if err := errors.Join(os.Remove(exe), os.Symlink(p.binary("curl"), exe)); err != nil {
		t.Fatal(err)
	}
	if got := named(before); got != CauseEnded {
		t.Errorf("executed another program and lost the socket by that: got %q", got)
	}
	if err := os.Symlink(socketLink(501), fd); err != nil {
		t.Fatal(err)
	}
	if got := named(before); got != "curl" {
		t.Errorf("executed another program and kept the socket: got %q", got)
	}
}

// TestNoEnviron: what cannot be told from a later image of the same name is looked at again.
func TestNoEnviron(t *testing.T) {
	p, _, f := fake(t, 501)
	p.born(10, 1, "sh", 10, 501)
	p.write("10/environ", "")
	expect(t, f, fromPort(501), 10, Exact, CauseOne)
	if f.os.cache.running(10) != nil || f.os.cache.running(11) != nil {
		t.Error("an image is taken for certain that may be another one by now")
	}
}

// TestEndedKin: who has ended is asked once. Its children are kin as before, and so is whoever gets its
// number.
func TestEndedKin(t *testing.T) {
	p, _, f := fake(t, 501)
	p.born(10, 1, "sh", 10, 501)
	p.born(12, 10, "make", 12)
	p.born(13, 12, "cc", 13)
	kin := func() []int {
		pids, _ := f.os.tree.kinOf(10)
		slices.Sort(pids)
		return pids
	}
	expect(t, f, fromPort(501), 10, Exact, CauseOne)
	if got := kin(); !slices.Equal(got, []int{1, 12, 13}) {
		t.Errorf("kin %v", got)
	}
	p.dies(12)
	f.os.sizes.close() // a handle on a directory of files outlives it, unlike one on a process
	expect(t, f, fromPort(501), 10, Exact, CauseOne)
	if got := kin(); !slices.Equal(got, []int{1, 13}) {
		t.Errorf("kin after the end of one: %v", got)
	}
	if err := os.Symlink(socketLink(501), filepath.Join(p.root, "13/fd/3")); err != nil {
		t.Fatal(err)
	}
	f.os.tree.setTable(13, nil) // the size of such a directory does not grow either
	expect(t, f, fromPort(501), 0, Ambiguous, CauseShared)
	p.lastPID(30000)
	f.os.tree.relist()
	p.born(12, 10, "make", 99) // which is the last one now
	f.os.tree.update()
	if got := kin(); !slices.Contains(got, 12) {
		t.Errorf("kin after its number was given away again: %v", got)
	}
}

// TestSelfIsNobodysKin: this program takes no sockets from others, so it is asked about its children only,
// which have its sockets until they execute.
func TestSelfIsNobodysKin(t *testing.T) {
	p, _, f := fake(t, 501, 502)
	p.born(7, 1, "gatun", 7)
	p.born(8, 7, "gatun", 8, 502)
	p.born(10, 1, "curl", 10, 501)
	expect(t, f, fromPort(501), 10, Exact, CauseOne)
	for pid, want := range map[int]bool{8: true, 10: false} {
		if pids, _ := f.os.tree.kinOf(pid); slices.Contains(pids, 7) != want {
			t.Errorf("kin of %d: %v", pid, pids)
		}
	}
	if err := os.Symlink(socketLink(502), filepath.Join(p.root, "7/fd/3")); err != nil {
		t.Fatal(err)
	}
	if o := f.Find(t.Context(), fromPort(502)); o.Process.Kind != KindSelf {
		t.Errorf("a child of ours that has not executed yet: %+v of %+v", o, o.Process)
	}
}

// TestSizesManyAsk: handles that many use at a time, and that make room for others meanwhile, say what
// is true and do not pile up.
func TestSizesManyAsk(t *testing.T) {
	root := t.TempDir()
	const processes = 2 * maxHandles
	for pid := range processes {
		if err := os.MkdirAll(filepath.Join(root, strconv.Itoa(pid), "fd"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	before := openFiles(t)
	var s sizes
	var group sync.WaitGroup
	for first := range 8 {
		group.Go(func() {
			for i := range 2000 {
				pid := (first*31 + i*7) % (processes + 8)
				if got := s.of(root, pid); (got >= 0) != (pid < processes) || got == sizeUnknown {
					t.Errorf("process %d of %d: size %d", pid, processes, got)
					return
				}
			}
		})
	}
	group.Wait()
	if now := openFiles(t) - before; now > maxHandles {
		t.Errorf("%d handles are kept, want at most %d", now, maxHandles)
	}
	s.close()
	if now := openFiles(t) - before; now > 0 {
		t.Errorf("%d handles are open after close", now)
	}
}

// TestMet: what another look-up met counts for those that had begun by then, and for no later one.
func TestMet(t *testing.T) {
	p, s, f := fake(t, 501, 502)
	p.born(10, 1, "sh", 10, 501, 502)
	expect(t, f, fromPort(501), 10, Exact, CauseOne)
	c := f.os.cache
	at := time.Now()
	owner := func(began time.Time) string {
		o := f.ownerOf(t.Context(), began, fromPort(502), s.rows[fromPort(502)])
		return o.Process.Name
	}
	c.meet(meeting{place{10, 4}, 502, at, c.running(10)})
	if err := os.Remove(filepath.Join(p.root, "10/fd/4")); err != nil {
		t.Fatal(err)
	}
	if got := owner(at.Add(-time.Millisecond)); got != "sh" {
		t.Errorf("met after the look-up had begun: got %q", got)
	}
	if got := owner(at.Add(time.Millisecond)); got == "sh" {
		t.Error("met before the look-up began, closed since, and named all the same")
	}
	c.meet(meeting{place{10, 4}, 502, at.Add(time.Hour), nil})
	if got := owner(at.Add(time.Millisecond)); got == "sh" {
		t.Error("nobody knows what the program ran when it was met, and it is named all the same")
	}
	for n := range uint64(2 * maxMet) {
		c.meet(meeting{place{10, 3}, 1000 + n, at, c.running(10)})
	}
	if _, found := c.metSince(502, at.Add(-time.Hour)); found {
		t.Error("old meetings are kept")
	}
	c.forget()
	if _, found := c.metSince(1000+2*maxMet-1, at); found {
		t.Error("meetings are kept after all was forgotten")
	}
}
