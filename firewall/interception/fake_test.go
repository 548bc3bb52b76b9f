package interception

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/zap"

	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
	"gatun/stack"
)

// fakeNet is a dialer whose answers the test writes.
type fakeNet struct {
	dial func(context.Context) (*fakeUp, error)

	listenErr, echoErr error
	opened, closed     atomic.Int32
	attaches           bool // UDP sockets need no goroutine

	mu    sync.Mutex
	udp   []*fakeUDP
	echos []*fakeEcho
}

func (n *fakeNet) DialTCP(ctx context.Context, _ netip.Addr, _ netip.AddrPort, _ uint8) (*fakeUp, error) {
	return n.dial(ctx)
}

func (n *fakeNet) ListenUDP(netip.Addr) (*fakeUDP, error) {
	if n.listenErr != nil {
		return nil, n.listenErr
	}
	n.opened.Add(1)
	s := &fakeUDP{n: n, end: make(chan struct{}), sent: make(chan sentDatagram, 1024)}
	n.mu.Lock()
	n.udp = append(n.udp, s)
	n.mu.Unlock()
	return s, nil
}

func (n *fakeNet) ListenEcho(_, _ netip.Addr) (*fakeEcho, error) {
	if n.echoErr != nil {
		return nil, n.echoErr
	}
	n.opened.Add(1)
	s := &fakeEcho{n: n, end: make(chan struct{})}
	n.mu.Lock()
	n.echos = append(n.echos, s)
	n.mu.Unlock()
	return s, nil
}

func (n *fakeNet) Watch(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// sockets waits until every opened UDP socket is served and returns them.
func (n *fakeNet) sockets() []*fakeUDP {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]*fakeUDP(nil), n.udp...)
}

// fakeUp is a connection that nobody uses.
type fakeUp struct {
	net.Conn
	aborts atomic.Int32
}

func (c *fakeUp) Fill(func() []byte, func([]byte)) ([]byte, int, error) { return nil, 0, io.EOF }
func (c *fakeUp) CloseWrite() error                                     { return nil }
func (c *fakeUp) Close() error                                          { return nil }
func (c *fakeUp) Abort()                                                { c.aborts.Add(1) }
func (c *fakeUp) Broken() bool                                          { return false }
func (c *fakeUp) Interrupt()                                            {}
func (c *fakeUp) Park(func()) bool                                      { return false }
func (c *fakeUp) Peek() (bool, error)                                   { return false, nil }
func (c *fakeUp) Resume() error                                         { return nil }

type sentDatagram struct {
	b        string
	to       netip.AddrPort
	ttl, tos uint8
	df       bool
}

type fakeUDP struct {
	n       *fakeNet
	once    sync.Once
	end     chan struct{}
	sendErr error
	refused map[string]error // by payload
	sent    chan sentDatagram

	mu       sync.Mutex
	datagram func([]byte, netip.AddrPort, uint8)
	report   func(netip.AddrPort, *packet.ICMPError)
}

func (s *fakeUDP) Send(b [][]byte, to netip.AddrPort, ttl, tos uint8, df bool) (int, error) {
	select {
	case <-s.end:
		return 0, os.ErrClosed
	default:
	}
	if s.sendErr != nil {
		return 0, s.sendErr
	}
	for i := range b {
		if s.refused[string(b[i])] != nil {
			return i, s.refused[string(b[i])]
		}
		select {
		case s.sent <- sentDatagram{string(b[i]), to, ttl, tos, df}:
		default:
		}
	}
	return len(b), nil
}

