package handback

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatun/network/packet"

	"golang.org/x/sys/unix"
)

// end waits for the end of f.
func (l *lab) end(f packet.Flow) End {
	l.t.Helper()
	limit := time.After(patience)
	for {
		select {
		case e := <-l.ends:
			if e.Flow == f {
				return e
			}
		case <-limit:
			l.t.Fatalf("%s: no end", f)
		}
	}
}

// held reports whether the kernel's set has f.
func (l *lab) held(f packet.Flow) (ok bool) {
	l.t.Helper()
	if err := l.table.list(func(g packet.Flow, _ found) { ok = ok || f == g }); err != nil {
		l.t.Fatal(err)
	}
	return ok
}

// heldQuietly is held while there may be no set.
func (l *lab) heldQuietly(f packet.Flow) (ok bool) {
	_ = l.table.list(func(g packet.Flow, _ found) { ok = ok || f == g })
	return ok
}

// Revoke ends the program's socket at once, and what is sent afterwards is undecided.
func TestLiveRevoke(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up()
		for _, far := range fars {
			for network, want := range map[string]error{"tcp": unix.ECONNABORTED, "udp": unix.EDESTADDRREQ} {
				c, f := l.dial(network, at(far))
				if err := echoes(c, 100); err != nil {
					t.Fatal(err)
				}
				failed := make(chan error, 1)
				_ = c.SetDeadline(time.Now().Add(patience))
				go func() {
					_, err := c.Read(make([]byte, 1))
					failed <- err
				}()
				start := time.Now()
				if err := l.table.Revoke(f); err != nil {
					t.Fatal(err)
				}
				err := <-failed
				took := time.Since(start)
				if network == "udp" { // the read is told ECONNABORTED, the next send that there is no peer
					_, err = c.Write([]byte("x"))
				}
				if !errors.Is(err, want) {
					t.Errorf("%s: the program sees %v, want %v", f, err, want)
				}
				t.Logf("%s: the socket was told after %s", f, took)
				if took > time.Second { // promised: 100 ms
					t.Errorf("%s: took %s", f, took)
				}
				e := l.end(f)
				if e.Cause != Revoked || e.Sent.Packets == 0 {
					t.Errorf("end: %+v", e)
				}
				if network == "tcp" && e.Traffic != (Traffic{Sent: 100, Received: 100}) {
					t.Errorf("it has carried 100 bytes each way, and says %+v", e.Traffic)
				}
				if l.held(f) {
					t.Errorf("%s is still in the set", f)
				}
				if err := l.table.Revoke(f); err != nil {
					t.Errorf("again: %v", err)
				}
			}
		}
	})
}

// A datagram socket towards many peers loses the revoked one only.
func TestLiveRevokeOnePeerOfMany(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up()
		pc, err := net.ListenPacket("udp4", host4+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		exchange := func(to string, wanted bool) {
			t.Helper()
			addr, _ := net.ResolveUDPAddr("udp", at(to))
			if _, err := pc.WriteTo([]byte("x"), addr); err != nil {
				t.Fatalf("send to %s: %v", to, err)
			}
			wait := patience
			if !wanted {
				wait = 200 * time.Millisecond
			}
			_ = pc.SetReadDeadline(time.Now().Add(wait))
			_, _, err := pc.ReadFrom(make([]byte, 10))
			if (err == nil) != wanted {
				t.Errorf("exchange with %s: %v, wanted %v", to, err, wanted)
			}
		}
		exchange(far4, true)
		exchange(router4, false) // nobody answers there, but it is accepted
		local := flowOfPacketConn(pc, at(far4))
		if !l.held(local) || !l.held(flowOfPacketConn(pc, at(router4))) {
			t.Fatal("both flows should be accepted")
		}
		l.mu.Lock()
		l.decide = func(packet.Flow, []byte) error { return nil } // from now on everything undecided is dropped
		l.mu.Unlock()
		if err := l.table.Revoke(flowOfPacketConn(pc, at(router4))); err != nil {
			t.Fatal(err)
		}
		exchange(far4, true)
		if err := l.table.Revoke(local); err != nil {
			t.Fatal(err)
		}
		before := l.packets(local)
		exchange(far4, false)
		l.eventually("the datagram is undecided", func() bool { return l.packets(local) == before+1 })
	})
}

