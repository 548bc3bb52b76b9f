package attribution

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
	"gatun/network/state"
)

// osFinder is the Linux part of a Finder: socket diagnosis, then /proc.
type osFinder struct {
	facts    *factReader
	cache    *cache
	tree     *tree
	scan     *scanner
	surveyor *surveyor
}

func newOSFinder(o Options) osFinder {
	c, t := newCache(o.Proc), newTree(o.Proc)
	return osFinder{
		facts:    newFactReader(o.Proc),
		cache:    c,
		tree:     t,
		scan:     &scanner{cache: c, tree: t, first: o.Root},
		surveyor: &surveyor{cache: c, tree: t},
	}
}

func (o osFinder) compact() { o.cache.forget() }

func (o osFinder) close() {
	for _, p := range o.cache.recent(maxPrograms) {
		o.cache.drop(p)
		p.release()
	}
	if o.tree.loadavg != nil {
		o.tree.loadavg.Close()
	}
}

// maxSockets is how many sockets of one address are looked at. More than this never belong
// to one process only as far as anyone can tell in time.
const maxSockets = 16

// find asks for the sockets and names their one holder.
func (f *Finder) find(ctx context.Context, flow packet.Flow) Owner {
	if f.state == nil {
		return f.findPortable(ctx, flow)
	}
	var buf [4]state.Socket
	sockets, err := f.state.Find(buf[:0], flow)
	switch {
	case errors.Is(err, state.ErrUnsupported):
		return f.findPortable(ctx, flow)
	case err != nil:
		return f.failed(err)
	case len(sockets) == 0:
		return Unidentified(CauseNoSocket)
	}
	total := len(sockets)
	sockets = slices.DeleteFunc(sockets, func(s state.Socket) bool { return s.Inode == 0 })
	switch {
	case len(sockets) == 0:
		return Unidentified(CauseClosed)
	case len(sockets) < total || len(sockets) > maxSockets:
		return ambiguous(CauseManySockets)
	}
	return f.ownerOf(ctx, flow, sockets)
}

// ownerOf names the owner of the sockets of one flow.
func (f *Finder) ownerOf(ctx context.Context, flow packet.Flow, sockets []state.Socket) Owner {
	var all []*image
	counted := 0
	for _, s := range sockets {
		holders, cause := f.holders(ctx, s.Inode)
		if len(holders) == 0 {
			if cause = f.recheck(flow, s, cause); cause == "" {
				holders, cause = f.holders(ctx, s.Inode)
			}
		}
		if len(holders) == 0 && len(sockets) > 1 {
			return ambiguous(CauseManySockets)
		}
		if len(holders) == 0 {
			return Unidentified(cause)
		}
		if s.Raw && len(sockets) > 1 && len(holders) == 1 && holders[0].process.PID == f.self {
			continue // our relay pings with a raw socket of its own, but never through the TUN
		}
		counted++
		for _, h := range holders {
			if !slices.ContainsFunc(all, func(o *image) bool { return o.process.PID == h.process.PID }) {
				all = append(all, h)
			}
		}
	}
	return judge(all, counted, f.self)
}

// recheck decides what to do about a socket that nobody was found to hold. "" means that the
// socket is still there and the search is worth one more try: its process may have been born
// while /proc was read.
func (f *Finder) recheck(flow packet.Flow, s state.Socket, cause string) string {
	if cause == CauseTimeout {
		return cause
	}
	again, err := f.state.Find(nil, flow)
	if err != nil {
		return CauseFailed
	}
	if !slices.ContainsFunc(again, func(a state.Socket) bool { return a.Inode == s.Inode }) {
		return CauseClosed
	}
	if cause == CauseHidden {
		return cause
	}
	return ""
}

// holders returns the programs that hold the socket, none with a cause.
func (f *Finder) holders(ctx context.Context, inode uint64) ([]*image, string) {
	link := socketLink(inode)
	p, fd := f.quick(inode, link)
	if p == nil {
		at, found, hidden, err := f.os.scan.find(ctx, inode)
		switch {
		case err != nil:
			return nil, CauseTimeout
		case !found && hidden > 0:
			return nil, CauseHidden
		case !found:
			return nil, CauseNoHolder
		}
		if p, fd = f.holder(at, link), at.fd; p == nil {
			return nil, CauseEnded
		}
	}
	defer p.release()
	return f.withKin(p, fd, inode, link)
}

