package route

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrport(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// serveTCP listens inside the server's namespace and gives each connection to serve.
func (l *dialLab) serveTCP(t testing.TB, at string, serve func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	var ln *net.TCPListener
	l.in(t, l.server, func() {
		x, err := net.Listen("tcp", at)
		if err != nil {
			t.Error(err)
			return
		}
		ln = x.(*net.TCPListener)
	})
	if ln == nil {
		t.FailNow()
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func echoTCP(c *net.TCPConn) { defer c.Close(); _, _ = io.Copy(c, c) }

func (l *dialLab) dial(t testing.TB, d *Dialer, local, remote string, ttl uint8) (c *TCPConn, err error) {
	t.Helper()
	l.in(t, l.client, func() { c, err = d.DialTCP(context.Background(), addr(local), addrport(remote), ttl) })
	return c, err
}

func TestDialTCP(t *testing.T) {
	l := newDialLab(t)
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) }) // runs after the listeners' own clean-up
	p4 := l.serveTCP(t, "10.78.2.2:0", echoTCP)
	p6 := l.serveTCP(t, "[fd78:2::2]:0", echoTCP)
	for _, tc := range []struct {
		name, local string
		to          netip.AddrPort
		bind        bool
		want        string
	}{
		{"v4", "10.78.1.2", p4, false, "10.78.1.2"},
		{"v6", "fd78:1::2", p6, false, "fd78:1::2"},
		{"v4 bound", "10.78.1.2", p4, true, "10.78.1.2"},
		{"v6 bound", "fd78:1::2", p6, true, "fd78:1::2"},
		{"source is not ours", "192.0.2.7", p4, true, "10.78.1.2"},
		{"source of the other family", "fd78:1::2", p4, true, "10.78.1.2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := l.dial(t, &Dialer{Mark: 0x4711, BindSource: tc.bind}, tc.local, tc.to.String(), 64)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(); got != addr(tc.want) {
				t.Errorf("source %v, want %v", got, tc.want)
			}
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 5)
			if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "hello" {
				t.Fatalf("echo: %q, %v", buf, err)
			}
			if got := sockopt(t, c, unix.SOL_SOCKET, unix.SO_MARK); got != 0x4711 {
				t.Errorf("mark %#x", got)
			}
			if got := sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_NODELAY); got == 0 {
				t.Error("TCP_NODELAY is off")
			}
			if err := c.CloseWrite(); err != nil {
				t.Error(err)
			}
			if _, err := c.Read(buf); err != io.EOF {
				t.Errorf("after both FINs: %v, want EOF", err)
			}
		})
	}
}

func sockopt(t testing.TB, c interface {
	SyscallConn() (syscall.RawConn, error)
}, level, name int) (v int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) { v, err = unix.GetsockoptInt(int(fd), level, name) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return v
}

func TestDialTCPErrors(t *testing.T) {
	l := newDialLab(t)
	for _, tc := range []struct {
		name, to string
		ttl      uint8
		errno    syscall.Errno
		from     string // of the ICMP message, "" for none
	}{
		{"refused", "10.78.2.2:9", 64, syscall.ECONNREFUSED, ""},
		{"refused v6", "[fd78:2::2]:9", 64, syscall.ECONNREFUSED, ""},
		{"no route at the router", "10.78.8.1:80", 64, syscall.ENETUNREACH, "10.78.1.1"},
		{"no route at the router, v6", "[fd79::1]:80", 64, syscall.ENETUNREACH, "fd78:1::1"},
		{"host is dead", "10.78.2.99:80", 64, syscall.EHOSTUNREACH, "10.78.1.1"},
		{"hop limit ends", "10.78.2.2:80", 1, syscall.EHOSTUNREACH, "10.78.1.1"},
		{"hop limit ends, v6", "[fd78:2::2]:80", 1, syscall.EHOSTUNREACH, "fd78:1::1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			local := "10.78.1.2"
			if strings.HasPrefix(tc.to, "[") {
				local = "fd78:1::2"
			}
			c, err := l.dial(t, &Dialer{BindSource: true}, local, tc.to, tc.ttl)
			if err == nil {
				c.Close()
				t.Fatal("connected")
			}
			if !errors.Is(err, tc.errno) {
				t.Errorf("%v, want %v", err, tc.errno)
			}
			var icmp *packet.ICMPError
			if got := errors.As(err, &icmp); got != (tc.from != "") {
				t.Fatalf("%v: ICMP %v", err, got)
			}
			if icmp != nil && icmp.From != addr(tc.from) {
				t.Errorf("from %v, want %v", icmp.From, tc.from)
			}
		})
	}
}

