package stack

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"gatun/network/packet"
)

// TestCrew: as many handlers run as there are flows, however long they wait; afterwards few
// goroutines stay, and these serve what comes next, also after a panic.
func TestCrew(t *testing.T) {
	const many = 10 * crewSize
	var begun atomic.Int32
	release := make(chan struct{})
	l := newLab(t, &handler{udp: func(u *UDPFlow) {
		if u.Flow().Remote.Port() == 666 {
			panic("on purpose")
		}
		begun.Add(1)
		<-release
		u.Reject(packet.PortUnreachable(netip.Addr{}))
	}}, Limits{})
	f := families[0]
	ask := func(from, to int) {
		for port := from; port < to; port++ {
			l.send(udpPacket(at(f.prog, 5000), at(f.peer, uint16(port)), []byte("x")))
		}
	}
	ask(1000, 1000+many)
	eventually(t, "every flow has its handler", func() bool { return begun.Load() == many })
	close(release)
	idle := func() bool { return l.s.crew.idle.Load() == crewSize }
	eventually(t, "the crew is idle", idle)
	ask(666, 667)
	eventually(t, "the panic is counted", func() bool { return l.s.Counters().Panics == 1 })
	ask(2000, 2000+many)
	eventually(t, "the next flows have been served", func() bool { return begun.Load() == 2*many })
	eventually(t, "the crew is idle again", idle)
	if n := l.s.Counters().UDPFlows; n != 2*many {
		t.Errorf("%d flows in the table, want %d", n, 2*many)
	}
}

// TestNoHandlerAfterTheEnd: whoever waits for the handlers waits for all of them, and none begins
// afterwards, although flows keep coming.
func TestNoHandlerAfterTheEnd(t *testing.T) {
	for range 100 {
		var h handlers
		var running atomic.Int32
		var reader sync.WaitGroup
		began := make(chan struct{})
		reader.Go(func() {
			for i := 0; h.add(); i++ {
				running.Add(1)
				go func() {
					defer h.done()
					running.Add(-1)
				}()
				if i == 10 {
					close(began)
				}
			}
		})
		<-began
		h.wait()
		if n := running.Load(); n != 0 {
			t.Fatalf("%d handlers run after the wait for them", n)
		}
		reader.Wait()
	}
}
