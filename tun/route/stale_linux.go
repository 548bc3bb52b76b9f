package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// More of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctMarkAttr, ctMarkMask = 8, 21 // CTA_MARK, CTA_MARK_MASK
	ctZoneAttr             = 18

	// marksPerSend keeps what is sent at once small.
	marksPerSend = 64
)

// forgetHandedBack takes the mark of flows that tun/handback gave back from all entries of connection
// tracking. They outlive Down, and the flows are in the snapshot when Up comes again: nothing may call
// them handed back then. Entries that are gone meanwhile are none of ours.
func forgetHandedBack(n Names) error {
	c, err := mdnetlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer c.Close()
	_ = c.SetReadBuffer(nftBuffer)
	ask := appendMark([]byte{unix.AF_UNSPEC, 0, 0, 0}, n.BackMark&n.backMask(), n.backMask())
	entries, err := c.Execute(mdnetlink.Message{Header: mdnetlink.Header{Type: ctGet, Flags: mdnetlink.Request | mdnetlink.Dump}, Data: ask})
	if err != nil {
		return fmt.Errorf("list connections that were handed back: %w", err)
	}
	var changes []mdnetlink.Message
	var errs []error
	for _, e := range entries {
		if data, ok := unmark(e.Data, n.Mask); ok {
			changes = append(changes, mdnetlink.Message{Header: mdnetlink.Header{Type: ctNew0, Flags: mdnetlink.Request}, Data: data})
		}
	}
	for part := range slices.Chunk(changes, marksPerSend) {
		if _, err := c.SendMessages(part); err != nil {
			errs = append(errs, fmt.Errorf("forget that connections were handed back: %w", err))
		}
	}
	return errors.Join(errs...)
}

// appendMark appends a mark of an entry, and the bits of it that are meant.
func appendMark(b []byte, mark, mask uint32) []byte {
	b = appendAttr(b, ctMarkAttr, binary.BigEndian.AppendUint32(nil, mark))
	return appendAttr(b, ctMarkMask, binary.BigEndian.AppendUint32(nil, mask))
}

// unmark turns an entry into the request that takes the bits of mask from its mark.
func unmark(entry []byte, mask uint32) (request []byte, ok bool) {
	if len(entry) < 4 {
		return nil, false
	}
	request = append(request, entry[:4]...)
	err := eachAttr(entry[4:], func(typ uint16, value []byte) error {
		switch typ {
		case ctTupleOriginal:
			ok = true
			request = appendAttr(request, typ|attrNested, value)
		case ctZoneAttr:
			request = appendAttr(request, typ, value)
		}
		return nil
	})
	return appendMark(request, 0, mask), ok && err == nil
}
