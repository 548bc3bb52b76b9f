// Package handback gives flows that are decided for good back to the kernel: from then on no
// packet of them comes to userspace.
//
// Only the Gate (firewall/interception) calls it, through cmd; it imports package packet and knows
// no verdict. A flow that is held is given back with Accept: its values enter a set of an
// nftables table of its own, and the held packet is sent again from here. The chain of that table
// marks packets of the set, so that the kernel routes them by the main table. Silence lets
// the kernel swallow what denied flows go on sending; Revoke takes back an Accept and ends the program's
// socket.
//
// What the package does not do: it sets no routes or rules, and it does not touch the guard. Both
// are tun/route's, and serve as they are: Options.Mark is route.Names.OldMark, which rule 11 routes
// by main and the guard's rule "old path" lets out. The guard's chain "outgoing" (priority mangle)
// takes that mark from every packet with a user; the chain here comes one later and gives it only to
// flows of the set. Sockets of flows that last carry a mark of their own, Options.SocketMark
// (route.Names.BackMark), which the guard takes only together with the connection mark that the chain
// here gives. Replies pass strict reverse-path filters by
// the guard's chain "incoming" and src_valid_mark.
//
// Flows of TCP and UDP have five values, those of all other protocols three, and nobody else carries these (others.go).
//
// Only what starts on this machine is handed back. What comes in is room tun/inbound's; forwarded flows
// are not built yet.
package handback

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"gatun/network/packet"
	"gatun/tun/resend"

	"go.uber.org/zap"
)

// Why a flow cannot be given to the kernel. In every case the flow is as it was before: the
// caller goes on with it in userspace.
var (
	// ErrFull says that there is no room for another flow.
	ErrFull = errors.New("the kernel holds as many handed-back flows as it may")
	// ErrUnsupported says that the kernel lacks what this needs, or that such a flow or packet is
	// never handed back.
	ErrUnsupported = resend.ErrUnsupported
	// ErrOver says that the flow is not accepted any more.
	ErrOver = errors.New("the flow is over")
	// ErrClosed says that the table was closed.
	ErrClosed = errors.New("the table of handed-back flows is closed")
)

// DefaultTable is the name of the nftables tables, families inet and netdev. They are not the
// guard's: whoever replaces the guard leaves these alone, and the other way round.
const DefaultTable = "gatun_handback"

// DefaultLimit is how many flows each set holds.
const DefaultLimit = 200_000

// The names of the sets; those of IPv6 end in 6. See Rules.
const (
	setAccept = "accept"
	setLinger = "linger"
	setBlock  = "block"
	setDrop   = "drop"
	setOther  = "other" // what setAccept is for all protocols but TCP and UDP; see others.go
)

// Options say where the tables are and how long entries live. The zero value of a duration or of
// Limit stands for its default.
type Options struct {
	// Table names the nftables tables; DefaultTable if empty.
	Table string
	// Device is the TUN device, on which Silence works; without it Silence is unsupported.
	Device string
	// Mark within Mask is what packets of accepted flows carry: route.Names.OldMark.
	Mark, Mask uint32
	// SocketMark within Mask is what sockets of accepted flows may carry themselves, and connection
	// tracking with them (see Rules): route.Names.BackMark.
	SocketMark uint32
	// LastingMark within Mask takes the place of SocketMark in connection tracking for flows that last:
	// their packets are not looked up any more (see Rules): route.Names.LastingMark. 0: all are. After a
	// crash such a flow goes on for as long as connection tracking knows it, whatever the time-outs below.
	LastingMark uint32
	// OwnMark is that of gatun's own sockets, whose packets are not looked at: route.Names.Mark.
	OwnMark uint32
	// Holder returns a process that holds the socket of an accepted flow, 0 if nobody knows. It makes
	// sockets of flows that last carry SocketMark; nil: none does.
	Holder func(packet.Flow) int
	// Begin calls Carry for every connection that has begun ahead and that it was not called for; it is
	// called before ends are looked at. nil: none begins ahead.
	Begin func()
	// Limit is how many accepted flows there may be, and how many entries each set may have.
	Limit int
	// TCPTimeout and UDPTimeout are how long the kernel keeps an accepted flow without hearing of
	// us again: after a crash they bound what stays. TCP flows are renewed for as long as they are
	// open, all others while they send. Defaults: 2 h, 3 min.
	TCPTimeout, UDPTimeout time.Duration
	// OtherTimeout is UDPTimeout for all other protocols. Default: 10 min, as in connection tracking.
	OtherTimeout time.Duration
	// Linger is how long packets of a TCP connection that is closed may still leave (TIME_WAIT
	// and a last FIN); a SYN may not. Default: 65 s.
	Linger time.Duration
	// Sweep is how often Run reads the counters. Default: 30 s.
	Sweep time.Duration
	// Ended is told in Run's goroutines of every accepted flow that is over. It must not block.
	Ended func(End)
	// Others is told in Run's goroutines of all other TCP connections whose sockets are gone, as this machine
	// names them, and of what they had carried: the kernel tells of every one. It must not block.
	Others func(packet.Flow, Traffic)
	// Logger must not be nil.
	Logger *zap.Logger
}

