package stack

import (
	"sync"
	"sync/atomic"
	"testing"
)

// TestQueueLosesInsteadOfGathering: thousands of producers at a device that takes nothing do not
// all wait.
func TestQueueLosesInsteadOfGathering(t *testing.T) {
	var q outQueue
	var lost atomic.Uint64
	q.init(1500, &lost)
	for range outDepth {
		q.put(outItem{raw: q.raw()})
	}
	const producers = outWaiters + 500
	var ended sync.WaitGroup
	for range producers {
		ended.Go(func() {
			if !q.put(outItem{raw: q.raw()}) {
				t.Error("the queue is open")
			}
		})
	}
	eventually(t, "500 packets are lost", func() bool { return lost.Load() == producers-outWaiters })
	taken := 0
	for spare := []outItem(nil); taken < outDepth+outWaiters; spare = nil {
		taken += len(q.take(spare))
	}
	ended.Wait()
	if q.waiting() != 0 || q.waiters != 0 || lost.Load() != producers-outWaiters {
		t.Errorf("%d wait in the queue, %d before it, %d lost", q.waiting(), q.waiters, lost.Load())
	}
	q.close()
	if q.put(outItem{raw: q.raw()}) {
		t.Error("a closed queue took a packet")
	}
}
