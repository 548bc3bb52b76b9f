package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"gatun/network/packet"
)

// The parts of linux/netlink.h and linux/netfilter/nfnetlink_conntrack.h that are used here. They
// are spelled out so that the codec is tested and fuzzed on every system.
const (
	ctNew0 = 0x0100 // NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW: an entry
	ctGet  = 0x0101 // IPCTNL_MSG_CT_GET: the question for one
	ctDrop = 0x0102 // IPCTNL_MSG_CT_DELETE

	ctTupleOriginal, ctTupleReply = 1, 2 // CTA_TUPLE_…
	ctTupleIP, ctTupleProto       = 1, 2
	ctSource4, ctDestination4     = 1, 2 // CTA_IP_…
	ctSource6, ctDestination6     = 3, 4
	ctProto, ctSourcePort         = 1, 2 // CTA_PROTO_…
	ctDestinationPort             = 3
	ctProtoInfo, ctInfoTCP        = 4, 1 // CTA_PROTOINFO, CTA_PROTOINFO_TCP
	ctTCPState                    = 1    // CTA_PROTOINFO_TCP_STATE
	ctSYNSent, ctClosed           = 1, 8 // TCP_CONNTRACK_SYN_SENT: nobody has answered; _CLOSE: by RST

	netlinkError, netlinkRequest, netlinkAck = 2, 1, 4
	attrNested, attrTypeMask                 = 0x8000, 0x3fff

	netlinkHeader = 16
	ctHeader      = netlinkHeader + 4 // and struct nfgenmsg
	ctQuestion    = 128               // bytes of the longest question
)

var (
	errTruncated = errors.New("truncated connection tracking message")
	errNoEntry   = errors.New("connection tracking does not know the flow")
	errDone      = errors.New("connection tracking has done it") // no entry comes with that
)

// appendQuestion asks for the entry whose answers have f's addresses, from f.Remote to f.Local.
func appendQuestion(b []byte, seq uint32, f packet.Flow) []byte {
	return appendTuple(b, ctGet, netlinkRequest, seq, ctTupleReply, packet.Flow{Proto: f.Proto, Local: f.Remote, Remote: f.Local})
}

// appendForget asks to delete the entry that f, as its first packet has it, has made.
func appendForget(b []byte, seq uint32, f packet.Flow) []byte {
	return appendTuple(b, ctDrop, netlinkRequest|netlinkAck, seq, ctTupleOriginal, f)
}

// appendState asks for the entry that f, as its first packet has it, has made.
func appendState(b []byte, seq uint32, f packet.Flow) []byte {
	return appendTuple(b, ctGet, netlinkRequest, seq, ctTupleOriginal, f)
}

// parseState reads the state of a TCP connection from an answer with an entry; 0: it says none.
func parseState(b []byte) (state uint8) {
	if len(b) < ctHeader {
		return 0
	}
	find := func(b []byte, want uint16) (found []byte) {
		_ = eachAttr(b, func(typ uint16, value []byte) error {
			if typ == want {
				found = value
			}
			return nil
		})
		return found
	}
	if s := find(find(find(b[ctHeader:], ctProtoInfo), ctInfoTCP), ctTCPState); len(s) == 1 {
		return s[0]
	}
	return 0
}