// When a program closes its socket its flow ends: over TCP only what ends a connection may still
// leave, over UDP nothing, so that the next owner of the port does not inherit the verdict.
func TestLiveClosedSockets(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up()
		for _, far := range fars {
			for _, network := range []string{"tcp", "udp"} {
				reuse := func(_, _ string, rc syscall.RawConn) error {
					return rc.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
				}
				c, err := (&net.Dialer{Timeout: patience, Control: reuse}).Dial(network, at(far))
				if err != nil {
					t.Fatal(err)
				}
				f := flowOfConn(c)
				if err := echoes(c, 1000); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				_ = c.Close()
				e := l.end(f)
				t.Logf("%s: noticed after %s: %+v", f, time.Since(start), e.Sent)
				if e.Cause != Closed || e.Traffic.Sent < 1000 || e.Traffic.Sent > 2000 || network == "udp" && e.Sent.Bytes < 1000 || e.Attempts != 0 {
					t.Errorf("end: %+v", e)
				}
				l.eventually("the entry is gone", func() bool { return !l.held(f) })
				if got := l.table.Len(); got != 0 {
					t.Errorf("%d flows left", got)
				}
				// Another program on the same port: decided anew.
				before := l.packets(f)
				if before != 1 {
					t.Errorf("%s: %d packets were decided, want 1", f, before)
				}
				local := c.LocalAddr()
				d := net.Dialer{LocalAddr: local, Timeout: patience, Control: reuse}
				l.sh("sysctl -qw net.ipv4.tcp_tw_reuse=1; sleep 1.1") // TIME_WAIT may be reused after a second
				again, err := d.Dial(network, at(far))
				if err != nil {
					t.Fatal(err)
				}
				if err := echoes(again, 10); err != nil {
					t.Error(err)
				}
				if n := l.packets(f) - before; n != 1 {
					t.Errorf("%s, used again: %d packets were decided, want 1", f, n)
				}
				_ = again.Close()
				l.end(f)
			}
		}
	})
}

// An entry that nothing renews expires, and a flow that is in use does not.
func TestLiveExpiry(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up(func(o *Options) {
			o.UDPTimeout, o.TCPTimeout, o.Sweep = 4*time.Second, 4*time.Second, 150*time.Millisecond
		})
		idle, idleFlow := l.dial("udp", at(far4))
		busy, busyFlow := l.dial("udp", at(far6))
		tcp, tcpFlow := l.dial("tcp", at(far4))
		if err := errors.Join(echoes(idle, 10), echoes(tcp, 10)); err != nil {
			t.Fatal(err)
		}
		var sent int
		for start := time.Now(); time.Since(start) < 6*time.Second; sent++ {
			if err := echoes(busy, 100); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
		}
		if e := l.end(idleFlow); e.Cause != Expired || e.Sent.Packets != 1 {
			t.Errorf("idle: %+v", e)
		}
		if n := l.packets(busyFlow); n != 1 {
			t.Errorf("busy: %d packets were decided, want 1", n)
		}
		if err := echoes(tcp, 10); err != nil || l.packets(tcpFlow) != 1 {
			t.Errorf("an idle TCP connection: %v, %d packets decided", err, l.packets(tcpFlow))
		}
		counters := map[packet.Flow]Counter{}
		if err := l.table.Counters(func(f packet.Flow, c Counter) { counters[f] = c }); err != nil {
			t.Fatal(err)
		}
		// Renewing may lose what is sent in the moment of it.
		if c := counters[busyFlow]; c.Packets > uint64(sent) || c.Packets < uint64(sent)/2 || c.Bytes != c.Packets*148 {
			t.Errorf("busy sent %d packets, counted %+v", sent, c)
		}
		if err := echoes(idle, 10); err != nil || l.packets(idleFlow) != 2 {
			t.Errorf("after expiry: %v, %d packets decided, want 2", err, l.packets(idleFlow))
		}
	})
}

