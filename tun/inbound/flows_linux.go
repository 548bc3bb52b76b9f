package inbound

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"gatun/network/packet"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// sock_diag(7) and connection tracking (linux/netfilter/nfnetlink_conntrack.h), as far as one flow
// needs them.
const (
	diagByFamily = 20 // SOCK_DIAG_BY_FAMILY
	diagDestroy  = 21 // SOCK_DESTROY
	diagMessage  = 72 // struct inet_diag_msg
	extInfo      = 2  // INET_DIAG_INFO: struct tcp_info
	infoAcked    = 120
	infoReceived = 128
	diagCookie   = 44 // in struct inet_diag_msg
	anyState     = 0xffffffff
	timeWait     = 6
	closedState  = 7
	closeWait    = 8
	lastAck      = 9
	listening    = 10
	closing      = 11

	ctGet         = 1<<8 | 1 // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
	ctDelete      = 1<<8 | 2
	ctTupleReply  = 2
	ctTupleIP     = 1
	ctTupleProto  = 2
	ctCountersOut = 10 // CTA_COUNTERS_REPLY: what this machine sent
	ctCountersIn  = 9  // CTA_COUNTERS_ORIG
	ctPackets     = 1
	ctBytes       = 2
	ctProtoInfo   = 4
	ctProtoTCP    = 1
	ctTCPState    = 1
	ctSynReceived = 2 // TCP_CONNTRACK_SYN_RECV: nobody has acknowledged our SYN yet
)

// Flows asks about and ends flows that were let in. Any goroutine may call its methods.
type Flows struct{ diag, ct *wire }

// OpenFlows opens the sockets to the kernel.
func OpenFlows() (*Flows, error) {
	diag, err := openWire(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	ct, err := openWire(unix.NETLINK_NETFILTER)
	if err != nil {
		diag.close()
		return nil, err
	}
	return &Flows{diag: diag, ct: ct}, nil
}

// Close gives the sockets back. Nothing is known of any flow then.
func (s *Flows) Close() error {
	s.diag.close()
	s.ct.close()
	return nil
}

// Look reports whether a flow lives, and the bytes that this machine has sent and received over it, as
// far as the kernel counts them for us. A TCP flow lives while somebody has its socket, or none yet:
// where many come at once the kernel keeps none before the handshake is over (SYN cookies). Others
// live while connection tracking remembers them. If the kernel does not answer they count as living.
func (s *Flows) Look(f packet.Flow) (sent, received uint64, lives bool) {
	if f.Proto == packet.TCP {
		found, err := s.socket(f)
		if !errors.Is(err, errGone) {
			l := tcpLife(found)
			return l.sent, l.received, true
		}
		t, err := s.tracked(f)
		return 0, 0, err == nil && t.opening
	}
	l, err := s.tracked(f)
	return l.sent, l.received, !errors.Is(err, errGone)
}

// errGone says that a flow has ended.
var errGone = errors.New("the flow has ended")

// life is what is known of a flow.
type life struct {
	sent, received uint64
	opening        bool // TCP: before the end of the handshake
}

// End ends a flow that was let in: its TCP socket is destroyed, and connection tracking forgets it, so
// that the next packet is a new flow's. The socket goes first: its reset leaves by the flow's mark. A
// UDP socket serves others and stays.
func (s *Flows) End(f packet.Flow) error {
	var errs []error
	if f.Proto == packet.TCP {
		errs = append(errs, s.destroy(f))
	}
	if _, err := s.ct.ask(ctDelete, unix.NLM_F_ACK, ctRequest(f)); err != nil && !missing(err) {
		errs = append(errs, fmt.Errorf("%s: make connection tracking forget it: %w", f, err))
	}
	return errors.Join(errs...)
}

// destroy ends the socket of f by its cookie: the kernel would take a listener where there is none
// any more.
func (s *Flows) destroy(f packet.Flow) error {
	found, err := s.socket(f)
	if errors.Is(err, errGone) {
		return nil
	}
	if err == nil {
		_, err = s.diag.ask(diagDestroy, unix.NLM_F_ACK, diagRequest(f, 0, binary.NativeEndian.Uint64(found[diagCookie:])))
	}
	if err != nil && !missing(err) {
		return fmt.Errorf("%s: end its socket: %w", f, err)
	}
	return nil
}

func missing(err error) bool { return errors.Is(err, unix.ENOENT) }

// socket returns the struct inet_diag_msg of the connection f, and its attributes.
func (s *Flows) socket(f packet.Flow) ([]byte, error) {
	found, err := s.diag.ask(diagByFamily, 0, diagRequest(f, 1<<(extInfo-1), anyCookie))
	if missing(err) {
		return nil, errGone
	}
	if err != nil {
		return nil, fmt.Errorf("%s: look for its socket: %w", f, err)
	}
	if len(found) < diagMessage {
		return nil, errGone
	}
	// A listener answers where there is no connection.
	if state := found[1]; state == timeWait || state == closedState || state == listening {
		return nil, errGone
	}
	return found, nil
}

const anyCookie = ^uint64(0) // INET_DIAG_NOCOOKIE

// tcpLife reads the byte counters out of struct tcp_info (since Linux 4.1).
func tcpLife(b []byte) (l life) {
	if len(b) < diagMessage {
		return l
	}
	d, err := netlink.NewAttributeDecoder(b[diagMessage:])
	if err != nil {
		return l
	}
	for d.Next() {
		if info := d.Bytes(); d.Type() == extInfo && len(info) >= infoReceived+8 {
			l.sent, l.received = binary.NativeEndian.Uint64(info[infoAcked:]), binary.NativeEndian.Uint64(info[infoReceived:])
		}
	}
	switch b[1] {
	case closeWait, lastAck, closing: // the other side's FIN counts as a byte
		l.received -= min(l.received, 1)
	}
	return l
}

// diagRequest is struct inet_diag_req_v2.
func diagRequest(f packet.Flow, extensions byte, cookie uint64) []byte {
	family := byte(unix.AF_INET)
	if f.Is6() {
		family = unix.AF_INET6
	}
	b := append(make([]byte, 0, 56), family, byte(f.Proto), extensions, 0)
	b = binary.NativeEndian.AppendUint32(b, anyState)
	b = binary.BigEndian.AppendUint16(b, f.Local.Port())
	b = binary.BigEndian.AppendUint16(b, f.Remote.Port())
	for _, a := range []netip.Addr{f.Local.Addr(), f.Remote.Addr()} {
		var raw [16]byte
		copy(raw[:], a.AsSlice())
		b = append(b, raw[:]...)
	}
	b = binary.NativeEndian.AppendUint32(b, 0) // any interface
	return binary.NativeEndian.AppendUint64(b, cookie)
}

func (s *Flows) tracked(f packet.Flow) (life, error) {
	found, err := s.ct.ask(ctGet, 0, ctRequest(f))
	switch {
	case missing(err):
		return life{}, errGone
	case err != nil:
		return life{}, fmt.Errorf("%s: ask connection tracking: %w", f, err)
	case len(found) < genericHeader:
		return life{}, nil
	}
	return ctLife(found[genericHeader:], headers(f)), nil
}

// headers is how long those of a datagram are, without options.
func headers(f packet.Flow) uint64 {
	if f.Is6() {
		return 40 + 8
	}
	return 20 + 8
}

// ctLife reads the counters, which are there where net.netfilter.nf_conntrack_acct is on. They count
// packets with their headers, each of which has that many bytes.
func ctLife(b []byte, headers uint64) (l life) {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return l
	}
	d.ByteOrder = binary.BigEndian
	bytesIn := func(to *uint64) func(*netlink.AttributeDecoder) error {
		return func(n *netlink.AttributeDecoder) error {
			n.ByteOrder = binary.BigEndian
			var packets, bytes uint64
			for n.Next() {
				switch n.Type() {
				case ctPackets:
					packets = n.Uint64()
				case ctBytes:
					bytes = n.Uint64()
				}
			}
			*to = bytes - min(bytes, packets*headers)
			return n.Err()
		}
	}
	for d.Next() {
		switch d.Type() {
		case ctCountersOut:
			d.Nested(bytesIn(&l.sent))
		case ctCountersIn:
			d.Nested(bytesIn(&l.received))
		case ctProtoInfo:
			d.Nested(func(n *netlink.AttributeDecoder) error { return opening(n, &l.opening) })
		}
	}
	return l
}

