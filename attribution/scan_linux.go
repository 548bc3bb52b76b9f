package attribution

import (
	"context"
	"slices"
	"strconv"
	"sync"
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
// before, at descriptors that were never read before those that were, then into those whose numbers
// were given away before they could be seen, and then into all others, newest first. What is wanted
// still is searched in whoever the list of processes names besides: the numbers that were given away
// tell of most births, not of all.
func (s *scanner) search(pass *scan) {
	s.tree.update()
	visited := map[int]bool{}
	if s.visit(pass, s.tree.takeNewborn(), visited) || s.ask(pass, visited) {
		return
	}
	s.tree.hurry()
	s.tree.update()
	if s.visit(pass, s.tree.takeNewborn(), visited) {
		return
	}
	pids, _ := s.tree.order(s.first)
	if s.visit(pass, pids, visited) {
		return
	}
	s.tree.relist()
	pids, pass.hidden = s.tree.order(s.first)
	s.visit(pass, pids, visited)
}

// ask looks into the programs that owned sockets before.
func (s *scanner) ask(pass *scan, visited map[int]bool) (complete bool) {
	recent := s.cache.recent(nil, maxPrograms)
	alive := recent[:0:0]
	for _, p := range recent {
		defer p.release()
		if p.ended() {
			s.cache.drop(p)
			continue // its PID may be somebody else's now
		}
		visited[p.pid] = true
		alive = append(alive, p)
	}
	for _, step := range []func(*program, *scan){s.likely, s.sweepUnknown, s.sweepKnown} {
		for _, p := range alive {
			if step(p, pass); len(pass.want) == 0 {
				return true
			}
		}
	}
	return false
}

// likely tries all likely descriptors of p, and those where another look-up has met a socket that
// is wanted.
func (s *scanner) likely(p *program, pass *scan) {
	for inode := range pass.want {
		if at, known := s.cache.place(inode); known && at.pid == p.pid && p.holds(at.fd, inode) {
			pass.found[inode] = at
			delete(pass.want, inode)
		}
	}
	for _, fd := range p.all() {
		if len(pass.want) == 0 {
			return
		}
		if inode, isSocket := p.socketAt(fd); isSocket {
			p.saw(fd, inode)
			s.met(p, fd, inode, pass)
		}
	}
}

// met notes where a socket is.
func (s *scanner) met(p *program, fd int, inode uint64, pass *scan) {
	at := place{p.pid, fd}
	s.cache.remember(inode, at)
	if pass.want[inode] {
		pass.found[inode] = at
		delete(pass.want, inode)
	}
}

// visit sweeps processes that were not visited before until all is found.
func (s *scanner) visit(pass *scan, pids []int, visited map[int]bool) (complete bool) {
	for _, pid := range pids {
		if !visited[pid] && s.sweepPID(pid, pass) {
			return true
		}
		visited[pid] = true
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
		s.tree.hide(pid)
	}
	return len(pass.want) == 0
}

// match looks at one descriptor.
func (pass *scan) match(pid, fds, fd int) {
	if inode, isSocket := socketAt(fds, strconv.Itoa(fd)); isSocket && pass.want[inode] {
		pass.found[inode] = place{pid, fd}
		delete(pass.want, inode)
	}
}

// sweepUnknown reads those descriptors of p that were never read, all of them, and remembers
// what they are: so a program with thousands of sockets is read once, not once per look-up.
func (s *scanner) sweepUnknown(p *program, pass *scan) {
	p.mu.Lock()
	known := slices.Clone(p.known)
	p.mu.Unlock()
	var seen []int
	eachFD(p.dir, func(fds, fd int) bool {
		if known.has(fd) {
			return true
		}
		seen = append(seen, fd)
		if inode, isSocket := socketAt(fds, strconv.Itoa(fd)); isSocket {
			s.met(p, fd, inode, pass)
		}
		return true
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, fd := range seen {
		p.known.add(fd)
	}
}

// sweepKnown reads all descriptors of p again, until nothing more is wanted.
func (s *scanner) sweepKnown(p *program, pass *scan) {
	eachFD(p.dir, func(fds, fd int) bool {
		if inode, isSocket := socketAt(fds, strconv.Itoa(fd)); isSocket {
			s.met(p, fd, inode, pass)
		}
		return len(pass.want) > 0
	})
}
