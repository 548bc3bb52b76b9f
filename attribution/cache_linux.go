package attribution

import (
	"slices"
	"sync"
	"time"
)

const (
	// maxPrograms bounds the programs that are kept, each with three open files.
	maxPrograms = 64
	// inodeGeneration bounds the remembered places of sockets to twice as many.
	inodeGeneration = 24 << 10
	// maxRecent is how many programs are asked for an unknown socket before all are.
	maxRecent = 4
)

// place is where a socket was last seen. It is a hint: whoever uses it looks again.
type place struct{ pid, fd int }

// cache remembers programs, newest owner first, and places of sockets.
type cache struct {
	root string

	mu       sync.Mutex
	programs []*program
	young    map[uint64]place
	old      map[uint64]place
	ports    map[uint16]uint64 // the socket that UDP port was found to have last
	met      [maxMet]meeting   // a ring: the newest sockets that were met on the way to another
	metAt    int
}

// meeting is a socket that a look-up met on the way to another one.
type meeting struct {
	place
	inode  uint64
	when   time.Time
	before *image // what the program ran before that; nil: not known
}

// maxMet is as many look-ups as are under way at a time, mostly.
const maxMet = 32

func newCache(root string) *cache {
	return &cache{root: root, young: map[uint64]place{}}
}

// place returns where the socket was last seen.
func (c *cache) place(inode uint64) (place, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, found := c.young[inode]
	if !found {
		at, found = c.old[inode]
	}
	return at, found
}

// remember notes where sockets are.
func (c *cache) remember(inode uint64, at place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.young) >= inodeGeneration {
		c.old, c.young = c.young, make(map[uint64]place, inodeGeneration/4)
	}
	c.young[inode] = at
}

// meet is remember for a socket that somebody else may be looking for at this moment.
func (c *cache) meet(m meeting) {
	c.remember(m.inode, m.place)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.met[c.metAt] = m
	c.metAt = (c.metAt + 1) % maxMet
}

// metSince returns where the socket was met since then, with the program, which is to be released.
func (c *cache) metSince(inode uint64, since time.Time) (at spot, found bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.met {
		m := &c.met[i]
		if m.inode != inode || m.before == nil || m.when.Before(since) {
			continue
		}
		if p := c.find(m.pid); p != nil {
			return spot{m.place, p, m.before}, true
		}
	}
	return spot{}, false
}

// forget drops all places; a Go map never shrinks.
func (c *cache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.young, c.old, c.ports = map[uint64]place{}, nil, nil
	clear(c.met[:])
}

// bound notes which socket has a UDP port.
func (c *cache) bound(port uint16, inode uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ports == nil {
		c.ports = map[uint16]uint64{}
	}
	c.ports[port] = inode
}

// closed forgets the socket that had the port, and returns the program that had it, to be released, and
// the descriptor where it was. p is nil where nothing of that is known.
func (c *cache) closed(port uint16) (p *program, was held) {
	c.mu.Lock()
	defer c.mu.Unlock()
	inode, known := c.ports[port]
	if !known {
		return nil, held{}
	}
	delete(c.ports, port)
	at, known := c.young[inode]
	delete(c.young, inode)
	if !known {
		at, known = c.old[inode]
		delete(c.old, inode)
	}
	if !known {
		return nil, held{}
	}
	return c.find(at.pid), held{at.fd, inode}
}

// recent appends the programs that last owned sockets, newest first, each to be released.
func (c *cache) recent(dst []*program, limit int) []*program {
	c.mu.Lock()
	defer c.mu.Unlock()
	recent := append(dst, c.programs[:min(limit, len(c.programs))]...)
	for _, p := range recent {
		p.refs.Add(1)
	}
	return recent
}

// running returns what the program of pid ran when it was last looked at, nil if that is not known.
func (c *cache) running(pid int) *image {
	p := c.cached(pid)
	if p == nil {
		return nil
	}
	defer p.release()
	return p.runs()
}

// cached returns the program of pid if it is kept. It may have ended.
func (c *cache) cached(pid int) *program {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.find(pid)
}

// find is cached. The caller holds mu.
func (c *cache) find(pid int) *program {
	for _, p := range c.programs {
		if p.pid == pid {
			p.refs.Add(1)
			return p
		}
	}
	return nil
}

// use makes p the newest program, in place of another handle with the same PID.
func (c *cache) use(p *program) {
	c.mu.Lock()
	var gone []*program
	i := slices.IndexFunc(c.programs, func(q *program) bool { return q.pid == p.pid })
	switch {
	case i == 0 && c.programs[0] == p:
		c.mu.Unlock()
		return
	case i >= 0:
		gone = append(gone, c.programs[i])
		c.programs = slices.Delete(c.programs, i, i+1)
	case len(c.programs) >= maxPrograms:
		gone = append(gone, c.programs[maxPrograms-1])
		c.programs = c.programs[:maxPrograms-1]
	}
	p.refs.Add(1)
	c.programs = slices.Insert(c.programs, 0, p)
	c.mu.Unlock()
	for _, q := range gone {
		q.release()
	}
}

// drop forgets p, which has ended.
func (c *cache) drop(p *program) {
	c.mu.Lock()
	i := slices.Index(c.programs, p)
	if i >= 0 {
		c.programs = slices.Delete(c.programs, i, i+1)
	}
	c.mu.Unlock()
	if i >= 0 {
		p.release()
	}
}
