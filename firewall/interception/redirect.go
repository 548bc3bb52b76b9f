package interception

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
)

const (
	// maxAskers bounds the sockets whose owner is remembered. One more is looked up at each query.
	maxAskers = 16_384
	// maxStreams bounds the connections over TCP that the nameserver serves beside the stack, each
	// a file of ours; maxStreamsOfOne those of one program.
	maxStreams      = 1024
	maxStreamsOfOne = 128

	maxStanding   = 32   // readers that wait for a turn
	maxQueryBytes = 4096 // of a datagram: an honest query has a few hundred
	filesPause    = 100 * time.Millisecond
)

// Redirect takes the port 53 traffic that the kernel leads to sockets of ours on loopback instead
// of the TUN device. Each query is the program's that asked, whoever was asked: the same owner,
// verdict, link and nameserver as if it had come through the stack.
//
// Whose a datagram is counts for as long as its socket is open, as for those from the stack. The
// fields are set by cmd before Run.
type Redirect struct {
	Gate *Gate
	UDP  []*net.UDPConn
	TCP  []*net.TCPListener
	// Original returns a flow as the program knows it; it is given as our socket sees it, Local
	// being the program's side. An error: it was not redirected, and nothing is answered.
	Original func(packet.Flow) (packet.Flow, error)
	// Waits returns a context in which the nameserver calls f before a query waits; nil: it cannot.
	Waits func(ctx context.Context, f func()) context.Context

	mu     sync.Mutex
	askers map[netip.AddrPort]*asker // by the source as our socket sees it

	standing atomic.Int64 // readers without a turn
	streams  atomic.Int64
	programs shares
}

// Run reads the sockets until ctx ends. It does not close them.
func (r *Redirect) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	past := time.Unix(1, 0)
	for _, c := range r.UDP {
		r.read(ctx, g, c)
		defer context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(past) })()
	}
	for _, l := range r.TCP {
		g.Go(func() error { return r.connections(ctx, l) })
		defer context.AfterFunc(ctx, func() { _ = l.SetDeadline(past) })()
	}
	return g.Wait()
}

// reader reads one socket and answers by itself what can be answered at once: a goroutine for each
// query would cost more than the answer does. Before a query waits, another reader goes on; this one
// stands by when its query is answered.
type reader struct {
	r     *Redirect
	ctx   context.Context // of Run
	group *errgroup.Group
	conn  *net.UDPConn
	at    netip.AddrPort
	line  chan []byte // the buffer for the next one to read; received by who stands by

	serving context.Context // of queries: tells goOn
	buf     []byte
	reads   bool // it is this one's turn
}

func (r *Redirect) read(ctx context.Context, g *errgroup.Group, c *net.UDPConn) {
	first := &reader{r: r, ctx: ctx, group: g, conn: c, at: c.LocalAddr().(*net.UDPAddr).AddrPort(), line: make(chan []byte)}
	first.start(make([]byte, maxQueryBytes))
}

func (rd *reader) start(buf []byte) {
	rd.buf, rd.reads = buf, true
	if rd.r.Waits != nil {
		rd.serving = rd.r.Waits(rd.r.Gate.ctx, rd.goOn)
	}
	rd.group.Go(rd.run)
}

// goOn hands the reading over, once per turn.
func (rd *reader) goOn() {
	if !rd.reads {
		return
	}
	rd.reads = false
	select {
	case rd.line <- rd.buf:
	default:
		next := &reader{r: rd.r, ctx: rd.ctx, group: rd.group, conn: rd.conn, at: rd.at, line: rd.line}
		next.start(rd.buf)
	}
}

func (rd *reader) run() error {
	for {
		for rd.reads {
			n, from, err := rd.conn.ReadFromUDPAddrPort(rd.buf)
			switch {
			case rd.ctx.Err() != nil:
				return rd.ctx.Err()
			case err != nil:
				return err
			}
			rd.datagram(from, rd.buf[:n])
		}
		if !rd.standBy() {
			return nil
		}
	}
}

// standBy waits for another turn. False: enough others do.
func (rd *reader) standBy() bool {
	defer rd.r.standing.Add(-1)
	if rd.r.standing.Add(1) > maxStanding {
		return false
	}
	select {
	case rd.buf = <-rd.line:
		rd.reads = true
		return true
	case <-rd.ctx.Done():
		return false
	}
}

// datagram answers one query, or starts what finds out who asks. What is too much is dropped, and
// asked again by the resolver library.
func (rd *reader) datagram(from netip.AddrPort, b []byte) {
	g := rd.r.Gate
	if g.queries.Add(1) > maxQueries {
		g.queries.Add(-1)
		return
	}
	a := rd.r.asker(rd.conn, rd.at, from)
	query := append([]byte(nil), b...)
	if rd.serving != nil && a.known.Load() {
		a.carry(rd.serving, query)
		return
	}
	go a.carry(g.ctx, query)
}

// asker returns who is asking from there.
func (r *Redirect) asker(c *net.UDPConn, at, from netip.AddrPort) *asker {
	now := r.Gate.Clock().UnixNano()
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.askers[from]
	if a == nil {
		a = &asker{r: r, conn: c, at: at, from: from}
		if r.askers == nil {
			r.askers = map[netip.AddrPort]*asker{}
		}
		if len(r.askers) < maxAskers {
			r.askers[from] = a
		}
	}
	a.active.Store(now)
	return a
}

// asker is a program's socket and the server that it asks: what a UDP flow of the stack is.
type asker struct {
	r        *Redirect
	conn     *net.UDPConn
	at, from netip.AddrPort
	active   atomic.Int64 // nanoseconds since 1970

	once   sync.Once
	known  atomic.Bool // once is over
	flow   packet.Flow
	link   *network.Link
	owner  attribution.Owner
	serves bool // the nameserver answers
}

