package interception

import (
	"context"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"gatun/network"
	"gatun/network/packet"
)

// Limits bounds what the Relay keeps, in time and number.
type Limits struct {
	DNS        time.Duration // a UDP pair with port 53
	OneWay     time.Duration // a UDP pair that only one side has used
	TwoWay     time.Duration // a UDP pair that both sides have used
	Ping       time.Duration
	HalfClosed time.Duration // a TCP connection that one side has closed; an open one has no limit

	UDPPairs        int // of all programs together; above it the largest program loses its oldest
	UDPPairsPerProg int // above it the program loses its oldest idle pairs
	PingsPerProg    int // likewise
}

// DefaultLimits are those of product.md, and numbers that keep one program's flood below a
// hundred megabytes.
func DefaultLimits() Limits {
	return Limits{
		DNS: 10 * time.Second, OneWay: 30 * time.Second, TwoWay: 180 * time.Second,
		Ping: 30 * time.Second, HalfClosed: 2 * time.Hour,
		UDPPairs: 62000, UDPPairsPerProg: 56000, PingsPerProg: 512,
	}
}

// tick is the resolution of idle limits: one sweep of all flows, instead of a timer for each.
const tick = time.Second

// Relay carries permitted flows. Its fields may be set until Run; then its methods may be
// called from any goroutine.
type Relay struct {
	Limits Limits
	Files  *FileBudget
	// Translate says where a destination is really dialled; nil: there. `gatun run` uses it for
	// the address that stands for the host.
	Translate func(netip.Addr) netip.Addr
	// Dialed is told what became of a TCP connection: nil where the server took it, else the
	// network's or the server's answer, or syscall.ETIMEDOUT where the program waited for a while
	// in vain. It must not block; nil: nobody wants to know.
	Dialed func(remote netip.AddrPort, err error)

	// Divert lets the system's kernel end a held connection at a socket of ours instead of netstack, and
	// Pipe opens what moves bytes between two such sockets; nil: netstack ends all.
	Divert func(ctx context.Context, f packet.Flow, syn []byte) (Upstream, error)
	Pipe   func() (Pipe, error)

	up    upstreams
	log   *zap.Logger
	ended func(*network.Link, string)

	lookEvery time.Duration // for idle connections

	now      atomic.Uint32 // ticks since the start, from 1
	buffers  buffers
	pipes    pipes
	diverted diverted
	tcp      tcpRelays
	udp      udpRelay
	pings    pingRelay
	counts   relayCounts

	workers workers
}

// RelayCounters says what the Relay has dropped or refused, since its start.
type RelayCounters struct {
	TCPRefused      uint64 // connections that found no file
	TCPUndiverted   uint64 // connections that netstack ended because the kernel did not
	UDPRefused      uint64 // pairs that found no file or socket
	UDPUnsolicited  uint64 // datagrams from peers that the program has not contacted
	UDPSendDropped  uint64 // datagrams that the socket did not take
	UDPReplyDropped uint64 // datagrams that the stack did not take
	UDPEvicted      uint64 // pairs ended early to make room
	PingRefused     uint64
	PingEvicted     uint64
	Panics          uint64
}

type relayCounts struct {
	tcpRefused, undiverted, udpRefused, udpUnsolicited, udpSendDropped, udpReplyDropped, udpEvicted,
	pingRefused, pingEvicted, panics atomic.Uint64
}

// NewRelay makes a Relay that opens its sockets with d and reports the end of what it carries to
// ended. It starts nothing.
func NewRelay[T Upstream, U UDPUpstream, E EchoUpstream](d Dialer[T, U, E], log *zap.Logger, ended func(*network.Link, string)) *Relay {
	r := &Relay{
		Limits: DefaultLimits(), Files: NewFileBudget(fileLimit()),
		up: upstreamsOf(d), log: log, ended: ended, lookEvery: lookEvery,
	}
	r.now.Store(1)
	r.buffers.init()
	r.workers.init()
	r.tcp.init()
	r.udp.init(r)
	r.pings.init(r)
	return r
}

// Run parks idle connections and ends idle flows until ctx ends, then resets or closes all that
// the Relay carries and returns when their goroutines have ended.
func (r *Relay) Run(ctx context.Context) error {
	var watch sync.WaitGroup
	watch.Go(func() {
		if err := r.up.watch(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("idle connections are no longer parked", zap.Error(err))
		}
	})
	r.workers.keep()
	t, look := time.NewTicker(tick), time.NewTicker(r.lookEvery)
	defer t.Stop()
	defer look.Stop()
	for {
		select {
		case <-t.C:
			r.now.Add(1)
			r.sweep()
			r.workers.rest()
			r.pipes.rest()
		case <-look.C:
			r.tcp.park()
		case <-ctx.Done():
			r.tcp.endAll(causeStopped)
			r.workers.stop()
			r.udp.endAll(causeStopped)
			r.pings.endAll(causeStopped)
			r.workers.wait()
			r.pipes.rest()
			watch.Wait()
			return ctx.Err()
		}
	}
}

func (r *Relay) sweep() {
	r.tcp.sweep(ticks(r.Limits.HalfClosed))
	r.udp.sweep()
	r.pings.sweep()
}

// ticks rounds up, so that no flow ends before its time.
func ticks(d time.Duration) uint32 { return uint32((d+tick-1)/tick) + 1 }

// Counters returns what was dropped or refused so far.
func (r *Relay) Counters() RelayCounters {
	c := &r.counts
	return RelayCounters{
		TCPRefused: c.tcpRefused.Load(), TCPUndiverted: c.undiverted.Load(), UDPRefused: c.udpRefused.Load(), UDPUnsolicited: c.udpUnsolicited.Load(),
		UDPSendDropped: c.udpSendDropped.Load(), UDPReplyDropped: c.udpReplyDropped.Load(), UDPEvicted: c.udpEvicted.Load(),
		PingRefused: c.pingRefused.Load(), PingEvicted: c.pingEvicted.Load(), Panics: c.panics.Load(),
	}
}

func (r *Relay) destination(a netip.AddrPort) netip.AddrPort {
	if r.Translate == nil {
		return a
	}
	return netip.AddrPortFrom(r.Translate(a.Addr()), a.Port())
}

// panicked counts and logs a panic that was recovered. It must be called where the stack of
// the panic is still there: in the deferred function.
func (r *Relay) panicked(what string, p any) {
	r.counts.panics.Add(1)
	r.log.Error("panic, the flow is ended", zap.String("in", what), zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
}

func ownerOf(l *network.Link) OwnerKey {
	if c := l.Comm(); c != nil {
		return KeyOf(c.Owner)
	}
	return OwnerKey{}
}
