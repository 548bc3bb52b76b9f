// Package stack turns the packets of a TUN device into flows, and answers back into packets.
//
// TCP goes through gVisor's netstack. UDP and ICMP echo run beside it: they are parsed where
// they are read and answered with packets that are built here, without a hop through another
// goroutine. Every new flow is handed to a Handler in a goroutine of its own and is held until
// the Handler decides; nothing is answered and nothing gets lost before that. The interception
// Gate is the Handler; cmd makes the Stack and runs it.
//
// The package drops what no honest program sends (spoofed sources, bad checksums, source
// routing, hiding fragments, multicast, loopback) and counts it. It knows no processes, rules
// or verdicts, opens no sockets, and never answers a ping or accepts a connection on its own.
package stack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"gatun/network/packet"
)

// Device reads and writes IP packets; its contract is that of gatun/tun.Device, which
// implements it. Run closes it.
type Device interface {
	Read(bufs [][]byte, sizes []int) (n int, err error)
	Write(bufs [][]byte) (n int, err error)
	Unsummed(i int) bool
	WriteLarge(pieces [][]byte, network, headers, mss int) (taken bool, err error)
	MaxPacket() int
	MTU() int
	BatchSize() int
	Close() error
}

// Handler decides on new flows. Each call runs in a goroutine of its own and may block: that is
// the hold. A Handler that returns without a verdict, or panics, has dropped the flow. One that
// has accepted a TCP flow may return and carry the connection on elsewhere.
type Handler interface {
	HandleTCP(*TCPFlow)
	HandleUDP(*UDPFlow)
	HandlePing(*PingFlow)
	// HandleOther is called for any IP protocol that is not TCP, UDP or ICMP.
	HandleOther(*OtherFlow)
}

// Limits bounds what programs can make the Stack hold. A zero field takes its default.
type Limits struct {
	HeldTCP       int // SYNs without a verdict or in a handshake; default 32 768
	UDPFlows      int // (socket, peer) pairs; default 65 536
	Pings         int // (source, id, destination) triples; default 4 096
	Others        int // flows of other protocols without a verdict; default 1 024
	HeldDatagrams int // per UDP flow or ping without a verdict; default 64
	HeldBytes     int // of all held datagrams, and packets of other protocols; default 16 MiB
	FragmentBytes int // waiting for reassembly; default 4 MiB

	Handshake time.Duration // from Accept to the program's ACK; default 10 s
	Drain     time.Duration // how long Run waits for handlers at its end; default 5 s
}

func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.HeldTCP, 32768)
	def(&l.UDPFlows, 65536)
	def(&l.Pings, 4096)
	def(&l.Others, 1024)
	def(&l.HeldDatagrams, 64)
	def(&l.HeldBytes, 16<<20)
	def(&l.FragmentBytes, 4<<20)
	if l.Handshake <= 0 {
		l.Handshake = 10 * time.Second
	}
	if l.Drain <= 0 {
		l.Drain = 5 * time.Second
	}
	return l
}

// Options are what New needs. All but Limits and Logger are required.
type Options struct {
	Device  Device
	Handler Handler
	// Local reports whether addr is a source that a local program may use. Packets from other
	// sources are spoofed. It is called on the packet path: it must be fast and not block.
	Local func(addr netip.Addr) bool
	// Elsewhere reports whether somebody else carries the connection: a segment of it that
	// strays in here is swallowed instead of reset. It is called on the packet path. Nil: none is.
	Elsewhere func(f packet.Flow) bool
	Logger    *zap.Logger
	Limits    Limits
}

