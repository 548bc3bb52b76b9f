package attribution

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"gatun/network/packet"
	"gatun/network/state"
)

// osFinder is the Linux part of a Finder: what the kernel saw, socket diagnosis, then /proc.
type osFinder struct {
	witness  *witness
	facts    *factReader
	cache    *cache
	tree     *tree
	sizes    *sizes
	scan     *scanner
	surveyor *surveyor
}

func newOSFinder(o Options) osFinder {
	c, t := newCache(o.Proc), newTree(o.Proc, o.Self)
	return osFinder{
		witness:  &witness{senders: o.Senders},
		facts:    newFactReader(o.Proc),
		cache:    c,
		tree:     t,
		sizes:    &sizes{},
		scan:     &scanner{cache: c, tree: t, first: o.Root},
		surveyor: &surveyor{cache: c, tree: t},
	}
}

func (o osFinder) compact() {
	o.cache.forget()
	o.witness.forget()
}

func (o osFinder) close() {
	for _, p := range o.cache.recent(nil, maxPrograms) {
		o.cache.drop(p)
		p.release()
	}
	o.sizes.close()
	if o.tree.loadavg != nil {
		o.tree.loadavg.Close()
	}
}

func (o osFinder) closed(local netip.AddrPort) {
	if p, was := o.cache.closed(local.Port()); p != nil {
		p.vacate(was)
		p.release()
	}
}

// maxSockets is how many sockets of one address are looked at. More than this never belong
// to one process only as far as anyone can tell in time.
const maxSockets = 16

// find names the process that was seen to send, or asks for the sockets and names their one
// holder.
func (f *Finder) find(ctx context.Context, flow, sent packet.Flow) Owner {
	s, found := f.sender(sent)
	if !found {
		return f.search(ctx, flow)
	}
	if s.Certain {
		if o, sure := f.seen(s); sure {
			return o
		}
	}
	return f.weigh(f.search(ctx, flow), s)
}

// search asks for the sockets and names their one holder.
func (f *Finder) search(ctx context.Context, flow packet.Flow) Owner {
	f.lookups.Add(1)
	began := time.Now()
	if f.state == nil {
		return f.findPortable(ctx, flow)
	}
	sockets, err := f.state.Find(nil, flow)
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
	if flow.Proto == packet.UDP && total == 1 {
		f.os.cache.bound(flow.Local.Port(), sockets[0].Inode)
	}
	return f.ownerOf(ctx, began, flow, sockets)
}

