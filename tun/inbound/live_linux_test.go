package inbound

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"
)

// What is accepted goes on in the kernel: of each flow one packet comes to userspace.
func TestLiveAcceptedFlowsAreTheKernels(t *testing.T) {
	live(t, func(l *lab) {
		l.sh("sysctl -qw net.netfilter.nf_conntrack_acct=1") // datagrams are counted there
		came := l.serve(acceptPort)
		l.each(func(t *testing.T, host string) {
			for _, network := range []string{"tcp", "udp"} {
				before := l.queue.Counters()
				c, err := l.dial(network, host, acceptPort, patience)
				if err != nil {
					t.Fatalf("%s: %v", network, err)
				}
				defer c.Close()
				for range 50 {
					if err := echo(c, patience); err != nil {
						t.Fatalf("%s: %v", network, err)
					}
				}
				if n := l.queue.Counters(); n.Held != before.Held+1 || n.Accepted != before.Accepted+1 {
					t.Errorf("%s: %+v after %+v", network, n, before)
				}
				const all = 50 * uint64(len(line))
				sent, received, lives := l.flows.Look(*l.last.Load())
				if !lives || received != all || sent > all || sent < all-uint64(len(line)) || network == "udp" && sent != all { // the last may not be acknowledged yet
					t.Errorf("%s: lives %t, %d bytes sent and %d received, want %d", network, lives, sent, received, all)
				}
			}
		})
		if came.Load() == 0 {
			t.Error("nobody came")
		}
	})
}

// What is dropped meets silence, what is rejected is told; the listener hears of neither.
func TestLiveDeniedFlowsNeverArrive(t *testing.T) {
	live(t, func(l *lab) {
		dropped, rejected := l.serve(dropPort), l.serve(rejectPort)
		l.each(func(t *testing.T, host string) {
			if _, err := l.dial("tcp", host, dropPort, silence); !timedOut(err) {
				t.Errorf("a dropped connection: %v", err)
			}
			if _, err := l.dial("tcp", host, rejectPort, patience); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a rejected connection: %v", err)
			}
			if err := l.ask(t, host, dropPort, silence); !timedOut(err) {
				t.Errorf("a dropped datagram: %v", err)
			}
			if err := l.ask(t, host, rejectPort, patience); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a rejected datagram: %v", err)
			}
		})
		if dropped.Load() != 0 || rejected.Load() != 0 {
			t.Errorf("%d and %d denied flows arrived", dropped.Load(), rejected.Load())
		}
	})
}

// A flow is ended at once, and nothing but the flow: the listener goes on, also if the flow is over
// already, and the next connection is a new one.
func TestLiveEnd(t *testing.T) {
	live(t, func(l *lab) {
		l.serve(acceptPort)
		l.each(func(t *testing.T, host string) {
			c, err := l.dial("tcp", host, acceptPort, patience)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := echo(c, patience); err != nil {
				t.Fatal(err)
			}
			f := *l.last.Load()
			if sent, received, _ := l.flows.Look(f); sent == 0 || received == 0 {
				t.Errorf("%d bytes sent, %d received", sent, received)
			}
			begin := time.Now()
			if err := l.flows.End(f); err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the other end saw %v", err)
			}
			t.Logf("ended in %s", time.Since(begin))
			if _, _, lives := l.flows.Look(f); lives {
				t.Error("it still lives")
			}
			if err := l.flows.End(f); err != nil {
				t.Errorf("ended again: %v", err)
			}
			before := l.queue.Counters().Held
			again, err := l.dial("tcp", host, acceptPort, patience)
			if err != nil {
				t.Fatalf("the listener is gone: %v", err)
			}
			defer again.Close()
			if l.queue.Counters().Held != before+1 {
				t.Error("the next connection was not asked about")
			}
		})
	})
}

// A UDP flow that is ended is asked about again; its socket serves on.
func TestLiveEndUDP(t *testing.T) {
	live(t, func(l *lab) {
		l.serve(acceptPort)
		l.each(func(t *testing.T, host string) {
			c, err := l.dial("udp", host, acceptPort, patience)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := echo(c, patience); err != nil {
				t.Fatal(err)
			}
			f := *l.last.Load()
			if err := l.flows.End(f); err != nil {
				t.Fatal(err)
			}
			if _, _, lives := l.flows.Look(f); lives {
				t.Error("connection tracking still has it")
			}
			before := l.queue.Counters().Held
			if err := echo(c, patience); err != nil || l.queue.Counters().Held != before+1 {
				t.Errorf("the next datagram: %v, %d were held", err, l.queue.Counters().Held-before)
			}
		})
	})
}

// Connection tracking is emptied: a connection that is open goes on, and stray segments reach nobody.
func TestLiveForgottenConnections(t *testing.T) {
	live(t, func(l *lab) {
		l.serve(acceptPort)
		l.each(func(t *testing.T, host string) {
			c, err := l.dial("tcp", host, acceptPort, patience)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := echo(c, patience); err != nil {
				t.Fatal(err)
			}
			if _, err := l.flows.ct.ask(ctDelete, 4, ctRequest(*l.last.Load())); err != nil { // NLM_F_ACK
				t.Fatal(err)
			}
			before := l.stray.Load()
			if err := echo(c, patience); err != nil {
				t.Errorf("after the loss: %v", err)
			}
			if l.stray.Load() == before {
				t.Error("its packets were not asked about")
			}
		})
	})
}

// Without a reader nothing new comes in, and what was let in goes on; a reader that comes back sees
// what is new.
func TestLiveNoReader(t *testing.T) {
	live(t, func(l *lab) {
		came := l.serve(acceptPort)
		var open []net.Conn
		for _, host := range []string{host4, host6} {
			c, err := l.dial("tcp", host, acceptPort, patience)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			open = append(open, c)
		}
		if _, err := Open(options(t)); !errors.Is(err, ErrUnsupported) {
			t.Errorf("a second reader: %v", err)
		}
		l.stop()
		for end := time.Now().Add(patience); came.Load() < int64(len(open)) && time.Now().Before(end); time.Sleep(time.Millisecond) {
			// the server's side of a connection comes last
		}
		arrived := came.Load()
		l.each(func(t *testing.T, host string) {
			if _, err := l.dial("tcp", host, acceptPort, silence); !timedOut(err) {
				t.Errorf("a new connection: %v", err)
			}
		})
		for _, c := range open {
			if err := echo(c, patience); err != nil {
				t.Errorf("an open connection: %v", err)
			}
		}
		if came.Load() != arrived {
			t.Error("somebody came in")
		}
		l.open()
		defer l.stop()
		l.each(func(t *testing.T, host string) {
			c, err := l.dial("tcp", host, acceptPort, patience)
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		})
	})
}
