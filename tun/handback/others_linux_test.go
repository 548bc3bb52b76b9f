package handback

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gatun/network/packet"
	"gatun/tun/route"

	"golang.org/x/sys/unix"
)

// experimental is a protocol that RFC 3692 leaves for experiments: the kernel knows nothing of it.
const experimental = packet.Proto(253)

// rawNetwork is how package net calls raw sockets of a protocol towards host.
func rawNetwork(p packet.Proto, host string) string {
	if strings.Contains(host, ":") {
		return fmt.Sprintf("ip6:%d", p)
	}
	return fmt.Sprintf("ip4:%d", p)
}

// serveRaw starts echo servers of a protocol on the far addresses.
func (l *lab) serveRaw(p packet.Proto) {
	l.t.Helper()
	l.atServer(func() {
		for _, a := range []string{far4, far6, other4, other6} {
			pc, err := net.ListenPacket(rawNetwork(p, a), a)
			if err != nil {
				l.t.Fatal(err)
			}
			l.t.Cleanup(func() { _ = pc.Close() })
			go echoDatagrams(pc)
		}
	})
}

// dialRaw opens a raw socket towards to, and returns its flow.
func (l *lab) dialRaw(p packet.Proto, to string) (net.Conn, packet.Flow) {
	l.t.Helper()
	c, err := net.Dial(rawNetwork(p, to), to)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = c.Close() })
	local := c.LocalAddr().(*net.IPAddr)
	from, _ := netip.AddrFromSlice(local.IP)
	return c, packet.Flow{Proto: p, Local: netip.AddrPortFrom(from.Unmap(), 0), Remote: at2(to, 0)}
}

// initiation is an SCTP packet that begins an association, from a port to the same one: connection tracking looks at
// all of it.
func initiation() []byte {
	b := []byte{0x10, 0, 0x10, 0, 12: 1, 14: 0, 15: 20, 16: 1, 17: 2, 18: 3, 19: 4, 20: 0, 21: 1, 25: 1, 27: 1, 31: 9}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// answers sends a message of a size, which begins like GRE's, and reports whether it came back.
func answers(c net.Conn, size int) error {
	return answer(c, append([]byte{0, 0, 8, 0}, bytes.Repeat([]byte("g"), size-4)...))
}

// answer sends a message and reports whether it came back.
func answer(c net.Conn, msg []byte) error {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(msg); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	got := make([]byte, 2048)
	n, _, err := c.(*net.IPConn).ReadFrom(got)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if !bytes.Equal(got[:n], msg) {
		return errors.New("another text came back")
	}
	return nil
}

// What is neither TCP nor UDP is carried by its three values: both ways, after one packet on the device,
// with every kind of reverse-path filter, and with the address of the interface that it takes.
func TestLiveOthers(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		protocols := []packet.Proto{protoGRE, experimental, protoSCTP} // connection tracking looks into the first and the last
		for _, p := range protocols {
			l.serveRaw(p)
		}
		l.up()
		for _, filter := range []string{"0", "1", "2"} {
			l.sh(fmt.Sprintf("for f in all default eth0 eth1 gatun0; do sysctl -qw net.ipv4.conf.$f.rp_filter=%s; done", filter))
			for _, p := range protocols {
				for far, from := range map[string]string{far4: host4, far6: host6, other4: second4, other6: second6} {
					before := l.deviceCount()
					c, f := l.dialRaw(p, far)
					if f.Local.Addr().String() != from {
						t.Errorf("%s: want it to come from %s", f, from)
					}
					for i := range 20 {
						msg := append([]byte{0, 0, 8, 0}, bytes.Repeat([]byte("g"), 100+i)...)
						if p == protoSCTP {
							msg = initiation()
						}
						if err := answer(c, msg); err != nil {
							t.Fatalf("%s, rp_filter %s: exchange %d: %v (Accept: %v)\n%s", f, filter, i, err, l.failures(), l.sh("nft list ruleset; conntrack -L 2>&1 || true"))
						}
					}
					if n := l.packets(f); n != 1 {
						t.Errorf("%s, rp_filter %s: %d packets of the flow came to userspace, want 1", f, filter, n)
					}
					if n := l.deviceCount() - before; n != 1 {
						t.Errorf("%s, rp_filter %s: %d packets on the device's counter, want 1", f, filter, n)
					}
					if err := l.table.Revoke(f); err != nil { // the next round begins anew
						t.Error(err)
					}
					if e := l.end(f); e.Cause != Revoked || e.Sent.Packets != 20 || e.Traffic.Sent < 20*32 {
						t.Errorf("%s: %+v", f, e)
					}
					l.forgetSeen(f)
					_ = c.Close()
				}
			}
		}
		if errs := l.failures(); errs != nil {
			t.Errorf("Accept: %v", errs)
		}
	})
}

