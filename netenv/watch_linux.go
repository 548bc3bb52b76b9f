package netenv

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nlenc"
	vnetlink "github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// eventBuffer holds the notifications of a busy moment; more only saves full looks.
	eventBuffer = 1 << 20
	// drained is how long no notification comes after the last one that was queued.
	drained = 20 * time.Millisecond
)

// neighbour is a machine on a link.
type neighbour struct {
	addr  netip.Addr
	index int
}

// kernel is the source on Linux: one socket that hears notifications, one that asks. Both
// belong to the network namespace of the thread that opened them.
type kernel struct {
	ignore []string
	log    *zap.Logger
	events *netlink.Conn
	ask    *vnetlink.Handle

	macs map[neighbour]string // of gateways, since they are there without a break; look's own

	mu      sync.Mutex
	seen    seen
	broken  map[int]bool // indexes of links that went away since the last look began
	allLost bool         // notifications were lost: any link may have gone away
}

// seen is what the last look found, by which notifications are measured. Its maps never change.
type seen struct {
	looking  bool // another look has begun, so this is about to be replaced
	gateways map[neighbour]bool
	vpns     map[int]bool // indexes of VPN interfaces
}

func open(o Options) (source, error) { return openKernel(o, eventBuffer) }

func openKernel(o Options, buffer int) (*kernel, error) {
	k := &kernel{ignore: o.Ignore, log: o.Logger, macs: map[neighbour]string{}, broken: map[int]bool{}}
	if k.log == nil {
		k.log = zap.NewNop()
	}
	var err error
	if k.events, err = netlink.Dial(unix.NETLINK_ROUTE, nil); err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	_ = k.events.SetReadBuffer(buffer)
	for _, group := range []uint32{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEIGH} {
		if err := k.events.JoinGroup(group); err != nil {
			_ = k.events.Close()
			return nil, fmt.Errorf("netlink group %d: %w", group, err)
		}
	}
	// The routes of a next-hop object go with it, without a word. Kernels without such objects
	// (before 5.3) do not know the group.
	_ = k.events.JoinGroup(unix.RTNLGRP_NEXTHOP)
	if k.ask, err = vnetlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		_ = k.events.Close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return k, nil
}

func (k *kernel) close() {
	_ = k.events.Close()
	k.ask.Close()
}

// watch receives notifications. Where the kernel had to drop some (ENOBUFS) it drops more,
// without a word, until its queue is empty: until then every notification counts.
func (k *kernel) watch(ctx context.Context, changed func()) error {
	defer context.AfterFunc(ctx, func() { _ = k.events.Close() })()
	overrun := false
	for {
		msgs, err := k.events.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			k.log.Debug("notifications of the network were lost, all of it is read again")
			overrun = true
			k.loseAll()
			changed()
		case overrun && errors.Is(err, os.ErrDeadlineExceeded):
			overrun = false
			_ = k.events.SetReadDeadline(time.Time{})
			k.loseAll()
			changed()
		case err != nil:
			return fmt.Errorf("the kernel's notifications of network changes ended: %w", err)
		case k.matter(msgs) || overrun:
			changed()
		}
		if overrun {
			_ = k.events.SetReadDeadline(time.Now().Add(drained))
		}
	}
}

func (k *kernel) loseAll() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.allLost = true
}

// matter reports whether a look may find something new after these notifications, and notes the
// links that went away. Busy networks have many notifications that say nothing: neighbours that
// are no gateways, foreign routes.
func (k *kernel) matter(msgs []netlink.Message) bool {
	k.mu.Lock()
	last := k.seen
	k.mu.Unlock()
	matters := last.looking
	var broken []int
	for _, m := range msgs {
		switch m.Header.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			index, gone, counts := readLink(m)
			if gone {
				broken = append(broken, index)
			}
			matters = matters || counts
		case unix.RTM_NEWADDR, unix.RTM_DELADDR, unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
			matters = true
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			matters = matters || last.routeMatters(m.Data)
		case unix.RTM_NEWNEIGH:
			matters = matters || last.neighbourMatters(m.Data)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, index := range broken {
		k.broken[index] = true
	}
	return matters
}

// readLink reads which link it is about, and whether that went away, be it for a moment only.
func readLink(m netlink.Message) (index int, gone, counts bool) {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return 0, false, true
	}
	if m.Data[0] == unix.AF_BRIDGE { // about a port of a bridge; the link itself is told apart
		return 0, false, false
	}
	flags := nlenc.Uint32(m.Data[8:12])
	return int(nlenc.Int32(m.Data[4:8])), m.Header.Type == unix.RTM_DELLINK || flags&unix.IFF_RUNNING == 0, true
}

// routeMatters is true for default routes, for what leads or may lead into a VPN, and for what
// is not understood.
func (s seen) routeMatters(b []byte) bool {
	if len(b) < unix.SizeofRtMsg {
		return true
	}
	if b[7] != unix.RTN_UNICAST { // rtm_type
		return false
	}
	attrs, err := netlink.UnmarshalAttributes(b[unix.SizeofRtMsg:])
	if err != nil || b[1] == 0 { // rtm_dst_len
		return true
	}
	for _, a := range attrs {
		if a.Type == unix.RTA_OIF && len(a.Data) == 4 {
			return s.vpns[int(nlenc.Uint32(a.Data))]
		}
	}
	return true // several next hops, or one of the kernel's objects
}

// neighbourMatters is true for what the neighbour table learns about a gateway.
func (s seen) neighbourMatters(b []byte) bool {
	if len(b) < unix.SizeofNdMsg {
		return true
	}
	index, state := int(nlenc.Int32(b[4:8])), nlenc.Uint16(b[8:10])
	if b[0] != unix.AF_INET && b[0] != unix.AF_INET6 || state&known == 0 {
		return false
	}
	attrs, err := netlink.UnmarshalAttributes(b[unix.SizeofNdMsg:])
	if err != nil {
		return true
	}
	for _, a := range attrs {
		if addr, ok := netip.AddrFromSlice(a.Data); ok && a.Type == unix.NDA_DST {
			return s.gateways[neighbour{addr, index}]
		}
	}
	return false
}
