package handback

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"gatun/network/packet"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// A packet of a handed-back flow is on its way into the device until the chain has marked it, and is
// then routed again: a fifth of what a small datagram costs. A socket that carries Options.SocketMark is
// routed right at once. Short flows are not worth finding the socket, so those that last are looked at.
const (
	firstLook  = 50 * time.Millisecond
	lookFactor = 4 // each look is this many times later than the one before
	looks      = 6 // from then on every 51 s
	// busyFlow is how many packets since the last look are worth it.
	busyFlow = 64
	// maxWatched is how many flows are looked at. Beyond it the oldest of those that have long been idle
	// is left as it is: whoever holds very many flows has few that are busy.
	maxWatched = 4096
	// maxDescriptors is how many descriptors of a process are looked through.
	maxDescriptors = 1024
)

// watched is a flow whose socket has no mark yet.
type watched struct {
	flow packet.Flow
	due  time.Time
	seen uint64 // packets
}

// watches are the flows whose sockets may come to carry the mark: a queue for each interval, in which
// those that are due first are first.
type watches struct {
	mu     sync.Mutex
	queues [looks][]watched
	wake   chan struct{} // one place
}

func interval(look int) time.Duration {
	d := firstLook
	for range look {
		d *= lookFactor
	}
	return d
}

// add looks at a flow later.
func (w *watches) add(look int, now time.Time, f watched) {
	f.due = now.Add(interval(look))
	w.mu.Lock()
	room := w.room()
	if room {
		w.queues[look] = append(w.queues[look], f)
	}
	first := len(w.queues[look]) == 1
	w.mu.Unlock()
	if !room || !first {
		return
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// room makes room for one more if it can. w.mu is held.
func (w *watches) room() bool {
	n := 0
	for _, q := range w.queues {
		n += len(q)
	}
	if n < maxWatched {
		return true
	}
	idle := &w.queues[looks-1]
	if len(*idle) == 0 {
		return false
	}
	*idle = (*idle)[1:]
	return true
}

// due takes out what is to be looked at now, by queue, and says when the next is.
func (w *watches) due(now time.Time) (all [looks][]watched, next time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for look, q := range w.queues {
		n := 0
		for n < len(q) && !q[n].due.After(now) {
			n++
		}
		all[look] = q[:n:n]
		if w.queues[look] = q[n:]; len(q) == n {
			w.queues[look] = nil
		} else if next.IsZero() || q[n].due.Before(next) {
			next = q[n].due
		}
	}
	return all, next
}

// lasts has the flow looked at.
func (t *Table) lasts(f packet.Flow) {
	if t.o.Holder != nil {
		t.watches.add(0, time.Now(), watched{flow: f})
	}
}

// keepMarking gives sockets of flows that last the mark, until ctx ends.
func (t *Table) keepMarking(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		due, next := t.watches.due(time.Now())
		for look, flows := range due {
			if len(flows) > 0 {
				t.look(look, flows)
			}
		}
		wait := time.Hour
		if !next.IsZero() {
			wait = max(time.Until(next), firstLook/2) // those that are due at about the same time together
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-t.watches.wake:
		case <-timer.C:
		}
	}
}

// look reads what flows have sent, marks the sockets of those that were busy, and looks at the others
// later.
func (t *Table) look(look int, due []watched) {
	var flows []packet.Flow
	var seen []uint64
	for _, w := range due {
		if t.accepted(w.flow) {
			flows, seen = append(flows, w.flow), append(seen, w.seen)
		}
	}
	busy := map[int][]packet.Flow{} // by process
	now := time.Now()
	err := t.get(setAccept, flows, func(i int, e found) {
		f := watched{flow: flows[i], seen: e.sent.Packets}
		if f.seen-min(f.seen, seen[i]) >= busyFlow {
			if pid := t.o.Holder(f.flow); pid > 0 {
				busy[pid] = append(busy[pid], f.flow)
				return
			}
		}
		t.watches.add(min(look+1, looks-1), now, f)
	})
	if err != nil && !errors.Is(err, ErrClosed) {
		t.warn(err)
	}
	for pid, flows := range busy {
		marked, err := markSockets(pid, flows, t.o.SocketMark, t.o.Mask)
		if err := t.last(marked); err != nil && !errors.Is(err, ErrClosed) {
			t.warn(err)
		}
		if err != nil {
			t.o.Logger.Debug("handback: sockets without the mark", zap.Int("pid", pid), zap.Error(err))
		}
	}
}

// markSockets gives those sockets of the process that are connected as one of flows the mark, and returns
// the flows of those that have it then. It takes a
// descriptor of each of its sockets for a moment, as a debugger would (pidfd_getfd, Linux 5.6); which
// socket it is is asked of the socket itself, so a process that has got the number of another one is
// harmless. A socket with another mark in the mask is left alone.
func markSockets(pid int, flows []packet.Flow, mark, mask uint32) (marked []packet.Flow, err error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process: %w", err)
	}
	defer unix.Close(process)
	numbers, err := socketsOf(pid)
	if err != nil {
		return nil, fmt.Errorf("look for its sockets: %w", err)
	}
	own, err := netNS()
	if err != nil {
		return nil, err
	}
	wanted := make(map[packet.Flow]struct{}, len(flows))
	for _, f := range flows {
		wanted[f] = struct{}{}
	}
	var errs []error
	for _, number := range numbers {
		if len(wanted) == 0 {
			break
		}
		socket, err := unix.PidfdGetfd(process, number, 0)
		if err != nil {
			errs = append(errs, fmt.Errorf("borrow a socket: %w", err))
			continue
		}
		f, ok := connected(socket, own)
		if _, found := wanted[f]; ok && found {
			delete(wanted, f)
			if err := markSocket(socket, mark, mask); err != nil {
				errs = append(errs, err)
			} else {
				marked = append(marked, f)
			}
		}
		_ = unix.Close(socket)
	}
	return marked, errors.Join(errs...)
}

