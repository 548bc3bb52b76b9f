package interception

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"go.uber.org/zap"

	"gatun/network"
	"gatun/network/packet"
	"gatun/stack"
)

// udpFlow is a program's (socket, peer) pair. *stack.UDPFlow is one.
type udpFlow interface {
	Flow() packet.Flow
	Accept(stack.UDPSink)
	Reject(*packet.ICMPError)
	Reply(payload []byte, tos uint8) error
	Error(*packet.ICMPError)
	Forget()
}

const dnsPort = 53

// pair is one permitted (socket, peer). It is the sink of its flow. There may be tens of
// thousands: it has no goroutine, no timer and no buffer.
type pair struct {
	s    *udpSocket
	f    udpFlow
	l    *network.Link
	peer netip.AddrPort // where it is really sent

	lastOut, lastIn atomic.Uint32 // ticks; 0 is never
	ended           atomic.Bool
}

// UDP relays a pair until it is idle for too long, the link is killed, or Run ends; the end is
// reported. What the pair cannot have is told to the program by an ICMP error.
func (r *Relay) UDP(f *stack.UDPFlow, l *network.Link) { r.udp.start(f, l) }

func (u *udpRelay) start(f udpFlow, l *network.Link) {
	p := &pair{f: f, l: l, peer: u.r.destination(f.Flow().Remote)}
	p.lastOut.Store(u.r.now.Load())
	s, j := u.join(p, f.Flow().Local, ownerOf(l))
	if j.replaced != nil {
		u.end(j.replaced, "replaced by a new flow")
	}
	u.evict(j.evicted)
	if j.first {
		u.open(s)
	}
	<-s.ready
	if s.err != nil {
		u.refuse(p, s.err)
		return
	}
	l.OnKill(func(cause string) { u.end(p, cause) })
	f.Accept(p)
	if p.ended.Load() {
		f.Forget() // it ended between the two: what was accepted leads nowhere
	}
}

func (u *udpRelay) refuse(p *pair, err error) {
	u.r.counts.udpRefused.Add(1)
	u.r.log.Debug("datagrams refused", zap.Stringer("flow", p.f.Flow()), zap.Error(err))
	icmp := localError(err)
	if icmp == nil {
		icmp = packet.AdminProhibited(netip.Addr{})
	}
	p.f.Reject(icmp)
	u.end(p, err.Error())
}

// Datagrams implements stack.UDPSink: it sends at once, or drops.
func (p *pair) Datagrams(_ *stack.UDPFlow, t stack.Train) {
	r := p.s.u.r
	p.lastOut.Store(r.now.Load())
	for rest := t.Payloads; len(rest) > 0; {
		n, err := p.s.sock.Send(rest, p.peer, t.TTL, t.TOS, t.DontFragment)
		size := 0
		for _, b := range rest[:n] {
			size += len(b)
		}
		p.l.Sent(size)
		if rest = rest[n:]; err == nil {
			return
		}
		rest = p.dropped(rest, err)
	}
}

// dropped counts those of the datagrams that are lost for the error, and returns the others: what
// is wrong with one may not be wrong with the next, but a full buffer stays full.
func (p *pair) dropped(rest [][]byte, err error) [][]byte {
	lost := 1
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, os.ErrClosed) {
		lost = len(rest)
	}
	p.s.u.r.counts.udpSendDropped.Add(uint64(lost))
	if icmp := localError(err); icmp != nil {
		p.f.Error(icmp)
	}
	return rest[lost:]
}

// idleLimit is how many ticks the pair may be silent, by its kind.
func (p *pair) idleLimit() uint32 {
	l := &p.s.u.r.Limits
	switch {
	case p.peer.Port() == dnsPort:
		return ticks(l.DNS)
	case p.lastIn.Load() != 0:
		return ticks(l.TwoWay)
	default:
		return ticks(l.OneWay)
	}
}

func (p *pair) lastActive() uint32 { return max(p.lastOut.Load(), p.lastIn.Load()) }

