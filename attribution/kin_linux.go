package attribution

import (
	"runtime"
	"slices"
	"strconv"
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

// kinsman is what a round has seen of one of the kin that may hold a socket.
type kinsman struct {
	pid   int
	known bool // its table is
	seen  []held
	fresh []held // sockets at the numbers that a passed one would have got
}

// round returns a round that begins after the call.
func (p *program) round(look func(*program, *round)) *round {
	now := time.Now()
	p.mu.Lock()
	crowded := now.Sub(p.asked) < crowdedWithin
	p.asked = now
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
	if crowded {
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

// crowdedWithin is how soon after one question the next means that many ask for sockets of a program at a
// time, which a round is for. Giving way to nobody would wake a processor for nothing.
const crowdedWithin = time.Millisecond

// look fills in a round.
func (f *Finder) look(p *program, r *round) {
	f.os.tree.update()
	if r.own, r.err = p.image(f.os.facts); r.err != nil {
		return
	}
	budget := tablesPerLookup
	var tables [nearKin + farKin]*table
	var pids [nearKin + farKin]int
	members := p.turn(pids[:0], f.os.tree, f.os.surveyor)
	for i, seen := range f.os.tree.tablesOf(tables[:0], members) {
		k, counts := f.lookAt(members[i], seen, &budget)
		if counts {
			r.kin = append(r.kin, k)
		}
	}
}

// lookAt looks at one of the kin, whose table was seen like that before, if it was. counts is false where
// it is certain not to have got a socket.
func (f *Finder) lookAt(pid int, seen *table, budget *int) (k kinsman, counts bool) {
	root := f.os.cache.root
	size := f.os.sizes.of(root, pid)
	if size == sizeOfNobody {
		f.os.tree.end(pid)
		return k, false
	}
	k = kinsman{pid: pid, known: true}
	more, good := seen.growth(size)
	switch {
	case good:
		k.fresh = seen.fresh(root, pid, more)
	case *budget > 0:
		*budget--
		seen, _ = readTable(root, pid, 0)
		f.os.tree.setTable(pid, seen)
	default:
		k.known = false
	}
	if seen != nil {
		k.seen = seen.sockets
	}
	return k, !k.known || len(k.seen)+len(k.fresh) > 0
}

// fresh returns the sockets at the numbers that more new descriptors would have got.
func (t *table) fresh(root string, pid, more int) (found []held) {
	for _, fd := range t.free[:min(more, len(t.free))] {
		if inode, isSocket := socketAt(unix.AT_FDCWD, root+"/"+strconv.Itoa(pid)+"/fd/"+strconv.Itoa(fd)); isSocket {
			found = append(found, held{fd, inode})
		}
	}
	return found
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

// growth compares t with the number of descriptors now: whether t may still be used, and how many of its
// free numbers may have become descriptors since. One may always have, in place of another. t may be nil.
func (t *table) growth(size int64) (more int, good bool) {
	if t == nil || time.Since(t.read) > tableAge {
		return 0, false
	}
	grown := size - t.size
	switch {
	case grown != 0 && t.size <= tableSmall:
		return 0, false
	case len(t.sockets) == 0 && grown == 0:
		return 0, true // nothing can be passed to a process without a socket
	}
	return int(min(max(grown, 0)+1, tableGrowth)), true
}

// turn appends the kin of p to try now to dst.
func (p *program) turn(dst []int, t *tree, s *surveyor) []int {
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
	members := append(dst, all[:near]...)
	rest := all[near:]
	for range min(len(rest), farKin) {
		p.kin.turn++
		members = append(members, rest[p.kin.turn%len(rest)])
	}
	return members
}

// readTable reads the descriptors of a process. at is the one that is the socket, -1 if none is.
func readTable(root string, pid int, inode uint64) (seen *table, at int) {
	seen, at = &table{read: time.Now(), size: tableSize(root, pid)}, -1
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
