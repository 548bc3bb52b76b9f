package route

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
)

// The fixed names, in one place. Everything that gatun adds to the machine carries one of
// them, so that Recover finds it without a journal.
const (
	// DeviceName is the TUN device.
	DeviceName = "gatun0"
	// TableName is the nftables table, family inet.
	TableName = "gatun"
	// DefaultMark is the packet mark of gatun's own sockets, DefaultMask the bits that belong
	// to gatun. The lower half is left to others (docker, kube-proxy, wg-quick use it).
	DefaultMark = 0x67610000
	// DefaultMask is the part of the packet mark that is gatun's.
	DefaultMask = 0xffff0000
	// QueueNumber is the queue (nfnetlink_queue) in which new inbound flows wait for their verdict.
	QueueNumber = 26465
	// DefaultTable is the routing table that leads into the TUN device.
	DefaultTable = 26465
	// RouteProtocol is the "proto" of every rule and route of ours (see rtnetlink(7)).
	RouteProtocol = 103
	// PriorityOwn is the rule for gatun's own sockets. The priorities are low numbers because
	// other VPNs must not come first; only the rule of the table local does.
	PriorityOwn = 10
	// PriorityOld is the rule for flows that keep the path they had: replies of inbound flows
	// and flows that were open before Up.
	PriorityOld = 11
	// PriorityLink is the rule for multicast and link-local destinations.
	PriorityLink = 12
	// PriorityTun is the rule that sends all the rest into the TUN device.
	PriorityTun = 13
)

// Names are the names in use: the fixed ones, with mark and table as the settings core/mark
// and core/table say. Printed by `status --json`.
type Names struct {
	Device       string `json:"device"`
	NftTable     string `json:"nft_table"`
	Mark         uint32 `json:"mark"`         // on gatun's own sockets; counts only together with their user
	OldMark      uint32 `json:"old_mark"`     // set by the guard only: this packet keeps its old path
	InMark       uint32 `json:"in_mark"`      // on inbound flows that were accepted
	AskedMark    uint32 `json:"asked_mark"`   // on datagrams that answer a multicast or broadcast query
	BackMark     uint32 `json:"back_mark"`    // on sockets of flows that were handed back; counts only together with that flow's connection mark
	LastingMark  uint32 `json:"lasting_mark"` // the connection mark of those handed-back flows that are not looked up any more; BackMark but for one bit
	DivertMark   uint32 `json:"divert_mark"`  // on SYNs of programs that gatun sends once more, to end the connection itself
	Queue        uint16 `json:"queue"`
	Mask         uint32 `json:"mask"`
	Table        int    `json:"table"`
	Protocol     int    `json:"protocol"`
	PriorityOwn  int    `json:"priority_own"`
	PriorityOld  int    `json:"priority_old"`
	PriorityLink int    `json:"priority_link"`
	PriorityTun  int    `json:"priority_tun"`
}

// DefaultNames returns the fixed names.
func DefaultNames() Names {
	return Names{
		Device: DeviceName, NftTable: TableName,
		Mask: DefaultMask, Queue: QueueNumber,
		Table: DefaultTable, Protocol: RouteProtocol,
		PriorityOwn: PriorityOwn, PriorityOld: PriorityOld,
		PriorityLink: PriorityLink, PriorityTun: PriorityTun,
	}.WithMark(DefaultMark)
}

// WithMark returns n with another mark (core/mark). The mask stays.
func (n Names) WithMark(mark uint32) Names {
	n.Mark, n.OldMark = mark, nextMark(mark, n.Mask)
	n.InMark = nextMark(n.OldMark, n.Mask)
	n.AskedMark = nextMark(n.InMark, n.Mask)
	n.BackMark = nextMark(n.AskedMark, n.Mask)
	n.LastingMark = n.BackMark ^ topBit(n.Mask)
	n.DivertMark = nextMark(n.BackMark, n.Mask)
	return n
}

// WithTable returns n with another routing table (core/table).
func (n Names) WithTable(table int) Names {
	n.Table = table
	return n
}

// nextMark is the next value of the bit-field.
func nextMark(mark, mask uint32) uint32 {
	if mask == 0 {
		return mark
	}
	return (mark + 1<<bits.TrailingZeros32(mask)) & mask
}

// topBit is the highest bit of the bit-field, which two of its first values do not differ in.
func topBit(mask uint32) uint32 {
	if mask == 0 {
		return 0
	}
	return 1 << (bits.Len32(mask) - 1)
}

// backMask is the part of the connection mark in which BackMark and LastingMark are alike, and all others are not.
func (n Names) backMask() uint32 { return n.Mask &^ (n.BackMark ^ n.LastingMark) }

func distinct(marks ...uint32) bool {
	slices.Sort(marks)
	return len(slices.Compact(slices.Clone(marks))) == len(marks)
}

// The routing tables that belong to the kernel (rtnetlink(7)).
const (
	tableDefault = 253
	tableMain    = 254
	tableLocal   = 255
)

// Validate says what is wrong with n, or nil.
func (n Names) Validate() error {
	switch {
	case n.Device == "" || n.NftTable == "":
		return errors.New("the names of the device and of the nftables table must not be empty")
	case n.Mark == 0 || n.Mark&^n.Mask != 0:
		return fmt.Errorf("core/mark: want a value inside the mask %#08x and not 0, got %#08x", n.Mask, n.Mark)
	case slices.Contains([]uint32{n.OldMark, n.InMark, n.AskedMark, n.BackMark, n.LastingMark, n.DivertMark}, 0) ||
		!distinct(n.Mark, n.OldMark, n.InMark, n.AskedMark, n.BackMark, n.LastingMark, n.DivertMark):
		return fmt.Errorf("core/mark: %#08x leaves no room for six marks more in the mask %#08x; take a smaller one", n.Mark, n.Mask)
	case n.Table < 1 || n.Table >= tableDefault && n.Table <= tableLocal:
		return fmt.Errorf("core/table: want a table number of its own, not 253, 254 or 255, got %d", n.Table)
	}
	return nil
}
