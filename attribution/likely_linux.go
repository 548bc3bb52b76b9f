package attribution

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// likely knows at which descriptors new sockets of a program appear. Programs get the lowest free
// number, so new sockets come to the numbers of closed ones; the one opened longest ago is the
// likeliest to have been closed since. A descriptor that is found unchanged is left alone
// for a while, twice as long each time: it is a connection that lasts.
type likely struct {
	slots   []slot // the one that changed longest ago first
	now     uint32 // counts searches
	newest  int    // where a socket was found last
	growing int8   // how often sockets were at new numbers lately: it opens more than it closes
	vacant  []vacancy
}

// vacancy is a descriptor whose socket is known to have been closed: the kernel gives the lowest one to
// the next socket. They are kept in order.
type vacancy struct {
	fd     int
	missed int8 // how often no new socket was there yet
}

// held is a socket and the descriptor where it was seen.
type held struct {
	fd    int
	inode uint64
}

// slot is one descriptor with the socket that was there last.
type slot struct {
	held
	due      uint32 // not before this search
	patience uint32
}

const (
	likelyFDs   = 256  // descriptors that are remembered
	maxPatience = 4096 // searches
	maxGrowing  = 3
	maxVacant   = 32 // descriptors that are known to have been closed
	maxMissed   = 4  // looks at one of them
)

// guess looks for the socket at the likely descriptors of p, at most limit. What it finds on the
// way it remembers: those sockets will be asked for soon.
func (p *program) guess(c *cache, inode uint64, limit int) (fd int, found bool) {
	before := p.runs()
	p.mu.Lock()
	p.likely.now++
	growing := p.likely.growing > 0
	p.mu.Unlock()
	if growing {
		if fd, found := p.guessNew(inode); found {
			return fd, true
		}
	}
	for fd := -1; limit > 0; limit-- {
		if fd = p.vacantAfter(fd); fd < 0 {
			break
		}
		if p.isAt(c, fd, inode, before) {
			return fd, true
		}
	}
	for range limit {
		fd := p.pick()
		if fd < 0 {
			break
		}
		if p.isAt(c, fd, inode, before) {
			return fd, true
		}
	}
	if growing {
		return 0, false
	}
	return p.guessNew(inode)
}

// isAt reports whether the socket is at fd, and remembers which one is. before is what p ran before that.
func (p *program) isAt(c *cache, fd int, inode uint64, before *image) bool {
	now := time.Now()
	at, isSocket := p.socketAt(fd)
	if isSocket && p.saw(fd, at) {
		c.meet(meeting{place{p.pid, fd}, at, now, before})
	}
	return isSocket && at == inode
}

// vacate notes that the socket has been closed, if it was the last one seen at its descriptor.
func (p *program) vacate(was held) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := &p.likely
	i := slices.IndexFunc(l.slots, func(s slot) bool { return s.fd == was.fd })
	if i < 0 || l.slots[i].inode != was.inode || len(l.vacant) >= maxVacant {
		return
	}
	l.slots[i].due = l.now
	at, there := slices.BinarySearchFunc(l.vacant, was.fd, func(v vacancy, fd int) int { return v.fd - fd })
	if !there {
		l.vacant = slices.Insert(l.vacant, at, vacancy{fd: was.fd})
	}
}

// vacantAfter returns the lowest vacant descriptor above fd, -1 if there is none.
func (p *program) vacantAfter(fd int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := &p.likely
	for i := range l.vacant {
		v := &l.vacant[i]
		if v.fd <= fd {
			continue
		}
		fd = v.fd
		if v.missed++; v.missed > maxMissed {
			l.vacant = slices.Delete(l.vacant, i, i+1)
		}
		return fd
	}
	return -1
}

// guessNew looks at the numbers that are given away when none is free.
func (p *program) guessNew(inode uint64) (fd int, found bool) {
	p.mu.Lock()
	next := p.likely.newest + 1
	p.mu.Unlock()
	last := p.lastFD()
	switch {
	case p.holds(last, inode):
		fd, found = last, true
	case next != last && next > 1 && p.holds(next, inode):
		fd, found = next, true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if found {
		p.likely.growing = min(p.likely.growing+1, maxGrowing)
	} else {
		p.likely.growing = max(p.likely.growing-1, 0)
	}
	return fd, found
}

// pick returns the descriptor to look at next, -1 if none is due.
func (p *program) pick() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := &p.likely
	i := slices.IndexFunc(l.slots, func(s slot) bool { return int32(l.now-s.due) >= 0 })
	if i < 0 {
		return -1
	}
	l.slots[i].due = l.now + 1 // once in a search
	return l.slots[i].fd
}

// saw notes which socket is at fd, and reports whether that is news.
func (p *program) saw(fd int, inode uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := &p.likely
	if len(l.vacant) > 0 {
		l.vacant = slices.DeleteFunc(l.vacant, func(v vacancy) bool { return v.fd == fd })
	}
	i := slices.IndexFunc(l.slots, func(s slot) bool { return s.fd == fd })
	if i >= 0 && l.slots[i].inode == inode {
		s := &l.slots[i]
		s.patience = min(max(1, s.patience*2), maxPatience)
		s.due = l.now + s.patience
		return false
	}
	l.newest = fd
	if i >= 0 {
		l.slots = slices.Delete(l.slots, i, i+1)
	} else if len(l.slots) == likelyFDs {
		l.forget()
	}
	l.slots = append(l.slots, slot{held: held{fd, inode}, due: l.now})
	return true
}

// forget drops the slot that has changed least.
func (l *likely) forget() {
	least := 0
	for i, s := range l.slots {
		if s.patience > l.slots[least].patience {
			least = i
		}
	}
	l.slots = slices.Delete(l.slots, least, least+1)
}

// all returns every likely descriptor, the likeliest first.
func (p *program) all() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	fds := make([]int, len(p.likely.slots))
	for i, s := range p.likely.slots {
		fds[i] = s.fd
	}
	return fds
}

// lastFD is the highest descriptor of p if it has no gaps: the newest, because the lowest free
// number is given away first. The kernel shows the number of descriptors as the size of the
// directory, since Linux 6.2.
func (p *program) lastFD() int {
	var st unix.Stat_t
	err := error(nil)
	if fds := p.fds.Load(); fds != 0 {
		err = unix.Fstat(int(fds), &st)
	} else {
		err = unix.Fstatat(p.dir, "fd", &st, 0)
	}
	if err != nil {
		return -1
	}
	return int(st.Size) - 1
}
