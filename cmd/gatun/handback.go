package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"gatun/attribution"
	"gatun/config"
	"gatun/firewall/interception"
	"gatun/network"
	"gatun/network/packet"
	"gatun/status"
	"gatun/tun/handback"
	"gatun/tun/route"
)

// carrier is the kernel as it carries flows for `up`. The nil carrier carries none.
type carrier struct {
	table   *handback.Table // nil: absent says why
	absent  error
	adopted []packet.Flow // carried since before this process
	ahead   *ahead        // lets flows begin here; nil: none does

	mu      sync.Mutex
	counted time.Time
	fresh   time.Duration // how long what was counted then is good enough
}

// shortLease is how long the kernel carries a flow without hearing of us, where flows are to end
// with us (handback/afterCrash: kill).
const shortLease = 20 * time.Second

// openCarrier puts the kernel's side of handing back in, or adopts what a crash has left. others is told of
// the ends of connections that began elsewhere.
func openCarrier(cfg *config.Config, n route.Names, gate func() *interception.Gate, others func(packet.Flow, handback.Traffic), log *zap.Logger) *carrier {
	o := handback.Options{Others: others, Device: n.Device, Mark: n.OldMark, Mask: n.Mask, SocketMark: n.BackMark, LastingMark: n.LastingMark, OwnMark: n.Mark, Logger: log}
	o.Ended = func(e handback.End) {
		gate().KernelEnded(interception.KernelEnd{Flow: e.Flow, Sent: e.Traffic.Sent, Received: e.Traffic.Received,
			Cause: endCause(e.Cause), Unanswered: e.Attempts > 0, SYN: e.SYN})
		if err := inVain(e); err != nil {
			gate().Relay.Dialed(e.Flow.Remote, err)
		}
	}
	o.Holder = func(f packet.Flow) int { return holder(gate().Table.Find(f)) }
	c := &carrier{}
	o.Begin = func() { c.ahead.enter() }
	if cfg.String("handback/afterCrash") == "kill" {
		o.LastingMark = 0 // connection tracking does not know that we are gone
		o.TCPTimeout, o.UDPTimeout, o.OtherTimeout, o.Sweep = shortLease, shortLease, shortLease, shortLease/4
		if c.absent = handback.Recover(o); c.absent != nil {
			return c
		}
	}
	if c.table, c.absent = handback.Open(o); c.absent != nil {
		log.Warn("permitted flows are relayed, not handed back to the kernel", zap.Error(c.absent))
		return c
	}
	c.absent = c.table.Counters(func(f packet.Flow, _ handback.Counter) { c.adopted = append(c.adopted, f) })
	return c
}

// holder is the process of a link, 0 where it is not known.
func holder(l *network.Link) int {
	if l == nil || l.Comm() == nil || l.Comm().Owner.Process == nil {
		return 0
	}
	return l.Comm().Owner.Process.PID
}

// kernel is what the Gate gets; nil where there is none.
func (c *carrier) kernel() interception.Kernel {
	if c == nil || c.table == nil {
		return nil
	}
	return c.table
}

// manyAttempts is after three seconds: what was not refused by then is not answered.
const manyAttempts = 3

// inVain is what a connection has met that was never answered, as the relay would have met it; nil
// for all others.
func inVain(e handback.End) error {
	switch {
	case e.Attempts == 0 || e.Cause == handback.Revoked:
		return nil
	case e.Attempts < manyAttempts:
		return syscall.ECONNREFUSED
	default:
		return syscall.ETIMEDOUT
	}
}

// endCause is "" where somebody else ends the link.
func endCause(c handback.Cause) string {
	switch c {
	case handback.Closed:
		return "closed"
	case handback.Expired:
		return "idle"
	default:
		return ""
	}
}

// How fresh the counters of handed-back flows are at least when somebody looks: the more they cost, the older.
const (
	freshest = 50 * time.Millisecond
	stalest  = time.Second
	// countShare is which part of the time may be spent on counting.
	countShare = 20
)

func freshFor(took time.Duration) time.Duration { return min(max(countShare*took, freshest), stalest) }

// refresh reads the counters of the flows that the kernel carries.
func (c *carrier) refresh(gate *interception.Gate) {
	if c.kernel() == nil {
		return
	}
	now := time.Now()
	c.mu.Lock()
	due := now.Sub(c.counted) >= c.fresh
	if due {
		c.counted, c.fresh = now, stalest // until it is known what it takes
	}
	c.mu.Unlock()
	c.ahead.enter()
	if !due {
		return
	}
	_ = c.table.Traffic(func(f packet.Flow, n handback.Traffic) { gate.KernelCounted(f, n.Sent, n.Received) })
	c.mu.Lock()
	c.fresh = freshFor(time.Since(now))
	c.mu.Unlock()
}

// permitAhead lets connections begin here that were decided before.
func (c *carrier) permitAhead(w *witnesses, f *attribution.Finder, n route.Names, log *zap.Logger) *ahead {
	if c.kernel() == nil {
		return nil
	}
	c.ahead = newAhead(c.table, w, f, log)
	w.ahead, w.names = c.ahead, n
	return c.ahead
}

// run looks after the flows that the kernel carries until ctx ends.
func (c *carrier) run(ctx context.Context) error {
	if c.kernel() == nil {
		return nil
	}
	return c.table.Run(ctx)
}

// close takes the kernel's side away; the routes into the device are gone by then.
func (c *carrier) close() error {
	if c.kernel() == nil {
		return nil
	}
	return c.table.Close()
}

// module says in `status` how permitted flows are carried.
func (c *carrier) module(wanted bool, refused uint64) status.Module {
	m := status.Module{Name: "handback"}
	switch {
	case c.kernel() == nil:
		m.State, m.Message = status.Warning, "permitted flows are relayed: "+c.absent.Error()
		if errors.Is(c.absent, handback.ErrUnsupported) {
			m.State = status.Info
		}
	case !wanted:
		m.Message = "permitted flows are relayed (filter/permanentVerdicts is off)"
	default:
		m.Message = fmt.Sprintf("%d flows carried by the kernel", c.table.Len()) + c.ahead.text()
		if refused > 0 {
			m.State, m.Message = status.Info, m.Message+fmt.Sprintf(", %d relayed because the kernel did not take them", refused)
		}
	}
	return m
}

// trackingModule warns before connection tracking is full, which the kernel only logs: new connections of the
// whole machine are lost then, handed back or not.
func trackingModule(flows, most uint64, known bool) status.Module {
	m := status.Module{Name: "connection-tracking"}
	if !known {
		m.Message = "not in use"
		return m
	}
	m.Message = fmt.Sprintf("%d of %d flows", flows, most)
	if flows >= most-most/20 {
		m.State = status.Warning
		m.Message = fmt.Sprintf("nearly full (%s): the kernel drops new connections then; raise net.netfilter.nf_conntrack_max", m.Message)
	}
	return m
}
