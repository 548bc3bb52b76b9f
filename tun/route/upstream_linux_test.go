package route

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

type gotDatagram struct {
	b    string
	from netip.AddrPort
	tos  uint8
}

type udpFault struct {
	peer netip.AddrPort
	e    packet.ICMPError
}

// udpUnderTest is a socket in the client's namespace that is being served.
type udpUnderTest struct {
	*UDPSocket
	got  chan gotDatagram
	errs chan udpFault
}

func (l *dialLab) listenUDP(t testing.TB, d *Dialer, local string) *udpUnderTest {
	t.Helper()
	u := &udpUnderTest{got: make(chan gotDatagram, 64), errs: make(chan udpFault, 64)}
	var err error
	l.in(t, l.client, func() { u.UDPSocket, err = d.ListenUDP(addr(local)) })
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- u.Serve(func(b []byte, from netip.AddrPort, tos uint8) {
			u.got <- gotDatagram{string(b), from, tos}
		}, func(peer netip.AddrPort, e *packet.ICMPError) { u.errs <- udpFault{peer, *e} })
	}()
	t.Cleanup(func() {
		u.Close()
		if err := <-done; err != os.ErrClosed {
			t.Errorf("Serve ended with %v, want os.ErrClosed", err)
		}
	})
	return u
}

// sendOne sends one datagram.
func sendOne(s *UDPSocket, b []byte, to netip.AddrPort, ttl, tos uint8, df bool) error {
	_, err := s.Send([][]byte{b}, to, ttl, tos, df)
	return err
}

func within[T any](t testing.TB, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(30 * time.Second):
		t.Fatalf("no %s within 30 s", what)
	}
	return v
}

type seen struct {
	ttl, tos int
	df       bool
	size     int
	from     netip.AddrPort
}

