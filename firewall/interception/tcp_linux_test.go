package interception

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"
	"golang.org/x/sys/unix"
)

// diary collects what each end saw, in an order that does not depend on timing.
type diary struct {
	met chan struct{} // closed by reach

	mu    sync.Mutex
	lines []string
}

func (d *diary) note(who, format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, who+": "+fmt.Sprintf(format, args...))
}

// reach tells the other side how far this one is, once.
func (d *diary) reach() { close(d.met) }

// await waits for reach.
func (d *diary) await() {
	select {
	case <-d.met:
	case <-time.After(patience):
		d.note("both", "the other side never came so far")
	}
}

func (d *diary) String() string {
	slices.SortStableFunc(d.lines, func(a, b string) int { return strings.Compare(a[:6], b[:6]) })
	return strings.Join(d.lines, "\n")
}

// readAll reads to the end and notes how much came and how it ended.
func (d *diary) readAll(who string, c *net.TCPConn) {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	h := sha256.New()
	n, err := io.Copy(h, c)
	d.note(who, "read %d bytes %x, then %s", n, h.Sum(nil)[:4], errnoName(err))
}

// readEnd reads to the end and notes only how it ended: how much arrives before a reset is a
// matter of timing.
func (d *diary) readEnd(who string, c *net.TCPConn) {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	_, err := io.Copy(io.Discard, c)
	d.note(who, "end of stream: %s", errnoName(err))
}

func (d *diary) write(who string, c *net.TCPConn, b []byte) {
	_ = c.SetWriteDeadline(time.Now().Add(patience))
	_, err := c.Write(b)
	d.note(who, "wrote %d bytes: %s", len(b), errnoName(err))
}

func reset(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() }

const (
	settle   = 100 * time.Millisecond // for what is sent to arrive
	patience = time.Minute            // on a busy machine, under the race detector
)

var ( // never assigned again
	short = []byte("the quick brown fox")
	bulk  = bytes.Repeat([]byte("0123456789abcdef"), 1<<19) // 8 MiB
)

