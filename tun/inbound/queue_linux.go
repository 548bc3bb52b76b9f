package inbound

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"gatun/network/packet"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// nfnetlink_queue (linux/netfilter/nfnetlink_queue.h), as far as it is needed.
const (
	subsystem  = 3 // NFNL_SUBSYS_QUEUE
	msgPacket  = subsystem<<8 | 0
	msgVerdict = subsystem<<8 | 1
	msgConfig  = subsystem<<8 | 2

	configCommand = 1 // NFQA_CFG_CMD
	configParams  = 2
	configLength  = 3
	configMask    = 4
	configFlags   = 5
	commandBind   = 1
	copyPacket    = 2
	flagGSO       = 4 // whole super-packets: they are only looked at

	attrPacketHeader  = 1
	attrVerdictHeader = 2
	attrMark          = 3
	attrInDevice      = 5
	attrPayload       = 10

	netlinkHeader = 16
	genericHeader = 4 // struct nfgenmsg
	queueBuffer   = 8 << 20
	largest       = 65535 + 512 // a packet and the attributes around it
)

// Queue is the reader of the kernel's queue.
type Queue struct {
	o   Options
	f   *os.File
	raw *answers

	held, accepted, dropped, rejected, refused atomic.Uint64
}

// Open takes the queue. From then on packets wait in it; Run reads them.
func Open(o Options) (*Queue, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("%w: netlink socket: %w", ErrUnsupported, err)
	}
	if err := bindQueue(fd, o); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	raw, err := openAnswers(o.OwnMark)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &Queue{o: o, f: os.NewFile(uintptr(fd), "queue of inbound packets"), raw: raw}, nil
}

// bindQueue binds the queue and sets it up. Without NETLINK_NO_ENOBUFS one burst would end a
// reading with an error; the kernel drops and counts what does not fit either way.
func bindQueue(fd int, o Options) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, queueBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, queueBuffer) // as much as is allowed
	}
	limit := unix.NsecToTimeval(2e9) // of the answers below, which are queued before the request returns
	err := errors.Join(unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
	if err != nil {
		return fmt.Errorf("%w: netlink socket: %w", ErrUnsupported, err)
	}
	be32 := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
	for i, attrs := range [][]attribute{
		{{configCommand, []byte{commandBind, 0, 0, unix.AF_UNSPEC}}},
		{{configParams, append(be32(0xffff), copyPacket)}, {configLength, be32(o.Length)}},
		{{configFlags, be32(flagGSO)}, {configMask, be32(flagGSO)}},
	} {
		err := configure(fd, message(msgConfig, unix.NLM_F_ACK, uint32(i+1), o.Number, attrs))
		switch {
		case errors.Is(err, unix.EBUSY):
			return fmt.Errorf("%w: another program reads queue %d", ErrUnsupported, o.Number)
		case err != nil:
			return fmt.Errorf("%w: queue %d: %w", ErrUnsupported, o.Number, err)
		}
	}
	return unix.SetNonblock(fd, true)
}

type attribute struct {
	typ   uint16
	value []byte
}

