package interception

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"gatun/network"
	"gatun/network/packet"
	"gatun/stack"
)

// pingFlow is one (source, id, destination) of a program. *stack.PingFlow is one.
type pingFlow interface {
	Flow() packet.Flow
	Accept(stack.PingSink)
	Reject(*packet.ICMPError)
	Reply(seq uint16, payload []byte, ttl uint8) error
	Error(seq uint16, e *packet.ICMPError)
	Forget()
}

// ping is one permitted flow of echo requests, with a socket of its own: the kernel, or a
// random identifier, keeps its replies apart from those of all others.
type ping struct {
	r     *pingRelay
	f     pingFlow
	l     *network.Link
	owner OwnerKey
	sock  EchoUpstream

	last  atomic.Uint32 // tick of the last request or reply
	ended atomic.Bool
}

// Ping relays echo requests, their replies and the errors that they cause, until no request
// and no reply came for a while, the link is killed, or Run ends; the end is reported.
func (r *Relay) Ping(f *stack.PingFlow, l *network.Link) { r.pings.start(f, l) }

func (u *pingRelay) start(f pingFlow, l *network.Link) {
	p := &ping{r: u, f: f, l: l, owner: ownerOf(l)}
	p.last.Store(u.r.now.Load())
	if old := u.add(p); old != nil {
		u.r.counts.pingEvicted.Add(1)
		u.end(old, "ended to make room")
	}
	if err := u.open(p); err != nil {
		u.refuse(p, err)
		return
	}
	l.OnKill(func(cause string) { u.end(p, cause) })
	f.Accept(p)
	if p.ended.Load() {
		f.Forget() // it ended between the two
	}
}

// open gives the ping its socket and the goroutine that serves it.
func (u *pingRelay) open(p *ping) error {
	if err := u.r.Files.Acquire(p.owner); err != nil {
		return err
	}
	flow := p.f.Flow()
	sock, err := u.r.up.echo(flow.Local.Addr(), u.r.destination(flow.Remote).Addr())
	if err != nil {
		u.r.Files.Release(p.owner)
		return err
	}
	u.mu.Lock()
	p.sock = sock
	ended := p.ended.Load()
	u.mu.Unlock()
	if ended || !u.r.workers.start(p.serve) {
		u.end(p, causeStopped)
		u.closeSocket(p)
	}
	return nil
}

func (u *pingRelay) refuse(p *ping, err error) {
	u.r.counts.pingRefused.Add(1)
	u.r.log.Info("echo requests cannot be relayed", zap.Stringer("flow", p.f.Flow()), zap.Error(err))
	icmp := localError(err)
	if icmp == nil {
		icmp = packet.AdminProhibited(netip.Addr{})
	}
	p.f.Reject(icmp)
	u.end(p, err.Error())
}

// Echo implements stack.PingSink: it sends at once, or drops.
func (p *ping) Echo(_ *stack.PingFlow, e stack.Echo) {
	p.last.Store(p.r.r.now.Load())
	err := p.sock.Send(e.Seq, e.Payload, e.TTL, e.TOS)
	if err == nil {
		p.l.Sent(len(e.Payload))
		return
	}
	if icmp := localError(err); icmp != nil {
		p.f.Error(e.Seq, icmp)
	}
}

func (p *ping) serve() {
	defer func() {
		if v := recover(); v != nil {
			p.r.r.panicked("ping", v)
		}
		p.r.end(p, "upstream socket failed") // does nothing where the end closed the socket
		p.r.closeSocket(p)
	}()
	_ = p.sock.Serve(p.reply, p.report)
}

func (p *ping) reply(seq uint16, payload []byte, ttl uint8) {
	p.last.Store(p.r.r.now.Load())
	if p.f.Reply(seq, payload, ttl) == nil {
		p.l.Received(len(payload))
	}
}

func (p *ping) report(seq uint16, e *packet.ICMPError) {
	p.f.Error(seq, p.r.r.asSeen(e, p.f.Flow().Remote))
}

// pingRelay holds all pings.
type pingRelay struct {
	r *Relay

	mu      sync.Mutex
	live    map[*ping]struct{}
	byOwner map[OwnerKey]int
}

func (u *pingRelay) init(r *Relay) {
	u.r, u.live, u.byOwner = r, map[*ping]struct{}{}, map[OwnerKey]int{}
}

// add takes the ping in and returns the one that has to make room, if any.
func (u *pingRelay) add(p *ping) (evicted *ping) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.byOwner[p.owner] >= u.r.Limits.PingsPerProg {
		for q := range u.live {
			if q.owner == p.owner && (evicted == nil || q.last.Load() < evicted.last.Load()) {
				evicted = q
			}
		}
	}
	u.live[p] = struct{}{}
	u.byOwner[p.owner]++
	return evicted
}

// end takes the ping away, once. Its goroutine gives back the socket.
func (u *pingRelay) end(p *ping, cause string) {
	if !p.ended.CompareAndSwap(false, true) {
		return
	}
	p.f.Forget()
	u.mu.Lock()
	delete(u.live, p)
	if u.byOwner[p.owner]--; u.byOwner[p.owner] == 0 {
		delete(u.byOwner, p.owner)
	}
	sock := p.sock
	u.mu.Unlock()
	if sock != nil {
		sock.Close()
	}
	u.r.ended(p.l, cause)
}

// closeSocket gives back the file; it is called once per socket.
func (u *pingRelay) closeSocket(p *ping) {
	p.sock.Close()
	u.r.Files.Release(p.owner)
}

func (u *pingRelay) all() []*ping {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := make([]*ping, 0, len(u.live))
	for p := range u.live {
		all = append(all, p)
	}
	return all
}

func (u *pingRelay) sweep() {
	now, limit := u.r.now.Load(), ticks(u.r.Limits.Ping)
	for _, p := range u.all() {
		if now-p.last.Load() >= limit {
			u.end(p, "idle")
		}
	}
}

func (u *pingRelay) endAll(cause string) {
	for _, p := range u.all() {
		u.end(p, cause)
	}
}
