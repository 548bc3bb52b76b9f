package interception

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func newWorkers() *workers {
	w := &workers{}
	w.init()
	return w
}

// TestWorkers: each job that was taken runs once and has ended when wait returns; after stop none
// is taken and nobody waits for one.
func TestWorkers(t *testing.T) {
	before := goleak.IgnoreCurrent()
	w := newWorkers()
	w.keep()
	var taken, ran atomic.Int64
	var starters sync.WaitGroup
	for range 8 {
		starters.Go(func() {
			for range 2000 {
				if w.start(func() { runtime.Gosched(); ran.Add(1) }) {
					taken.Add(1)
				}
			}
		})
	}
	starters.Wait()
	w.stop()
	w.stop()
	w.wait()
	if taken.Load() != 16000 || ran.Load() != taken.Load() {
		t.Errorf("%d of 16000 jobs were taken, %d ran", taken.Load(), ran.Load())
	}
	if w.start(func() { t.Error("a job ran after stop") }) {
		t.Error("a job was taken after stop")
	}
	w.keep() // too late
	goleak.VerifyNone(t, before)
}

// TestWorkersStoppedMeanwhile: what is taken while stop comes runs as well.
func TestWorkersStoppedMeanwhile(t *testing.T) {
	for range 200 {
		w := newWorkers()
		w.keep()
		var taken, ran int64
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				for w.start(func() { atomic.AddInt64(&ran, 1) }) {
					atomic.AddInt64(&taken, 1)
					runtime.Gosched()
				}
			})
		}
		runtime.Gosched()
		w.stop()
		group.Wait()
		w.wait()
		if taken != ran {
			t.Fatalf("%d jobs were taken, %d ran", taken, ran)
		}
	}
}

// TestWorkersRest: without Run nobody waits for work; with it a few do, until there has been none.
func TestWorkersRest(t *testing.T) {
	before := goleak.IgnoreCurrent()
	w := newWorkers()
	w.start(func() {})
	w.wait()
	goleak.VerifyNone(t, before)

	w.keep()
	release := make(chan struct{})
	for range 3 * idleWorkers {
		w.start(func() { <-release })
	}
	close(release)
	w.wait()
	waiting := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.idle
	}
	if n := waiting(); n > idleWorkers {
		t.Errorf("%d goroutines wait for work", n)
	}
	deadline := time.Now().Add(10 * time.Second)
	for w.rest(); waiting() > 0 && time.Now().Before(deadline); w.rest() {
		time.Sleep(time.Millisecond)
	}
	goleak.VerifyNone(t, before)
}
