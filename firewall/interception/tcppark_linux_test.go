package interception

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"
)

// hasty parks whatever moved nothing for a millisecond.
func hasty(r *Relay) { r.lookEvery = time.Millisecond }

// TestParkedStreamTruth: a stream that is parked and woken all the time looks like one that is
// not relayed at all.
func TestParkedStreamTruth(t *testing.T) {
	l := newLab(t, hasty)
	for _, c := range cells() {
		t.Run(c.name, func(t *testing.T) {
			want := c.run(t, direct(), "127.99.0.1:0")
			if got := c.run(t, l.relayed(), "127.99.0.1:0"); got != want {
				t.Errorf("direct:\n%s\nrelayed:\n%s", want, got)
			}
		})
	}
}

func TestParkedNetConn(t *testing.T) {
	l := newLab(t, hasty)
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) { return l.pair(t) })
}

// pair is a program's connection and the server's end of it.
func (l *lab) pair(t testing.TB) (program, server net.Conn, stop func(), err error) {
	ln, err := net.Listen("tcp", "127.99.0.1:0")
	if err != nil {
		return nil, nil, nil, err
	}
	defer ln.Close()
	if program, err = l.relayed().dial("tcp", ln.Addr().(*net.TCPAddr).AddrPort()); err != nil {
		return nil, nil, nil, err
	}
	if server, err = ln.Accept(); err != nil {
		return nil, nil, nil, err
	}
	return program, server, func() { program.Close(); server.Close() }, nil
}

// parkedRelays returns how many connections there are, and how many of them are parked.
func (l *lab) parkedRelays() (all, parked int) {
	s := &l.relay.tcp
	s.mu.Lock()
	defer s.mu.Unlock()
	for t := range s.live {
		all++
		if t.parking.Load() == stateParked {
			parked++
		}
	}
	return all, parked
}

func (l *lab) awaitParked(t testing.TB, n int) {
	t.Helper()
	eventually(t, 20*time.Second, fmt.Sprint(n, " connections, all parked"), func() bool {
		all, parked := l.parkedRelays()
		return all == n && parked == n
	})
}

// TestParked: a parked connection costs no goroutine, and whatever comes first wakes it.
func TestParked(t *testing.T) {
	end := func(c net.Conn) string {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		_, err := c.Read(make([]byte, 1))
		return errnoName(err)
	}
	say := func(from, to net.Conn) string {
		if _, err := from.Write(short); err != nil {
			return errnoName(err)
		}
		b := make([]byte, len(short))
		_ = to.SetReadDeadline(time.Now().Add(patience))
		_, err := io.ReadFull(to, b)
		return errnoName(err) + " " + string(b)
	}
	heard := "ok " + string(short)
	for _, tc := range []struct {
		name, want string
		do         func(l *lab, p, s net.Conn) string
	}{
		{"program speaks", heard, func(_ *lab, p, s net.Conn) string { return say(p, s) }},
		{"server speaks", heard, func(_ *lab, p, s net.Conn) string { return say(s, p) }},
		{"program closes", "EOF", func(_ *lab, p, s net.Conn) string { p.Close(); return end(s) }},
		{"server closes", "EOF", func(_ *lab, p, s net.Conn) string { s.Close(); return end(p) }},
		{"program resets", "ECONNRESET", func(_ *lab, p, s net.Conn) string { reset(p.(*net.TCPConn)); return end(s) }},
		{"server resets", "ECONNRESET", func(_ *lab, p, s net.Conn) string { reset(s.(*net.TCPConn)); return end(p) }},
		{"killed", "ECONNRESET", func(l *lab, p, s net.Conn) string {
			for _, k := range l.table.Live() {
				k.Kill("killed by hand")
			}
			if e := end(s); e != errnoName(syscall.ECONNRESET) {
				return "server: " + e
			}
			return end(p)
		}},
		{"half-closed by the program, parked again", heard, func(l *lab, p, s net.Conn) string {
			_ = p.(*net.TCPConn).CloseWrite()
			if e := end(s); e != "EOF" {
				return e
			}
			l.awaitParked(l.t, 1)
			return say(s, p)
		}},
		{"half-closed by the server, parked again", heard, func(l *lab, p, s net.Conn) string {
			_ = s.(*net.TCPConn).CloseWrite()
			if e := end(p); e != "EOF" {
				return e
			}
			l.awaitParked(l.t, 1)
			return say(p, s)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			p, s, stop, err := l.pair(t)
			if err != nil {
				t.Fatal(err)
			}
			defer stop()
			if got := say(p, s); got != heard {
				t.Fatalf("before: %s", got)
			}
			l.awaitParked(t, 1)
			if got := tc.do(l, p, s); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// TestFloodLeavesNoGoroutines: the runtime never frees what it keeps of a goroutine, so neither
// many idle connections nor their common end may need many.
func TestFloodLeavesNoGoroutines(t *testing.T) {
	l := newLab(t)
	const flows = 800
	stop := make(chan struct{})
	most := make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				most <- n
				return
			case <-time.After(time.Millisecond):
				n = max(n, runtime.NumGoroutine())
			}
		}
	}()
	before := runtime.NumGoroutine()
	ends := make([]net.Conn, 0, 2*flows)
	for i := range flows {
		p, s, _, err := l.pair(t)
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, p, s)
		if i%100 == 99 { // a new connection has its goroutines until it is idle
			l.awaitParked(t, i+1)
		}
	}
	const waiting = 2 * idleWorkers // for the next flow: of the Relay, and as many of the stack
	if n := runtime.NumGoroutine() - before - waiting; n > 50 {
		t.Errorf("%d idle connections have %d goroutines", flows, n)
	}
	for _, c := range ends {
		c.Close()
	}
	l.awaitParked(t, 0)
	close(stop)
	n := <-most - before
	t.Logf("at most %d goroutines for %d connections", n, flows)
	if n > flows {
		t.Errorf("%d goroutines at a time for %d connections", n, flows)
	}
}
