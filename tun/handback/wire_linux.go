package handback

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Messages of nfnetlink(7), nf_tables and connection tracking, in as far as elements need them.
// The hot path writes them by hand: a library's transaction costs several times the kernel's.
const (
	netlinkHeader = 16
	batchBegin    = unix.NFNL_MSG_BATCH_BEGIN
	batchEnd      = unix.NFNL_MSG_BATCH_END
	newElement    = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWSETELEM
	getElement    = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM
	delElement    = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELSETELEM

	attrListTable    = 1 // NFTA_SET_ELEM_LIST_TABLE
	attrListSet      = 2
	attrListElements = 3
	attrElement      = 1 // NFTA_LIST_ELEM
	attrKey          = 1 // NFTA_SET_ELEM_KEY
	attrTimeout      = 4
	attrExpiration   = 5
	attrExpr         = 7
	attrValue        = 1 // NFTA_DATA_VALUE
	attrExprData     = 2 // NFTA_EXPR_DATA
	attrBytes        = 1 // NFTA_COUNTER_BYTES
	attrPackets      = 2

	ctNew        = unix.NFNL_SUBSYS_CTNETLINK<<8 | 0 // IPCTNL_MSG_CT_NEW: an entry, or how one changes
	ctGet        = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	ctDelete     = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2
	ctTupleOrig  = 1 // CTA_TUPLE_ORIG
	ctTupleIP    = 1
	ctTupleProto = 2
	ctSource4    = 1 // CTA_IP_V4_SRC
	ctTarget4    = 2
	ctSource6    = 3
	ctTarget6    = 4
	ctProto      = 1 // CTA_PROTO_NUM
	ctSourcePort = 2
	ctTargetPort = 3
	ctMark       = 8
	ctSent       = 9 // CTA_COUNTERS_ORIG
	ctReceived   = 10
	ctMarkMask   = 21
	ctPackets    = 1 // CTA_COUNTERS_PACKETS
	ctBytes      = 2

	nested = unix.NLA_F_NESTED
)

// wire is a netlink socket with its buffers. One goroutine uses it at a time.
type wire struct {
	fd  int
	seq uint32
	out []byte
	in  []byte

	prompt bool // reading does not wait
}

// openWire connects to the kernel: every other sender is refused. Answers are queued before a
// request returns; the limit only ends a lost one.
func openWire(protocol int) (*wire, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", typed(err))
	}
	limit := unix.NsecToTimeval(int64(2 * time.Second))
	const buffer = 4 << 20
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer) // as much as is allowed
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, buffer)
	if err := errors.Join(unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)); err != nil {
		return nil, errors.Join(fmt.Errorf("netlink socket: %w", err), unix.Close(fd))
	}
	// An answer need not carry the whole request: buffers stay small.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	return &wire{fd: fd, in: make([]byte, 64<<10)}, nil
}

func (w *wire) close() { _ = unix.Close(w.fd) }