// opening reads CTA_PROTOINFO.
func opening(d *netlink.AttributeDecoder, to *bool) error {
	for d.Next() {
		if d.Type() != ctProtoTCP {
			continue
		}
		d.Nested(func(n *netlink.AttributeDecoder) error {
			for n.Next() {
				if n.Type() == ctTCPState {
					state := n.Uint8()
					*to = state > 0 && state <= ctSynReceived
				}
			}
			return n.Err()
		})
	}
	return d.Err()
}

// ctRequest names the entry by its reply: so this machine's side is as its sockets have it, also
// where the flow came for an address that is translated to it.
func ctRequest(f packet.Flow) []byte {
	family, src, dst := byte(unix.AF_INET), uint16(1), uint16(2)
	if f.Is6() {
		family, src, dst = unix.AF_INET6, 3, 4
	}
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	e.Nested(ctTupleReply, func(e *netlink.AttributeEncoder) error {
		e.Nested(ctTupleIP, func(e *netlink.AttributeEncoder) error {
			e.Bytes(src, f.Local.Addr().AsSlice())
			e.Bytes(dst, f.Remote.Addr().AsSlice())
			return nil
		})
		e.Nested(ctTupleProto, func(e *netlink.AttributeEncoder) error {
			e.ByteOrder = binary.BigEndian
			e.Uint8(1, byte(f.Proto))
			e.Uint16(2, f.Local.Port())
			e.Uint16(3, f.Remote.Port())
			return nil
		})
		return nil
	})
	attrs, err := e.Encode()
	if err != nil {
		return nil // no attribute of ours is too long
	}
	return append([]byte{family, 0, 0, 0}, attrs...)
}
