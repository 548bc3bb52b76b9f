package handback

import (
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatun/network/packet"
	"gatun/tun/route"

	"golang.org/x/sys/unix"
)

// markOf is the mark of a socket.
func markOf(t *testing.T, c syscall.Conn) (mark uint32) {
	t.Helper()
	onSocket(t, c, func(fd int) error {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK)
		mark = uint32(v)
		return err
	})
	return mark
}

func setMarkOf(t *testing.T, c syscall.Conn, mark uint32) {
	t.Helper()
	onSocket(t, c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)) })
}

func onSocket(t *testing.T, c syscall.Conn, do func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
}

// The socket of a flow that lasts comes to carry the mark, and goes on to work; one that is idle, has a
// mark of somebody, or is not connected does not.
func TestLiveSocketsThatLastCarryTheMark(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up(func(o *Options) { o.Holder = func(packet.Flow) int { return os.Getpid() } })
		for _, far := range fars {
			for _, network := range []string{"tcp", "udp"} {
				idle, _ := l.dial(network, at(far))
				if err := echoes(idle, 10); err != nil {
					t.Fatal(err)
				}
				theirs, _ := l.dial(network, at(far))
				setMarkOf(t, theirs.(syscall.Conn), l.names().Mark+7)
				c, f := l.dial(network, at(far))
				l.eventually(network+" to "+far+": the mark", func() bool {
					for range 100 {
						if echoes(c, 20) != nil || echoes(theirs, 20) != nil {
							t.Fatalf("%s: no echo: %v", f, l.failures())
						}
					}
					return markOf(t, c.(syscall.Conn)) == l.names().BackMark
				})
				before := l.deviceCount()
				for range 200 {
					if err := echoes(c, 30); err != nil {
						t.Fatalf("%s: with the mark: %v", f, err)
					}
				}
				if n := l.deviceCount() - before; n != 0 {
					t.Errorf("%s: %d packets on the device with the mark", f, n)
				}
				if m := markOf(t, idle.(syscall.Conn)); m != 0 {
					t.Errorf("an idle socket carries %#x", m)
				}
				if m := markOf(t, theirs.(syscall.Conn)); m != l.names().Mark+7 {
					t.Errorf("a socket with a mark of its program carries %#x", m)
				}
			}
		}
	})
}

// A mark is nothing by itself: what is not in the set goes into the device, also from a socket that
// carries it, and what is revoked does again. The guard alone lets out nothing new.
func TestLiveMarkIsNoPermission(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up(func(o *Options) { o.Holder = func(packet.Flow) int { return 0 } })
		for _, far := range fars {
			c, f := l.dial("udp", at(far))
			setMarkOf(t, c.(syscall.Conn), l.names().BackMark)
			for range 5 { // the first is held, the second brings the connection's mark, the others pass
				if err := echoes(c, 10); err != nil {
					t.Fatalf("%s: %v (%v)", f, err, l.failures())
				}
			}
			if n := l.packets(f); n != 1 {
				t.Errorf("%s: %d packets of a marked socket were undecided, want 1", f, n)
			}
			if err := l.table.Forget(f); err != nil {
				t.Fatal(err)
			}
			l.deny(true)
			l.silent(c, f)
			l.deny(false)
		}
		// Without the chain of the handed-back flows the guard is closed, whoever marks a socket.
		if err := l.table.Close(); err != nil {
			t.Fatal(err)
		}
		for _, far := range fars {
			for _, network := range []string{"tcp", "udp"} {
				control := func(_, _ string, raw syscall.RawConn) error {
					return raw.Control(func(fd uintptr) {
						_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(l.names().BackMark))
					})
				}
				d := net.Dialer{Control: control, Timeout: 300 * time.Millisecond}
				c, err := d.DialContext(t.Context(), network, at(far))
				if network == "tcp" {
					if err == nil {
						t.Errorf("a marked socket connected to %s past the guard", far)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				l.silent(c, flowOfConn(c))
				_ = c.Close()
			}
		}
	})
}

// deny stops or resumes giving back what comes to the device.
func (l *lab) deny(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.decide = l.table.Accept
	if on {
		l.decide = func(packet.Flow, []byte) error { return nil }
	}
}

