package main

import (
	"context"
	"runtime/debug"
	"time"
)

const (
	giveBackEvery = 5 * time.Second
	manyLinks     = 1000 // below that there is not enough to give back
)

// giveBack returns memory to the system after a flood: the runtime alone would keep it for
// minutes, because an idle program has no reason to collect. live counts the links.
func giveBack(ctx context.Context, live func() int) error {
	tick := time.NewTicker(giveBackEvery)
	defer tick.Stop()
	var p peak
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if p.over(live()) {
				debug.FreeOSMemory()
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
