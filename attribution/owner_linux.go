package attribution

import (
	"context"
	"errors"
	"slices"
	"time"

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
	own, ok := p.image(f.os.facts)
	if !ok {
		return nil, CauseEnded
	}
	holders := []*image{own}
	for _, at := range f.sharers(p, fd, inode, link) {
		q := f.holder(at, link)
		if q == nil {
			continue
		}
		other, ok := q.image(f.os.facts)
		switch {
		case ok:
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

// sharers returns the other processes that hold the socket of p's descriptor fd: those that the
// last survey saw, and those of p's kin that have it at the same number (fork keeps it) or at
// the next number that they would give it (passed to them). From time to time all
// descriptors of the nearest kin are read.
func (f *Finder) sharers(p *program, fd int, inode uint64, link string) []place {
	root := f.os.cache.root
	var found []place
	try := func(pid, at int) bool {
		holds := at >= 0 && pid != p.pid && holdsAt(root, pid, at, link)
		if holds && !slices.ContainsFunc(found, func(q place) bool { return q.pid == pid }) {
			found = append(found, place{pid, at})
		}
		return holds
	}
	for _, at := range f.os.surveyor.holders(inode) {
		try(at.pid, at.fd)
	}
	members, sweep := p.turn(f.os.tree, f.os.surveyor)
	for i := range members[:sweep] {
		at := -1
		members[i].free, at = sweepKinsman(root, members[i].pid, inode)
		try(members[i].pid, at)
	}
	p.swept(members[:sweep])
	for _, m := range members[sweep:] {
		if !try(m.pid, fd) && m.free != fd {
			try(m.pid, m.free)
		}
	}
	return found
}

const (
	probesPerLookup = 12                     // kin that are tried per look-up; the others take turns
	sweptKin        = 8                      // nearest kin whose descriptors are read in full
	sweepAge        = 250 * time.Millisecond // and how often
	sweptTable      = 256                    // unless they have more descriptors than this
)

// turn returns the kin of p to try now. The first sweep of them are to be read in full: those
// that never were, and from time to time the nearest.
func (p *program) turn(t *tree, s *surveyor) (members []kinsman, sweep int) {
	p.mu.Lock()
	had := p.kin.version
	p.mu.Unlock()
	if had == 0 || t.current() != had {
		pids, version := t.kinOf(p.pid)
		pids = append(s.partners(p.pid), pids...)
		p.mu.Lock()
		p.kin.renew(pids, version)
		p.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.kin.members
	if time.Since(p.checked) > sweepAge {
		p.checked = time.Now()
		sweep = min(len(all), sweptKin)
	}
	members = slices.Clone(all[:sweep])
	for _, m := range all[sweep:] {
		if m.free == unswept && sweep < sweptKin {
			members = append(members, m)
			sweep++
		}
	}
	near := min(len(all), probesPerLookup/2)
	for i := range near {
		members = appendNew(members, all[i])
	}
	rest := all[near:]
	for range min(len(rest), probesPerLookup/2) {
		p.kin.turn++
		members = appendNew(members, rest[p.kin.turn%len(rest)])
	}
	return members, sweep
}

// appendNew appends m unless its process is among members.
func appendNew(members []kinsman, m kinsman) []kinsman {
	if slices.ContainsFunc(members, func(o kinsman) bool { return o.pid == m.pid }) {
		return members
	}
	return append(members, m)
}

// renew sets the members and keeps what is known of those that stay.
func (k *kin) renew(pids []int, version uint64) {
	old := k.members
	k.version = version
	k.members = make([]kinsman, 0, len(pids))
	for _, pid := range pids {
		m := kinsman{pid: pid, free: unswept}
		if i := slices.IndexFunc(old, func(o kinsman) bool { return o.pid == pid }); i >= 0 {
			m = old[i]
		}
		k.members = appendNew(k.members, m)
	}
}

// swept keeps what was learnt of kin.
func (p *program) swept(learnt []kinsman) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range learnt {
		for i := range p.kin.members {
			if p.kin.members[i].pid == l.pid {
				p.kin.members[i].free = l.free
			}
		}
	}
}

// sweepKinsman reads the descriptors of a process: the lowest number that is free, and the one
// that is the socket, -1 if none is.
func sweepKinsman(root string, pid int, inode uint64) (free, at int) {
	at = -1
	p, err := openProgram(root, pid)
	if err != nil {
		return unreadable, at
	}
	defer p.release()
	var used bitset
	count := 0
	err = eachFD(p.dir, func(fds, fd int) bool {
		used.add(fd)
		count++
		if found, isSocket := socketAt(fds, fd); isSocket && found == inode {
			at = fd
		}
		return count < sweptTable
	})
	if err != nil {
		return unreadable, at
	}
	return used.firstFree(), at
}
