package interception

import (
	"context"
	"io"
	"net/netip"

	"gatun/network/packet"
)

// Upstream is our connection to the server. *route.TCPConn is one.
type Upstream interface {
	io.Writer
	// Fill waits until bytes are there and only then takes a buffer from get and reads into it.
	// The caller gives b back with put; with an error, io.EOF for the server's FIN, b is nil.
	Fill(get func() []byte, put func([]byte)) (b []byte, n int, err error)
	CloseWrite() error
	Close() error
	Abort()       // RST, in both directions; ends blocked calls
	Broken() bool // reset or timed out, seen without reading

	Interrupt()             // Fill returns os.ErrDeadlineExceeded instead of waiting, until Resume
	Park(ready func()) bool // until Resume, ready is called once, when Fill might not block; false: it cannot
	Peek() (bytes bool, err error)
	Resume() error
}

// UDPUpstream is our unconnected socket for one socket of a program. *route.UDPSocket is one.
type UDPUpstream interface {
	// Send sends datagrams in order until one fails, and returns how many it has sent. It never
	// blocks.
	Send(b [][]byte, to netip.AddrPort, ttl, tos uint8, df bool) (sent int, err error)
	// Attach lets others call datagram and report until Close; neither may block, and the slice is
	// valid during the call only. False: Serve is to be used instead.
	Attach(datagram func(b []byte, from netip.AddrPort, tos uint8), report func(peer netip.AddrPort, e *packet.ICMPError)) bool
	// Serve is the same and blocks until Close.
	Serve(datagram func(b []byte, from netip.AddrPort, tos uint8), report func(peer netip.AddrPort, e *packet.ICMPError)) error
	Close() error
}

// EchoUpstream sends echo requests to one host. *route.EchoSocket is one.
type EchoUpstream interface {
	Send(seq uint16, payload []byte, ttl, tos uint8) error // never blocks
	Serve(reply func(seq uint16, payload []byte, ttl uint8), report func(seq uint16, e *packet.ICMPError)) error
	Close() error
}

// Dialer opens what the Relay needs. *route.Dialer is a
// Dialer[*route.TCPConn, *route.UDPSocket, *route.EchoSocket]; the type parameters are inferred.
type Dialer[T Upstream, U UDPUpstream, E EchoUpstream] interface {
	DialTCP(ctx context.Context, local netip.Addr, remote netip.AddrPort, ttl uint8) (T, error)
	ListenUDP(local netip.Addr) (U, error)
	ListenEcho(local, remote netip.Addr) (E, error)
	Watch(ctx context.Context) error // looks after parked connections
}

// upstreams is a Dialer without its type parameters.
type upstreams struct {
	tcp  func(ctx context.Context, local netip.Addr, remote netip.AddrPort, ttl uint8) (Upstream, error)
	udp  func(local netip.Addr) (UDPUpstream, error)
	echo func(local, remote netip.Addr) (EchoUpstream, error)

	watch func(ctx context.Context) error
}

func upstreamsOf[T Upstream, U UDPUpstream, E EchoUpstream](d Dialer[T, U, E]) upstreams {
	return upstreams{
		watch: d.Watch,
		tcp: func(ctx context.Context, local netip.Addr, remote netip.AddrPort, ttl uint8) (Upstream, error) {
			c, err := d.DialTCP(ctx, local, remote, ttl)
			if err != nil {
				return nil, err // not a nil pointer in an interface
			}
			return c, nil
		},
		udp: func(local netip.Addr) (UDPUpstream, error) {
			c, err := d.ListenUDP(local)
			if err != nil {
				return nil, err
			}
			return c, nil
		},
		echo: func(local, remote netip.Addr) (EchoUpstream, error) {
			c, err := d.ListenEcho(local, remote)
			if err != nil {
				return nil, err
			}
			return c, nil
		},
	}
}
