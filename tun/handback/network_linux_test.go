package handback

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"gatun/network/packet"
	"gatun/tun/resend"

	"golang.org/x/sys/unix"
)

// Of two networks each flow takes the one that main says, with its address, as the socket and as
// the server sees it, also where the program did not choose.
func TestLiveSourceAddress(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up()
		for to, from := range map[string]string{far4: host4, far6: host6, other4: second4, other6: second6} {
			for _, network := range []string{"tcp", "udp"} {
				link := "eth0"
				if from == second4 || from == second6 {
					link = "eth1"
				}
				before := l.linkCount(link)
				c, f := l.dial(network, at(to))
				for range 20 {
					if err := echoes(c, 100); err != nil {
						t.Fatalf("%s: %v", f, err)
					}
				}
				if got := f.Local.Addr().String(); got != from {
					t.Errorf("%s to %s comes from %s, want %s", network, to, got, from)
				}
				if n := l.linkCount(link) - before; n < 20 {
					t.Errorf("%s: %d packets over %s, want 20 or more", f, n, link)
				}
				if n := l.packets(f); n != 1 {
					t.Errorf("%s: %d packets decided, want 1", f, n)
				}
			}
		}
	})
}

// A translation of the host's is chosen for the way that the flow really takes, not for the way
// of its first packet towards the device.
func TestLiveTranslation(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		const shown = "10.78.0.77"
		l.sh("ip addr add " + shown + "/24 dev eth0; nft add table ip nat; nft add chain ip nat post '{ type nat hook postrouting priority 100; }'; nft add rule ip nat post oifname eth0 snat to " + shown)
		l.serve()
		peers := make(chan string, 10)
		l.atServer(func() {
			ln, err := net.Listen("tcp", net.JoinHostPort(far4, "7001"))
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					peers <- c.RemoteAddr().String()
				}
			}()
			pc, err := net.ListenPacket("udp", net.JoinHostPort(far4, "7001"))
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for {
					_, from, err := pc.ReadFrom(make([]byte, 10))
					if err != nil {
						return
					}
					peers <- from.String()
				}
			}()
		})
		l.up()
		for _, network := range []string{"tcp", "udp"} {
			c, f := l.dial(network, net.JoinHostPort(far4, "7001"))
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if got := <-peers; !strings.HasPrefix(got, shown+":") {
				t.Errorf("%s: the server sees %s, want the translated %s", f, got, shown)
			}
		}
	})
}

// A destination that the host translates (a port that containers publish, a service of a cluster) is
// refused: the packet that is held has the other address, and what is sent again under that would be
// answered to nobody. The flow stays with who asked, and nothing of it is left; others are not disturbed.
func TestLiveTranslatedDestination(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		const service4, service6 = "203.0.113.77", "2001:db8:9::77"
		l.sh(`nft add table inet nat
			nft add chain inet nat out '{ type nat hook output priority -100; }'
			nft add rule inet nat out ip daddr ` + service4 + ` dnat ip to ` + far4 + `
			nft add rule inet nat out ip6 daddr ` + service6 + ` dnat ip6 to ` + far6)
		l.serve()
		table := l.up()
		type refusal struct {
			f   packet.Flow
			err error
		}
		decided := make(chan refusal, 64)
		l.mu.Lock()
		l.decide = func(f packet.Flow, held []byte) error {
			err := table.Accept(f, held)
			decided <- refusal{f, err}
			return nil
		}
		l.mu.Unlock()
		for service, far := range map[string]string{service4: far4, service6: far6} {
			for _, network := range []string{"tcp", "udp"} {
				go func() {
					c, err := (&net.Dialer{Timeout: patience, Cancel: t.Context().Done()}).Dial(network, at(service))
					if err == nil {
						_, _ = c.Write([]byte("x"))
						<-t.Context().Done()
						_ = c.Close()
					}
				}()
				got := <-decided
				if !errors.Is(got.err, errTranslated) || got.f.Remote.Addr().String() != far {
					t.Errorf("%s to %s: %s: %v, want %v", network, service, got.f, got.err, errTranslated)
				}
				table.mu.Lock()
				_, known := table.flows[got.f]
				table.mu.Unlock()
				if known {
					t.Errorf("%s is accepted", got.f)
				}
			}
		}
		if left := l.sh("nft list set inet " + table.o.Table + " accept4; nft list set inet " + table.o.Table + " accept6"); strings.Contains(left, "elements") {
			t.Errorf("left in the sets:\n%s", left)
		}
		for _, far := range fars {
			for _, network := range []string{"tcp", "udp"} {
				c, f := l.dial(network, at(far))
				if err := echoes(c, 100); err != nil {
					t.Errorf("%s, which nobody translates: %v", f, err)
				}
			}
		}
	})
}

