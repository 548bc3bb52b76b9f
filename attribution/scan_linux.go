package attribution

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"
)

// scanner searches all processes for sockets. Look-ups that arrive while a search runs share
// the next one: one pass over /proc serves them all. They do not join the running one, which
// may already have passed by their process.
type scanner struct {
	cache *cache
	tree  *tree
	first int // see Options.Root

	mu      sync.Mutex
	running bool
	next    *scan
}

// scan is one pass for several sockets. Its fields but done belong to the pass until done.
type scan struct {
	want   map[uint64]bool
	found  map[uint64]place
	hidden int // processes that could not be looked at
	done   chan struct{}
}

// find returns the place of one descriptor of the socket, and how many processes could not be
// looked at. err is ctx's.
func (s *scanner) find(ctx context.Context, inode uint64) (at place, found bool, hidden int, err error) {
	pass := s.join(inode)
	select {
	case <-pass.done:
		at, found = pass.found[inode]
		return at, found, pass.hidden, nil
	case <-ctx.Done():
		return place{}, false, 0, ctx.Err()
	}
}

// join puts the socket on the next pass. Passes run in a goroutine of their own, because a
// look-up that runs out of time must not end the search of the others; it ends with the last
// pass that is wanted, each bounded by the number of processes.
func (s *scanner) join(inode uint64) *scan {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		s.next = &scan{want: map[uint64]bool{}, found: map[uint64]place{}, done: make(chan struct{})}
	}
	s.next.want[inode] = true
	if !s.running {
		s.running = true
		go s.passes()
	}
	return s.next
}

// passes runs passes until none is wanted.
func (s *scanner) passes() {
	for {
		s.mu.Lock()
		pass := s.next
		s.next = nil
		s.running = pass != nil
		s.mu.Unlock()
		if pass == nil {
			return
		}
		s.search(pass)
		close(pass.done)
	}
}

// search looks into the processes that are new, then into the programs that owned sockets
// before, those with big tables last, and then into all others, newest first.
func (s *scanner) search(pass *scan) {
	s.tree.update()
	order := s.tree.order(s.first)
	pass.hidden = order.hidden
	if s.visit(pass, order.fresh, nil) {
		return
	}
	recent := s.cache.recent(maxPrograms)
	visited := make(map[int]bool, len(recent))
	var big []*program
	for _, p := range recent {
		defer p.release()
		if p.ended() {
			s.cache.drop(p)
			continue // its PID may be somebody else's now
		}
		visited[p.pid] = true
		if p.tableSize() > bigTable {
			big = append(big, p)
		} else if s.sweepProgram(p, pass) {
			return
		}
	}
	for _, p := range big {
		if s.sweepProgram(p, pass) {
			return
		}
	}
	s.visit(pass, order.rest, visited)
}

// bigTable is how many descriptors make a table big: reading them takes about a millisecond.
const bigTable = 256

// visit sweeps processes until all is found.
func (s *scanner) visit(pass *scan, pids []int, visited map[int]bool) (complete bool) {
	for _, pid := range pids {
		if !visited[pid] && s.sweepPID(pid, pass) {
			return true
		}
	}
	return false
}

// sweepPID reads the descriptors of one process until nothing more is wanted.
func (s *scanner) sweepPID(pid int, pass *scan) (complete bool) {
	p, err := openProgram(s.cache.root, pid)
	if err != nil {
		return false
	}
	defer p.release()
	err = eachFD(p.dir, func(fds, fd int) bool {
		pass.match(pid, fds, fd)
		return len(pass.want) > 0
	})
	if forbidden(err) {
		pass.hidden++
		s.tree.hide(pid)
	}
	return len(pass.want) == 0
}

// match looks at one descriptor.
func (pass *scan) match(pid, fds, fd int) (inode uint64, isSocket bool) {
	inode, isSocket = socketAt(fds, fd)
	if isSocket && pass.want[inode] {
		pass.found[inode] = place{pid, fd}
		delete(pass.want, inode)
	}
	return inode, isSocket
}

// sweepProgram reads the descriptors of a kept program: those that it has not read before,
// then the others. It remembers all sockets on its way, so that a program with thousands of
// them is read once and not once per look-up.
func (s *scanner) sweepProgram(p *program, pass *scan) (complete bool) {
	p.mu.Lock()
	known := append(bitset(nil), p.known...)
	p.mu.Unlock()
	var again []int
	seen := bitset(nil)
	look := func(fds, fd int) bool {
		seen.add(fd)
		if inode, isSocket := pass.match(p.pid, fds, fd); isSocket {
			s.cache.remember(inode, place{p.pid, fd})
		}
		return len(pass.want) > 0
	}
	eachFD(p.dir, func(fds, fd int) bool {
		if known.has(fd) {
			again = append(again, fd)
			return true
		}
		return look(fds, fd)
	})
	complete = len(pass.want) == 0
	if !complete && len(again) > 0 {
		complete = s.sweepAgain(p, again, look)
	}
	p.mu.Lock()
	for i, word := range seen {
		for bit := range 64 {
			if word>>bit&1 != 0 {
				p.known.add(i*64 + bit)
			}
		}
	}
	p.mu.Unlock()
	return complete
}

// sweepAgain reads descriptors whose numbers were seen before.
func (s *scanner) sweepAgain(p *program, numbers []int, look func(fds, fd int) bool) (complete bool) {
	fds, err := unix.Openat(p.dir, "fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fds)
	for _, fd := range numbers {
		if !look(fds, fd) {
			return true
		}
	}
	return false
}

// tableSize is the size of the descriptor table as far as it was read.
func (p *program) tableSize() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.known) * 64
}
