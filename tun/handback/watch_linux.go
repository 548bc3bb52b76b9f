package handback

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"gatun/tun/nft"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// watch puts back at once what somebody else takes away, until ctx ends.
func (t *Table) watch(ctx context.Context) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	err = errors.Join(c.SetBPF(nft.Quiet()), c.JoinGroup(unix.NFNLGRP_NFTABLES))
	switch {
	case ctx.Err() != nil:
		return nil // it may be closed already
	case err != nil:
		return errors.Join(fmt.Errorf("watch nftables: %w", err), c.Close())
	}
	for {
		messages, err := c.Receive()
		switch {
		case ctx.Err() != nil || errors.Is(err, os.ErrClosed):
			return nil
		case err != nil && !errors.Is(err, unix.ENOBUFS):
			return fmt.Errorf("watch nftables: %w", err)
		}
		if err == nil && !slices.ContainsFunc(messages, takesAway) {
			continue
		}
		if err := t.mend(); err != nil && !errors.Is(err, ErrClosed) {
			t.warn(err)
		}
	}
}

// takesAway reports whether rules, or what they stand in, were deleted, whoever's they were.
func takesAway(m netlink.Message) bool {
	switch uint16(m.Header.Type) &^ (unix.NFNL_SUBSYS_NFTABLES << 8) {
	case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSET:
		return true
	default:
		return false
	}
}

// mend restores the tables if they are not whole.
func (t *Table) mend() error {
	whole, err := t.whole()
	if err != nil || whole {
		return err
	}
	t.o.Logger.Warn("handback: somebody took the rules away")
	return t.Restore()
}

// whole reports whether every rule is there.
func (t *Table) whole() (bool, error) {
	for _, c := range []struct {
		name  string
		rules int
	}{{chainName, firstRules + count(chainList(t.o))}, {markedName, count(markedList(t.o))}, {knownName, count(knownList(t.o))}, {backName, backRules},
		{otherName, count(otherList(t.o))}, {aheadName, aheadRules}} {
		if ok, err := hasRules(t.o.Table, nftables.TableFamilyINet, c.name, c.rules); err != nil || !ok {
			return ok, err
		}
	}
	if !t.silences {
		return true, nil
	}
	return hasRules(t.o.Table, nftables.TableFamilyNetdev, egressName, count(silenceList()))
}

func hasRules(table string, family nftables.TableFamily, chain string, want int) (bool, error) {
	t := &nftables.Table{Family: family, Name: table}
	rules, err := (&nftables.Conn{}).GetRules(t, &nftables.Chain{Table: t, Name: chain})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return len(rules) == want, err
}
