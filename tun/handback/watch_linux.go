package handback

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// watch puts back at once what somebody else takes away, until ctx ends.
func (t *Table) watch(ctx context.Context) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := errors.Join(c.SetBPF(onlyFlows()), c.JoinGroup(unix.NFNLGRP_NFTABLES)); err != nil {
		return errors.Join(fmt.Errorf("watch nftables: %w", err), c.Close())
	}
	for {
		_, err := c.Receive()
		switch {
		case ctx.Err() != nil || errors.Is(err, os.ErrClosed):
			return nil
		case err != nil && !errors.Is(err, unix.ENOBUFS):
			return fmt.Errorf("watch nftables: %w", err)
		}
		if err := t.mend(); err != nil && !errors.Is(err, ErrClosed) {
			t.warn(err)
		}
	}
}

// onlyFlows is a filter that keeps back notifications about a single element of a set, and about the
// number of a transaction: without it each handed-back flow that comes or goes would wake us. The kernel
// may put several notifications into one message; those all pass.
func onlyFlows() []bpf.RawInstruction {
	low, high, length := uint32(4), uint32(1), uint32(0) // in struct nlmsghdr: the type's low byte, the length's two low bytes
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		low, high, length = 5, 2, 3
	}
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: high, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftLeft, Val: 8},
		bpf.TAX{},
		bpf.LoadAbsolute{Off: length, Size: 1},
		bpf.ALUOpX{Op: bpf.ALUOpAdd},
		bpf.TAX{},
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.JumpIfX{Cond: bpf.JumpNotEqual, SkipTrue: 5},
		bpf.LoadAbsolute{Off: low, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.NFT_MSG_NEWSETELEM, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.NFT_MSG_DELSETELEM, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.NFT_MSG_NEWGEN, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: 1 << 18},
	})
	if err != nil {
		panic(err) // a constant
	}
	return raw
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
	ok, err := hasRules(t.o.Table, nftables.TableFamilyINet, chainName, inetRules)
	if err != nil || !ok || !t.drops {
		return ok, err
	}
	return hasRules(t.o.Table, nftables.TableFamilyNetdev, egressName, netdevRules)
}

func hasRules(table string, family nftables.TableFamily, chain string, want int) (bool, error) {
	t := &nftables.Table{Family: family, Name: table}
	rules, err := (&nftables.Conn{}).GetRules(t, &nftables.Chain{Table: t, Name: chain})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return len(rules) == want, err
}
