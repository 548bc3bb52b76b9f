package route

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"gatun/tun/nft"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nlenc"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// watch subscribes to the kernel's notifications and says what they are about, until ctx ends.
// A notification that got lost (ENOBUFS) counts as a change of everything.
func watch(ctx context.Context, n Names, out chan<- change, log *zap.Logger) error {
	rt, err := subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		return err
	}
	nf, err := subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		_ = rt.Close()
		return err
	}
	if err := nf.SetBPF(nft.Quiet()); err != nil {
		log.Warn("every change of a set of nftables is looked at", zap.Error(err))
	}
	var wg sync.WaitGroup
	wg.Go(func() { receive(ctx, rt, out, log, func(m netlink.Message) change { return routeChange(n, m) }) })
	wg.Go(func() { receive(ctx, nf, out, log, func(m netlink.Message) change { return guardChange(n, m) }) })
	// What happened before the subscription is found by a full look.
	send(ctx, out, guardChanged|routesChanged|addressesChanged)
	<-ctx.Done()
	_ = rt.Close()
	_ = nf.Close()
	wg.Wait()
	return nil
}

func subscribe(family int, groups ...uint32) (*netlink.Conn, error) {
	c, err := netlink.Dial(family, nil)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	_ = c.SetReadBuffer(nftBuffer) // a bigger one only saves full looks
	for _, g := range groups {
		if err := c.JoinGroup(g); err != nil {
			_ = c.Close()
			return nil, fmt.Errorf("netlink group %d: %w", g, err)
		}
	}
	return c, nil
}

func receive(ctx context.Context, c *netlink.Conn, out chan<- change, log *zap.Logger, classify func(netlink.Message) change) {
	for {
		msgs, err := c.Receive()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, unix.ENOBUFS):
			send(ctx, out, guardChanged|routesChanged|addressesChanged)
			continue
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			log.Error("netlink notifications ended, only the poll is left", zap.Error(err))
			return
		}
		var seen change
		for _, m := range msgs {
			seen |= classify(m)
		}
		if seen != 0 {
			send(ctx, out, seen)
		}
	}
}

func send(ctx context.Context, out chan<- change, c change) {
	select {
	case out <- c:
	case <-ctx.Done():
	}
}

// routeChange classifies an rtnetlink message. Routes count in main and in our table only.
func routeChange(n Names, m netlink.Message) change {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return addressesChanged
	case unix.RTM_NEWRULE:
		return routesChanged
	case unix.RTM_DELRULE:
		return captureDamaged
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		switch t := routeTable(m.Data); {
		case t == uint32(n.Table) && m.Header.Type == unix.RTM_DELROUTE:
			return captureDamaged
		case t == uint32(n.Table), t == tableMain:
			return routesChanged
		}
	}
	return 0
}

// routeTable reads the table of a route message: the attribute, else the header's byte.
func routeTable(b []byte) uint32 {
	if len(b) < unix.SizeofRtMsg {
		return 0
	}
	table := uint32(b[4])
	attrs, err := netlink.UnmarshalAttributes(b[unix.SizeofRtMsg:])
	if err != nil {
		return table
	}
	for _, a := range attrs {
		if a.Type == unix.RTA_TABLE && len(a.Data) == 4 {
			return nlenc.Uint32(a.Data)
		}
	}
	return table
}

// nfgenmsgLen is the header of a netfilter message; its first byte is the family.
const nfgenmsgLen = 4

// guardChange reports whether a netfilter message is about our table. Set elements are not
// looked at: the snapshot is ours to change, and sets do not let anything through for long.
func guardChange(n Names, m netlink.Message) change {
	switch uint16(m.Header.Type) &^ (unix.NFNL_SUBSYS_NFTABLES << 8) {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN,
		unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSET:
	default:
		return 0
	}
	if len(m.Data) < nfgenmsgLen || m.Data[0] != unix.NFPROTO_INET {
		return 0
	}
	attrs, err := netlink.UnmarshalAttributes(m.Data[nfgenmsgLen:])
	if err != nil {
		return guardChanged
	}
	for _, a := range attrs {
		// The table's name is attribute 1 of every one of these messages.
		if a.Type == unix.NFTA_TABLE_NAME {
			if bytes.Equal(bytes.TrimRight(a.Data, "\x00"), []byte(n.NftTable)) {
				return guardChanged
			}
			return 0
		}
	}
	return 0
}