// message is a whole netlink message to nfnetlink about a queue.
func message(typ, flags uint16, seq uint32, queue uint16, attrs []attribute) []byte {
	b := make([]byte, netlinkHeader, 64)
	binary.NativeEndian.PutUint16(b[4:], typ)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(b[8:], seq)
	b = append(b, unix.AF_UNSPEC, 0)
	b = binary.BigEndian.AppendUint16(b, queue)
	for _, a := range attrs {
		b = binary.NativeEndian.AppendUint16(b, uint16(4+len(a.value)))
		b = append(binary.NativeEndian.AppendUint16(b, a.typ), a.value...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

// configure sends b and waits for its acknowledgement. Packets that come before it are dropped by
// the closing of the socket or stay in the queue: there is no rule yet that sends any.
func configure(fd int, b []byte) error {
	if err := unix.Send(fd, b, 0); err != nil {
		return err
	}
	buf := make([]byte, largest)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case n < netlinkHeader+4 || binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR:
			continue
		}
		if e := int32(binary.NativeEndian.Uint32(buf[netlinkHeader:])); e != 0 {
			return unix.Errno(-e)
		}
		return nil
	}
}

// Run passes every held packet to handle, one after the other, until ctx ends. handle must see to it
// that the packet gets its verdict, then or later, and must not block.
func (q *Queue) Run(ctx context.Context, handle func(*Held)) error {
	defer q.Close()
	defer context.AfterFunc(ctx, func() { _ = q.f.Close() })()
	raw, err := q.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("read held packets: %w", err)
	}
	buf := make([]byte, largest)
	for {
		n, rerr := 0, error(nil)
		err := raw.Read(func(fd uintptr) bool {
			n, _, rerr = unix.Recvfrom(int(fd), buf, 0)
			return rerr != unix.EAGAIN
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("read held packets: %w", err)
		case rerr == unix.EINTR, rerr == unix.ENOBUFS:
			continue
		case rerr != nil:
			return fmt.Errorf("read held packets: %w", rerr)
		}
		q.messages(buf[:n], handle)
	}
}

// messages takes the packets out of one datagram of the kernel.
func (q *Queue) messages(b []byte, handle func(*Held)) {
	for len(b) >= netlinkHeader {
		size := int(binary.NativeEndian.Uint32(b))
		if size < netlinkHeader || size > len(b) {
			return
		}
		if binary.NativeEndian.Uint16(b[4:]) == msgPacket && size >= netlinkHeader+genericHeader {
			if h := q.packet(b[netlinkHeader+genericHeader : size]); h != nil {
				handle(h)
			}
		}
		b = b[min((size+3)&^3, len(b)):]
	}
}

// packet makes a Held of the attributes of one packet. What is no packet of a flow is dropped.
func (q *Queue) packet(b []byte) *Held {
	h := &Held{q: q}
	known := false
	var payload []byte
	for len(b) >= 4 {
		size, typ := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])&^uint16(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)
		if size < 4 || size > len(b) {
			break
		}
		value := b[4:size]
		switch {
		case typ == attrPacketHeader && len(value) >= 4:
			h.id, known = binary.BigEndian.Uint32(value), true
		case typ == attrMark && len(value) == 4:
			h.mark = binary.BigEndian.Uint32(value)
		case typ == attrInDevice && len(value) == 4:
			h.device = binary.BigEndian.Uint32(value)
		case typ == attrPayload:
			payload = value
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	if !known {
		return nil
	}
	q.held.Add(1)
	var head packet.Header
	err := head.Parse(payload)
	if err == nil {
		err = usable(&head)
	}
	if err != nil {
		q.refused.Add(1)
		q.o.Logger.Debug("inbound packet of no flow", zap.Error(err))
		h.Drop()
		return nil
	}
	h.flow, h.opens, h.seq = flowOf(&head), opens(&head), head.TCPSeq
	h.quoted = append([]byte(nil), payload[:min(len(payload), quotedBytes)]...)
	return h
}

// decide tells the kernel. A packet that the kernel has dropped meanwhile has no verdict to get.
func (q *Queue) decide(id uint32, v verdict, mark uint32) {
	attrs := make([]attribute, 1, 2)
	attrs[0] = attribute{attrVerdictHeader, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(make([]byte, 0, 8), uint32(v)), id)}
	if v == repeat {
		attrs = append(attrs, attribute{attrMark, binary.BigEndian.AppendUint32(make([]byte, 0, 4), mark)})
	}
	b := message(msgVerdict, 0, 0, q.o.Number, attrs)
	raw, err := q.f.SyscallConn()
	if err == nil {
		var sent error
		err = raw.Control(func(fd uintptr) {
			for sent = unix.EINTR; sent == unix.EINTR; {
				sent = unix.Send(int(fd), b, 0)
			}
		})
		err = errors.Join(err, sent)
	}
	if err != nil && !errors.Is(err, os.ErrClosed) {
		q.o.Logger.Warn("an inbound packet stays held until the kernel gives it up", zap.Error(err))
	}
}

// Counters returns what happened so far.
func (q *Queue) Counters() Counters {
	return Counters{Held: q.held.Load(), Accepted: q.accepted.Load(), Dropped: q.dropped.Load(), Rejected: q.rejected.Load(),
		Refused: q.refused.Load(), Overrun: overrun(q.o.Number)}
}

// overrun reads how many packets the kernel dropped because the queue or the socket was full:
// "number portid waiting mode range dropped userdropped sequence 1" per line.
func overrun(number uint16) uint64 {
	b, err := os.ReadFile("/proc/net/netfilter/nfnetlink_queue")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 8 || f[0] != strconv.Itoa(int(number)) {
			continue
		}
		full, _ := strconv.ParseUint(f[5], 10, 64)
		unread, _ := strconv.ParseUint(f[6], 10, 64)
		return full + unread
	}
	return 0
}

// Close gives the queue up: the kernel drops what waits in it, and what comes then.
func (q *Queue) Close() {
	_ = q.f.Close()
	q.raw.close()
}