// An IPv6 socket that speaks IPv4 is found by the flow that packets have.
func TestLiveMappedSockets(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up()
		for kind, want := range map[int]error{unix.SOCK_STREAM: unix.ECONNABORTED, unix.SOCK_DGRAM: unix.EDESTADDRREQ} {
			for _, revoke := range []bool{true, false} {
				fd, err := unix.Socket(unix.AF_INET6, kind, 0)
				if err != nil {
					t.Fatal(err)
				}
				to := netip.MustParseAddr(far4).As16()
				if err := unix.Connect(fd, &unix.SockaddrInet6{Addr: to, Port: echoPort}); err != nil {
					t.Fatal(err)
				}
				if err := unix.Send(fd, []byte("x"), 0); err != nil {
					t.Fatal(err)
				}
				if n, err := unix.Read(fd, make([]byte, 10)); n != 1 || err != nil {
					t.Fatal(n, err)
				}
				sa, err := unix.Getsockname(fd)
				if err != nil {
					t.Fatal(err)
				}
				f := packet.Flow{Proto: packet.TCP, Local: at2(host4, uint16(sa.(*unix.SockaddrInet6).Port)), Remote: at2(far4, echoPort)}
				if kind == unix.SOCK_DGRAM {
					f.Proto = packet.UDP
				}
				if !revoke {
					_ = unix.Close(fd)
					if e := l.end(f); e.Cause != Closed {
						t.Errorf("%+v", e)
					}
					continue
				}
				if err := l.table.Revoke(f); err != nil {
					t.Fatal(err)
				}
				if _, err := unix.Read(fd, make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
					t.Errorf("%s: read: %v", f, err)
				}
				if kind == unix.SOCK_DGRAM {
					if err := unix.Send(fd, []byte("x"), 0); !errors.Is(err, want) {
						t.Errorf("%s: send: %v, want %v", f, err, want)
					}
				}
				_ = unix.Close(fd)
			}
		}
	})
}

// A closed table says so to everybody, at once.
func TestLiveClose(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		table := l.up()
		c, f := l.dial("udp", at(far4))
		if err := echoes(c, 10); err != nil {
			t.Fatal(err)
		}
		held := packet.AppendUDP(nil, &packet.IP{Src: f.Local.Addr(), Dst: f.Remote.Addr(), TTL: 64}, f.Local.Port(), f.Remote.Port(), []byte("x"))
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for {
					_ = table.Accept(f, held)
					_ = table.Revoke(f)
					_ = table.Counters(func(packet.Flow, Counter) {})
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		time.Sleep(50 * time.Millisecond)
		for range 2 {
			if err := table.Close(); err != nil {
				t.Error(err)
			}
		}
		close(stop)
		wg.Wait()
		for what, err := range map[string]error{"Accept": table.Accept(f, held), "Revoke": table.Revoke(f), "Silence": table.Silence([]packet.Flow{f}, nil, time.Minute),
			"Counters": table.Counters(func(packet.Flow, Counter) {})} {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("%s after Close: %v, want ErrClosed", what, err)
			}
		}
		if left := l.sh("nft list tables"); strings.Contains(left, "handback") {
			t.Errorf("left behind: %s", left)
		}
	})
}

// A flow that expires is decided once and handed back again, whether its expiry was noticed or not.
func TestLiveAcceptAgain(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up(func(o *Options) { o.UDPTimeout, o.Sweep = 300*time.Millisecond, time.Hour })
		for _, far := range fars {
			c, f := l.dial("udp", at(far))
			for round := 1; round <= 3; round++ {
				for range 5 {
					if err := echoes(c, 10); err != nil {
						t.Fatal(err)
					}
				}
				if n := l.packets(f); n != round {
					t.Errorf("%s: %d packets decided, want %d", f, n, round)
				}
				l.eventually("the entry expires", func() bool { return !l.held(f) })
			}
		}
	})
}

// A connection that is refused, or never answered, ends, also where the kernel has forgotten its
// name when it says so.
func TestLiveFailedConnections(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.sh("ip netns exec " + serverName + " nft 'add table inet f; add chain inet f i { type filter hook input priority 0; }; add rule inet f i tcp dport 7003 drop'")
		l.up()
		for _, far := range fars {
			for _, script := range []string{"s.connect((a, 9))", "s.settimeout(0.05); s.connect((a, 7003))"} {
				out := l.sh(`/usr/bin/python3 -c '
import socket
a = "` + far + `"
s = socket.socket(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM)
try: ` + script + `
except OSError as e: print(e)'`)
				select {
				case e := <-l.ends:
					if e.Cause != Closed || e.Flow.Remote.Addr().String() != far || e.Sent.Packets == 0 || e.Attempts != e.Sent.Packets || e.Traffic != (Traffic{}) {
						t.Errorf("%s, %s: %+v", far, script, e)
					}
				case <-time.After(patience):
					t.Errorf("%s, %s: %s: no end", far, script, out)
				}
			}
		}
		l.eventually("nothing is left", func() bool { return l.table.Len() == 0 })
	})
}

