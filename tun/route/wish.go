package route

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// SetBlockLAN changes what the guard does with multicast, broadcast and link-local; Run puts it
// in force. It may be called at any time from any goroutine.
func (m *Manager) SetBlockLAN(on bool) {
	m.lan.Store(on)
	m.wish()
}

// SetDNSPort changes Policy.DNSPort; Run puts it in force. It may be called at any time from any
// goroutine.
func (m *Manager) SetDNSPort(port uint16) {
	m.dnsPort.Store(uint32(port))
	m.wish()
}

// SetBlockInbound changes Policy.BlockInbound; Run puts it in force. It may be called at any time
// from any goroutine.
func (m *Manager) SetBlockInbound(on bool) {
	m.closed.Store(on)
	m.wish()
}

// DNSPort is where port 53 is redirected to now, 0 if it is not.
func (m *Manager) DNSPort() uint16 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status.DNSPort
}

func (m *Manager) wish() {
	select {
	case m.wishes <- struct{}{}:
	default:
	}
}

// fulfil replaces the guard in one transaction, if anything changes.
func (m *Manager) fulfil() {
	p := m.opts.Policy
	p.BlockLAN, p.DNSPort, p.BlockInbound = m.lan.Load(), uint16(m.dnsPort.Load()), m.closed.Load()
	if p == m.opts.Policy {
		return
	}
	if p.DNSPort != m.opts.Policy.DNSPort {
		m.refused = nil // worth another try
		defer m.mayBeStale()
	}
	m.opts.Policy = p
	if err := m.install(); err != nil {
		m.fail(err)
		return
	}
	m.update(func(s *Status) { s.LinkLocal = linkLocalText(p) })
}

// install puts the guard in as the policy says. Where the kernel will not redirect (no NAT, or
// none for one of the families), it goes in without that: port 53 then enters the TUN device, and
// only what is asked on loopback stays unseen; netstack ends all connections that are relayed.
func (m *Manager) install() error {
	p := m.opts.Policy
	var unqueued error
	p.Inbound, unqueued = m.inbound(p)
	if m.refused != nil {
		p.DNSPort, p.DivertPort = 0, 0
	}
	guard := NewGuard(m.opts.Names, p)
	err := m.put(guard, m.flowList())
	if err != nil && (p.DNSPort != 0 || p.DivertPort != 0) {
		refused := err
		p.DNSPort, p.DivertPort = 0, 0
		guard = NewGuard(m.opts.Names, p)
		if err = m.put(guard, m.flowList()); err == nil {
			m.refused = refused
			m.opts.Logger.Warn("the kernel does not redirect port 53: DNS over loopback is not seen", zap.Error(refused))
		}
	}
	if err != nil {
		return err
	}
	m.guard = guard
	m.diverts.Store(p.DivertPort != 0)
	m.update(func(s *Status) {
		s.InboundMode, s.Inbound, s.InboundRefused = p.Inbound, p.Inbound.text(), ""
		if unqueued != nil {
			s.InboundRefused = unqueued.Error()
		}
		s.DNSPort, s.DivertPort, s.DNSRefused = p.DNSPort, p.DivertPort, ""
		if m.refused != nil {
			s.DNSRefused = m.refused.Error()
		}
	})
	return nil
}

// Diverts reports whether a Diverter's connections are led to it now.
func (m *Manager) Diverts() bool { return m.diverts.Load() }

// inbound is the mode that the kernel takes for the one that is asked for.
func (m *Manager) inbound(p Policy) (InboundMode, error) {
	var err error
	switch p.Inbound {
	case InboundQueued:
		mode, failed := m.queues(m.opts.Names)
		if failed == nil {
			return mode, nil
		}
		err = failed
	case InboundForAll:
	default:
		return p.Inbound, nil
	}
	switch {
	case p.BlockInbound:
		return InboundDropped, err
	default:
		return InboundFree, err
	}
}

// mayBeStale has keepForgetting look at connection tracking.
func (m *Manager) mayBeStale() {
	select {
	case m.stale <- struct{}{}:
	default:
	}
}

// keepForgetting is apart from the loop that keeps the guard: a great table of connection tracking
// takes a while to read. It looks again when a resolver has had time to reply to what it was asked
// before.
func (m *Manager) keepForgetting(ctx context.Context) {
	again := time.NewTimer(0)
	defer again.Stop()
	<-again.C
	var waits []time.Duration
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.stale:
			waits = []time.Duration{time.Second, 4 * time.Second}
		case <-again.C:
		}
		m.forgetRedirected()
		if len(waits) > 0 {
			again.Reset(waits[0])
			waits = waits[1:]
		}
	}
}

// forgetRedirected lets sockets that are in use take the way that port 53 has now.
func (m *Manager) forgetRedirected() {
	if err := forgetRedirected(m.Status().DNSPort); err != nil {
		m.opts.Logger.Warn("sockets that asked for names before keep their way until they pause for two minutes", zap.Error(err))
	}
}