// silent sends datagrams that must come to the device and to nobody else.
func (l *lab) silent(c net.Conn, f packet.Flow) {
	l.t.Helper()
	before := l.packets(f)
	for range 5 {
		if _, err := c.Write([]byte("x")); err != nil {
			l.t.Fatal(err)
		}
	}
	l.eventually("undecided datagrams come to the device", func() bool { return l.packets(f)-before >= 5 })
	_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := c.Read(make([]byte, 10)); err == nil {
		l.t.Errorf("%s: %d bytes came back of what nobody has decided", f, n)
	}
	_ = c.SetReadDeadline(time.Time{})
}

// use uses connections that are open.
func (l *lab) use(conns []net.Conn) {
	l.t.Helper()
	for _, c := range conns {
		for range 3 {
			if err := echoes(c, 30); err != nil {
				l.t.Fatalf("%s: %v", flowOfConn(c), err)
			}
		}
	}
}

func (l *lab) names() route.Names { return route.DefaultNames() }

// The queues look at a flow at growing intervals, and never lose one.
func TestWatches(t *testing.T) {
	w := &watches{wake: make(chan struct{}, 1)}
	now := time.Now()
	f := watched{flow: packet.Flow{Proto: packet.UDP, Local: at2("10.0.0.1", 1), Remote: at2("10.0.0.2", 2)}}
	w.add(0, now, f)
	if len(w.wake) != 1 {
		t.Error("nobody is woken for the first flow")
	}
	for look := range looks {
		if all, next := w.due(now.Add(interval(look) - 1)); len(all[look]) != 0 || next != now.Add(interval(look)) {
			t.Errorf("look %d: too early: %v, next %v", look, all, next)
		}
		now = now.Add(interval(look))
		all, next := w.due(now)
		if len(all[look]) != 1 || !next.IsZero() {
			t.Fatalf("look %d: due are %v, next %v", look, all, next)
		}
		w.add(min(look+1, looks-1), now, all[look][0])
	}
	if interval(looks-1) > time.Minute || !strings.HasPrefix(interval(looks-1).String(), "51") {
		t.Errorf("the last interval is %s", interval(looks-1))
	}
}

// However many flows there are, a bounded number is looked at, and new ones come before idle ones.
func TestWatchesAreBounded(t *testing.T) {
	w := &watches{wake: make(chan struct{}, 1)}
	now := time.Now()
	flow := func(i int) watched {
		return watched{flow: packet.Flow{Proto: packet.UDP, Local: at2("10.0.0.1", uint16(i)), Remote: at2("10.0.0.2", 2)}}
	}
	for i := range maxWatched {
		w.add(looks-1, now, flow(i))
	}
	for i := range 10 {
		w.add(0, now, flow(maxWatched+i))
	}
	all, _ := w.due(now.Add(time.Hour))
	if len(all[0]) != 10 || len(all[looks-1]) != maxWatched-10 || all[looks-1][0].flow != flow(10).flow {
		t.Errorf("%d new and %d idle flows are looked at, want 10 and %d", len(all[0]), len(all[looks-1]), maxWatched-10)
	}
	for i := range maxWatched + 10 {
		w.add(0, now, flow(i))
	}
	if all, _ = w.due(now.Add(time.Hour)); len(all[0]) != maxWatched {
		t.Errorf("%d flows are looked at, want %d", len(all[0]), maxWatched)
	}
}

// Both marks outlive Down. The next Up finds the flow open, and leaves it alone.
func TestLiveMarkedFlowsOutliveDownAndUp(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up(func(o *Options) { o.Holder = func(packet.Flow) int { return os.Getpid() } })
		var conns []net.Conn
		for _, far := range fars {
			for _, network := range []string{"tcp", "udp"} {
				c, f := l.dial(network, at(far))
				l.eventually(f.String()+": the mark", func() bool {
					for range 100 {
						if err := echoes(c, 20); err != nil {
							t.Fatalf("%s: %v (%v)", f, err, l.failures())
						}
					}
					return markOf(t, c.(syscall.Conn)) == l.names().BackMark
				})
				conns = append(conns, c)
			}
		}
		if err := l.m.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := l.table.Close(); err != nil {
			t.Fatal(err)
		}
		l.use(conns)
		_ = l.dev.Close()
		l.up()
		l.use(conns)
		for _, c := range conns {
			if n := l.packets(flowOfConn(c)); n != 1 {
				t.Errorf("%s: %d packets came to the device, want the first alone", flowOfConn(c), n)
			}
		}
	})
}
