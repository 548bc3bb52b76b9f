package stack

import (
	"sync/atomic"
	"testing"
	"time"

	"gatun/network/packet"
)

// A SYN that was sent again while the first was held comes out of the device after the refusal has
// closed its socket: it is no flow of nobody. A SYN with another number is another connection.
func TestLateSYNIsNoFlow(t *testing.T) {
	for name, refuse := range map[string]func(*TCPFlow){
		"reset":       func(fl *TCPFlow) { fl.Reject() },
		"unreachable": func(fl *TCPFlow) { fl.Unreachable(packet.HostUnreachable(fl.Flow().Remote.Addr())) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachFamily(t, func(t *testing.T, f family) {
				var flows atomic.Int32
				l := newLab(t, &handler{tcp: func(fl *TCPFlow) {
					if flows.Add(1) == 1 {
						time.Sleep(synAgain + 50*time.Millisecond)
					}
					refuse(fl)
				}}, Limits{})
				l.send(synOf(f, 4000, 7))
				if l.recv(5*time.Second) == nil {
					t.Fatal("no answer")
				}
				l.send(synOf(f, 4000, 7))
				if b := l.recv(50 * time.Millisecond); b != nil || flows.Load() != 1 {
					t.Errorf("%d flows, and an answer of %d bytes to a SYN without a socket", flows.Load(), len(b))
				}
				l.send(synOf(f, 4000, 70000))
				if l.recv(5*time.Second) == nil || flows.Load() != 2 {
					t.Errorf("%d flows: a new connection on the same port was taken for the old one", flows.Load())
				}
			})
		})
	}
}

func TestRefusalsAreForgotten(t *testing.T) {
	var tab synTable
	tab.init()
	start := time.Unix(1000, 0)
	f := &TCPFlow{first: start, seq: 7}
	tab.refuse(f, start.Add(synAgain-time.Millisecond))
	if len(tab.refused) != 0 {
		t.Error("a SYN that was refused at once is remembered")
	}
	at := start.Add(time.Second)
	tab.refuse(f, at)
	for _, c := range []struct {
		seq  uint32
		when time.Time
		late bool
	}{{7, at, true}, {8, at, false}, {7, at.Add(lateSYN - 1), true}, {7, at.Add(lateSYN), false}} {
		if tab.late(f.id, c.seq, c.when) != c.late {
			t.Errorf("a SYN with the number %d after %s: late is %v", c.seq, c.when.Sub(at), !c.late)
		}
	}
	tab.abandon(at.Add(lateSYN - 1))
	if len(tab.refused) != 1 {
		t.Error("forgotten too early")
	}
	tab.abandon(at.Add(lateSYN))
	if len(tab.refused) != 0 {
		t.Error("never forgotten")
	}
}
