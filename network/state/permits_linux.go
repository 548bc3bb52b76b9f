package state

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

// Permits are connections that are permitted before they begin: the hook at connect(2) gives their sockets
// the mark, by which rules of the caller's let them out. Every one is told of, and the hook at the packet's
// way out lets no SYN with the mark pass whose socket was not given it for this destination, or that could
// not be told of. Nothing is permitted at the start, nor when the process has ended. Any goroutine may call
// the methods; the tables in the kernel are what mu guards, so they are written while it is held.
type Permits struct {
	h       *hooks
	ring    *ring
	waiting atomic.Bool // somebody is in Wait

	mu         sync.Mutex
	generation uint64
	answers    uint64
	all        map[permitKey]*permission
	byAddr     map[netip.Addr][]permitKey
}

// permission is one that holds.
type permission struct{ used time.Time }

// Permits returns what permits connections ahead, or why nobody does.
func (o *Owners) Permits() (*Permits, error) {
	if o.permits == nil {
		return nil, errors.Join(o.noPermits, ErrNoPermits)
	}
	return o.permits, nil
}

func (o *Owners) openPermits(mark, mask uint32) error {
	h := &o.hooks
	if h.mark, h.mask = mark, mask; mark == 0 {
		return nil
	}
	for _, m := range []struct {
		to   **ebpf.Map
		spec ebpf.MapSpec
	}{
		{&h.permits, ebpf.MapSpec{Name: "gatun_permits", Type: ebpf.Hash, KeySize: permitKeySize, ValueSize: permitValueSize, MaxEntries: maxPermits, Flags: unix.BPF_F_NO_PREALLOC}},
		{&h.controls, ebpf.MapSpec{Name: "gatun_controls", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: controls}},
		{&h.begun, ebpf.MapSpec{Name: "gatun_begun", Type: ebpf.RingBuf, MaxEntries: begunRoom}},
	} {
		made, err := ebpf.NewMap(&m.spec)
		if err != nil {
			return err
		}
		*m.to = made
	}
	r, err := openRing(h.begun.FD(), begunRoom)
	if err != nil {
		return err
	}
	o.permits = &Permits{h: h, ring: r, all: map[permitKey]*permission{}, byAddr: map[netip.Addr][]permitKey{}}
	return nil
}

// Close ends every permission for good.
func (p *Permits) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.generation = 0
	return errors.Join(p.control(controlGeneration, 0), p.ring.close())
}

func (p *Permits) control(word uint32, value uint64) error { return p.h.controls.Put(word, value) }

// Renew ends every permission: the policy is about to change, or has changed. What is decided from now on
// may be permitted.
func (p *Permits) Renew() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.generation++
	if err := p.control(controlGeneration, p.generation); err != nil {
		return fmt.Errorf("end what is permitted ahead: %w", err)
	}
	for key := range p.all {
		_ = p.h.permits.Delete(&key) // it means nothing any more
	}
	clear(p.all)
	clear(p.byAddr)
	return nil
}

// Now is the moment for Permit, to be taken before the decision.
func (p *Permits) Now() Moment {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Moment{p.generation, p.answers}
}

// Permit puts a permission in force that was decided at a moment, or gives it more time. It ends at
// until, so that a process that hangs permits nothing.
func (p *Permits) Permit(a Permission, at Moment, until time.Time) error {
	if !cacheable(a.Proto, a.Remote) || a.ImageID == (ImageID{}) {
		return fmt.Errorf("%s %s: %w", a.Proto, a.Remote, ErrNoPermits)
	}
	key := permitKeyOf(a)
	p.mu.Lock()
	defer p.mu.Unlock()
	_, known := p.all[key]
	switch {
	case p.generation == 0 || at != Moment{p.generation, p.answers}:
		return ErrOutdated
	case !known && len(p.all) >= maxPermits:
		return fmt.Errorf("%w: there are %d permissions", ErrNoPermits, len(p.all))
	}
	if err := p.put(key, until); err != nil {
		return err
	}
	if !known {
		p.all[key] = &permission{used: time.Now()}
		p.byAddr[a.Remote.Addr()] = append(p.byAddr[a.Remote.Addr()], key)
	}
	return nil
}

func (p *Permits) put(key permitKey, until time.Time) error {
	v := permitValue{Generation: p.generation, Until: monotonic() + uint64(max(time.Until(until), 0))}
	if err := p.h.permits.Put(&key, &v); err != nil {
		return fmt.Errorf("permit ahead: %w", err)
	}
	return nil
}