// Errors that routers and hosts send about a handed-back flow reach its program.
func TestLiveErrorsReachTheProgram(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.up()
		for _, far := range fars {
			c, f := l.dial("udp", net.JoinHostPort(far, "9")) // nobody is there: port unreachable
			_ = c.SetDeadline(time.Now().Add(patience))
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s: %v, want ECONNREFUSED", f, err)
			}
			if _, err := (&net.Dialer{Timeout: patience}).Dial("tcp", net.JoinHostPort(far, "9")); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("tcp to %s: %v, want ECONNREFUSED", far, err)
			}
		}
		l.sh("ip netns exec " + serverName + " nft 'add table inet f; add chain inet f i { type filter hook input priority 0; }; add rule inet f i tcp dport 7003 reject with icmpx admin-prohibited'")
		for _, far := range fars {
			_, err := (&net.Dialer{Timeout: patience}).Dial("tcp", net.JoinHostPort(far, "7003"))
			if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.EACCES) {
				t.Errorf("tcp to %s: %v, want what admin-prohibited gives", far, err)
			}
		}
		if errs := l.failures(); errs != nil {
			t.Errorf("Accept: %v", errs)
		}
	})
}

// A path of a smaller MTU than the device's is found out: by a link of this machine, and by a router
// behind it.
func TestLivePathMTU(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		// The far servers move behind a further hop with a small MTU.
		l.sh(`ip netns add gthb-far
			ip -n gthb-srv link add hop type veth peer name hop netns gthb-far
			ip netns exec gthb-srv sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
			ip netns exec gthb-far sysctl -qw net.ipv6.conf.all.dad_transmits=0 net.ipv6.conf.default.dad_transmits=0
			ip -n gthb-srv addr add 10.80.0.1/24 dev hop; ip -n gthb-srv addr add fd80::1/64 dev hop nodad
			ip -n gthb-far addr add 10.80.0.2/24 dev hop; ip -n gthb-far addr add fd80::2/64 dev hop nodad
			ip -n gthb-srv link set hop mtu 1300 up; ip -n gthb-far link set hop mtu 1300 up; ip -n gthb-far link set lo up
			ip -n gthb-far addr add 203.0.113.1/32 dev lo; ip -n gthb-far addr add 2001:db8:9::1/128 dev lo nodad
			ip -n gthb-far route add default via 10.80.0.1; ip -n gthb-far -6 route add default via fd80::1
			ip -n gthb-srv route add 203.0.113.1 via 10.80.0.2; ip -n gthb-srv -6 route add 2001:db8:9::1 via fd80::2`)
		server := l.server
		l.useServer("gthb-far")
		l.atServer(func() { l.echo(at("203.0.113.1")); l.echo(at("2001:db8:9::1")) })
		l.server = server
		l.eventually("the far hop answers", func() bool {
			for _, a := range []string{"203.0.113.1", "2001:db8:9::1"} {
				c, err := net.DialTimeout("tcp", at(a), 50*time.Millisecond)
				if err != nil {
					return false
				}
				_ = c.Close()
			}
			return true
		})
		l.sh("ip route flush cache; ip -6 route flush cache")
		l.up()
		for _, to := range []string{"203.0.113.1", "2001:db8:9::1"} {
			c, f := l.dial("tcp", at(to))
			if err := bulk(c, 2<<20); err != nil {
				t.Errorf("%s behind a small hop: %v", f, err)
			}
			if n := l.packets(f); n != 1 {
				t.Errorf("%s: %d packets decided, want 1", f, n)
			}
		}
		l.sh("ip link set eth0 mtu 1280; ip -n " + serverName + " link set eth0 mtu 1280")
		for _, to := range fars {
			c, f := l.dial("tcp", at(to))
			if err := bulk(c, 2<<20); err != nil {
				t.Errorf("%s over a small link: %v", f, err)
			}
			if n := l.packets(f); n != 1 {
				t.Errorf("%s: %d packets decided, want 1", f, n)
			}
		}
		if errs := l.failures(); errs != nil {
			t.Errorf("Accept: %v", errs)
		}
	})
}