func (l *lab) forgetSeen(f packet.Flow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.seen, f)
}

var errRefused = errors.New("refused by the test")

// What is taken back is decided again, packet by packet, and no other flow passes beside an accepted one:
// neither another protocol, nor another address, nor with a mark of ours.
func TestLiveOthersAreRevoked(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serveRaw(experimental)
		l.serveRaw(experimental + 1)
		l.up()
		for _, far := range fars {
			c, f := l.dialRaw(experimental, far)
			if err := answers(c, 100); err != nil {
				t.Fatal(err)
			}
			l.refuseAll()
			another := other4
			if f.Is6() {
				another = other6
			}
			for name, open := range map[string]func() (net.Conn, packet.Flow){
				"another protocol": func() (net.Conn, packet.Flow) { return l.dialRaw(experimental+1, far) },
				"another address":  func() (net.Conn, packet.Flow) { return l.dialRaw(experimental, another) },
			} {
				c, f := open()
				l.noEcho(name, c, f)
			}
			if err := answers(c, 100); err != nil || l.packets(f) != 1 {
				t.Errorf("%s: %v, %d packets came to userspace", f, err, l.packets(f))
			}
			if err := l.table.Revoke(f); err != nil {
				t.Fatal(err)
			}
			if e := l.end(f); e.Cause != Revoked {
				t.Errorf("%+v", e)
			}
			l.noEcho("revoked", c, f)
			l.acceptAll()
			if err := answers(c, 100); err != nil { // the control: the same socket, permitted again
				t.Errorf("%s, permitted again: %v", f, err)
			}
		}
	})
}

func (l *lab) refuseAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.decide = func(packet.Flow, []byte) error { return errRefused }
}

func (l *lab) acceptAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.decide = l.table.Accept
}

// noEcho sends three packets on c: all come to userspace, and nothing comes back.
func (l *lab) noEcho(what string, c net.Conn, f packet.Flow) {
	l.t.Helper()
	before := l.packets(f)
	_ = c.SetDeadline(time.Time{})
	for range 3 {
		if _, err := c.Write([]byte("forbidden")); err != nil {
			l.t.Errorf("%s: %s: %v", what, f, err)
		}
	}
	l.eventually(what+": three packets came to userspace", func() bool { return l.packets(f) == before+3 })
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	var timeout net.Error
	if n, err := c.Read(make([]byte, 100)); !errors.As(err, &timeout) || !timeout.Timeout() {
		l.t.Errorf("%s: %s: %d bytes came back (%v)", what, f, n, err)
	}
}

// A mark of ours lets nothing out that is not accepted: a tunnel's packets have the marks of what they wrap, our
// own sockets' included. What is accepted passes all the same.
func TestLiveOthersWithAMark(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serveRaw(experimental)
		l.up()
		names := route.DefaultNames()
		for _, far := range fars {
			for name, mark := range map[string]uint32{"own": names.Mark, "old": names.OldMark, "in": names.InMark, "back": names.BackMark, "lasting": names.LastingMark} {
				l.refuseAll()
				c, f := l.dialRaw(experimental, far)
				rc, err := c.(*net.IPConn).SyscallConn()
				if err == nil {
					err = rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)) })
				}
				if err != nil {
					t.Fatal(err)
				}
				l.noEcho("with the mark "+name, c, f)
				l.acceptAll()
				for range 3 {
					if err := answers(c, 100); err != nil { // the control
						t.Fatalf("with the mark %s, accepted: %s: %v", name, f, err)
					}
				}
				if n := l.packets(f); n != 4 {
					t.Errorf("with the mark %s: %s: %d packets came to userspace, want 4", name, f, n)
				}
				if err := l.table.Revoke(f); err != nil {
					t.Error(err)
				}
				l.end(f)
				l.forgetSeen(f)
			}
		}
	})
}