func TestDialTCPRestoresTTL(t *testing.T) {
	l := newDialLab(t)
	to := l.serveTCP(t, "10.78.2.2:0", echoTCP)
	c, err := l.dial(t, &Dialer{}, "10.78.1.2", to.String(), 2)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := sockopt(t, c, unix.SOL_IP, unix.IP_TTL); got != 64 {
		t.Errorf("TTL %d after the connect, want the system's 64", got)
	}
	if got := sockopt(t, c, unix.SOL_IP, unix.IP_RECVERR); got != 0 {
		t.Error("IP_RECVERR stays on: an ICMP hint would end the connection")
	}
}

func TestDialTCPCancelled(t *testing.T) {
	l := newDialLab(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	before := countFiles(t)
	gone := errors.New("the program gave up")
	ctx, cancel := context.WithCancelCause(context.Background())
	const dials = 50
	errs := make(chan error, dials)
	for range dials {
		go l.in(t, l.client, func() {
			_, err := (&Dialer{}).DialTCP(ctx, addr("10.78.1.2"), addrport("10.78.9.1:80"), 64)
			errs <- err
		})
	}
	deadline := time.Now().Add(5 * time.Second)
	for countFiles(t) < before+dials && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if got := countFiles(t) - before; got > dials+2 { // the poller's own two
		t.Errorf("%d dials hold %d files, want one each", dials, got)
	}
	cancel(gone)
	for range dials {
		if err := <-errs; !errors.Is(err, gone) {
			t.Errorf("cancelled dial: %v", err)
		}
	}
	if got := countFiles(t) - before; got > 2 {
		t.Errorf("%d files leaked", got)
	}
}

func TestDialWithoutFiles(t *testing.T) {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	low := old
	low.Cur = 3
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	_, tcp := (&Dialer{}).DialTCP(context.Background(), addr("127.0.0.1"), addrport("127.0.0.1:9"), 64)
	_, udp := (&Dialer{}).ListenUDP(addr("127.0.0.1"))
	_, ctx := (&Dialer{}).DialContext(context.Background(), "udp", "127.0.0.1:9")
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{tcp, udp, ctx} {
		if !errors.Is(err, ErrFiles) || !errors.Is(err, syscall.EMFILE) {
			t.Errorf("%v, want ErrFiles", err)
		}
	}
}

func TestDialerRefusesOwnAddress(t *testing.T) {
	d := &Dialer{Own: []netip.Prefix{netip.MustParsePrefix("10.67.0.0/16"), netip.MustParsePrefix("fd67::/64")}}
	for _, to := range []string{"10.67.3.4:53", "[fd67::1]:53", "[::ffff:10.67.3.4]:53"} {
		a := addrport(to)
		_, tcp := d.DialTCP(context.Background(), netip.Addr{}, a, 64)
		_, ctx := d.DialContext(context.Background(), "udp", to)
		_, echo := d.ListenEcho(netip.Addr{}, a.Addr())
		s, err := d.ListenUDP(a.Addr())
		if err != nil {
			t.Fatal(err)
		}
		udp := sendOne(s, []byte("x"), a, 64, 0, false)
		s.Close()
		for _, err := range []error{tcp, ctx, echo, udp} {
			if !errors.Is(err, ErrOwnAddress) {
				t.Errorf("%v: %v, want ErrOwnAddress", to, err)
			}
		}
	}
	if _, err := d.DialContext(context.Background(), "tcp", "example.org:80"); err == nil || !strings.Contains(err.Error(), "want an IP address") {
		t.Errorf("a name was accepted: %v", err)
	}
}

func TestDialContext(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d := &Dialer{Mark: 0x55}
	if unix.Geteuid() != 0 {
		d.Mark = 0 // a mark needs a capability
	}
	c, err := d.DialContext(context.Background(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := sockopt(t, c.(*net.TCPConn), unix.SOL_SOCKET, unix.SO_MARK); uint32(got) != d.Mark {
		t.Errorf("mark %#x, want %#x", got, d.Mark)
	}
}

// TestFill: no buffer while idle, FIN is EOF, RST is ECONNRESET, and Broken sees it unread.
func TestFill(t *testing.T) {
	l := newDialLab(t)
	steps := make(chan func(*net.TCPConn))
	to := l.serveTCP(t, "10.78.2.2:0", func(c *net.TCPConn) {
		for f := range steps {
			f(c)
		}
	})
	c, err := l.dial(t, &Dialer{}, "10.78.1.2", to.String(), 64)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var taken int
	get := func() []byte { taken++; return make([]byte, 4096) }
	put := func([]byte) { taken-- }

	type result struct {
		b   string
		err error
	}
	results := make(chan result)
	fill := func() {
		b, n, err := c.Fill(get, put)
		if b != nil {
			put(b)
		}
		results <- result{string(b[:n]), err}
	}
	go fill()
	time.Sleep(50 * time.Millisecond) // let it try once and park
	steps <- func(c *net.TCPConn) { _, _ = c.Write([]byte("one")) }
	if r := <-results; r.b != "one" || r.err != nil {
		t.Fatalf("%+v", r)
	}
	if taken != 0 {
		t.Fatalf("%d buffers are out after the fill", taken)
	}
	if c.Broken() {
		t.Error("broken while open")
	}
	steps <- func(c *net.TCPConn) { _ = c.CloseWrite() }
	go fill()
	if r := <-results; r.err != io.EOF {
		t.Fatalf("after FIN: %+v", r)
	}
	if c.Broken() {
		t.Error("broken while half-closed")
	}
	steps <- func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() }
	close(steps)
	deadline := time.Now().Add(2 * time.Second)
	for !c.Broken() && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if !c.Broken() {
		t.Error("a reset after FIN is not seen")
	}
	if taken != 0 {
		t.Errorf("%d buffers are out", taken)
	}
}

func TestFillIdleHoldsNoBuffer(t *testing.T) {
	l := newDialLab(t)
	to := l.serveTCP(t, "10.78.2.2:0", echoTCP)
	c, err := l.dial(t, &Dialer{}, "10.78.1.2", to.String(), 64)
	if err != nil {
		t.Fatal(err)
	}
	out := make(chan int, 16)
	got := make(chan error, 1)
	go func() {
		_, _, err := c.Fill(func() []byte { out <- 1; return make([]byte, 16) }, func([]byte) { out <- -1 })
		got <- err
	}()
	sum := 0
	for range 2 { // one try that finds nothing
		sum += <-out
	}
	if sum != 0 {
		t.Errorf("%d buffers held while idle", sum)
	}
	c.Abort()
	if err := <-got; err == nil {
		t.Error("Abort did not end the read")
	}
}

func BenchmarkDialTCP(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = c.Read(make([]byte, 1)); c.Close() }()
		}
	}()
	to := ln.Addr().(*net.TCPAddr).AddrPort()
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		d := &Dialer{}
		for b.Loop() {
			c, err := d.DialTCP(b.Context(), to.Addr(), to, 64)
			if err != nil {
				b.Fatal(err)
			}
			c.Abort()
		}
	})
	b.Run("net.Dialer", func(b *testing.B) {
		b.ReportAllocs()
		var d net.Dialer
		for b.Loop() {
			c, err := d.DialTCP(b.Context(), "tcp", netip.AddrPort{}, to)
			if err != nil {
				b.Fatal(err)
			}
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	})
}
