package stack

import (
	"context"
	"sync"
	"sync/atomic"

	"gatun/network/packet"
)

// crewSize is how many goroutines wait for the next new flow. One that has handled a flow has a
// stack that is large enough; a fresh one has to grow it step by step, which costs more than its
// start.
const crewSize = 64

// newFlow is a flow for its handler. end is called when the handler returned: it gives up the flow
// where that did not decide, and after a panic in any case.
type newFlow interface {
	Flow() packet.Flow
	handle(Handler)
	end(panicked bool)
}

// crew runs the handlers of new flows. Their number is not bounded, because a handler may wait for
// a person; the flows are, by Limits.
type crew struct {
	work chan newFlow // taken by those that wait; nobody ever waits to send
	idle atomic.Int32
}

func (c *crew) init() { c.work = make(chan newFlow) }

// spawn runs the handler of a new flow.
func (s *Stack) spawn(f newFlow) {
	select {
	case s.crew.work <- f:
	default:
		if !s.handlers.add() {
			f.end(false)
			return
		}
		go s.serveAll(s.ctx, f)
	}
}

// serveAll serves f, and what comes later as long as few others wait for it.
func (s *Stack) serveAll(ctx context.Context, f newFlow) {
	defer s.handlers.done()
	for {
		s.serve(f.Flow(), func() { f.handle(s.handler) }, f.end)
		f = nil // nothing of it stays
		if s.crew.idle.Add(1) > crewSize {
			s.crew.idle.Add(-1)
			return
		}
		select {
		case f = <-s.crew.work:
			s.crew.idle.Add(-1)
		case <-ctx.Done():
			return
		}
	}
}

// handlers counts goroutines that handle flows. None is added any more when somebody waits for them:
// the reader goes on until the device is closed.
type handlers struct {
	mu    sync.Mutex
	over  bool
	group sync.WaitGroup
}

// add reports whether there may be one more.
func (h *handlers) add() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.over {
		h.group.Add(1)
	}
	return !h.over
}

func (h *handlers) done() { h.group.Done() }

func (h *handlers) wait() {
	h.mu.Lock()
	h.over = true
	h.mu.Unlock()
	h.group.Wait()
}