// Flows of other protocols end by silence, what sends lives on, and what they carry is counted.
func TestLiveOthersExpire(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.sh("sysctl -qw net.netfilter.nf_conntrack_acct=1")
		l.serveRaw(experimental)
		l.up(func(o *Options) { o.OtherTimeout, o.Sweep = 4*time.Second, 150*time.Millisecond })
		idle, idleFlow := l.dialRaw(experimental, far4)
		busy, busyFlow := l.dialRaw(experimental, far6)
		if err := answers(idle, 10); err != nil {
			t.Fatal(err)
		}
		for start := time.Now(); time.Since(start) < 6*time.Second; {
			if err := answers(busy, 100); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
		}
		if e := l.end(idleFlow); e.Cause != Expired || e.Sent.Packets != 1 || e.Traffic != (Traffic{Sent: 10, Received: 10}) {
			t.Errorf("idle: %+v", e)
		}
		if n := l.packets(busyFlow); n != 1 {
			t.Errorf("busy: %d packets came to userspace, want 1", n)
		}
		carried := map[packet.Flow]Traffic{}
		if err := l.table.Traffic(func(f packet.Flow, n Traffic) { carried[f] = n }); err != nil {
			t.Fatal(err)
		}
		if n := carried[busyFlow]; n.Sent == 0 || n.Sent%100 != 0 || n.Received == 0 || n.Received%100 != 0 {
			t.Errorf("busy has carried %+v", n)
		}
		if err := answers(idle, 10); err != nil || l.packets(idleFlow) != 2 {
			t.Errorf("after expiry: %v, %d packets decided, want 2", err, l.packets(idleFlow))
		}
	})
}

// After a crash what is accepted goes on and nothing else begins; the next process adopts it, and Close ends it.
func TestLiveOthersSurviveACrash(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serveRaw(experimental)
		table := l.up()
		c, f := l.dialRaw(experimental, far6)
		if err := answers(c, 10); err != nil {
			t.Fatal(err)
		}
		table.release() // the sockets go, nothing else
		if err := answers(c, 10); err != nil || l.packets(f) != 1 {
			t.Errorf("after the crash: %v, %d packets decided", err, l.packets(f))
		}
		l.refuseAll()
		fresh, freshFlow := l.dialRaw(experimental, far4)
		l.noEcho("a new flow after the crash", fresh, freshFlow)
		next := l.open()
		if !next.accepted(f) || next.accepted(freshFlow) || next.Len() != 1 {
			t.Errorf("adopted: %t, and %d in all", next.accepted(f), next.Len())
		}
		l.table = next
		if err := Recover(next.o); err != nil {
			t.Error(err)
		}
		l.eventually("the rules are back", func() bool { whole, err := next.whole(); return err == nil && whole && l.held(f) })
		if err := answers(c, 10); err != nil {
			t.Errorf("after foreign hands: %v", err)
		}
		if err := next.Close(); err != nil {
			t.Error(err)
		}
		l.noEcho("closed", c, f)
		if left := l.sh("nft list tables"); strings.Contains(left, DefaultTable) {
			t.Errorf("left behind:\n%s", left)
		}
	})
}

// A packet that strays in is sent on as long as the kernel has its flow, and never for ever.
func TestLiveOthersAstray(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serveRaw(experimental)
		table := l.up()
		c, f := l.dialRaw(experimental, far4)
		if err := answers(c, 10); err != nil {
			t.Fatal(err)
		}
		stray := rawPacket(f, "stray")
		for i := range maxStrays {
			if err := table.Follow(f, stray); err != nil {
				t.Fatalf("stray packet %d: %v", i, err)
			}
		}
		if err := table.Follow(f, stray); !errors.Is(err, ErrOver) {
			t.Errorf("one too many: %v, want ErrOver", err)
		}
		if err := table.Accept(f, stray); !errors.Is(err, ErrUnsupported) {
			t.Errorf("accepted again: %v, want ErrUnsupported", err)
		}
		_, gone := l.undecided(other4)
		if err := table.Accept(gone, rawPacket(gone, "first")); err != nil {
			t.Fatal(err)
		}
		if err := table.w.do(changeOf(gone, setAccept, "", 0)); err != nil { // as if its time was over
			t.Fatal(err)
		}
		if err := table.Follow(gone, rawPacket(gone, "next")); !errors.Is(err, ErrOver) || table.accepted(gone) {
			t.Errorf("of a flow that the kernel has forgotten: %v, want ErrOver", err)
		}
	})
}