// socketsOf returns the descriptors of a process that are sockets.
func socketsOf(pid int) (numbers []int, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	open, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer open.Close()
	names, err := open.Readdirnames(maxDescriptors)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		number, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if to, err := os.Readlink(dir + "/" + name); err == nil && strings.HasPrefix(to, "socket:") {
			numbers = append(numbers, number)
		}
	}
	return numbers, nil
}

// markSocket leaves the bits of others as they are.
func markSocket(socket int, mark, mask uint32) error {
	old, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_MARK)
	if err == nil && uint32(old)&mask == mark {
		return nil
	}
	if err == nil && uint32(old)&mask != 0 {
		return fmt.Errorf("it carries the mark %#x of somebody", old)
	}
	if err == nil {
		err = unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_MARK, int(uint32(old)|mark))
	}
	if err != nil {
		return fmt.Errorf("mark a socket: %w", err)
	}
	return nil
}

// netNS is the network namespace that the flows are of.
func netNS() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("this kernel does not number network namespaces (Linux 5.14 does): %w", err)
	}
	return cookie, nil
}

// connected is the flow of a socket that has one and is in the namespace.
func connected(socket int, namespace uint64) (f packet.Flow, ok bool) {
	proto, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || proto != unix.IPPROTO_TCP && proto != unix.IPPROTO_UDP {
		return f, false
	}
	where, err := unix.GetsockoptUint64(socket, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil || where != namespace {
		return f, false
	}
	local, errLocal := unix.Getsockname(socket)
	remote, errRemote := unix.Getpeername(socket)
	if errLocal != nil || errRemote != nil {
		return f, false
	}
	f = packet.Flow{Proto: packet.Proto(proto), Local: addrPort(local), Remote: addrPort(remote)}
	return f, f.Local.IsValid() && f.Remote.IsValid()
}

func addrPort(s unix.Sockaddr) netip.AddrPort {
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr).Unmap(), uint16(s.Port))
	}
	return netip.AddrPort{}
}