// quick finds a holder without a search: where the socket was last time, or at the likely
// descriptors of the programs that last owned one. The program is to be released.
func (f *Finder) quick(inode uint64, link string) (*program, int) {
	if at, known := f.os.cache.place(inode); known {
		if p := f.holder(at, link); p != nil {
			return p, at.fd
		}
	}
	limits := [maxRecent]int{8, 4, 2, 2}
	recent := f.os.cache.recent(maxRecent)
	var owner *program
	at := 0
	for i, p := range recent {
		if owner == nil {
			if fd, found := p.guess(link, limits[i]); found {
				owner, at = p, fd
				continue
			}
		}
		p.release()
	}
	return owner, at
}

// holder returns the program at a place if it is seen to hold the socket there, to be
// released.
func (f *Finder) holder(at place, link string) *program {
	p := f.os.cache.cached(at.pid)
	if p != nil && p.holds(at.fd, link) {
		return p
	}
	if p != nil {
		ended := p.ended()
		if ended {
			f.os.cache.drop(p)
		}
		p.release()
		if !ended {
			return nil
		}
	}
	p, err := openProgram(f.os.cache.root, at.pid)
	if err != nil {
		return nil
	}
	if !p.holds(at.fd, link) {
		p.release()
		return nil
	}
	return p
}

// withKin returns the image of p and of all others that are found to hold the socket.
func (f *Finder) withKin(p *program, fd int, inode uint64, link string) ([]*image, string) {
	f.os.tree.update()
	own, err := p.image(f.os.facts)
	switch {
	case err == errChanging:
		return nil, CauseExec
	case err != nil:
		return nil, CauseEnded
	}
	holders := []*image{own}
	for _, at := range f.sharers(p, fd, inode, link) {
		q := f.holder(at, link)
		if q == nil {
			continue
		}
		other, err := q.image(f.os.facts)
		switch {
		case err == nil:
			holders = append(holders, other)
		case q.holds(at.fd, link):
			// It holds the socket and cannot be known: not the same program as any.
			holders = append(holders, &image{process: &Process{PID: at.pid, Kind: KindProgram}})
		}
		q.release()
	}
	// The facts are those of a moment at which p still held the socket.
	if !p.holds(fd, link) {
		return nil, CauseEnded
	}
	f.os.cache.use(p)
	f.os.cache.remember(inode, place{p.pid, fd})
	p.found(fd)
	if len(holders) > 1 && f.os.tree.init != 0 {
		holders = slices.DeleteFunc(holders, func(h *image) bool { return h.process.PID == f.os.tree.init })
	}
	return holders, ""
}

// sharers returns where other processes hold the socket of p: those that the last survey saw,
// and those of p's kin that got it by fork or had it passed to them.
func (f *Finder) sharers(p *program, fd int, inode uint64, link string) []place {
	root := f.os.cache.root
	var found []place
	try := func(pid, at int) {
		known := slices.ContainsFunc(found, func(q place) bool { return q.pid == pid })
		if at >= 0 && pid != p.pid && !known && holdsAt(root, pid, at, link) {
			found = append(found, place{pid, at})
		}
	}
	for _, at := range f.os.surveyor.holders(inode) {
		try(at.pid, at.fd)
	}
	budget := tablesPerLookup
	for _, pid := range p.turn(f.os.tree, f.os.surveyor) {
		seen := f.os.tree.tableOf(pid)
		more, good := seen.growth(root, pid)
		if !good && budget > 0 {
			budget--
			at := -1
			seen, at = readTable(root, pid, inode)
			f.os.tree.setTable(pid, seen)
			try(pid, at)
			continue
		}
		if !good {
			try(pid, fd) // fork keeps the number
		}
		if slices.Contains(seen.sockets, inode) {
			_, at := readTable(root, pid, inode)
			try(pid, at)
		}
		for _, next := range seen.free[:min(more, len(seen.free))] {
			try(pid, next) // passed to it
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

// growth compares t with the process now: whether t may still be used, and how many of its
// free numbers may have become descriptors since. One may always have, in place of another.
func (t *table) growth(root string, pid int) (more int, good bool) {
	if time.Since(t.read) > tableAge {
		return 0, false
	}
	grown := tableSize(root, pid) - t.size
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
		if found, isSocket := socketAt(fds, fd); isSocket {
			seen.sockets = append(seen.sockets, found)
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