// Stack is the packet path of one TUN device. Make it with New and start it with Run, once.
type Stack struct {
	dev     Device
	large   bool // dev takes packets larger than the MTU
	handler Handler
	quick   Quick // handler, if it is one
	local   func(netip.Addr) bool
	log     *zap.Logger

	elsewhere func(packet.Flow) bool
	limits    Limits
	mtu       int

	counts counts
	now    atomic.Int64 // coarse: nanoseconds since 1970, at most a second old
	ipID   atomic.Uint32
	held   atomic.Int64 // bytes of held datagrams

	out  outQueue
	nets netstacks

	ctx      context.Context // of Run; parent of every flow's context
	handlers handlers
	crew     crew

	fresh  []*TCPFlow // of the batch that is being read; the reader's
	syns   synTable
	udp    table[UDPFlow]
	pings  table[PingFlow]
	others table[OtherFlow]
}

// ErrStopped is returned for operations on a Stack whose Run has ended.
var ErrStopped = errors.New("packet stack has stopped")

// New checks the options and makes a Stack. It starts nothing.
func New(o Options) (*Stack, error) {
	switch {
	case o.Device == nil:
		return nil, errors.New("stack: Options.Device is missing")
	case o.Handler == nil:
		return nil, errors.New("stack: Options.Handler is missing")
	case o.Local == nil:
		return nil, errors.New("stack: Options.Local is missing")
	}
	if o.Elsewhere == nil {
		o.Elsewhere = func(packet.Flow) bool { return false }
	}
	mtu := o.Device.MTU()
	if mtu < packet.MinIPv6MTU || mtu > 65535 {
		return nil, fmt.Errorf("stack: the device's MTU must be from %d to 65535, got %d", packet.MinIPv6MTU, mtu)
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	s := &Stack{
		dev: o.Device, handler: o.Handler, local: o.Local, log: o.Logger,
		elsewhere: o.Elsewhere, limits: o.Limits.withDefaults(), mtu: mtu, large: o.Device.MaxPacket() > mtu,
	}
	s.quick, _ = o.Handler.(Quick)
	s.now.Store(time.Now().UnixNano())
	s.out.init(mtu, &s.counts.writeErrors)
	s.crew.init()
	s.nets.init()
	s.syns.init()
	s.udp.init()
	s.pings.init()
	s.others.init()
	return s, nil
}

// Run moves packets until ctx is done or the device fails. Connections that are open then are
// reset, held flows are dropped and their contexts cancelled. It returns when every handler
// has returned, or with an error when some have not within Limits.Drain. A device that was
// closed, or a done ctx, is a normal end: nil.
func (s *Stack) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.ctx = ctx
	if err := s.renew(); err != nil {
		return err
	}
	failed := make(chan error, 2)
	var loops, writer sync.WaitGroup
	loops.Go(func() { failed <- s.read() })
	writer.Go(func() { failed <- s.write() })
	loops.Go(func() { s.tick(ctx) })

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	cancel()
	s.syns.abortAll()
	s.nets.close()
	late := s.drain()
	s.out.close()
	writer.Wait() // the resets are on the device before it closes
	s.dev.Close()
	loops.Wait()
	s.nets.destroy()
	return errors.Join(err, late)
}

// drain waits for the handlers, for a bounded time.
func (s *Stack) drain() error {
	done := make(chan struct{})
	go func() {
		s.handlers.wait()
		close(done)
	}()
	t := time.NewTimer(s.limits.Drain)
	defer t.Stop()
	select {
	case <-done:
		return nil
	case <-t.C:
		return fmt.Errorf("stack: handlers still run %v after the end; they ignore their flow's context", s.limits.Drain)
	}
}

// tick keeps the coarse clock and forgets held SYNs whose program has stopped asking.
func (s *Stack) tick(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			s.now.Store(now.UnixNano())
			s.counts.abandonedSYNs.Add(s.syns.abandon(now))
		}
	}
}

// serve runs a handler for one flow; end is that of newFlow.
func (s *Stack) serve(f packet.Flow, handle func(), end func(panicked bool)) {
	panicked := true
	defer func() {
		if panicked {
			s.counts.panics.Add(1)
			s.log.Error("handler panicked, its flow is dropped", zap.Stringer("flow", f),
				zap.Any("panic", recover()), zap.ByteString("stack", debug.Stack()))
		}
		end(panicked)
	}()
	handle()
	panicked = false
}
