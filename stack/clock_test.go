package stack

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

func TestClockOrder(t *testing.T) {
	c := newClock()
	var mu sync.Mutex
	var got []int
	done := make(chan struct{})
	note := func(n int) func() {
		return func() {
			mu.Lock()
			defer mu.Unlock()
			if got = append(got, n); len(got) == 4 {
				close(done)
			}
		}
	}
	late := c.AfterFunc(time.Hour, note(3))
	c.AfterFunc(60*time.Millisecond, note(2))
	never := c.AfterFunc(20*time.Millisecond, note(9))
	c.AfterFunc(5*time.Millisecond, note(1))
	c.AfterFunc(-time.Second, note(0))
	if !never.Stop() || never.Stop() {
		t.Error("Stop of a pending timer is true once")
	}
	late.Reset(120 * time.Millisecond)
	<-done
	mu.Lock()
	defer mu.Unlock()
	for i, n := range got {
		if i != n {
			t.Errorf("order %v", got)
		}
	}
	if late.Stop() {
		t.Error("Stop of a timer that has fired is true")
	}
	if len(c.pending) != 0 {
		t.Errorf("%d timers are left", len(c.pending))
	}
}

// TestClockBurst fires thousands of timers at once, all of which wait: few goroutines may exist,
// and every timer fires.
func TestClockBurst(t *testing.T) {
	const n = 5000
	c := newClock()
	before := runtime.NumGoroutine()
	hold := make(chan struct{})
	var fired, most atomic.Int64
	for range n {
		c.AfterFunc(time.Duration(rand.Int64N(int64(20*time.Millisecond))), func() {
			<-hold
			fired.Add(1)
			most.Store(max(most.Load(), int64(runtime.NumGoroutine())))
		})
	}
	eventually(t, "the workers wait", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.working == timerWorkers
	})
	time.Sleep(30 * time.Millisecond)
	if now := runtime.NumGoroutine(); now > before+timerWorkers+2 {
		t.Errorf("%d goroutines for %d timers", now-before, n)
	}
	close(hold)
	eventually(t, "all have fired", func() bool { return fired.Load() == n })
	if most.Load() > int64(before+timerWorkers+2) {
		t.Errorf("%d goroutines at most", most.Load())
	}
	eventually(t, "the workers have left", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.working == 0 && len(c.pending) == 0 && cap(c.pending) < 1000
	})
}

// TestClockRandom starts, moves and stops timers from several goroutines: each fires if it was
// not stopped, never early, and never twice.
func TestClockRandom(t *testing.T) {
	c := newClock()
	var wg sync.WaitGroup
	var want, fired atomic.Int64
	for seed := range uint64(8) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, 1))
			for range 500 {
				d := time.Duration(r.IntN(3000)) * time.Microsecond
				begin := time.Now()
				var count atomic.Int32
				var wait atomic.Int64
				wait.Store(int64(d))
				tm := c.AfterFunc(d, func() {
					if time.Since(begin) < time.Duration(wait.Load()) {
						t.Error("too early")
					}
					if count.Add(1) > 1 {
						t.Error("twice")
					}
					fired.Add(1)
				})
				want.Add(1)
				switch r.IntN(4) {
				case 0:
					if tm.Stop() {
						want.Add(-1)
					}
				case 1:
					if tm.Stop() {
						wait.Store(int64(2 * d))
						tm.Reset(2 * d)
					}
				case 2:
					runtime.Gosched()
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "all have fired", func() bool { return fired.Load() == want.Load() })
}

// BenchmarkClock compares our timers with those of the runtime where many are pending.
func BenchmarkClock(b *testing.B) {
	for name, c := range map[string]tcpip.Clock{"ours": newClock(), "runtime": tcpip.NewStdClock()} {
		b.Run(name, func(b *testing.B) {
			var pending []tcpip.Timer
			for i := range 10000 {
				pending = append(pending, c.AfterFunc(time.Hour+time.Duration(i)*time.Second, func() {}))
			}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					t := c.AfterFunc(200*time.Millisecond, func() {})
					t.Reset(300 * time.Millisecond)
					t.Stop()
				}
			})
			for _, t := range pending {
				t.Stop()
			}
		})
	}
}
