package handback

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"gatun/network/packet"

	"golang.org/x/sys/unix"
)

const (
	// Multicast groups of destroyed sockets, as bits: SKNLGRP_INET_TCP_DESTROY and so on.
	groupsTCP = 1<<(1-1) | 1<<(3-1)
	groupsUDP = 1<<(2-1) | 1<<(4-1)
	// eventBuffer is room for about 20 000 sockets that nobody has read of yet.
	eventBuffer = 8 << 20
	// gathering is how long closed connections wait for others, so that they end together. Nobody can
	// use the time: a SYN never passes by the set. A datagram does, so UDP does not wait.
	gathering = 5 * time.Millisecond
)

// events is the kernel's word that sockets of one protocol are gone.
type events struct {
	proto packet.Proto
	f     *os.File
	bell  *bell // of TCP: rings when there is something to read
	ended atomic.Bool
}

func (e *events) close() {
	e.ended.Store(true)
	_ = e.f.Close()
	if e.bell != nil {
		_ = e.bell.f.Close()
	}
}

func openEvents(proto packet.Proto) (*events, error) {
	groups, mode := uint32(groupsTCP), 0
	if proto == packet.UDP {
		groups, mode = groupsUDP, unix.SOCK_NONBLOCK
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|mode, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("listen for closed sockets: %w", typed(err))
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, eventBuffer) // as much as is allowed
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for closed sockets: %w", typed(err)), unix.Close(fd))
	}
	e := &events{proto: proto, f: os.NewFile(uintptr(fd), "closed sockets")}
	if proto == packet.TCP { // not polled by the runtime: each connection that closes would wake it
		if err = unix.SetNonblock(fd, true); err == nil {
			e.bell, err = openBell(fd)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("listen for closed sockets: %w", err), e.f.Close())
		}
	}
	return e, nil
}

// eventReader reads what is there.
type eventReader struct {
	proto   packet.Proto
	buf     []byte
	batch   []socket
	overrun bool // the kernel had to throw events away
	err     error
}

// fill reads a batch, and reports whether there was anything.
func (r *eventReader) fill(fd uintptr) bool {
	for len(r.batch) < batchLimit {
		n, err := uninterrupted(func() (int, error) { return unix.Read(int(fd), r.buf) })
		switch {
		case err == unix.EAGAIN:
			return len(r.batch) > 0 || r.overrun
		case err == unix.ENOBUFS:
			r.overrun = true
			return true
		case err != nil:
			r.err = err
			return true
		}
		if n <= netlinkHeader {
			continue
		}
		if s, ok := readSocket(r.proto, r.buf[netlinkHeader:n]); ok {
			if s.known && s.Received > 0 {
				s.Received-- // the other side's FIN counts as a byte
			}
			r.batch = append(r.batch, s)
		}
	}
	return true
}

// next waits until something can be read, and reads it.
func (e *events) next(raw syscall.RawConn, r *eventReader) error {
	r.batch, r.overrun, r.err = r.batch[:0], false, nil
	if e.bell == nil {
		return errors.Join(raw.Read(r.fill), r.err)
	}
	for {
		some := false
		if err := raw.Control(func(fd uintptr) { some = r.fill(fd) }); err != nil || some {
			return errors.Join(err, r.err)
		}
		if err := e.bell.await(raw); err != nil {
			return err
		}
	}
}

// run passes what was gone at once as one batch, until ctx ends. lost is called where the kernel had
// to throw events away.
func (e *events) run(ctx context.Context, gone func([]socket), lost func()) error {
	defer context.AfterFunc(ctx, e.close)()
	raw, err := e.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("listen for closed sockets: %w", err)
	}
	gather := time.NewTimer(gathering)
	defer gather.Stop()
	r := eventReader{proto: e.proto, buf: make([]byte, 8<<10)}
	for {
		err := e.next(raw, &r)
		if e.ended.Load() {
			return nil
		}
		if err != nil {
			return fmt.Errorf("listen for closed sockets: %w", err)
		}
		gone(r.batch)
		if r.overrun {
			lost()
		}
		if e.bell == nil || len(r.batch) == batchLimit {
			continue
		}
		gather.Reset(gathering)
		select {
		case <-ctx.Done():
		case <-gather.C:
		}
	}
}

// bell tells once that a descriptor can be read, and is silent until it is asked again.
type bell struct {
	f   *os.File
	raw syscall.RawConn
}

func openBell(fd int) (*bell, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(unix.SetNonblock(ep, true), unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{})); err != nil {
		return nil, errors.Join(err, unix.Close(ep))
	}
	b := &bell{f: os.NewFile(uintptr(ep), "bell")}
	if b.raw, err = b.f.SyscallConn(); err != nil {
		return nil, errors.Join(err, b.f.Close())
	}
	return b, nil
}

// await waits until the descriptor of watched can be read.
func (b *bell) await(watched syscall.RawConn) error {
	var failed error
	err := watched.Control(func(fd uintptr) {
		ringing := b.raw.Control(func(ep uintptr) {
			failed = unix.EpollCtl(int(ep), unix.EPOLL_CTL_MOD, int(fd), &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT})
		})
		failed = errors.Join(failed, ringing)
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	var rang [1]unix.EpollEvent
	return b.raw.Read(func(ep uintptr) bool {
		n, err := unix.EpollWait(int(ep), rang[:], 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}
