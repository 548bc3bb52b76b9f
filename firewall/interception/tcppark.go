package interception

import "time"

// A connection that is idle is parked: it has no goroutine, no stack and nothing of the runtime's
// poller. The runtime never gives back what it keeps of each goroutine and each polled socket, so
// that after a flood of idle connections all of them would be kept for ever.
//
//	          idle for lookEvery                     both goroutines have left
//	running ─────────────────────▶ leaving ────────────────────────────▶ parking ──▶ parked
//	   ▲                              │ a byte came                          │          │
//	   └──────────────────────────────┴──────────────◀── woken ◀─────────────┴──────────┘
//	                                               something can be read, or abort
//
// A goroutine that has a byte to write calls the other one back first: no direction may ever wait
// for the other.
const lookEvery = 250 * time.Millisecond

// The states of tcpRelay.parking.
const (
	stateRunning = iota
	stateParking // not watched on both sides yet
	stateParked
	stateWoken // somebody will unpark it
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
	watched := t.finished&downward != 0 || t.up.Park(t.wake)
	if watched && t.finished&upward == 0 {
		t.prog.Park(t.wake)
	}
	if watched && t.parking.CompareAndSwap(stateParking, stateParked) {
		if !t.aborted() || !t.parking.CompareAndSwap(stateParked, stateWoken) {
			return
		}
	}
	t.unpark()
}

// wake continues a parked connection. It may be called from any goroutine, and never blocks.
func (t *tcpRelay) wake() {
	for {
		switch t.parking.Load() {
		case stateParked:
			if t.parking.CompareAndSwap(stateParked, stateWoken) {
				if !t.r.workers.start(t.unpark) {
					go t.unpark() // Run has ended; only a reset is left to do
				}
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
	if open == bothWays {
		t.start(downward)
		open = upward
	}
	t.carry(open)
}
