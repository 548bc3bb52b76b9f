package main

import (
	"context"
	"errors"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"gatun/api"
	"gatun/attribution"
	"gatun/firewall/interception"
	"gatun/network/packet"
	"gatun/profiles"
	"gatun/status"
	"gatun/tun/handback"
	"gatun/tun/inbound"
	"gatun/tun/route"
)

// inboundControl is what `up` decides inbound flows with. Where the system cannot hold them, only
// what holds for everybody is enforced, and missing says why.
type inboundControl struct {
	queue   *inbound.Queue
	flows   *inbound.Flows
	gate    *interception.Inbound
	missing error
}

// openInbound takes the queue. It must have its reader before the guard sends anything there.
func openInbound(n route.Names, log *zap.Logger) *inboundControl {
	queue, err := inbound.Open(inbound.Options{Number: n.Queue, AcceptMark: n.InMark, AskedMark: n.AskedMark, Mask: n.Mask, OwnMark: n.Mark, Logger: log})
	if err != nil {
		return &inboundControl{missing: err}
	}
	flows, err := inbound.OpenFlows()
	if err != nil {
		queue.Close()
		return &inboundControl{missing: err}
	}
	return &inboundControl{queue: queue, flows: flows}
}

func (c *inboundControl) close() {
	if c.missing == nil {
		c.queue.Close()
		_ = c.flows.Close()
	}
}

// mode is what the guard is to do with new inbound flows.
func (c *inboundControl) mode() route.InboundMode {
	if c.missing != nil {
		return route.InboundForAll
	}
	return route.InboundQueued
}

// attach connects the queue with the engine.
func (c *inboundControl) attach(e *engine) {
	if c.missing == nil {
		c.gate = &interception.Inbound{Gate: e.gate, Listeners: e.opt.owners, Flows: c.flows}
	}
}

func (c *inboundControl) start(ctx context.Context, g *errgroup.Group) {
	if c.gate == nil {
		return
	}
	g.Go(func() error { return c.gate.Run(ctx) })
	g.Go(func() error { return c.queue.Run(ctx, func(h *inbound.Held) { c.gate.Handle(h) }) })
}

// closed enters the end of a connection that came in. It may be called for any other.
func (c *inboundControl) closed(f packet.Flow, t handback.Traffic) {
	if c.gate != nil {
		c.gate.Closed(f, t.Sent, t.Received)
	}
}

// blocksInbound is what holds for everybody, where no program can be asked about.
func blocksInbound(s *profiles.Store) bool {
	all := s.For(attribution.Unidentified(""))
	return all.BlockInbound.Active && !all.Paused
}

// status says what is enforced, and counts.
func (c *inboundControl) status(s *api.Status, m route.Status) status.Module {
	s.Inbound = m.Inbound
	why := c.missing
	if why == nil && m.InboundRefused != "" {
		why = errors.New(m.InboundRefused)
	}
	if why != nil {
		note := "inbound flows cannot be decided per program (" + why.Error() + "): "
		if m.InboundMode == route.InboundDropped {
			note += "filter/blockInbound holds for all, and serviceEndpoints have no effect"
		} else {
			note += "they are left to the system"
		}
		s.Notes = append(s.Notes, note)
		return status.Module{Name: "inbound", State: status.Warning, Message: note}
	}
	q, d := c.queue.Counters(), c.gate.Counters()
	for key, n := range map[string]uint64{
		"inbound_held": q.Held, "inbound_accepted": q.Accepted, "inbound_dropped": q.Dropped, "inbound_rejected": q.Rejected,
		"inbound_refused": q.Refused, "inbound_overrun": q.Overrun, "inbound_crowded": d.Crowded, "inbound_stray": d.Stray,
	} {
		s.Packets[key] = n
	}
	s.Notes = append(s.Notes, "inbound: TCP and UDP are decided per program; echo requests and other protocols are left to the system")
	return status.Module{Name: "inbound", Message: "decided per program"}
}
