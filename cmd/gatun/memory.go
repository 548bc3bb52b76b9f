package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	paceEvery     = time.Second
	giveBackEvery = 5    // paces
	manyLinks     = 1000 // below that there is not enough to give back
)

// keepSmall keeps the heap small, and returns memory to the system after a flood, and when a burst of
// flows that stay is over: the runtime alone would keep it for minutes, because an idle program has
// no reason to collect. live counts the links; compact frees the pages that few kept things lie on.
func keepSmall(ctx context.Context, live func() int, compact func()) error {
	tick := time.NewTicker(paceEvery)
	defer tick.Stop()
	var p peak
	pace := newPace()
	defer debug.SetGCPercent(100)
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if percent, changed := pace.next(); changed {
				debug.SetGCPercent(percent)
			}
			settled := pace.settled()
			if n%giveBackEvery == 0 && p.over(live()) {
				compact()
				settled = true
			}
			if settled {
				debug.FreeOSMemory()
				giveBackProgram()
			}
		}
	}
}

// releases is how often memory is given back after an ebb: what a pool or a finalizer still
// holds is free only after the next collection.
const releases = 3

// peak finds the end of a flood.
type peak struct {
	highest, last, due int
}

// over reports that most links of a flood are gone and the number no longer falls; it says so
// for a few calls after each ebb.
func (p *peak) over(n int) bool {
	falling := n < p.last
	p.last = n
	p.highest = max(p.highest, n)
	if p.highest >= manyLinks && n <= p.highest/4 && !falling {
		p.highest, p.due = n, releases
	}
	if p.due == 0 {
		return false
	}
	p.due--
	return true
}

// pace chooses how much garbage the collector lets gather, as GOGC.
//
// A large heap is one of many idle flows. The runtime never gives back the bookkeeping of the
// largest heap it had, about 2 %: a double size would stay visible for ever. Where little is
// allocated collecting costs next to nothing: two collections of some milliseconds per second at
// most. Else the default is best.
type pace struct {
	sample    []metrics.Sample
	percent   int
	allocated uint64
	burst     uint64 // allocated since the last time that it had settled,
	peak      uint64 // most in one pace,
	fresh     uint64 // and in the last one
}

const (
	largeHeap  = 32 << 20 // live bytes
	hugeHeap   = 64 << 20
	quietBytes = 1 << 20 // allocated per pace
	calmBytes  = 4 << 20
	burstBytes = 16 << 20 // less garbage is not worth the work
)

func newPace() *pace {
	return &pace{percent: 100, sample: []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/allocs:bytes"}}}
}

// next returns the percentage for the next second, and whether it is another one.
func (p *pace) next() (percent int, changed bool) {
	metrics.Read(p.sample)
	live, all := p.sample[0].Value.Uint64(), p.sample[1].Value.Uint64()
	fresh := all - p.allocated
	percent = gcPercent(live, fresh)
	p.allocated = all
	p.note(fresh)
	changed = percent != p.percent
	p.percent = percent
	return percent, changed
}

// note counts what was allocated in one pace.
func (p *pace) note(fresh uint64) {
	p.fresh, p.burst, p.peak = fresh, p.burst+fresh, max(p.peak, fresh)
}

// settled reports, once, that a burst is over. Looking after many flows allocates too, so what is quiet
// is measured by the burst.
func (p *pace) settled() bool {
	if p.burst < burstBytes || p.fresh >= max(quietBytes, min(p.peak/3, 2*calmBytes)) {
		return false
	}
	p.burst, p.peak = 0, 0
	return true
}

func gcPercent(live, allocated uint64) int {
	switch {
	case live < largeHeap && allocated < quietBytes:
		return 10
	case live >= hugeHeap, allocated < calmBytes:
		return 25
	case live >= largeHeap:
		return 50
	default:
		return 100
	}
}
