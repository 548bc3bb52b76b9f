package attribution

import (
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// round is a look at a program and its kin. It serves every look-up for a socket of the program
// that began before it: with 64 connections at a time one round is for a dozen of them.
type round struct {
	done chan struct{}
	own  *image
	err  error
	kin  []kinsman
}

// kinsman is what a round has seen of one of the kin.
type kinsman struct {
	pid   int
	known bool // seen is good
	seen  table
	fresh []held // sockets at the numbers that a passed one would have got
}

// round returns a round that begins after the call.
func (p *program) round(look func(*program, *round)) *round {
	p.mu.Lock()
	r := p.next
	lead := r == nil
	if lead {
		r = &round{done: make(chan struct{}), err: errChanging}
		p.next = r
	}
	p.mu.Unlock()
	if !lead {
		<-r.done
		return r
	}
	defer close(r.done)
	if p.crowded() {
		runtime.Gosched() // whoever is ready to ask joins
	}
	p.turns <- struct{}{}
	defer func() { <-p.turns }()
	p.mu.Lock()
	p.next = nil
	p.mu.Unlock()
	look(p, r)
	return r
}

// crowdedWithin is how soon after a round the next one means that many ask at a time: about as long as
// two take. Giving way to nobody would wake a processor for nothing.
const crowdedWithin = 200 * time.Microsecond

// crowded reports whether many ask for sockets of p at a time, which this is a round for.
func (p *program) crowded() bool {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.looked
	p.looked = now
	return now.Sub(last) < crowdedWithin
}

// look fills in a round.
func (f *Finder) look(p *program, r *round) {
	f.os.tree.update()
	if r.own, r.err = p.image(f.os.facts); r.err != nil {
		return
	}
	root, budget := f.os.cache.root, tablesPerLookup
	for i, pid := range p.turn(f.os.tree, f.os.surveyor) {
		k := kinsman{pid: pid, seen: f.os.tree.tableOf(pid)}
		size := func() int64 { return tableSize(root, pid) }
		if i < nearKin {
			size = func() int64 { return f.os.sizes.of(root, pid) }
		}
		more, good := k.seen.growth(size)
		switch {
		case good:
			for _, fd := range k.seen.free[:min(more, len(k.seen.free))] {
				if inode, isSocket := socketAt(unix.AT_FDCWD, root+"/"+strconv.Itoa(pid)+"/fd/"+strconv.Itoa(fd)); isSocket {
					k.fresh = append(k.fresh, held{fd, inode})
				}
			}
		case budget > 0:
			budget--
			k.seen, _ = readTable(root, pid, 0)
			f.os.tree.setTable(pid, k.seen)
			good = true
		}
		k.known = good
		r.kin = append(r.kin, k)
	}
}

const (
	nearKin         = 8                      // kin that every look-up tries
	farKin          = 2                      // and how many of the others, in turns
	tablesPerLookup = 8                      // descriptor tables that one look-up reads
	tableAge        = 250 * time.Millisecond // how long what was read is good
	tableLimit      = 256                    // descriptors of a table that are read
	tableSmall      = 32                     // a table of this size is read again when it changes
	tableGrowth     = 8                      // in a greater one as many new descriptors are tried
)

// growth compares t with the process now: whether t may still be used, and how many of its
// free numbers may have become descriptors since. One may always have, in place of another.
func (t *table) growth(size func() int64) (more int, good bool) {
	if time.Since(t.read) > tableAge {
		return 0, false
	}
	grown := size() - t.size
	switch {
	case grown != 0 && t.size <= tableSmall:
		return 0, false
	case len(t.sockets) == 0 && grown == 0:
		return 0, true // nothing can be passed to a process without a socket
	}
	return int(min(max(grown, 0)+1, tableGrowth)), true
}

// turn returns the kin of p to try now.
func (p *program) turn(t *tree, s *surveyor) []int {
	p.mu.Lock()
	had := p.kin.version
	p.mu.Unlock()
	if had == 0 || t.current() != had {
		pids, version := t.kinOf(p.pid)
		partners := s.partners(p.pid)
		for _, pid := range pids {
			if !slices.Contains(partners, pid) {
				partners = append(partners, pid)
			}
		}
		p.mu.Lock()
		p.kin.members, p.kin.version = partners, version
		p.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.kin.members
	near := min(len(all), nearKin)
	members := slices.Clone(all[:near])
	rest := all[near:]
	for range min(len(rest), farKin) {
		p.kin.turn++
		members = append(members, rest[p.kin.turn%len(rest)])
	}
	return members
}

// readTable reads the descriptors of a process. at is the one that is the socket, -1 if none is.
func readTable(root string, pid int, inode uint64) (seen table, at int) {
	seen, at = table{read: time.Now(), size: tableSize(root, pid)}, -1
	p, err := openProgram(root, pid)
	if err != nil {
		return seen, at
	}
	defer p.release()
	var used bitset
	count := 0
	err = eachFD(p.dir, func(fds, fd int) bool {
		used.add(fd)
		count++
		if found, isSocket := socketAt(fds, strconv.Itoa(fd)); isSocket {
			seen.sockets = append(seen.sockets, held{fd, found})
			if found == inode {
				at = fd
			}
		}
		return count < tableLimit
	})
	if err == nil {
		seen.free = used.free(tableGrowth)
	}
	return seen, at
}

// tableSize is the number of descriptors of the process. Linux before 6.2 always says 0.
func tableSize(root string, pid int) int64 {
	var st unix.Stat_t
	if unix.Stat(root+"/"+strconv.Itoa(pid)+"/fd", &st) != nil {
		return -1
	}
	return st.Size
}

// sizes asks for the size of tables that are asked about in every round, through handles: the name is
// most of the way to a table. A handle stands for one process for ever; where it fails the number may be
// somebody else's. Who uses a handle takes it out meanwhile.
type sizes struct {
	mu      sync.Mutex
	handles map[int]int
}

// maxHandles is enough for the nearest kin of several busy programs.
const maxHandles = 32

// of is tableSize.
func (s *sizes) of(root string, pid int) int64 {
	s.mu.Lock()
	fd, kept := s.handles[pid]
	delete(s.handles, pid)
	s.mu.Unlock()
	var st unix.Stat_t
	if kept && unix.Fstat(fd, &st) == nil {
		s.keep(pid, fd)
		return st.Size
	}
	if kept {
		unix.Close(fd)
	}
	fd, err := unix.Open(root+"/"+strconv.Itoa(pid)+"/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	if unix.Fstat(fd, &st) != nil {
		unix.Close(fd)
		return -1
	}
	s.keep(pid, fd)
	return st.Size
}

// keep puts a handle back, in the place of another one if there are many.
func (s *sizes) keep(pid, fd int) {
	var surplus []int
	s.mu.Lock()
	if s.handles == nil {
		s.handles = map[int]int{}
	}
	if other, found := s.handles[pid]; found { // two rounds at once
		surplus = append(surplus, other)
	}
	s.handles[pid] = fd
	for other := range s.handles {
		if len(s.handles) <= maxHandles {
			break
		}
		if other != pid {
			surplus = append(surplus, s.handles[other])
			delete(s.handles, other)
		}
	}
	s.mu.Unlock()
	for _, fd := range surplus {
		unix.Close(fd)
	}
}

// close gives back the handles.
func (s *sizes) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for pid, fd := range s.handles {
		unix.Close(fd)
		delete(s.handles, pid)
	}
}