// udpSocket is our socket for one socket of a program, shared by all its peers, so that the
// port that a peer sees does not depend on the peer (RFC 4787, endpoint-independent mapping).
type udpSocket struct {
	u     *udpRelay
	local netip.AddrPort
	owner OwnerKey

	ready chan struct{} // closed when sock or err is there
	sock  UDPUpstream
	err   error

	mu    sync.RWMutex // readers of peers need it; writers need udpRelay.mu as well
	peers few[netip.AddrPort, *pair]
	gone  bool // has left udpRelay.socks: nobody can join any more. Guarded by udpRelay.mu
}

func (s *udpSocket) find(peer netip.AddrPort) *pair {
	s.mu.RLock()
	defer s.mu.RUnlock()
	p, _ := s.peers.get(peer)
	return p
}

// datagram takes what arrived. A peer that the program has not contacted is a stranger.
func (s *udpSocket) datagram(b []byte, from netip.AddrPort, tos uint8) {
	r := s.u.r
	p := s.find(from)
	if p == nil {
		r.counts.udpUnsolicited.Add(1)
		return
	}
	p.lastIn.Store(r.now.Load())
	if err := p.f.Reply(b, tos); err != nil {
		r.counts.udpReplyDropped.Add(1)
		return
	}
	p.l.Received(len(b))
}

func (s *udpSocket) report(peer netip.AddrPort, e *packet.ICMPError) {
	if p := s.find(peer); p != nil {
		p.f.Error(s.u.r.asSeen(e, p.f.Flow().Remote))
	}
}

// udpRelay holds all UDP pairs.
//
//	join ──first of its socket──▶ open ──▶ ready ──▶ pairs come and go ──last──▶ closed
//
// A socket leaves the map in the same step as its last pair, so a pair that joins either finds
// a socket that stays, or makes a new one.
type udpRelay struct {
	r *Relay

	mu      sync.Mutex
	socks   map[netip.AddrPort]*udpSocket
	pairs   int
	byOwner map[OwnerKey]int
}

func (u *udpRelay) init(r *Relay) {
	u.r, u.socks, u.byOwner = r, map[netip.AddrPort]*udpSocket{}, map[OwnerKey]int{}
}

// joined is what is left to do after a join, without the lock.
type joined struct {
	first    bool    // the socket is new: open it
	replaced *pair   // had the same peer
	evicted  []*pair // have to make room
}

// join puts the pair to its socket.
func (u *udpRelay) join(p *pair, local netip.AddrPort, owner OwnerKey) (*udpSocket, joined) {
	u.mu.Lock()
	defer u.mu.Unlock()
	var j joined
	s := u.socks[local]
	if s == nil {
		s = &udpSocket{u: u, local: local, owner: owner, ready: make(chan struct{})}
		u.socks[local] = s
		j.first = true
	}
	j.evicted = u.makeRoom(s.owner)
	p.s = s
	s.mu.Lock()
	j.replaced, _ = s.peers.get(p.peer)
	s.peers.put(p.peer, p)
	s.mu.Unlock()
	if j.replaced == nil {
		u.pairs++
		u.byOwner[s.owner]++
	}
	return s, j
}

// open makes the socket. It holds no lock: the pairs that join meanwhile wait for ready.
func (u *udpRelay) open(s *udpSocket) {
	s.err = u.acquire(s)
	if s.err == nil {
		if s.sock, s.err = u.r.up.udp(s.local.Addr()); s.err != nil {
			u.r.Files.Release(s.owner)
		}
	}
	if s.err == nil && !s.attached() && !u.r.workers.start(s.serve) {
		s.err = errors.New(causeStopped)
		u.closeSocket(s)
	}
	u.mu.Lock()
	orphan := s.gone && s.err == nil // its only pairs were ended before it was there
	if s.err != nil {
		u.drop(s)
	}
	close(s.ready)
	u.mu.Unlock()
	if orphan {
		u.closeSocket(s)
	}
}