// serveUDP echoes datagrams with TOS 0x28 and tells how each arrived.
func (l *dialLab) serveUDP(t testing.TB, at string) (netip.AddrPort, <-chan seen) {
	t.Helper()
	var c *net.UDPConn
	l.in(t, l.server, func() {
		x, err := net.ListenPacket("udp", at)
		if err != nil {
			t.Error(err)
			return
		}
		c = x.(*net.UDPConn)
	})
	if c == nil {
		t.FailNow()
	}
	t.Cleanup(func() { c.Close() })
	arrived := make(chan seen, 64)
	if c.LocalAddr().(*net.UDPAddr).IP.To4() != nil {
		_ = ipv4.NewPacketConn(c).SetTOS(0x28)
		setopt(t, c, unix.SOL_IP, unix.IP_RECVTTL, 1)
		setopt(t, c, unix.SOL_IP, unix.IP_RECVTOS, 1)
	} else {
		_ = ipv6.NewPacketConn(c).SetTrafficClass(0x28)
		setopt(t, c, unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
		setopt(t, c, unix.SOL_IPV6, unix.IPV6_RECVTCLASS, 1)
	}
	go func() {
		buf, oob := make([]byte, 1<<16), make([]byte, 256)
		for {
			n, on, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
			if err != nil {
				return
			}
			s := seen{ttl: int(ttlOf(oob[:on])), size: n, from: from}
			msgs, _ := unix.ParseSocketControlMessage(oob[:on])
			for _, m := range msgs {
				if m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_TOS || m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_TCLASS {
					s.tos = int(m.Data[0])
				}
			}
			arrived <- s
			_, _ = c.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort(), arrived
}

func setopt(t testing.TB, c *net.UDPConn, level, name, v int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, name, v) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
}

func TestUDPSocketExchange(t *testing.T) {
	l := newDialLab(t)
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	for _, fam := range []struct{ name, local, server, second string }{
		{"v4", "10.78.1.2", "10.78.2.2:0", "10.78.2.3:0"},
		{"v6", "fd78:1::2", "[fd78:2::2]:0", "[fd78:2::2]:0"},
	} {
		t.Run(fam.name, func(t *testing.T) {
			to, arrived := l.serveUDP(t, fam.server)
			other, _ := l.serveUDP(t, fam.second)
			u := l.listenUDP(t, &Dialer{Mark: 7, BindSource: true}, fam.local)
			if err := sendOne(u.UDPSocket, []byte("ping"), to, 9, 0xb8, true); err != nil {
				t.Fatal(err)
			}
			if s := within(t, arrived, "datagram at the server"); s.ttl != 8 || s.tos != 0xb8 || s.from != netip.AddrPortFrom(addr(fam.local), u.LocalPort()) {
				t.Errorf("arrived as %+v, want TTL 8 behind one router, TOS 0xb8, from %v:%d", s, fam.local, u.LocalPort())
			}
			want := gotDatagram{"ping", to, 0x28}
			if got := within(t, u.got, "reply"); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
			if err := sendOne(u.UDPSocket, []byte("again"), other, 64, 0, false); err != nil { // one socket, another peer
				t.Fatal(err)
			}
			if got := within(t, u.got, "second peer's reply"); got.from != other {
				t.Errorf("from %v, want %v", got.from, other)
			}
			if got, err := unix.GetsockoptInt(u.fd, unix.SOL_SOCKET, unix.SO_MARK); got != 7 || err != nil {
				t.Errorf("mark %d, %v", got, err)
			}
			big := bytes.Repeat([]byte("x"), 60_000) // fragments both ways
			for range 2 {                            // over IPv6 the first only teaches our kernel the path's MTU
				if err := sendOne(u.UDPSocket, big, to, 64, 0, false); err != nil {
					t.Fatal(err)
				}
				time.Sleep(20 * time.Millisecond)
			}
			for fam.name == "v4" && within(t, u.got, "first large reply").b == "" {
			}
			if got := within(t, u.got, "large reply"); got.b != string(big) {
				t.Errorf("%d bytes came back, want %d", len(got.b), len(big))
			}
			for range 3*batchSize + 1 { // several batches
				if err := sendOne(u.UDPSocket, nil, to, 64, 0, false); err != nil { // empty datagrams are datagrams
					t.Fatal(err)
				}
			}
			for range 3*batchSize + 1 {
				if got := within(t, u.got, "empty reply"); got.b != "" {
					t.Errorf("got %q", got.b)
				}
			}
		})
	}
}

func TestUDPSocketErrors(t *testing.T) {
	l := newDialLab(t)
	to4, _ := l.serveUDP(t, "10.78.2.2:0")
	to6, _ := l.serveUDP(t, "[fd78:2::2]:0")
	for _, tc := range []struct {
		name, local, to string
		ttl             uint8
		size            int
		want            packet.ICMPError
	}{
		// First, because ICMP without a rate limit leaves the router no tokens for this kind.
		{"no route", "10.78.1.2", "10.78.8.1:5", 64, 1, packet.ICMPError{From: addr("10.78.1.1"), Type: 3}},
		{"port", "10.78.1.2", "10.78.2.2:9", 64, 1, packet.ICMPError{From: addr("10.78.2.2"), Type: 3, Code: 3}},
		{"port v6", "fd78:1::2", "[fd78:2::2]:9", 64, 1, packet.ICMPError{From: addr("fd78:2::2"), Type: 1, Code: 4}},
		{"hop limit", "10.78.1.2", to4.String(), 1, 1, packet.ICMPError{From: addr("10.78.1.1"), Type: 11}},
		{"hop limit v6", "fd78:1::2", to6.String(), 1, 1, packet.ICMPError{From: addr("fd78:1::1"), Type: 3}},
		{"too big on the way", "10.78.1.2", to4.String(), 64, 1450, packet.ICMPError{From: addr("10.78.1.1"), Type: 3, Code: 4, MTU: 1400}},
		{"too big on the way v6", "fd78:1::2", to6.String(), 64, 1430, packet.ICMPError{From: addr("fd78:1::1"), Type: 2, MTU: 1400}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u := l.listenUDP(t, &Dialer{}, tc.local)
			if err := sendOne(u.UDPSocket, make([]byte, tc.size), addrport(tc.to), tc.ttl, 0, true); err != nil {
				t.Fatal(err)
			}
			got := within(t, u.errs, "ICMP error")
			if want := (udpFault{addrport(tc.to), tc.want}); got != want {
				t.Errorf("%+v, want %+v", got, want)
			}
			// The error of one peer must not cost another its datagram.
			good := to4
			if u.fam.domain == unix.AF_INET6 {
				good = to6
			}
			for range 5 {
				_ = sendOne(u.UDPSocket, []byte("x"), addrport(tc.to), tc.ttl, 0, false)
				if err := sendOne(u.UDPSocket, []byte("after"), good, 64, 0, false); err != nil {
					t.Errorf("send after an error: %v", err)
				}
				for within(t, u.got, "reply after an error").b != "after" {
				}
			}
		})
	}
}

func TestUDPSocketTooBigForOurLink(t *testing.T) {
	l := newDialLab(t)
	to, _ := l.serveUDP(t, "10.78.2.2:0")
	u := l.listenUDP(t, &Dialer{}, "10.78.1.2")
	var icmp *packet.ICMPError
	var err error
	l.in(t, l.client, func() { err = sendOne(u.UDPSocket, make([]byte, 3000), to, 64, 0, true) }) // it asks for the MTU by a new socket
	if !errors.As(err, &icmp) || icmp.MTU != 1500 || !errors.Is(err, syscall.EMSGSIZE) {
		t.Fatalf("%v, want too big with the link's 1500", err)
	}
	if err := sendOne(u.UDPSocket, make([]byte, 3000), to, 64, 0, false); err != nil { // without DF it goes in fragments
		t.Fatal(err)
	}
	if got := within(t, u.got, "reply"); len(got.b) != 3000 {
		t.Errorf("%d bytes", len(got.b))
	}
}

func TestUDPSendDoesNotAllocate(t *testing.T) {
	if raceEnabled() {
		t.Skip("the race detector allocates")
	}
	sink, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	to := sink.LocalAddr().(*net.UDPAddr).AddrPort()
	s, err := (&Dialer{}).ListenUDP(addr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	train := [][]byte{make([]byte, 100), make([]byte, 100), make([]byte, 9)}
	if n := testing.AllocsPerRun(200, func() { _, _ = s.Send(train, to, 64, 0, false) }); n > 0 {
		t.Errorf("%v allocations per datagram", n)
	}
}

// raceEnabled finds out by a sync.Pool, which forgets at random under the race detector.
func raceEnabled() bool {
	d := &Dialer{}
	for range 64 {
		op := d.sendOp()
		d.sends.Put(op)
		if d.sendOp() != op {
			return true
		}
	}
	return false
}

type gotEcho struct {
	seq     uint16
	payload string
	ttl     uint8
}

type echoFault struct {
	seq uint16
	e   packet.ICMPError
}

func TestEchoSocket(t *testing.T) {
	l := newDialLab(t)
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	for _, kind := range []struct{ name, groups string }{{"ping socket", "0 2147483647"}, {"raw socket", "1 0"}} {
		l.in(t, l.client, func() { writeSysctl(t, "ipv4/ping_group_range", kind.groups) })
		for _, fam := range []struct{ name, local, remote, hop string }{
			{"v4", "10.78.1.2", "10.78.2.2", "10.78.1.1"},
			{"v6", "fd78:1::2", "fd78:2::2", "fd78:1::1"},
		} {
			t.Run(kind.name+" "+fam.name, func(t *testing.T) {
				var s, noise *EchoSocket
				var err error
				l.in(t, l.client, func() {
					s, err = (&Dialer{Mark: 3, BindSource: true}).ListenEcho(addr(fam.local), addr(fam.remote))
					if err == nil {
						noise, err = (&Dialer{}).ListenEcho(addr(fam.local), addr(fam.remote))
					}
				})
				if err != nil {
					t.Fatal(err)
				}
				if s.plain != (kind.groups == "1 0") {
					t.Fatalf("raw socket: %v", s.plain)
				}
				replies, faults, ended := make(chan gotEcho, 16), make(chan echoFault, 16), make(chan error, 1)
				go func() {
					ended <- s.Serve(func(seq uint16, p []byte, ttl uint8) { replies <- gotEcho{seq, string(p), ttl} },
						func(seq uint16, e *packet.ICMPError) { faults <- echoFault{seq, *e} })
				}()
				_ = noise.Send(1, []byte("somebody else's"), 64, 0)
				payload := string(slices.Repeat([]byte("p"), 5000))
				if fam.name == "v6" { // teach our kernel the path's MTU
					_ = noise.Send(2, []byte(payload), 64, 0)
					time.Sleep(20 * time.Millisecond)
				}
				for seq, p := range []string{"", "abc", payload} {
					if err := s.Send(uint16(seq+500), []byte(p), 64, 0); err != nil {
						t.Fatal(err)
					}
					want := gotEcho{uint16(seq + 500), p, 63}
					if got := within(t, replies, "reply"); got != want {
						t.Errorf("got seq %d, %d bytes, TTL %d; want seq %d, %d bytes, TTL 63", got.seq, len(got.payload), got.ttl, want.seq, len(p))
					}
				}
				if err := s.Send(7, []byte("short way"), 1, 0); err != nil {
					t.Fatal(err)
				}
				want := echoFault{7, *packet.TimeExceeded(addr(fam.hop))}
				if got := within(t, faults, "time exceeded"); got != want {
					t.Errorf("got %+v, want %+v", got, want)
				}
				if err := s.Send(8, []byte("after"), 64, 0); err != nil {
					t.Fatal(err)
				}
				if got := within(t, replies, "reply after an error"); got.seq != 8 {
					t.Errorf("got %+v", got)
				}
				noise.Close()
				s.Close()
				if err := <-ended; err != os.ErrClosed {
					t.Errorf("Serve: %v", err)
				}
				if n := len(replies); n > 0 {
					t.Errorf("%d replies too many", n)
				}
			})
		}
	}
}

func TestEchoForbidden(t *testing.T) {
	l := newDialLab(t)
	var err error
	l.in(t, l.client, func() {
		writeSysctl(t, "ipv4/ping_group_range", "1 0")
		runtime.LockOSThread() // this thread loses its rights and then ends
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if e := unix.Capset(&hdr, &none[0]); e != nil {
			t.Error(e)
		}
		_, err = (&Dialer{}).ListenEcho(addr("10.78.1.2"), addr("10.78.2.2"))
	})
	if !errors.Is(err, ErrEchoForbidden) {
		t.Errorf("%v, want ErrEchoForbidden", err)
	}
}

func TestEchoMessage(t *testing.T) {
	b := appendEcho(nil, addr("192.0.2.1"), 0x1234, 0x5678, []byte("odd"))
	if internetChecksum(b) != 0 {
		t.Errorf("checksum of %x does not verify", b)
	}
	for n := range len(b) {
		_, _, _, err := parseEcho(b[:n], packet.ICMP4Echo)
		if (err != nil) != (n < echoHeaderLen) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	id, seq, p, err := parseEcho(b, packet.ICMP4Echo)
	if id != 0x1234 || seq != 0x5678 || string(p) != "odd" || err != nil {
		t.Errorf("parsed %x %x %q %v", id, seq, p, err)
	}
	if _, _, _, err := parseEcho(b, packet.ICMP4EchoReply); err == nil {
		t.Error("a request passed as a reply")
	}
}

func BenchmarkUDPSend(b *testing.B) {
	sink, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer sink.Close()
	to := sink.LocalAddr().(*net.UDPAddr).AddrPort()
	s, err := (&Dialer{}).ListenUDP(addr("127.0.0.1"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	p := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		_ = sendOne(s, p, to, 64, 0, false)
	}
}
