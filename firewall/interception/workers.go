package interception

import "sync"

// idleWorkers is how many goroutines wait for work at most.
const idleWorkers = 64

// workers owns the goroutines that serve upstream sockets. While Run runs a few stay for the next
// job: the stack of a new one is copied several times until it is as large as netstack needs it.
type workers struct {
	mu      sync.Mutex
	stopped bool
	keeps   bool
	idle    int
	wg      sync.WaitGroup // of jobs
	jobs    chan func()
	quit    chan struct{}
}

func (w *workers) init() { w.jobs, w.quit = make(chan func()), make(chan struct{}) }

// keep lets goroutines wait for work until stop.
func (w *workers) keep() {
	w.mu.Lock()
	w.keeps = !w.stopped
	w.mu.Unlock()
}

// start runs f in a goroutine, or reports that Run has ended.
func (w *workers) start(f func()) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return false
	}
	w.wg.Add(1)
	select {
	case w.jobs <- f:
	default:
		go w.work(f)
	}
	return true
}

func (w *workers) work(f func()) {
	for f != nil {
		w.do(f)
		f = nil // nothing of a flow stays
		if w.rests() {
			select {
			case f = <-w.jobs:
			case <-w.quit:
			}
			w.back()
		}
	}
}

func (w *workers) do(f func()) {
	defer w.wg.Done()
	f()
}

// rests reports whether one more may wait for work.
func (w *workers) rests() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.keeps || w.idle == idleWorkers {
		return false
	}
	w.idle++
	return true
}

func (w *workers) back() {
	w.mu.Lock()
	w.idle--
	w.mu.Unlock()
}

// rest ends the goroutines that wait for work: a second without a flow is enough.
func (w *workers) rest() {
	for range idleWorkers {
		select {
		case w.jobs <- nil:
		default:
			return
		}
	}
}

func (w *workers) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	w.stopped, w.keeps = true, false
	close(w.quit)
}

// wait returns when every job has ended.
func (w *workers) wait() { w.wg.Wait() }