// Attach keeps who is to be called where the net says so.
func (s *fakeUDP) Attach(datagram func([]byte, netip.AddrPort, uint8), report func(netip.AddrPort, *packet.ICMPError)) bool {
	if !s.n.attaches {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.datagram, s.report = datagram, report
	return true
}

func (s *fakeUDP) Serve(datagram func([]byte, netip.AddrPort, uint8), report func(netip.AddrPort, *packet.ICMPError)) error {
	s.mu.Lock()
	s.datagram, s.report = datagram, report
	s.mu.Unlock()
	<-s.end
	return os.ErrClosed
}

func (s *fakeUDP) served(t *testing.T) (datagram func([]byte, netip.AddrPort, uint8), report func(netip.AddrPort, *packet.ICMPError)) {
	t.Helper()
	waitFor(t, "the socket's reader", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.datagram != nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.datagram, s.report
}

func (s *fakeUDP) Close() error {
	s.once.Do(func() { close(s.end); s.n.closed.Add(1) })
	return nil
}

type fakeEcho struct {
	n    *fakeNet
	once sync.Once
	end  chan struct{}

	mu      sync.Mutex
	sendErr error
	reply   func(uint16, []byte, uint8)
	report  func(uint16, *packet.ICMPError)
}

func (s *fakeEcho) Send(uint16, []byte, uint8, uint8) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sendErr
}

func (s *fakeEcho) Serve(reply func(uint16, []byte, uint8), report func(uint16, *packet.ICMPError)) error {
	s.mu.Lock()
	s.reply, s.report = reply, report
	s.mu.Unlock()
	<-s.end
	return os.ErrClosed
}

func (s *fakeEcho) Close() error {
	s.once.Do(func() { close(s.end); s.n.closed.Add(1) })
	return nil
}

// fakeFlow is the stack's side of a UDP pair.
type fakeFlow struct {
	bug  bool // Reply panics
	flow packet.Flow

	mu       sync.Mutex
	sink     stack.UDPSink
	rejected []*packet.ICMPError
	errs     []*packet.ICMPError
	replies  []string
	forgot   int
}

func (f *fakeFlow) Flow() packet.Flow { return f.flow }
func (f *fakeFlow) Accept(s stack.UDPSink) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sink = s
}
func (f *fakeFlow) Reject(e *packet.ICMPError) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rejected = append(f.rejected, e)
}
func (f *fakeFlow) Reply(b []byte, _ uint8) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.bug {
		panic("bug")
	}
	f.replies = append(f.replies, string(b))
	return nil
}
func (f *fakeFlow) Error(e *packet.ICMPError) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs = append(f.errs, e)
}
func (f *fakeFlow) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgot++
}

// send is a datagram from the program.
func (f *fakeFlow) send(b string) {
	f.mu.Lock()
	s := f.sink
	f.mu.Unlock()
	if s != nil {
		s.Datagrams(nil, stack.Train{Payloads: [][]byte{[]byte(b)}, TTL: 64, TOS: 4, DontFragment: true})
	}
}

// sendAll is what the program sent at once.
func (f *fakeFlow) sendAll(payloads ...string) {
	t := stack.Train{TTL: 64, TOS: 4, DontFragment: true}
	for _, p := range payloads {
		t.Payloads = append(t.Payloads, []byte(p))
	}
	f.mu.Lock()
	s := f.sink
	f.mu.Unlock()
	s.Datagrams(nil, t)
}

// rig is a Relay on a fakeNet. Its clock is the test's: Run is not running.
type rig struct {
	*Relay
	t     testing.TB
	net   *fakeNet
	table *network.Table

	mu     sync.Mutex
	causes map[packet.Flow][]string
}

func newRig(t testing.TB) *rig {
	r := &rig{t: t, net: &fakeNet{}, table: network.NewTable(nowForTests), causes: map[packet.Flow][]string{}}
	r.Relay = NewRelay(r.net, zap.NewNop(), func(l *network.Link, cause string) {
		r.table.End(l, cause)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.causes[l.Flow] = append(r.causes[l.Flow], cause)
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := r.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		if o, c := r.net.opened.Load(), r.net.closed.Load(); o != c {
			t.Errorf("%d sockets opened, %d closed", o, c)
		}
		if all, _ := r.Files.Used(OwnerKey{}); all != 0 {
			t.Errorf("%d files are not given back", all)
		}
	})
	return r
}

// pass lets seconds go by, one sweep each.
func (r *rig) pass(seconds int) {
	for range seconds {
		r.now.Add(1)
		r.sweep()
	}
}

func (r *rig) link(f packet.Flow, pid int) *network.Link {
	l, _ := r.table.Link(f)
	l.SetComm(&network.Communication{Owner: attribution.Owner{Process: &attribution.Process{PID: pid, Kind: attribution.KindProgram}}})
	return l
}

func (r *rig) udpPair(pid int, local, remote string) (*fakeFlow, *network.Link) {
	f := &fakeFlow{flow: packet.Flow{Proto: packet.UDP, Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote)}}
	l := r.link(f.flow, pid)
	r.udp.start(f, l)
	return f, l
}

// relayTCP carries a connection until it is over and returns the reported cause.
func (r *rig) relayTCP(ctx context.Context, h *heldSYN, l *network.Link, accept func() (program, error)) string {
	r.connectAndCopy(ctx, h, l, accept)
	r.workers.wait()
	causes := r.causesOf(h.flow)
	if len(causes) != 1 {
		r.t.Errorf("reported ends: %q", causes)
		return ""
	}
	return causes[0]
}

func (r *rig) causesOf(f packet.Flow) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.causes[f]
}
