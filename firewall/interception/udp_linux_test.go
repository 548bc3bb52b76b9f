package interception

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

func echoUDP(t testing.TB, at string) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	x, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	c := x.(*net.UDPConn)
	t.Cleanup(func() { c.Close() })
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func (l *lab) listenUDP(t testing.TB, at string) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	l.inside(func() {
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
	return c
}

// TestUDPThroughStack: one program socket, two servers and a stranger, both families.
func TestUDPThroughStack(t *testing.T) {
	l := newLab(t)
	for _, fam := range []struct{ name, local, one, two string }{
		{"v4", "10.79.0.2:0", "127.99.0.1:0", "127.99.0.2:0"},
		{"v6", "[fd79::2]:0", "[::1]:0", "[::1]:0"},
	} {
		t.Run(fam.name, func(t *testing.T) {
			prog := l.listenUDP(t, fam.local)
			one, at1 := echoUDP(t, fam.one)
			two, at2 := echoUDP(t, fam.two)
			stranger, _ := echoUDP(t, fam.one)
			buf := make([]byte, 1<<16)
			var seen netip.AddrPort
			for i, c := range []*net.UDPConn{one, two} {
				to := inside([]netip.AddrPort{at1, at2}[i])
				if _, err := prog.WriteToUDPAddrPort(make([]byte, 4000), to); err != nil { // fragments
					t.Fatal(err)
				}
				_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil || n != 4000 {
					t.Fatalf("server got %d bytes, %v", n, err)
				}
				if i > 0 && from.Port() != seen.Port() {
					t.Errorf("servers see ports %d and %d of one socket", seen.Port(), from.Port())
				}
				seen = from
				if _, err := c.WriteToUDPAddrPort(buf[:n], from); err != nil {
					t.Fatal(err)
				}
				_ = prog.SetReadDeadline(time.Now().Add(3 * time.Second))
				n, peer, err := prog.ReadFromUDPAddrPort(buf)
				if err != nil || n != 4000 || netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port()) != to {
					t.Fatalf("program got %d bytes from %v, %v; want 4000 from %v", n, peer, err, to)
				}
			}
			before := l.relay.Counters().UDPUnsolicited
			if _, err := stranger.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(at1.Addr(), seen.Port())); err != nil {
				t.Fatal(err)
			}
			_ = prog.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			if n, peer, err := prog.ReadFromUDPAddrPort(buf); err == nil {
				t.Errorf("a stranger's %d bytes arrived from %v", n, peer)
			}
			if l.relay.Counters().UDPUnsolicited != before+1 {
				t.Error("the stranger was not counted")
			}
		})
	}
}

// TestUDPPortClosed: the program sees ECONNREFUSED, as direct.
func TestUDPPortClosed(t *testing.T) {
	l := newLab(t)
	for _, to := range []string{"127.99.0.1:9", "[::1]:9"} {
		for _, w := range []way{direct(), l.relayed()} {
			c, err := w.dial("udp", netip.MustParseAddrPort(to))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
			if _, err := c.Read(make([]byte, 1)); errnoName(err) != "ECONNREFUSED" {
				t.Errorf("%s %s: %v", w.name, to, err)
			}
		}
	}
}

// TestUDPNewFlowAfterIdle: after the relay has forgotten a pair, the program goes on.
func TestUDPNewFlowAfterIdle(t *testing.T) {
	l := newLab(t)
	srv, at := echoUDP(t, "127.99.0.1:0")
	c, err := l.relayed().dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 10)
	for range 3 {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		_ = srv.SetReadDeadline(time.Now().Add(3 * time.Second))
		_, from, err := srv.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = srv.WriteToUDPAddrPort(buf[:1], from)
		_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
		if _, err := c.Read(buf); err != nil {
			t.Fatal(err)
		}
		l.relay.now.Add(1000)
		l.relay.udp.sweep()
		if l.table.LiveCount() != 0 {
			t.Fatal("still there after the idle limit")
		}
	}
}

// TestUDPPairMemory: 64 sockets talk to very many peers. What a pair costs, through the stack,
// the relay and the table of links, and that it is given back.
func TestUDPPairMemory(t *testing.T) {
	l := newLab(t)
	const socks, peers = 64, 600
	sink, at := echoUDP(t, "0.0.0.0:0")
	go func() {
		buf := make([]byte, 100)
		for {
			if _, _, err := sink.ReadFromUDPAddrPort(buf); err != nil {
				return
			}
		}
	}()
	var conns []*net.UDPConn
	for range socks {
		conns = append(conns, l.listenUDP(t, "10.79.0.2:0"))
	}
	before, files := memory(), 0
	b := make([]byte, 64)
	for p := range peers {
		a := [4]byte{10, 99}
		binary.BigEndian.PutUint16(a[2:], uint16(p+256))
		to := netip.AddrPortFrom(netip.AddrFrom4(a), at.Port())
		want := (p + 1) * socks
		for i, c := range conns {
			if _, err := c.WriteToUDPAddrPort(b, to); err != nil {
				t.Fatalf("socket %d: %v", i, err)
			}
		}
		eventually(t, 30*time.Second, fmt.Sprint(want, " pairs"), func() bool { return l.pairs() == want })
	}
	files, _ = l.relay.Files.Used(OwnerKey{})
	after := memory()
	per := (after - before) / (socks * peers)
	t.Logf("%d pairs of %d sockets: %d bytes each, %d files", socks*peers, socks, per, files)
	if per > 8<<10 || files != socks {
		t.Errorf("%d bytes per pair, limit 8 KiB; %d files, want one per socket", per, files)
	}
	eventually(t, 30*time.Second, "all pairs end", func() bool { // the last datagrams may still be on their way
		l.relay.now.Add(1000)
		l.relay.udp.sweep()
		return l.pairs() == 0
	})
	eventually(t, 30*time.Second, "files given back", func() bool { n, _ := l.relay.Files.Used(OwnerKey{}); return n == 0 })
}

func (l *lab) pairs() int {
	l.relay.udp.mu.Lock()
	defer l.relay.udp.mu.Unlock()
	return l.relay.udp.pairs
}

// TestPingThroughStack: a program's echo request reaches the host and its reply comes back.
func TestPingThroughStack(t *testing.T) {
	l := newLab(t)
	for _, fam := range []struct {
		network, to string
		request     icmp.Type
		reply       icmp.Type
		proto       int
	}{
		{"ip4:icmp", "10.99.0.1", ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply, 1},
		{"ip6:ipv6-icmp", "fd99::1", ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58},
	} {
		var c net.PacketConn
		l.inside(func() {
			var err error
			if c, err = net.ListenPacket(fam.network, ""); err != nil {
				t.Error(err)
			}
		})
		if c == nil {
			t.FailNow()
		}
		defer c.Close()
		for seq := 1; seq <= 3; seq++ {
			m := icmp.Message{Type: fam.request, Body: &icmp.Echo{ID: 0x77, Seq: seq, Data: []byte("payload")}}
			b, err := m.Marshal(nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.WriteTo(b, &net.IPAddr{IP: net.ParseIP(fam.to)}); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
			buf := make([]byte, 1500)
			for {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					t.Fatalf("%s seq %d: %v", fam.to, seq, err)
				}
				got, err := icmp.ParseMessage(fam.proto, buf[:n])
				if err != nil || got.Type != fam.reply {
					continue // neighbour discovery and the like
				}
				e := got.Body.(*icmp.Echo)
				if from.String() != fam.to || e.ID != 0x77 || e.Seq != seq || string(e.Data) != "payload" {
					t.Errorf("%v: %+v", from, e)
				}
				break
			}
		}
	}
}