// What foreign hands take away comes back, with the flows.
func TestLiveFlushedRuleset(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up(func(o *Options) { o.Sweep = 50 * time.Millisecond })
		c, f := l.dial("tcp", at(far4))
		if err := echoes(c, 10); err != nil {
			t.Fatal(err)
		}
		before := l.sh("nft -s list table inet gatun_handback | grep -v expires; nft -s list table netdev gatun_handback")
		l.sh("nft delete table inet gatun_handback; nft delete table netdev gatun_handback")
		l.eventually("the table is back", func() bool {
			return strings.Contains(l.sh("nft list ruleset"), "set drop6") && l.heldQuietly(f)
		})
		if after := l.sh("nft -s list table inet gatun_handback | grep -v expires; nft -s list table netdev gatun_handback"); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		strayed := l.packets(f) // a late ACK of what was echoed before may have met no rules
		if err := echoes(c, 10); err != nil || l.packets(f) != strayed {
			t.Errorf("%v, %d packets decided", err, l.packets(f))
		}
	})
}

// TestLiveRelayed: a connection that is relayed does not find what lingers of one before it.
func TestLiveRelayed(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up()
		for _, to := range []string{far4, far6} {
			c, f := l.dial("tcp", at(to))
			if err := echoes(c, 3); err != nil {
				t.Fatal(err)
			}
			_ = c.Close()
			l.end(f)
			lingers := func() (yes bool) {
				if err := l.table.get(setLinger, []packet.Flow{f}, func(int, found) { yes = true }); err != nil {
					t.Fatal(err)
				}
				return yes
			}
			if !lingers() {
				t.Fatalf("%s: nothing lingers, so this shows nothing", f)
			}
			for range 2 { // the second time there is nothing
				if err := l.table.Relayed(f); err != nil {
					t.Error(err)
				}
				if lingers() {
					t.Errorf("%s: what lingers lets packets of a relayed connection pass", f)
				}
			}
		}
	})
}

// Where there is no room the caller is told so, and nothing is left behind.
func TestLiveFull(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up(func(o *Options) { o.Limit = 3 })
		for range 3 {
			c, _ := l.dial("udp", at(far4))
			if err := echoes(c, 10); err != nil {
				t.Fatal(err)
			}
		}
		errs := make(chan error, 10)
		l.mu.Lock()
		l.decide = func(f packet.Flow, b []byte) error { errs <- l.table.Accept(f, b); return nil }
		l.mu.Unlock()
		c, f := l.dial("udp", at(far4))
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := <-errs; !errors.Is(err, ErrFull) {
			t.Errorf("own count: %v, want ErrFull", err)
		}
		// The kernel's own count, as if others had filled the set.
		l.sh("nft add element inet gatun_handback linger6 '{ fd00::1 . fd00::2 . 6 . 1 . 1, fd00::1 . fd00::2 . 6 . 1 . 2, fd00::1 . fd00::2 . 6 . 1 . 3 }'")
		full := changeOf(packet.Flow{Proto: packet.TCP, Local: at2(host6, 9), Remote: at2(far6, 9)}, "", setLinger, time.Minute)
		fits := changeOf(packet.Flow{Proto: packet.TCP, Local: at2(host4, 9), Remote: at2(far4, 9)}, "", setLinger, time.Minute)
		if err := l.table.w.do(full, fits); !errors.Is(full.err, ErrFull) || fits.err != nil {
			t.Errorf("the kernel's count: %v; full %v, fits %v", err, full.err, fits.err)
		}
		if l.held(f) || l.table.Len() != 3 {
			t.Error("something was left behind")
		}
	})
}

