package attribution

import (
	"slices"
	"sync"
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
}

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

// forget drops all places; a Go map never shrinks.
func (c *cache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.young, c.old = map[uint64]place{}, nil
}

// recent returns the programs that last owned sockets, newest first, each to be released.
func (c *cache) recent(limit int) []*program {
	c.mu.Lock()
	defer c.mu.Unlock()
	recent := slices.Clone(c.programs[:min(limit, len(c.programs))])
	for _, p := range recent {
		p.refs.Add(1)
	}
	return recent
}

// cached returns the program of pid if it is kept. It may have ended.
func (c *cache) cached(pid int) *program {
	c.mu.Lock()
	defer c.mu.Unlock()
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