// cells are the ways in which a stream can go. client and server run at the same time.
func cells() []cell {
	return []cell{
		{"client half-closes", func(d *diary, c *net.TCPConn) {
			d.write("client", c, short)
			_ = c.CloseWrite()
			d.readAll("client", c)
		}, func(d *diary, c *net.TCPConn) {
			d.readAll("server", c)
			d.write("server", c, bulk[:300_000])
		}},
		{"server half-closes", func(d *diary, c *net.TCPConn) {
			d.readAll("client", c)
			d.write("client", c, bulk[:300_000])
		}, func(d *diary, c *net.TCPConn) {
			d.write("server", c, short)
			_ = c.CloseWrite()
			d.readAll("server", c)
		}},
		{"both close at once", func(d *diary, c *net.TCPConn) {
			_ = c.CloseWrite()
			d.readAll("client", c)
		}, func(d *diary, c *net.TCPConn) {
			_ = c.CloseWrite()
			d.readAll("server", c)
		}},
		{"client resets while idle", func(d *diary, c *net.TCPConn) {
			time.Sleep(settle)
			reset(c)
		}, func(d *diary, c *net.TCPConn) { d.readAll("server", c) }},
		{"server resets while idle", func(d *diary, c *net.TCPConn) { d.readAll("client", c) },
			func(d *diary, c *net.TCPConn) {
				time.Sleep(settle)
				reset(c)
			}},
		{"server resets after data", func(d *diary, c *net.TCPConn) {
			awaitUnread(c)
			d.reach()
			d.readAll("client", c)
		}, func(d *diary, c *net.TCPConn) {
			d.write("server", c, short)
			d.await()
			reset(c)
		}},
		{"client closes with unread data", func(d *diary, c *net.TCPConn) {
			awaitUnread(c)
			_ = c.Close()
		}, func(d *diary, c *net.TCPConn) {
			d.write("server", c, short)
			d.readAll("server", c)
		}},
		{"server closes with unread data", func(d *diary, c *net.TCPConn) {
			d.write("client", c, short)
			d.readAll("client", c)
		}, func(d *diary, c *net.TCPConn) {
			awaitUnread(c)
			_ = c.Close()
		}},
		{"client reads late", func(d *diary, c *net.TCPConn) {
			time.Sleep(5 * settle)
			d.readAll("client", c)
		}, func(d *diary, c *net.TCPConn) { d.write("server", c, bulk) }},
		{"server reads late", func(d *diary, c *net.TCPConn) { d.write("client", c, bulk) },
			func(d *diary, c *net.TCPConn) {
				time.Sleep(5 * settle)
				d.readAll("server", c)
			}},
		{"segments of one byte", oneByte("client"), oneByte("server")},
		{"client resets behind a closed window", func(d *diary, c *net.TCPConn) {
			fill(c)
			reset(c)
		}, func(d *diary, c *net.TCPConn) {
			d.socketError("server", c)
		}},
		{"server resets behind a closed window", func(d *diary, c *net.TCPConn) {
			d.await()
			d.readEnd("client", c)
		}, func(d *diary, c *net.TCPConn) {
			fill(c)
			d.reach()
			reset(c)
		}},
		{"client closes, then resets", func(d *diary, c *net.TCPConn) {
			_ = c.CloseWrite()
			d.await()
			reset(c)
		}, func(d *diary, c *net.TCPConn) {
			d.readAll("server", c)
			d.reach()
			d.socketError("server", c)
		}},
		{"server closes, client goes on", func(d *diary, c *net.TCPConn) {
			d.readAll("client", c)
			deadline := time.Now().Add(5 * time.Second)
			err := error(nil)
			for err == nil && time.Now().Before(deadline) {
				time.Sleep(settle / 2)
				_, err = c.Write([]byte("x"))
			}
			d.note("client", "write fails: %v", err != nil)
		}, func(d *diary, c *net.TCPConn) { _ = c.Close() }},
		{"server closes, then resets", func(d *diary, c *net.TCPConn) {
			d.readAll("client", c)
			d.reach()
			d.socketError("client", c)
		}, func(d *diary, c *net.TCPConn) {
			_ = c.CloseWrite()
			d.await()
			reset(c)
		}},
		{"both talk at length", talk("client"), talk("server")},
	}
}

type cell struct {
	name           string
	client, server func(*diary, *net.TCPConn)
}

// socketError waits for the socket's error without reading or writing: a reset comes by itself.
func (d *diary) socketError(who string, c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		d.note(who, "%v", err)
		return
	}
	e := 0
	for deadline := time.Now().Add(15 * time.Second); e == 0 && time.Now().Before(deadline); time.Sleep(settle / 2) {
		_ = raw.Control(func(fd uintptr) { e, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR) })
	}
	d.note(who, "socket error %s", errnoName(syscall.Errno(e)))
}