// bulk sends size bytes, and reads them back at the same time.
func bulk(c net.Conn, size int) error {
	_ = c.SetDeadline(time.Now().Add(patience))
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(bytes.Repeat([]byte("b"), size))
		sent <- err
	}()
	buf := make([]byte, 64<<10)
	for got := 0; got < size; {
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		got += n
	}
	return <-sent
}

// The held packet is sent whole, whatever is missing of its checksum, and only if it is the flow's.
func TestRepair(t *testing.T) {
	for _, far := range fars {
		local := host4
		if strings.Contains(far, ":") {
			local = host6
		}
		f := packet.Flow{Proto: packet.UDP, Local: at2(local, 1234), Remote: at2(far, 53)}
		ip := packet.IP{Src: f.Local.Addr(), Dst: f.Remote.Addr(), TTL: 64}
		whole := packet.AppendUDP(nil, &ip, 1234, 53, []byte("question"))
		h, err := packet.Parse(whole)
		if err != nil {
			t.Fatal(err)
		}
		broken := append([]byte(nil), whole...)
		broken[h.NetworkLen+6] ^= 0x5a
		broken[h.NetworkLen+7] ^= 0xa5
		got, err := resend.Whole(f, append(broken, "padding"...))
		if err != nil || !bytes.Equal(got, whole) {
			t.Errorf("%s: %v: % x, want % x", f, err, got, whole)
		}
		other := f
		other.Remote = at2(far, 54)
		for name, c := range map[string]struct {
			f packet.Flow
			b []byte
		}{"another flow": {other, whole}, "cut": {f, whole[:30]}, "nothing": {f, nil}} {
			if _, err := resend.Whole(c.f, c.b); !errors.Is(err, ErrUnsupported) {
				t.Errorf("%s: %v, want ErrUnsupported", name, err)
			}
		}
	}
}

// Keys and flows are the same thing.
func TestKeys(t *testing.T) {
	for _, f := range []packet.Flow{{Proto: packet.TCP, Local: at2(host4, 1), Remote: at2(far4, 65535)}, {Proto: packet.UDP, Local: at2(host6, 443), Remote: at2(far6, 2)}} {
		k := keyOf(f)
		if got, ok := flowOf(k.b[:k.len]); !ok || got != f {
			t.Errorf("%s became %s", f, got)
		}
		if err := check(f); err != nil {
			t.Error(err)
		}
	}
	if _, ok := flowOf(make([]byte, 13)); ok {
		t.Error("a key of 13 bytes is a flow")
	}
	for _, f := range []packet.Flow{{}, {Proto: packet.ICMP, Local: at2(host4, 1), Remote: at2(far4, 0)},
		{Proto: packet.UDP, Local: at2(host4, 1), Remote: at2(far6, 1)}, {Proto: packet.UDP, Local: at2(host4, 1), Remote: at2("224.0.0.1", 1)}} {
		if err := check(f); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v, want ErrUnsupported", f, err)
		}
	}
}