// withDefaults fills in what is missing and refuses what cannot work.
func (o Options) withDefaults() (Options, error) {
	if o.Mark == 0 || o.Mark&^o.Mask != 0 {
		return o, fmt.Errorf("handback: want a mark inside the mask %#08x and not 0, got %#08x", o.Mask, o.Mark)
	}
	for _, m := range []uint32{o.SocketMark, o.OwnMark} {
		if m == 0 || m == o.Mark || m&^o.Mask != 0 || o.SocketMark == o.OwnMark {
			return o, fmt.Errorf("handback: want three different marks inside the mask %#08x and not 0, got %#08x, %#08x and %#08x", o.Mask, o.Mark, o.SocketMark, o.OwnMark)
		}
	}
	if o.LastingMark&^o.Mask != 0 || o.LastingMark != 0 && slices.Contains([]uint32{o.Mark, o.SocketMark, o.OwnMark}, o.LastingMark) {
		return o, fmt.Errorf("handback: want a mark of its own inside the mask %#08x for flows that last, got %#08x", o.Mask, o.LastingMark)
	}
	if o.Table == "" {
		o.Table = DefaultTable
	}
	if o.Limit == 0 {
		o.Limit = DefaultLimit
	}
	if o.Limit < 0 || o.Limit > 1<<24 {
		return o, fmt.Errorf("handback: want a limit of 1 to %d flows, got %d", 1<<24, o.Limit)
	}
	if o.Logger == nil {
		return o, errors.New("handback: a logger is needed")
	}
	for _, d := range []struct {
		value *time.Duration
		or    time.Duration
	}{{&o.TCPTimeout, 2 * time.Hour}, {&o.UDPTimeout, 3 * time.Minute}, {&o.OtherTimeout, 10 * time.Minute}, {&o.Linger, 65 * time.Second},
		{&o.Sweep, 30 * time.Second}} {
		if *d.value <= 0 {
			*d.value = d.or
		}
	}
	if o.Ended == nil {
		o.Ended = func(End) {}
	}
	if o.Others == nil {
		o.Others = func(packet.Flow, Traffic) {}
	}
	return o, nil
}

func (o Options) timeout(p packet.Proto) time.Duration {
	switch {
	case p == packet.UDP:
		return o.UDPTimeout
	case isOther(p):
		return o.OtherTimeout
	}
	return o.TCPTimeout
}

// Counter is what the program has sent over a flow, IP headers included.
type Counter struct{ Packets, Bytes uint64 }

// Traffic is what a flow has carried, in bytes of payload. Sent counts no retransmission.
type Traffic struct{ Sent, Received uint64 }

// Cause is why an accepted flow is over.
type Cause uint8

// The causes.
const (
	Closed  Cause = iota + 1 // the program closed its socket
	Expired                  // silent for too long, or taken out by somebody else
	Revoked                  // by Revoke
)

// String is the cause in one word.
func (c Cause) String() string {
	switch c {
	case Closed:
		return "closed"
	case Expired:
		return "expired"
	case Revoked:
		return "revoked"
	}
	return "unknown"
}

// End tells of an accepted flow that is over.
type End struct {
	Flow  packet.Flow
	Cause Cause
	// Sent is all that was sent, or for TCP that was answered and that the program has closed, what
	// was read last: Traffic says more.
	Sent Counter
	// Traffic is exact for TCP that the program has closed or that was revoked; else Sent is what Counter stands
	// for. Of UDP Received is 0 where connection tracking does not count, of TCP that expired too. A connection
	// that was reset has received a byte more than it says.
	Traffic Traffic
	// Attempts is how many SYNs a connection has sent that sent nothing else: it was refused, or
	// nobody answered. 0 where it was answered, and for what is no connection.
	Attempts uint64
	// SYN is the sequence number that began a connection; 0 where that was before this process.
	SYN uint32
}