// ownerOf names the owner of the sockets of one flow.
func (f *Finder) ownerOf(ctx context.Context, began time.Time, flow packet.Flow, sockets []state.Socket) Owner {
	var all []*image
	counted := 0
	for _, s := range sockets {
		holders, cause := f.holders(ctx, began, s.Inode)
		if len(holders) == 0 {
			if cause = f.recheck(flow, s, cause); cause == "" {
				holders, cause = f.holders(ctx, began, s.Inode)
			}
		}
		if len(holders) == 0 && len(sockets) > 1 {
			return ambiguous(CauseManySockets)
		}
		if len(holders) == 0 {
			return Unidentified(cause)
		}
		if s.Raw && (len(sockets) > 1 || !flow.Proto.IsICMP()) && len(holders) == 1 && holders[0].process.PID == f.self {
			continue // our relay pings with a raw socket of its own, and others send again what was held, but never through the TUN
		}
		counted++
		for _, h := range holders {
			if !slices.ContainsFunc(all, func(o *image) bool { return o.process.PID == h.process.PID }) {
				all = append(all, h)
			}
		}
	}
	if counted == 0 {
		return Unidentified(CauseNoSocket)
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
	return ""
}

// holders returns the programs that hold the socket, none with a cause.
func (f *Finder) holders(ctx context.Context, began time.Time, inode uint64) ([]*image, string) {
	at, found := f.os.cache.metSince(inode, began)
	if !found {
		at, found = f.quick(inode)
	}
	if !found {
		var hidden int
		var err error
		at.place, found, hidden, err = f.os.scan.find(ctx, inode)
		switch {
		case err != nil:
			return nil, CauseTimeout
		case !found && hidden > 0:
			return nil, CauseHidden
		case !found:
			return nil, CauseNoHolder
		}
		if at.program = f.holder(at.place, inode); at.program == nil {
			return nil, CauseEnded
		}
	}
	defer at.program.release()
	return f.withKin(at, inode)
}

// spot is a socket seen in a program, which is to be released.
type spot struct {
	place
	program *program
	before  *image // what the program ran before it was seen with the socket; nil: not known
}

// quick finds a holder without a search: where the socket was last time, or at the likely
// descriptors of the programs that last owned one.
func (f *Finder) quick(inode uint64) (at spot, found bool) {
	if known, is := f.os.cache.place(inode); is {
		before := f.os.cache.running(known.pid)
		if p := f.holder(known, inode); p != nil {
			return spot{known, p, before}, true
		}
	}
	limits := [maxRecent]int{8, 4, 2, 2}
	var few [maxRecent]*program
	for i, p := range f.os.cache.recent(few[:0], maxRecent) {
		if !found {
			before := p.runs()
			if fd, is := p.guess(f.os.cache, inode, limits[i]); is {
				at, found = spot{place{p.pid, fd}, p, before}, true
				continue
			}
		}
		p.release()
	}
	return at, found
}

// holder returns the program at a place if it is seen to hold the socket there, to be
// released.
func (f *Finder) holder(at place, inode uint64) *program {
	p := f.os.cache.cached(at.pid)
	if p != nil && p.holds(at.fd, inode) {
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
	if !p.holds(at.fd, inode) {
		p.release()
		return nil
	}
	return p
}

// withKin returns the image of the program and of all others that are found to hold the socket.
func (f *Finder) withKin(at spot, inode uint64) ([]*image, string) {
	p, fd := at.program, at.fd
	r := p.round(f.look)
	switch {
	case r.err == errChanging:
		return nil, CauseExec
	case r.err != nil:
		return nil, CauseEnded
	}
	holders := []*image{r.own}
	for _, at := range f.sharers(r, at.place, inode) {
		q := f.holder(at, inode)
		if q == nil {
			continue
		}
		other, err := q.image(f.os.facts)
		switch {
		case err == nil:
			holders = append(holders, other)
		case q.holds(at.fd, inode):
			// It holds the socket and cannot be known: not the same program as any.
			holders = append(holders, &image{process: &Process{PID: at.pid, Kind: KindProgram}})
		}
		q.release()
	}
	// The facts are those of a moment at which p held the socket: it ran this image before it was seen
	// with the socket, and ran it still after that. Otherwise it has to hold it still.
	if r.own != at.before && !p.holds(fd, inode) {
		return nil, CauseEnded
	}
	f.os.cache.use(p)
	f.os.cache.remember(inode, place{p.pid, fd})
	p.found(fd, inode)
	if len(holders) > 1 && f.os.tree.init != 0 {
		holders = slices.DeleteFunc(holders, func(h *image) bool { return h.process.PID == f.os.tree.init })
	}
	return holders, ""
}

// sharers returns where other processes hold the socket of own: those that the last survey saw,
// and those of its kin that got it by fork or had it passed to them.
func (f *Finder) sharers(r *round, own place, inode uint64) []place {
	root := f.os.cache.root
	var found []place
	try := func(pid, at int) bool {
		if slices.ContainsFunc(found, func(q place) bool { return q.pid == pid }) {
			return true
		}
		holds := at >= 0 && pid != own.pid && holdsAt(root, pid, at, inode)
		if holds {
			found = append(found, place{pid, at})
		}
		return holds
	}
	for _, at := range f.os.surveyor.holders(inode) {
		try(at.pid, at.fd)
	}
	isIt := func(h held) bool { return h.inode == inode }
	for _, k := range r.kin {
		if i := slices.IndexFunc(k.seen, isIt); i >= 0 && !try(k.pid, k.seen[i].fd) {
			_, at := readTable(root, k.pid, inode) // it has moved
			try(k.pid, at)
		}
		switch i := slices.IndexFunc(k.fresh, isIt); {
		case i >= 0:
			try(k.pid, k.fresh[i].fd)
		case !k.known:
			try(k.pid, own.fd) // fork keeps the number
		}
	}
	return found
}
