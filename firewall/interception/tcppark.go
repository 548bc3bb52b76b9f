package interception

import (
	"io"
	"time"
)

// A connection that is idle is parked: it has no goroutine, no stack and nothing of the runtime's
// poller. The runtime never gives back what it keeps of each goroutine and of each polled socket:
// after a flood of idle connections all of that would stay.
//
//	running ──idle for lookEvery──▶ leaving ──both goroutines have left──▶ parking ──▶ parked
//	  ▲ ▲                              │                                      ▲           │
//	  │ └──────────a byte came─────────┘                                 FIN  │           │ an event, or abort
//	  └─────────────────────────────bytes, or nothing──────────────────────── woken ◀─────┘
//
// A woken connection makes one step without a goroutine of its own: ten thousand that are closed
// at the same time need no more than a few. A goroutine that has a byte to write calls the other
// one back first: no direction may ever wait for the other.
const lookEvery = 250 * time.Millisecond

// The states of tcpRelay.parking.
const (
	stateRunning = iota
	stateParking // not watched on both sides yet
	stateParked
	stateWoken // waits for its step
)

// park makes the connections idle since the last look leave their goroutines.
func (s *tcpRelays) park() {
	s.mu.Lock()
	look := make([]*tcpRelay, 0, len(s.awake))
	for t := range s.awake {
		look = append(look, t)
	}
	s.mu.Unlock()
	for _, t := range look {
		t.lookIdle()
	}
}

func (t *tcpRelay) lookIdle() {
	sent, received := t.link.Bytes()
	if sent+received != t.lastLook {
		t.lastLook = sent + received
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running == 0 || t.leave.Load() {
		return
	}
	t.leave.Store(true)
	if t.sending.Load() || t.receiving.Load() { // whoever begins to write after this calls stay
		t.leave.Store(false)
		return
	}
	t.prog.Interrupt()
	t.up.Interrupt()
}

// stay calls back a goroutine that is leaving, or has left.
func (t *tcpRelay) stay() {
	if !t.leave.Load() {
		return
	}
	t.mu.Lock()
	if !t.leave.Load() {
		t.mu.Unlock()
		return
	}
	t.leave.Store(false)
	t.prog.Resume()
	err := t.up.Resume()
	gone := bothWays &^ t.running &^ t.finished
	t.running |= gone
	t.mu.Unlock()
	if err != nil {
		t.abort(serverCause(err))
	}
	if gone != 0 {
		t.start(gone)
	}
}

// park watches the directions that are not over. Nobody else touches the connection, but for
// abort.
func (t *tcpRelay) park() {
	t.parking.Store(stateParking)
	t.r.tcp.setAwake(t, false)
	if !t.isOver(downward) && !t.up.Park(t.wake) {
		t.unpark()
		return
	}
	if !t.isOver(upward) {
		t.prog.Park(t.wake)
	}
	if !t.parking.CompareAndSwap(stateParking, stateParked) {
		t.r.step(t)
	} else if t.aborted() {
		t.wake()
	}
}

// wake continues a parked connection. It may be called from any goroutine, and never blocks.
func (t *tcpRelay) wake() {
	for {
		switch t.parking.Load() {
		case stateParked:
			if t.parking.CompareAndSwap(stateParked, stateWoken) {
				t.r.step(t)
				return
			}
		case stateParking:
			if t.parking.CompareAndSwap(stateParking, stateWoken) {
				return // park sees it
			}
		default:
			return
		}
	}
}

// steppers is how many woken connections make their step at the same time.
const steppers = 4

// step lets a woken connection make its step soon.
func (r *Relay) step(t *tcpRelay) {
	s := &r.tcp
	s.mu.Lock()
	s.woken = append(s.woken, t)
	more := s.stepping < steppers
	if more {
		s.stepping++
	}
	s.mu.Unlock()
	if more && !r.workers.start(r.steps) {
		go r.steps() // Run has ended; only resets are left to pass on
	}
}

func (r *Relay) steps() {
	for t := r.tcp.nextWoken(); t != nil; t = r.tcp.nextWoken() {
		t.step()
	}
}

func (s *tcpRelays) nextWoken() *tcpRelay {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.woken) == 0 {
		s.woken = nil
		s.stepping--
		return nil
	}
	t := s.woken[0]
	s.woken[0] = nil
	s.woken = s.woken[1:]
	return t
}

// step does what can be done without waiting, and lets the connection run where there is more.
func (t *tcpRelay) step() {
	defer func() {
		if p := recover(); p != nil {
			t.r.panicked("tcp relay", p)
			t.abort("internal error")
			t.finish()
		}
	}()
	bytes, moved := t.stepUp()
	bytesDown, movedDown := t.stepDown()
	switch {
	case t.aborted() || t.isOver(bothWays):
		t.finish()
	case (moved || movedDown) && !bytes && !bytesDown:
		t.park()
	default:
		t.unpark()
	}
}

func (t *tcpRelay) stepUp() (bytes, moved bool) {
	if t.isOver(upward) {
		return false, false
	}
	bytes, err := t.prog.Peek()
	switch {
	case err == io.EOF:
		t.clientClosed()
		t.over(upward)
	case err != nil:
		t.abort(clientCause(err))
	}
	return bytes, err != nil
}

func (t *tcpRelay) stepDown() (bytes, moved bool) {
	if t.isOver(downward) {
		return false, false
	}
	bytes, err := t.up.Peek()
	switch {
	case err == io.EOF:
		t.serverClosed()
		t.over(downward)
	case err != nil:
		t.abort(serverCause(err))
	}
	return bytes, err != nil
}

func (t *tcpRelay) over(d direction) {
	t.mu.Lock()
	t.finished |= d
	t.mu.Unlock()
}

func (t *tcpRelay) isOver(d direction) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.finished&d == d
}

// unpark gives the directions that are not over their goroutines back.
func (t *tcpRelay) unpark() {
	t.prog.Resume()
	err := t.up.Resume()
	t.parking.Store(stateRunning)
	if err != nil {
		t.abort(serverCause(err))
	}
	if t.aborted() {
		t.finish()
		return
	}
	t.r.tcp.setAwake(t, true)
	t.mu.Lock()
	t.leave.Store(false)
	open := bothWays &^ t.finished
	t.running = open
	t.mu.Unlock()
	for _, d := range []direction{upward, downward} {
		if open&d != 0 {
			t.start(d)
		}
	}
}