// What was put together from pieces may be too large to be sent again: it is lost, and the flow is accepted.
func TestLiveOthersTooLarge(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serveRaw(experimental)
		table := l.up()
		for _, far := range fars {
			c, f := l.undecided(far)
			if err := table.Accept(f, rawPacket(f, strings.Repeat("x", 4000))); err != nil || !table.accepted(f) {
				t.Errorf("%s: %v, accepted %t", f, err, table.accepted(f))
			}
			if err := answers(c, 2000); err != nil || l.packets(f) != 1 { // in pieces, which the kernel makes
				t.Errorf("%s: %v, %d packets came to userspace", f, err, l.packets(f))
			}
		}
	})
}

// undecided opens a raw socket, and sends a packet that nobody decides on.
func (l *lab) undecided(to string) (net.Conn, packet.Flow) {
	l.t.Helper()
	l.refuseAll()
	c, f := l.dialRaw(experimental, to)
	if _, err := c.Write([]byte("first")); err != nil {
		l.t.Fatal(err)
	}
	l.eventually("it came to userspace", func() bool { return l.packets(f) == 1 })
	return c, f
}

func rawPacket(f packet.Flow, payload string) []byte {
	ip := packet.IP{Src: f.Local.Addr(), Dst: f.Remote.Addr(), TTL: 64}
	b := packet.AppendUDP(nil, &ip, 1, 2, append([]byte(payload), 0))
	if f.Is6() {
		b[6] = byte(f.Proto)
		return b
	}
	b[9], b[10], b[11] = byte(f.Proto), 0, 0
	sum := packet.Fold(packet.Sum(b[:20], 0))
	b[10], b[11] = byte(sum>>8), byte(sum)
	return b
}

// Keys of other protocols have no ports, and what the chain cannot tell apart is refused.
func TestOtherKeys(t *testing.T) {
	for _, f := range []packet.Flow{{Proto: experimental, Local: at2(host4, 0), Remote: at2(far4, 0)}, {Proto: 47, Local: at2(host6, 0), Remote: at2(far6, 0)},
		{Proto: protoAH, Local: at2(host4, 0), Remote: at2(far4, 0)}} {
		k := keyOf(f)
		if got, ok := flowOf(k.b[:k.len]); !ok || got != f {
			t.Errorf("%s became %s", f, got)
		}
		tuple := tupleOf(f)
		if _, ok := flowOf(tuple.b[:tuple.len]); ok {
			t.Errorf("%s: what connection tracking calls it is a key", f)
		}
		if err := checkAny(f); err != nil {
			t.Error(err)
		}
		if err := check(f); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v, want ErrUnsupported: it is neither TCP nor UDP", f, err)
		}
	}
	for _, f := range []packet.Flow{{Proto: packet.ICMP, Local: at2(host4, 0), Remote: at2(far4, 0)}, {Proto: packet.ICMP, Local: at2(host6, 0), Remote: at2(far6, 0)},
		{Proto: packet.ICMPv6, Local: at2(host4, 0), Remote: at2(far4, 0)}, {Proto: protoAH, Local: at2(host6, 0), Remote: at2(far6, 0)},
		{Proto: experimental, Local: at2(host4, 0), Remote: at2("224.0.0.5", 0)}, {Proto: experimental, Local: at2(host4, 0), Remote: at2(far6, 0)}} {
		if err := checkAny(f); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v, want ErrUnsupported", f, err)
		}
	}
	sctp := packet.Flow{Proto: protoSCTP, Local: at2(host4, 0), Remote: at2(far4, 0)}
	k := tupleIn(sctp, rawPacket(sctp, "x"))
	sctp.Local, sctp.Remote = at2(host4, 1), at2(far4, 2)
	if want := tupleOf(sctp); k != want {
		t.Errorf("connection tracking calls the packet's flow % x, want % x", k.b[:k.len], want.b[:want.len])
	}
}