// awaitUnread waits until bytes are there, and leaves them.
func awaitUnread(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	for n, deadline := 0, time.Now().Add(patience); n == 0 && time.Now().Before(deadline); time.Sleep(settle / 10) {
		_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
}

func oneByte(who string) func(*diary, *net.TCPConn) {
	return func(d *diary, c *net.TCPConn) {
		var writer sync.WaitGroup
		defer writer.Wait()
		_ = c.SetWriteDeadline(time.Now().Add(patience))
		writer.Go(func() {
			for _, b := range bulk[:2000] {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
			}
			_ = c.CloseWrite()
		})
		d.readAll(who, c)
	}
}

func talk(who string) func(*diary, *net.TCPConn) {
	return func(d *diary, c *net.TCPConn) {
		var writer sync.WaitGroup
		defer writer.Wait()
		_ = c.SetWriteDeadline(time.Now().Add(patience))
		writer.Go(func() {
			for range 2 {
				_, _ = c.Write(bulk)
			}
			_ = c.CloseWrite()
		})
		d.readAll(who, c)
	}
}

// fill writes until the window has been closed for a while.
func fill(c *net.TCPConn) {
	for {
		_ = c.SetWriteDeadline(time.Now().Add(5 * settle))
		if _, err := c.Write(bulk[:1<<20]); err != nil {
			return
		}
	}
}

func (c cell) run(t *testing.T, w way, at string) string {
	t.Helper()
	d := &diary{met: make(chan struct{})}
	ln, err := net.Listen("tcp", at)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer ln.Close()
	accepted := make(chan *net.TCPConn, 1)
	go func() {
		if s, err := ln.Accept(); err == nil {
			accepted <- s.(*net.TCPConn)
		}
	}()
	x, err := w.dial("tcp", ln.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Errorf("%s: %v", w.name, err)
		return ""
	}
	client, server := x.(*net.TCPConn), <-accepted
	var both sync.WaitGroup
	both.Go(func() { c.client(d, client); _ = client.CloseWrite() })
	both.Go(func() { c.server(d, server); _ = server.CloseWrite() })
	both.Wait()
	client.Close()
	server.Close()
	return d.String()
}

// TestStreamTruth: every way in which a stream can go looks the same through us as direct.
func TestStreamTruth(t *testing.T) {
	l := newLab(t)
	var all sync.WaitGroup // most cells wait most of the time
	for _, c := range cells() {
		for _, at := range []string{"127.99.0.1:0", "[::1]:0"} {
			all.Go(func() {
				want := c.run(t, direct(), at)
				got := c.run(t, l.relayed(), at)
				if got != want || got == "" || strings.Contains(got, "timeout") {
					t.Errorf("%s, %s:\ndirect:\n%s\nrelayed:\n%s", c.name, at, want, got)
				}
			})
		}
	}
	all.Wait()
	eventually(t, 30*time.Second, "all flows have ended", func() bool { return l.table.LiveCount() == 0 })
	if t.Failed() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for f, cause := range l.causes {
		// A reset may come while a busy machine has not yet finished the handshake.
		if !slices.Contains([]string{"client closed", "server closed", "client reset", "server reset", causeGaveUp}, cause) {
			t.Errorf("%v ended with %q", f, cause)
		}
	}
}

// TestNetConn runs the contract tests of net.Conn over a relayed connection.
func TestNetConn(t *testing.T) {
	l := newLab(t)
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		ln, err := net.Listen("tcp", "127.99.0.1:0")
		if err != nil {
			return nil, nil, nil, err
		}
		defer ln.Close()
		if c1, err = l.relayed().dial("tcp", ln.Addr().(*net.TCPAddr).AddrPort()); err != nil {
			return nil, nil, nil, err
		}
		if c2, err = ln.Accept(); err != nil {
			return nil, nil, nil, err
		}
		return c1, c2, func() { c1.Close(); c2.Close() }, nil
	})
}

// TestRefused: what the program sees of a server that is not there.
func TestRefused(t *testing.T) {
	l := newLab(t)
	for _, to := range []string{"127.99.0.1:9", "[::1]:9"} {
		for _, w := range []way{direct(), l.relayed()} {
			var err error
			soonest := time.Hour
			for tries := 0; tries < 5 && soonest > time.Second; tries++ { // a busy machine may pause
				start := time.Now()
				_, err = w.dial("tcp", netip.MustParseAddrPort(to))
				soonest = min(soonest, time.Since(start))
			}
			if errnoName(err) != "ECONNREFUSED" || soonest > time.Second {
				t.Errorf("%s %s: %v after %v", w.name, to, err, soonest)
			}
		}
	}
	if !l.hasCause("connection refused") {
		t.Error("the link does not say so")
	}
}

func (l *lab) hasCause(want string) bool {
	found := false
	eventually(l.t, 2*time.Second, "cause "+want, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, c := range l.causes {
			found = found || c == want
		}
		return found
	})
	return found
}