// Sizes of the headers of an ordinary packet: IP without options, TCP with time stamps.
const (
	headers4   = 20
	headers6   = 40
	headersTCP = 32
	headersUDP = 8
)

// payload is how many bytes of payload a counter of whole packets stands for: exact for UDP, close
// for TCP. Of other protocols it is all behind the IP header.
func (c Counter) payload(f packet.Flow) uint64 {
	headers := uint64(headers4)
	if f.Is6() {
		headers = headers6
	}
	switch f.Proto {
	case packet.TCP:
		headers += headersTCP
	case packet.UDP:
		headers += headersUDP
	}
	return c.Bytes - min(c.Bytes, c.Packets*headers)
}

// keySize6 is the longest key: two addresses, the protocol and two ports, padded to four bytes.
const keySize6 = 2*16 + 3*4

// key is a flow as the sets hold it. Where the protocol is neither TCP nor UDP, it ends with that.
type key struct {
	b   [keySize6]byte
	len uint8
}

func keyOf(f packet.Flow) (k key) {
	k = tupleOf(f)
	if isOther(f.Proto) {
		k.len -= sizePorts
	}
	return k
}

// sizePorts is how much of a key the ports are.
const sizePorts = 8

// tupleOf is a flow as connection tracking names it: with ports, whatever the protocol.
func tupleOf(f packet.Flow) (k key) {
	b := k.b[:0]
	for _, a := range [2]netip.Addr{f.Local.Addr(), f.Remote.Addr()} {
		if a.Is4() {
			v4 := a.As4()
			b = append(b, v4[:]...)
		} else {
			v6 := a.As16()
			b = append(b, v6[:]...)
		}
	}
	b = append(b, byte(f.Proto), 0, 0, 0)
	for _, port := range [2]uint16{f.Local.Port(), f.Remote.Port()} {
		b = append(b, byte(port>>8), byte(port), 0, 0)
	}
	k.len = uint8(len(b))
	return k
}

// flowOf is the inverse of keyOf.
func flowOf(b []byte) (packet.Flow, bool) {
	size, ports := (len(b)-4)/2, false
	if with := (len(b) - 4 - sizePorts) / 2; with == 4 || with == 16 {
		size, ports = with, true
	}
	if size != 4 && size != 16 || len(b)%4 != 0 {
		return packet.Flow{}, false
	}
	local, _ := netip.AddrFromSlice(b[:size])
	remote, _ := netip.AddrFromSlice(b[size : 2*size])
	r := b[2*size:]
	f := packet.Flow{Proto: packet.Proto(r[0]), Local: netip.AddrPortFrom(local, 0), Remote: netip.AddrPortFrom(remote, 0)}
	if ports {
		f.Local = netip.AddrPortFrom(local, uint16(r[4])<<8|uint16(r[5]))
		f.Remote = netip.AddrPortFrom(remote, uint16(r[8])<<8|uint16(r[9]))
	}
	return f, isOther(f.Proto) != ports
}

// check refuses flows of TCP and UDP that the sets cannot name, and all others.
func check(f packet.Flow) error {
	if isOther(f.Proto) {
		return fmt.Errorf("%s: %w: only TCP and UDP", f, ErrUnsupported)
	}
	return checkAny(f)
}

// checkAny refuses flows that the sets cannot name.
func checkAny(f packet.Flow) error {
	switch {
	case isOther(f.Proto) && !carriesOther(f):
		return fmt.Errorf("%s: %w: the kernel does not tell this protocol apart", f, ErrUnsupported)
	case !f.Local.IsValid() || !f.Remote.IsValid() || f.Local.Addr().Is4() != f.Remote.Addr().Is4():
		return fmt.Errorf("%s: %w: want two addresses of one family", f, ErrUnsupported)
	case f.Remote.Addr().IsMulticast() || f.Remote.Addr().Is4In6() || f.Local.Port() == 0 && !isOther(f.Proto):
		return fmt.Errorf("%s: %w: not a flow between two hosts", f, ErrUnsupported)
	}
	return nil
}