// acquire takes a file. A program that may have no more loses the sockets that were silent
// longest.
func (u *udpRelay) acquire(s *udpSocket) error {
	err := u.r.Files.Acquire(s.owner)
	if err == nil {
		return nil
	}
	oldest := u.oldestSockets(s.owner)
	if len(oldest) == 0 {
		return err
	}
	u.evict(oldest)
	return u.r.Files.Retake(s.owner)
}

func (u *udpRelay) evict(pairs []*pair) {
	for _, p := range pairs {
		u.r.counts.udpEvicted.Add(1)
		u.end(p, "ended to make room")
	}
}

func (s *udpSocket) serve() {
	defer s.fail() // nobody is left, unless the socket failed
	defer s.survive()
	<-s.ready
	if err := s.sock.Serve(s.datagram, s.report); err != nil && len(s.all()) > 0 {
		s.u.r.log.Warn("upstream UDP socket ended", zap.Error(err))
	}
}

// attached has the socket served by who serves others too, if anybody does: a panic ends this one's
// pairs only.
func (s *udpSocket) attached() bool {
	return s.sock.Attach(func(b []byte, from netip.AddrPort, tos uint8) {
		defer s.survive()
		s.datagram(b, from, tos)
	}, func(peer netip.AddrPort, e *packet.ICMPError) {
		defer s.survive()
		s.report(peer, e)
	})
}

// survive is to be deferred.
func (s *udpSocket) survive() {
	if p := recover(); p != nil {
		s.u.r.panicked("udp reader", p)
		s.fail()
	}
}

func (s *udpSocket) fail() {
	for _, p := range s.all() {
		s.u.end(p, "upstream socket failed")
	}
}

func (s *udpSocket) all() []*pair {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]*pair, 0, s.peers.len())
	for _, p := range s.peers.all() {
		all = append(all, p)
	}
	return all
}

// end takes the pair away, once. The stack forgets the flow first: from then on a datagram is
// a new flow and joins anew.
func (u *udpRelay) end(p *pair, cause string) {
	if !p.ended.CompareAndSwap(false, true) {
		return
	}
	p.f.Forget()
	if s := u.leave(p); s != nil {
		u.closeSocket(s)
	}
	u.r.ended(p.l, cause)
}

// leave returns the socket if the pair was its last and it is to be closed.
func (u *udpRelay) leave(p *pair) *udpSocket {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := p.s
	if now, _ := s.peers.get(p.peer); now != p {
		return nil // a newer pair has its place
	}
	s.mu.Lock()
	s.peers.remove(p.peer)
	s.mu.Unlock()
	u.pairs--
	if u.byOwner[s.owner]--; u.byOwner[s.owner] == 0 {
		delete(u.byOwner, s.owner)
	}
	if u.pairs == 0 {
		u.byOwner = map[OwnerKey]int{} // a Go map never shrinks
	}
	if s.peers.len() > 0 {
		return nil
	}
	wasOpen := !s.gone && s.isOpen()
	u.drop(s)
	if !wasOpen {
		return nil // open sees gone, and closes
	}
	return s
}

// drop takes the socket out of the map; u.mu is held.
func (u *udpRelay) drop(s *udpSocket) {
	s.gone = true
	if u.socks[s.local] != s {
		return
	}
	delete(u.socks, s.local)
	if len(u.socks) == 0 {
		u.socks = map[netip.AddrPort]*udpSocket{}
	}
}

func (s *udpSocket) isOpen() bool {
	select {
	case <-s.ready:
		return s.err == nil
	default:
		return false
	}
}

func (u *udpRelay) closeSocket(s *udpSocket) {
	if err := s.sock.Close(); err != nil && !errors.Is(err, syscall.EBADF) {
		u.r.log.Debug("close upstream UDP socket", zap.Error(err))
	}
	u.r.Files.Release(s.owner)
}