// TestFileBudgetRefuses: above the limit a new connection is refused with the reason, the
// others live on, and DNS and the API find files.
func TestFileBudgetRefuses(t *testing.T) {
	l := newLab(t, func(r *Relay) { r.Files = NewFileBudget(reservedFiles + 10) })
	ln, err := net.Listen("tcp", "127.99.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	to := ln.Addr().(*net.TCPAddr).AddrPort()
	var open []net.Conn
	for {
		c, err := l.relayed().dial("tcp", to)
		if err != nil {
			if errnoName(err) != "ECONNREFUSED" {
				t.Errorf("%v", err)
			}
			break
		}
		open = append(open, c)
		if len(open) > 20 {
			t.Fatal("no limit")
		}
	}
	if len(open) != 9 { // 95 % of 10: one file stays for programs that have none
		t.Errorf("%d connections, want 9", len(open))
	}
	if l.relay.Counters().TCPRefused != 1 {
		t.Errorf("counters: %+v", l.relay.Counters())
	}
	open[0].Close()
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	eventually(t, 30*time.Second, "a file is free again", func() bool {
		c, err := l.relayed().dial("tcp", to)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	for _, c := range open {
		c.Close()
	}
}

func TestKillTCP(t *testing.T) {
	l := newLab(t)
	ln, err := net.Listen("tcp", "127.99.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := l.relayed().dial("tcp", ln.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, k := range l.table.Live() {
		if !k.Kill("killed by hand") {
			t.Error("nobody carries the link")
		}
	}
	for who, x := range map[string]net.Conn{"program": c, "server": s} {
		_ = x.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, err := x.Read(make([]byte, 1)); errnoName(err) != errnoName(syscall.ECONNRESET) {
			t.Errorf("%s sees %v, want a reset", who, err)
		}
	}
	l.hasCause("killed by hand")
}

// TestHalfClosedLimit ends a connection that one side has closed long ago, and no open one.
func TestHalfClosedLimit(t *testing.T) {
	l := newLab(t, func(r *Relay) { r.Limits.HalfClosed = 2 * time.Second })
	ln, err := net.Listen("tcp", "127.99.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	to := ln.Addr().(*net.TCPAddr).AddrPort()
	var ends [2][2]*net.TCPConn
	for i := range ends {
		c, err := l.relayed().dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		s, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = [2]*net.TCPConn{c.(*net.TCPConn), s.(*net.TCPConn)}
		defer c.Close()
		defer s.Close()
	}
	_ = ends[0][0].CloseWrite()
	for range 4 { // bytes keep it alive
		time.Sleep(time.Second)
		if _, err := ends[0][1].Write([]byte("x")); err != nil {
			t.Fatalf("half-closed, but in use: %v", err)
		}
	}
	_ = ends[0][0].SetReadDeadline(time.Now().Add(8 * time.Second))
	if _, err := io.Copy(io.Discard, ends[0][0]); errnoName(err) != "ECONNRESET" {
		t.Errorf("half-closed and idle: %v, want a reset", err)
	}
	l.hasCause("half-closed too long")
	if _, err := ends[1][0].Write([]byte("x")); err != nil {
		t.Errorf("the open one was ended too: %v", err)
	}
}

// TestIdleTCPMemory measures what an idle connection costs: goroutines, netstack's endpoint,
// both sockets' Go parts, and the test's own two sockets.
func TestIdleTCPMemory(t *testing.T) {
	l := newLab(t)
	const flows = 1500
	ln, err := net.Listen("tcp", "127.99.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	to := inside(ln.Addr().(*net.TCPAddr).AddrPort()).String()
	conns := make([]net.Conn, 0, 2*flows)
	defer func() {
		for _, c := range conns {
			reset(c.(*net.TCPConn))
		}
	}()
	before := memory()
	l.inside(func() {
		buf := make([]byte, 1000)
		for range flows {
			c, err := net.Dial("tcp", to)
			if err != nil {
				t.Error(err)
				return
			}
			s, err := ln.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			conns = append(conns, c, s)
			_, _ = c.Write(buf) // each has been used
			_, _ = io.ReadFull(s, buf)
			_, _ = s.Write(buf)
			_, _ = io.ReadFull(c, buf)
		}
	})
	per := (memory() - before) / flows
	t.Logf("%d idle connections: %d bytes each, the test's own two sockets included", flows, per)
	if per > 44<<10 {
		t.Errorf("%d bytes per idle connection, limit 44 KiB", per)
	}
}

func memory() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}
