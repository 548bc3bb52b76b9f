package attribution

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
)

// busy is a program of files whose descriptors a test changes.
type busy struct {
	t    *testing.T
	dir  string
	p    *program
	c    *cache
	next uint64
}

func newBusy(t *testing.T, sockets int) *busy {
	fs := newFakeProc(t)
	b := &busy{t: t, dir: filepath.Join(fs.root, "10", "fd"), c: newCache(fs.root), next: 1000}
	fs.born(10, 1, "busy", 5)
	var err error
	if b.p, err = openProgram(fs.root, 10); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.p.release)
	for fd := 3; fd < 3+sockets; fd++ {
		b.p.found(fd, b.open(fd))
	}
	return b
}

// open puts a new socket at fd, in place of what was there.
func (b *busy) open(fd int) (inode uint64) {
	b.t.Helper()
	b.next++
	name := filepath.Join(b.dir, strconv.Itoa(fd))
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		b.t.Fatal(err)
	}
	if err := os.Symlink(socketLink(b.next), name); err != nil {
		b.t.Fatal(err)
	}
	return b.next
}

// found reports whether a look-up would find the socket without a search.
func (b *busy) found(fd int, inode uint64, limit int) bool {
	at, known := b.c.place(inode)
	if known && b.p.holds(at.fd, inode) {
		b.p.found(at.fd, inode)
		return at.fd == fd
	}
	got, found := b.p.guess(b.c, inode, limit)
	if found {
		b.p.found(got, inode)
	}
	return found && got == fd
}

// TestGuessInTurn: 64 connections that are opened and closed in about the same order are found
// without a search.
func TestGuessInTurn(t *testing.T) {
	b := newBusy(t, 64)
	missed := 0
	for i := range 2000 {
		fd := 3 + (i^i>>2&1)%64 // neighbours change places
		if inode := b.open(fd); !b.found(fd, inode, 8) {
			missed++
			b.p.found(fd, inode) // as a search would have
		}
	}
	if missed > 20 {
		t.Errorf("%d of 2000 needed a search", missed)
	}
}

// TestGuessAmongLasting: connections that last do not hide the few that change.
func TestGuessAmongLasting(t *testing.T) {
	b := newBusy(t, 200)
	missed := 0
	for i := range 2000 {
		fd := 100 + i%2
		inode := b.open(fd)
		if b.found(fd, inode, 8) {
			continue
		}
		missed++
		b.p.found(fd, inode)
	}
	if missed > 300 { // while it learns which they are
		t.Errorf("%d of 2000 needed a search", missed)
	}
}

// TestGuessNew: a program that only opens is asked at its newest numbers, and one look finds what
// several have opened.
func TestGuessNew(t *testing.T) {
	b := newBusy(t, 1)
	for fd := 4; fd < 400; fd++ {
		if inode := b.open(fd); !b.found(fd, inode, 8) {
			t.Fatalf("the socket at %d needed a search", fd)
		}
	}
	if n := len(b.p.all()); n > likelyFDs {
		t.Errorf("%d descriptors are remembered", n)
	}
}

// TestGuessRemembers: what a look-up meets on its way is found at once by the next.
func TestGuessRemembers(t *testing.T) {
	b := newBusy(t, 4)
	first, second := b.open(3), b.open(4)
	if !b.found(4, second, 8) {
		t.Fatal("the second socket needed a search")
	}
	if at, known := b.c.place(first); !known || at.fd != 3 {
		t.Errorf("the first socket was passed by: %v %v", at, known)
	}
}

// TestRound: every look-up is served by a round that began after it, and those that come during
// one share the next.
func TestRound(t *testing.T) {
	b := newBusy(t, 1)
	var now, rounds, shared atomic.Int64
	look := func(_ *program, r *round) {
		rounds.Add(1)
		r.err = nil
		r.kin = []kinsman{{pid: int(now.Add(1))}}
	}
	var group sync.WaitGroup
	for range 64 {
		group.Go(func() {
			for range 200 {
				began := now.Add(1)
				r := b.p.round(look)
				if at := int64(r.kin[0].pid); at <= began {
					t.Errorf("asked at %d, looked at %d", began, at)
				}
				shared.Add(1)
			}
		})
	}
	group.Wait()
	if rounds.Load() >= shared.Load() {
		t.Errorf("%d rounds for %d look-ups", rounds.Load(), shared.Load())
	}
}

// TestRoundThatPanics lets nobody wait for ever.
func TestRoundThatPanics(t *testing.T) {
	b := newBusy(t, 1)
	func() {
		defer func() { _ = recover() }()
		b.p.round(func(*program, *round) { panic("x") })
	}()
	if r := b.p.round(func(_ *program, r *round) { r.err = nil }); r.err != nil {
		t.Error(r.err)
	}
}