// LastActive implements remembered.
func (a *asker) LastActive() time.Time { return time.Unix(0, a.active.Load()) }

// Forget implements remembered: the next datagram from there is looked up anew.
func (a *asker) Forget() {
	a.r.mu.Lock()
	defer a.r.mu.Unlock()
	if a.r.askers[a.from] == a {
		delete(a.r.askers, a.from)
	}
	if len(a.r.askers) == 0 {
		a.r.askers = nil // a Go map never shrinks
	}
}

// Drop implements remembered.
func (a *asker) Drop() {}

// Reject implements remembered.
func (a *asker) Reject(*packet.ICMPError) {}

// carry takes one query to its end.
func (a *asker) carry(ctx context.Context, query []byte) {
	g := a.r.Gate
	defer g.queries.Add(-1)
	defer g.survive("redirected dns query")
	a.once.Do(a.decide)
	if !a.serves {
		return
	}
	answer := g.query(ctx, a.flow, a.link, a.owner, query)
	if answer != nil {
		_, _ = a.conn.WriteToUDPAddrPort(answer, a.from) // the program asks again
	}
}

// decide finds out who asks, and whether the nameserver is to answer: it is, unless the policy has
// just changed, or a question of our own came back. That one is cut by silence: an answer of ours
// would be taken for the nameserver's that was asked.
func (a *asker) decide() {
	defer a.known.Store(true)
	g := a.r.Gate
	flow, err := a.r.Original(packet.Flow{Proto: packet.UDP, Local: a.from, Remote: a.at})
	if err != nil {
		a.Forget()
		g.Log.Debug("a datagram on the port for redirected queries", zap.Error(err))
		return
	}
	if flow.Local != a.from {
		// The kernel has changed the source port, to tell this flow from another one of the same
		// socket: this address is nobody's, and may be somebody's next time.
		a.Forget()
	}
	a.flow, a.link = flow, g.fresh(flow)
	g.sockets.add(a.link, a)
	d, owner := g.judgeAs(a.link, packet.Flow{Proto: packet.UDP, Local: a.from, Remote: a.at})
	a.owner = owner
	a.serves = d.Verdict == network.RerouteToNameserver
	g.park(a.link, a)
	if !a.serves {
		g.parked.expire(a.link)
	}
	if g.sockets.settle(a.link) {
		g.retire(a.link, a, causeSocketClosed)
	}
}

// translated is an Owners that knows flows by the addresses, too, with which their packets left.
type translated interface {
	FindAs(ctx context.Context, flow, sent packet.Flow) attribution.Owner
}

// judgeAs is judge for a flow whose packets came as those of sent. Two programs may have had the same address
// one after the other, but not the same behind the redirect.
func (g *Gate) judgeAs(l *network.Link, sent packet.Flow) (network.Decision, attribution.Owner) {
	owners, knows := g.Owners.(translated)
	if !knows {
		return g.judge(g.ctx, l)
	}
	owner := owners.FindAs(g.ctx, l.Flow, sent)
	return g.decide(g.ctx, l, owner), owner
}

func (r *Redirect) connections(ctx context.Context, l *net.TCPListener) error {
	for {
		c, err := l.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
			pause(ctx, filesPause)
		case err != nil && !errors.Is(err, syscall.ECONNABORTED):
			return err
		case err == nil && r.streams.Add(1) > maxStreams:
			r.streams.Add(-1)
			resetConn(c)
		case err == nil:
			go func() {
				defer r.streams.Add(-1)
				defer r.Gate.survive("redirected dns connection")
				r.stream(c)
			}()
		}
	}
}

// pause keeps a reader that cannot get a file from spinning.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// resetConn closes a connection as a server that refuses it would.
func resetConn(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// stream decides on one connection and has it served.
func (r *Redirect) stream(c *net.TCPConn) {
	g := r.Gate
	at, from := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
	flow, err := r.Original(packet.Flow{Proto: packet.TCP, Local: from, Remote: at})
	if err != nil {
		resetConn(c)
		g.Log.Debug("a connection to the port for redirected queries", zap.Error(err))
		return
	}
	l, known := g.Table.Link(flow)
	if known {
		g.replace(l, g.ctx.Done())
		l, _ = g.Table.Link(flow)
	}
	d, owner := g.judgeAs(l, packet.Flow{Proto: packet.TCP, Local: from, Remote: at})
	key := KeyOf(owner)
	switch {
	case d.Verdict != network.RerouteToNameserver:
		resetConn(c)
		g.end(l, d)
	case !r.programs.take(key, maxStreamsOfOne):
		resetConn(c)
		g.Table.End(l, "too many connections to nameservers")
	default:
		defer r.programs.give(key)
		l.OnKill(func(string) { resetConn(c) })
		g.Table.End(l, g.serveStream(flow, l, owner, c))
	}
}

// shares counts what programs have of something.
type shares struct {
	mu sync.Mutex
	n  map[OwnerKey]int
}

// take counts one more for the owner, if that has fewer than most.
func (s *shares) take(o OwnerKey, most int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n[o] >= most {
		return false
	}
	if s.n == nil {
		s.n = map[OwnerKey]int{}
	}
	s.n[o]++
	return true
}

// give takes back one.
func (s *shares) give(o OwnerKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n[o]--; s.n[o] <= 0 {
		delete(s.n, o)
	}
	if len(s.n) == 0 {
		s.n = nil // a Go map never shrinks
	}
}