// Extend gives those permissions more time that were used since a time, ends the others, and returns the
// destinations of what is left.
func (p *Permits) Extend(since, until time.Time) (left []netip.AddrPort, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, a := range p.all {
		if a.used.Before(since) {
			err = errors.Join(err, p.end(key))
			continue
		}
		if e := p.put(key, until); e != nil {
			err = errors.Join(err, e, p.end(key))
			continue
		}
		left = append(left, key.remote())
	}
	slices.SortFunc(left, netip.AddrPort.Compare)
	return slices.Compact(left), err
}

// Forget ends the permissions for a destination. What was decided before and is not permitted yet will
// not be.
func (p *Permits) Forget(to netip.AddrPort) error {
	return p.forget(to.Addr(), func(k *permitKey) bool { return k.remote() == to })
}

// ForgetAddr ends the permissions for all destinations of an address, of which something new is known.
func (p *Permits) ForgetAddr(a netip.Addr) error {
	return p.forget(a, func(*permitKey) bool { return true })
}

func (p *Permits) forget(a netip.Addr, which func(*permitKey) bool) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers++
	for _, key := range slices.Clone(p.byAddr[a]) {
		if which(&key) {
			err = errors.Join(err, p.end(key))
		}
	}
	return err
}

// end ends one. p.mu is held.
func (p *Permits) end(key permitKey) error {
	delete(p.all, key)
	a := key.remote().Addr()
	if left := slices.DeleteFunc(p.byAddr[a], func(k permitKey) bool { return k == key }); len(left) > 0 {
		p.byAddr[a] = left
	} else {
		delete(p.byAddr, a)
	}
	if err := p.h.permits.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("end what is permitted ahead: %w", err)
	}
	return nil
}

// Len is how many permissions there are.
func (p *Permits) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.all)
}

// Begun passes the connections that have begun since the last call, in their order.
func (p *Permits) Begun(each func(Begun)) {
	p.drain(each)
	if !p.waiting.Load() {
		return
	}
	// A wake-up that finds nothing wakes nobody: who waits is to be woken by the next.
	if err := p.control(controlArmed, 1); err == nil && !p.ring.empty() {
		p.drain(each)
	}
}

func (p *Permits) drain(each func(Begun)) {
	p.ring.drain(func(sample []byte) {
		var r begunRecord
		if _, err := binary.Decode(sample, binary.NativeEndian, &r); err != nil {
			return
		}
		p.use(r.Permit)
		local := netip.AddrFrom16(r.Local).Unmap()
		each(Begun{Stale: r.Told == toldStale,
			Flow:   packet.Flow{Proto: packet.Proto(r.Permit.Proto), Local: netip.AddrPortFrom(local, uint16(r.Port)), Remote: r.Permit.remote()},
			Sender: Sender{ImageID: r.Permit.ID, UID: r.Permit.UID, Cookie: r.Cookie, NetNS: p.h.netns, Certain: true}})
	})
}

func (p *Permits) use(key permitKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a := p.all[key]; a != nil {
		a.used = time.Now()
	}
}

// Wait waits until a connection has begun that Begun has not passed, or ctx ends. One goroutine may wait.
func (p *Permits) Wait(ctx context.Context) error {
	defer context.AfterFunc(ctx, p.ring.interrupt)()
	p.waiting.Store(true)
	defer p.waiting.Store(false)
	if err := p.control(controlArmed, 1); err != nil {
		return err
	}
	if !p.ring.empty() || ctx.Err() != nil {
		return ctx.Err()
	}
	err := p.ring.wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func permitKeyOf(a Permission) permitKey {
	k := permitKey{ID: a.ImageID, UID: a.UID, Family: familyV4, Proto: uint8(a.Proto), Remote: a.Remote.Addr().As16()}
	if a.Remote.Addr().Is6() {
		k.Family = familyV6
	}
	binary.BigEndian.PutUint16(k.Port[:], a.Remote.Port())
	return k
}

func (k *permitKey) remote() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(k.Remote).Unmap(), binary.BigEndian.Uint16(k.Port[:]))
}

// readable is a descriptor by which the runtime waits for another one.
type readable struct {
	f   *os.File
	raw syscall.RawConn
}

func openReadable(fd int) (*readable, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(unix.SetNonblock(ep, true), unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET})); err != nil {
		return nil, errors.Join(err, unix.Close(ep))
	}
	r := &readable{f: os.NewFile(uintptr(ep), "begun connections")}
	if r.raw, err = r.f.SyscallConn(); err != nil {
		return nil, errors.Join(err, r.f.Close())
	}
	return r, nil
}

// wait waits until the descriptor has become readable since the last wait.
func (r *readable) wait() error {
	var rang [1]unix.EpollEvent
	return r.raw.Read(func(ep uintptr) bool {
		n, err := unix.EpollWait(int(ep), rang[:], 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}