// appendTuple writes a message about the entry of which one direction goes from f.Local to f.Remote.
func appendTuple(b []byte, message, flags uint16, seq uint32, direction uint16, f packet.Flow) []byte {
	start := len(b)
	family, source, destination := byte(2), uint16(ctSource4), uint16(ctDestination4)
	if f.Is6() {
		family, source, destination = 10, ctSource6, ctDestination6
	}
	ne := binary.NativeEndian
	b = ne.AppendUint32(b, 0) // length, set below
	b = ne.AppendUint16(b, message)
	b = ne.AppendUint16(b, flags)
	b = ne.AppendUint32(b, seq)
	b = ne.AppendUint32(b, 0)
	b = append(b, family, 0, 0, 0)
	b, tuple := openAttr(b, direction)
	b, ip := openAttr(b, ctTupleIP)
	b = appendAttr(b, source, f.Local.Addr().AsSlice())
	b = appendAttr(b, destination, f.Remote.Addr().AsSlice())
	closeAttr(b, ip)
	b, proto := openAttr(b, ctTupleProto)
	b = appendAttr(b, ctProto, []byte{byte(f.Proto)})
	b = appendAttr(b, ctSourcePort, binary.BigEndian.AppendUint16(nil, f.Local.Port()))
	b = appendAttr(b, ctDestinationPort, binary.BigEndian.AppendUint16(nil, f.Remote.Port()))
	closeAttr(b, proto)
	closeAttr(b, tuple)
	ne.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

func appendAttr(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	return append(b, make([]byte, -len(value)&3)...)
}

func openAttr(b []byte, typ uint16) (_ []byte, start int) {
	return appendAttr(b, typ|attrNested, nil), len(b)
}

func closeAttr(b []byte, start int) { binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start)) }

// parseEntry reads the answer to question seq: the flow of the entry as its first packet had it.
// ok is false for a message that answers something else.
func parseEntry(b []byte, seq uint32) (f packet.Flow, ok bool, err error) {
	ne := binary.NativeEndian
	if len(b) < netlinkHeader || int(ne.Uint32(b)) < netlinkHeader || int(ne.Uint32(b)) > len(b) {
		return f, false, errTruncated
	}
	if ne.Uint32(b[8:]) != seq {
		return f, false, nil
	}
	body := b[netlinkHeader:ne.Uint32(b)]
	switch {
	case len(body) < 4:
		return f, true, errTruncated
	case ne.Uint16(b[4:]) == netlinkError:
		return f, true, entryError(syscall.Errno(-int32(ne.Uint32(body))))
	case ne.Uint16(b[4:]) != ctNew0:
		return f, true, fmt.Errorf("connection tracking answered with message %#x", ne.Uint16(b[4:]))
	}
	err = eachAttr(body[4:], func(typ uint16, value []byte) error {
		if typ != ctTupleOriginal {
			return nil
		}
		f, err = parseTuple(value)
		return err
	})
	if err == nil && (!f.Local.IsValid() || !f.Remote.IsValid() || f.Local.Addr().Is4() != f.Remote.Addr().Is4()) {
		err = errTruncated
	}
	return f, true, err
}

func entryError(e syscall.Errno) error {
	if e == 0 {
		return errDone
	}
	if e == syscall.ENOENT {
		return errNoEntry
	}
	return fmt.Errorf("ask connection tracking: %w", e)
}

// parseTuple reads one direction of an entry.
func parseTuple(b []byte) (f packet.Flow, err error) {
	var from, to netip.Addr
	var fromPort, toPort uint16
	err = eachAttr(b, func(part uint16, value []byte) error {
		return eachAttr(value, func(typ uint16, value []byte) error {
			switch {
			case part == ctTupleIP && (typ == ctSource4 || typ == ctSource6):
				from, _ = netip.AddrFromSlice(value)
			case part == ctTupleIP && (typ == ctDestination4 || typ == ctDestination6):
				to, _ = netip.AddrFromSlice(value)
			case part == ctTupleProto && typ == ctProto && len(value) == 1:
				f.Proto = packet.Proto(value[0])
			case part == ctTupleProto && typ == ctSourcePort && len(value) == 2:
				fromPort = binary.BigEndian.Uint16(value)
			case part == ctTupleProto && typ == ctDestinationPort && len(value) == 2:
				toPort = binary.BigEndian.Uint16(value)
			}
			return nil
		})
	})
	f.Local, f.Remote = netip.AddrPortFrom(from, fromPort), netip.AddrPortFrom(to, toPort)
	return f, err
}

// eachAttr calls visit with every netlink attribute of b.
func eachAttr(b []byte, visit func(typ uint16, value []byte) error) error {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return errTruncated
		}
		if err := visit(binary.NativeEndian.Uint16(b[2:])&attrTypeMask, b[4:size]); err != nil {
			return err
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}