// The table comes back from whatever is left of it, and adopts what an earlier process has
// accepted; foreign hands that take it away are noticed.
func TestLiveCrash(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		table := l.up()
		kept, keptFlow := l.dial("tcp", at(far6))
		closed, closedFlow := l.dial("tcp", at(far4))
		if err := errors.Join(echoes(kept, 10), echoes(closed, 10)); err != nil {
			t.Fatal(err)
		}
		table.release() // the sockets go, nothing else
		_ = closed.Close()
		if err := echoes(kept, 100); err != nil {
			t.Errorf("after the crash: %v", err)
		}
		next := l.open()
		l.table = next
		if e := l.end(closedFlow); e.Cause != Closed {
			t.Errorf("closed while nobody listened: %+v", e)
		}
		if err := echoes(kept, 100); err != nil || l.packets(keptFlow) != 1 {
			t.Errorf("after the restart: %v, %d packets decided", err, l.packets(keptFlow))
		}
		if err := table.Accept(keptFlow, nil); !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrClosed) {
			t.Errorf("a closed table: %v", err)
		}
		for range 2 {
			if err := Recover(next.o); err != nil {
				t.Error(err)
			}
		}
		l.eventually("the rules are back", func() bool { whole, err := next.whole(); return err == nil && whole && l.held(keptFlow) })
		strayed := l.packets(keptFlow) // a late ACK of what was echoed before may have met no rules
		if err := echoes(kept, 100); err != nil || l.packets(keptFlow) != strayed {
			t.Errorf("after foreign hands: %v, %d packets decided", err, l.packets(keptFlow))
		}
		bare, err := Open(l.options(func(o *Options) { o.Table = "handback_test" })) // nobody runs it
		if err != nil {
			t.Fatal(err)
		}
		defer bare.Close()
		if err := Recover(bare.o); err != nil {
			t.Fatal(err)
		}
		f := packet.Flow{Proto: packet.UDP, Local: at2(host4, 9), Remote: at2(far4, 9)}
		held := packet.AppendUDP(nil, &packet.IP{Src: f.Local.Addr(), Dst: f.Remote.Addr(), TTL: 64}, 9, 9, []byte("x"))
		if err := bare.Accept(f, held); !errors.Is(err, ErrUnsupported) {
			t.Errorf("without the table: %v, want ErrUnsupported", err)
		}
		if bare.accepted(f) {
			t.Error("something was left behind")
		}
	})
}

// What denied flows go on sending is swallowed by the kernel, of blocked ones all but a few packets,
// and nothing of other flows.
func TestLiveSilence(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up()
		for _, far := range fars {
			blocked, bf := l.dial("udp", at(far))
			dropped, df := l.dial("udp", at(far))
			other, _ := l.dial("udp", at(far))
			for _, c := range []net.Conn{blocked, dropped, other} {
				if err := echoes(c, 10); err != nil {
					t.Fatal(err)
				}
			}
			for _, f := range []packet.Flow{bf, df} {
				if err := l.table.Forget(f); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.table.Silence([]packet.Flow{bf}, []packet.Flow{df}, time.Minute); err != nil {
				t.Fatal(err)
			}
			const sent = 10 * fewAtOnce
			l.deny(true)
			come := func(c net.Conn, f packet.Flow) int { // packets of f to userspace
				before := l.packets(f)
				for range sent {
					if _, err := c.Write([]byte("x")); err != nil {
						t.Errorf("%s: %v", f, err)
					}
				}
				last, lf := l.dial("udp", at(far))
				if _, err := last.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				l.eventually("the last packet comes", func() bool { return l.packets(lf) > 0 })
				return l.packets(f) - before
			}
			if n := come(dropped, df); n != 0 {
				t.Errorf("%s dropped: %d of %d packets came to userspace", df, n, sent)
			}
			if n := come(blocked, bf); n < 1 || n > sent/2 {
				t.Errorf("%s blocked: %d of %d packets came to userspace, want about %d", bf, n, sent, fewAtOnce)
			}
			if err := echoes(other, 10); err != nil {
				t.Errorf("another flow: %v", err)
			}
			l.deny(false)
			for _, f := range []packet.Flow{bf, df} {
				if err := l.table.Hear(f); err != nil {
					t.Fatal(err)
				}
				if err := l.table.Hear(f); err != nil {
					t.Errorf("again: %v", err)
				}
			}
			for _, c := range []net.Conn{blocked, dropped} {
				if err := echoes(c, 10); err != nil {
					t.Errorf("%s heard again: %v", c.LocalAddr(), err)
				}
			}
		}
	})
}
