package route

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
)

// Errors of the bypass dialer. They are wrapped around the system's own error, so both
// errors.Is(err, ErrFiles) and errors.Is(err, syscall.EMFILE) hold.
var (
	// ErrFiles says that no further socket can be opened.
	ErrFiles = errors.New("no file descriptor or socket memory left: raise the limit of open files (LimitNOFILE, ulimit -n)")
	// ErrOwnAddress says that the destination is one of our own special addresses: a flow to it
	// would come back to us and be relayed again, for ever.
	ErrOwnAddress = errors.New("refused to dial our own address: it would loop")
	// ErrEchoForbidden says that neither a raw nor a ping socket may be opened.
	ErrEchoForbidden = errors.New("echo requests cannot be relayed: allow ping sockets (sysctl net.ipv4.ping_group_range) or give CAP_NET_RAW")
)

// Dialer opens the sockets of all our own traffic: relayed flows, resolvers, tunnels. They
// bypass the capture because each carries Mark. A Dialer must not be changed or copied once it
// is in use; its methods may be called from any goroutine. The zero Dialer sets no mark and
// binds no address, which is what `gatun run` needs.
//
// It adds no retry and no time-out of its own: how long a silent host is tried is the kernel's
// affair, as it would be without us.
type Dialer struct {
	// Mark is the SO_MARK of every socket; 0 sets none. It needs CAP_NET_ADMIN or CAP_NET_RAW.
	Mark uint32
	// BindSource makes relayed sockets use the program's own source address (with a new port),
	// so that policy routing and servers see what they would see without us. Where the address
	// is not one of this host, the kernel chooses; LocalAddr tells.
	BindSource bool
	// Own are prefixes that are never dialled, because packets to them come to us.
	Own []netip.Prefix

	sends   sync.Pool // *sendOp
	batches sync.Pool // *recvBatch
	watch   atomic.Pointer[watcher]
	pollers atomic.Pointer[udpPollers]
}

// DialTCP connects to remote for a program at local. ttl is that of the program's SYN: it is
// used for the connect where it is unusual (a traceroute over TCP) and then put back.
//
// A refusal is ECONNREFUSED. An ICMP answer is a *packet.ICMPError with the address of the hop
// that sent it. Cancelling ctx ends the attempt with ctx's error.
func (d *Dialer) DialTCP(ctx context.Context, local netip.Addr, remote netip.AddrPort, ttl uint8) (*TCPConn, error) {
	if err := d.check(remote.Addr()); err != nil {
		return nil, err
	}
	c, err := d.dialTCP(ctx, d.source(local, remote.Addr()), remote, unusualTTL(ttl))
	if err != nil {
		return nil, fmt.Errorf("dial tcp %v: %w", remote, classify(err))
	}
	return c, nil
}

// DialContext connects to an address that is an IP literal with a port; it resolves no names.
// It fits http.Transport, resolvers and tunnels.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial %s %q: want an IP address and a port: %w", network, address, err)
	}
	if err := d.check(to.Addr()); err != nil {
		return nil, err
	}
	c, err := d.dialContext(ctx, network, to)
	if err != nil {
		return nil, classify(err)
	}
	return c, nil
}

func (d *Dialer) dialContext(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if network == "udp" && to.Addr().Zone() == "" {
		return d.dialUDP(ctx, to)
	}
	nd := net.Dialer{Control: d.control}
	return nd.DialContext(ctx, network, to.String())
}

// ListenPacket opens an unconnected UDP socket, for questions to many at once. Who reads from it
// must look where each packet comes from.
func (d *Dialer) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: d.control}
	c, err := lc.ListenPacket(ctx, network, address)
	if err != nil {
		return nil, classify(err)
	}
	return c, nil
}

// source is the address to bind, or the invalid address where the kernel shall choose.
func (d *Dialer) source(local, remote netip.Addr) netip.Addr {
	local = local.Unmap()
	if !d.BindSource || !local.IsValid() || local.IsUnspecified() || local.Is4() != remote.Unmap().Is4() {
		return netip.Addr{}
	}
	return local
}

func (d *Dialer) check(to netip.Addr) error {
	to = to.Unmap()
	for _, p := range d.Own {
		if p.Contains(to) {
			return fmt.Errorf("dial %v: %w", to, ErrOwnAddress)
		}
	}
	return nil
}

// unusualTTL returns 0 for the initial TTLs of common systems: passing those on would only
// show the world which system the program runs on.
func unusualTTL(ttl uint8) uint8 {
	switch ttl {
	case 64, 128, 255:
		return 0
	default:
		return ttl
	}
}

// classify marks the errors that mean "we ran out of something".
func classify(err error) error {
	for _, e := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", ErrFiles, err)
		}
	}
	return err
}
