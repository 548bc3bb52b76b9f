package stack

import (
	"container/heap"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// timerWorkers is how many timers of netstack may be at work at the same time.
const timerWorkers = 16

// clock is netstack's clock. Its timers share a few goroutines. With one goroutine for each timer
// that fires, as time.AfterFunc has it, thousands of connections that end together bring thousands
// of goroutines, which wait for each other, for the collector and for the device, and whose
// descriptors and stacks the runtime never gives back. A timer that finds all workers busy is
// late, which no peer can tell from a slow link. No timer of netstack waits for another one, so a
// bounded number cannot deadlock.
//
// While no timer is due there is no goroutine.
type clock struct {
	tcpip.Clock // the time of day, and the monotonic time

	mu      sync.Mutex
	base    time.Time
	pending timerHeap
	next    *time.Timer // starts a worker
	at      time.Duration
	armed   bool
	working int
}

func newClock() *clock {
	return &clock{Clock: tcpip.NewStdClock(), base: time.Now()}
}

// AfterFunc implements tcpip.Clock.
func (c *clock) AfterFunc(d time.Duration, f func()) tcpip.Timer {
	t := &timer{clock: c, f: f, index: notPending}
	t.Reset(d)
	return t
}

// arm lets a worker start when the earliest timer is due. The caller holds c.mu.
func (c *clock) arm() {
	if len(c.pending) == 0 || c.working == timerWorkers {
		return // a worker that is done looks again
	}
	at := c.pending[0].due
	if c.armed && c.at <= at {
		return
	}
	c.armed, c.at = true, at
	wait := max(at-time.Since(c.base), 0)
	if c.next == nil {
		c.next = time.AfterFunc(wait, c.work)
		return
	}
	c.next.Reset(wait)
}

// work runs the timers that are due, and starts another worker where more than one is.
func (c *clock) work() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = false
	if c.working == timerWorkers {
		return
	}
	c.working++
	for len(c.pending) > 0 && c.pending[0].due <= time.Since(c.base) {
		t := heap.Pop(&c.pending).(*timer)
		c.arm()
		c.mu.Unlock()
		t.f()
		c.mu.Lock()
	}
	c.working--
	c.arm()
}

// notPending is the index of a timer that is not in the heap.
const notPending = -1

// timer implements tcpip.Timer.
type timer struct {
	clock *clock
	f     func()
	due   time.Duration // since clock.base
	index int
}

// Stop implements tcpip.Timer.
func (t *timer) Stop() bool {
	c := t.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.index == notPending {
		return false
	}
	heap.Remove(&c.pending, t.index)
	return true
}

// Reset implements tcpip.Timer.
func (t *timer) Reset(d time.Duration) {
	c := t.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	t.due = time.Since(c.base) + d
	if t.index == notPending {
		heap.Push(&c.pending, t)
	} else {
		heap.Fix(&c.pending, t.index)
	}
	c.arm()
}

// timerHeap implements heap.Interface: the earliest timer is first.
type timerHeap []*timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].due < h[j].due }

func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push adds a timer behind all others.
func (h *timerHeap) Push(x any) {
	t := x.(*timer)
	t.index = len(*h)
	*h = append(*h, t)
}

// Pop takes the last timer, and gives memory back after many.
func (h *timerHeap) Pop() any {
	old := *h
	n := len(old) - 1
	t := old[n]
	old[n], t.index = nil, notPending
	*h = old[:n]
	if n > 64 && n < cap(old)/4 {
		*h = append(make(timerHeap, 0, n*2), old[:n]...)
	}
	return t
}