// openPrompt is openWire for questions that the kernel has dealt with when it takes them, as all of
// nfnetlink: what it has to say is there then, and silence means success. So nobody waits.
func openPrompt() (*wire, error) {
	w, err := openWire(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(w.fd, true); err != nil {
		w.close()
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	w.prompt = true
	return w, nil
}

// answers passes what the kernel has said to a prompt socket until it has said all.
func (w *wire) answers(each func(message)) error {
	for {
		_, err := w.receive(func(m message) bool { each(m); return false })
		if err == unix.EAGAIN {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// begin starts a message and returns where, for end. head is struct nfgenmsg, or how
// struct inet_diag_req_v2 begins.
func (w *wire) begin(typ, flags uint16, head [4]byte) int {
	at := len(w.out)
	w.seq++
	b := append(w.out, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, w.seq)
	w.out = append(append(b, 0, 0, 0, 0), head[:]...)
	return at
}

// end closes a message or an attribute that starts at at, and pads it.
func (w *wire) end(at int) { binary.NativeEndian.PutUint32(w.out[at:], uint32(len(w.out)-at)) }

func (w *wire) nest(typ uint16) int {
	at := len(w.out)
	w.out = binary.NativeEndian.AppendUint16(append(w.out, 0, 0), typ)
	return at
}

func (w *wire) unnest(at int) {
	binary.NativeEndian.PutUint16(w.out[at:], uint16(len(w.out)-at))
	for len(w.out)%4 != 0 {
		w.out = append(w.out, 0)
	}
}

func (w *wire) attr(typ uint16, value ...byte) {
	at := w.nest(typ)
	w.out = append(w.out, value...)
	w.unnest(at)
}

func (w *wire) text(typ uint16, value, suffix string) {
	at := w.nest(typ)
	w.out = append(append(append(w.out, value...), suffix...), 0)
	w.unnest(at)
}

func (w *wire) number64(typ uint16, n uint64) {
	at := w.nest(typ)
	w.out = binary.BigEndian.AppendUint64(w.out, n)
	w.unnest(at)
}

// element writes a message about one element of a set, whose name ends in suffix.
func (w *wire) element(typ, flags uint16, family nftables.TableFamily, table, set, suffix string, k *key, timeout time.Duration) {
	at := w.begin(typ, flags, [4]byte{byte(family)})
	w.text(attrListTable, table, "")
	w.text(attrListSet, set, suffix)
	if k != nil {
		list := w.nest(attrListElements | nested)
		elem := w.nest(attrElement | nested)
		value := w.nest(attrKey | nested)
		w.attr(attrValue, k.b[:k.len]...)
		w.unnest(value)
		if timeout > 0 {
			w.number64(attrTimeout, uint64(timeout.Milliseconds()))
		}
		w.unnest(elem)
		w.unnest(list)
	}
	w.end(at)
}

// forget writes the message that takes a flow's entry out of connection tracking.
func (w *wire) forget(k *key) { w.end(w.tracked(ctDelete, k)) }

// track asks for a flow's entry in connection tracking.
func (w *wire) track(k *key) { w.end(w.tracked(ctGet, k)) }

// mark writes the message that changes the bits of mask in the mark of a flow's entry.
func (w *wire) mark(k *key, mark, mask uint32) {
	at := w.tracked(ctNew, k)
	w.attr(ctMark, binary.BigEndian.AppendUint32(nil, mark)...)
	w.attr(ctMarkMask, binary.BigEndian.AppendUint32(nil, mask)...)
	w.end(at)
}

// tracked begins a message about a flow's entry in connection tracking, and returns where.
func (w *wire) tracked(typ uint16, k *key) (at int) {
	size, family, src, dst := (int(k.len)-12)/2, byte(unix.AF_INET), uint16(ctSource4), uint16(ctTarget4)
	if size == 16 {
		family, src, dst = unix.AF_INET6, ctSource6, ctTarget6
	}
	at = w.begin(typ, 0, [4]byte{family})
	tuple := w.nest(ctTupleOrig | nested)
	ip := w.nest(ctTupleIP | nested)
	w.attr(src, k.b[:size]...)
	w.attr(dst, k.b[size:2*size]...)
	w.unnest(ip)
	rest := k.b[2*size:]
	proto := w.nest(ctTupleProto | nested)
	w.attr(ctProto, rest[0])
	w.attr(ctSourcePort, rest[4:6]...)
	w.attr(ctTargetPort, rest[8:10]...)
	w.unnest(proto)
	w.unnest(tuple)
	return at
}

func (w *wire) send() error {
	_, err := uninterrupted(func() (int, error) { return unix.Write(w.fd, w.out) })
	w.out = w.out[:0]
	if err != nil {
		return fmt.Errorf("write to netlink: %w", err)
	}
	return nil
}

func uninterrupted(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}

// message is a part of what the kernel answered.
type message struct {
	typ, flags uint16
	seq        uint32
	body       []byte
}

// errno is the error of a message of type NLMSG_ERROR; 0 is an acknowledgement.
func (m message) errno() unix.Errno {
	if len(m.body) < 4 {
		return unix.EBADMSG
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(m.body)))
}

// receive reads once and passes every message to each, until that says it has enough.
func (w *wire) receive(each func(message) (done bool)) (done bool, err error) {
	n, err := uninterrupted(func() (int, error) { return unix.Read(w.fd, w.in) })
	if err == unix.EAGAIN && w.prompt {
		return false, err
	}
	if err != nil {
		return false, fmt.Errorf("read from netlink: %w", os.NewSyscallError("read", err))
	}
	for b := w.in[:n]; len(b) >= netlinkHeader; {
		size := int(binary.NativeEndian.Uint32(b))
		if size < netlinkHeader || size > len(b) {
			return false, fmt.Errorf("read from netlink: %w", unix.EBADMSG)
		}
		m := message{typ: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
			seq: binary.NativeEndian.Uint32(b[8:]), body: b[netlinkHeader:size]}
		done = each(m) || done
		b = b[min(len(b), (size+3)&^3):]
	}
	return done, nil
}

// eachAttr walks over attributes; damaged ones end the walk.
func eachAttr(b []byte, each func(typ uint16, value []byte)) {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return
		}
		each(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:size])
		b = b[min(len(b), (size+3)&^3):]
	}
}

// found is an element as the kernel has it.
type found struct {
	key     []byte
	expires time.Duration
	sent    Counter
}

// eachElement passes the elements of a message about a set.
func eachElement(body []byte, each func(found)) {
	if len(body) < 4 {
		return
	}
	eachAttr(body[4:], func(typ uint16, v []byte) {
		if typ != attrListElements {
			return
		}
		eachAttr(v, func(_ uint16, v []byte) { each(parseElement(v)) })
	})
}

func parseElement(b []byte) (f found) {
	number := func(v []byte) uint64 {
		if len(v) != 8 {
			return 0
		}
		return binary.BigEndian.Uint64(v)
	}
	eachAttr(b, func(typ uint16, v []byte) {
		switch typ {
		case attrKey:
			eachAttr(v, func(_ uint16, v []byte) { f.key = v })
		case attrExpiration:
			f.expires = time.Duration(number(v)) * time.Millisecond
		case attrExpr:
			eachAttr(v, func(typ uint16, v []byte) {
				if typ != attrExprData {
					return
				}
				eachAttr(v, func(typ uint16, v []byte) {
					switch typ {
					case attrBytes:
						f.sent.Bytes = number(v)
					case attrPackets:
						f.sent.Packets = number(v)
					}
				})
			})
		}
	})
	return f
}
