package handback

import (
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatun/network/packet"
	"gatun/tun/route"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// dialAhead connects as a program whose socket was given the mark at connect(2): the hook that gives it is
// network/state's. Nothing stands behind the rules here, which let out whoever has the mark.
func (l *lab) dialAhead(to string) (net.Conn, Began, error) {
	var b Began
	d := net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		_ = c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(route.DefaultNames().BackMark))
			b.Cookie, _ = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
		})
		return err
	}}
	c, err := d.Dial("tcp", to)
	if err != nil {
		return nil, b, err
	}
	l.t.Cleanup(func() { _ = c.Close() })
	b.Flow = flowOfConn(c)
	return c, b, nil
}

// inSet reports whether the kernel has the flow in its set of accepted ones.
func (l *lab) inSet(f packet.Flow) (in bool) {
	l.t.Helper()
	if err := l.table.get(setAccept, []packet.Flow{f}, func(int, found) { in = true }); err != nil {
		l.t.Fatal(err)
	}
	return in
}

func (l *lab) endOf(f packet.Flow) End {
	l.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case e := <-l.ends:
			if e.Flow == f {
				return e
			}
		case <-timeout:
			l.t.Fatalf("%s did not end", f)
		}
	}
}

// TestLiveAhead: a connection to a destination that is permitted ahead never comes to the device. It ends
// with its bytes, whether it is over before anybody looks or lasts, and it can be revoked.
func TestLiveAhead(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		var begun begins
		table := l.up(func(o *Options) { o.Begin = func() { begun.carry(l) } })
		l.serve()
		for _, far := range fars {
			to := netip.MustParseAddrPort(at(far))
			if err := table.Admit(packet.TCP, to); err != nil {
				t.Fatal(err)
			}
			before := l.deviceCount()
			// Over before anybody looks.
			c, b, err := l.dialAhead(at(far))
			if err != nil {
				t.Fatal(err)
			}
			if err := echoes(c, 1000); err != nil {
				t.Error(err)
			}
			begun.add(b)
			_ = c.Close()
			if e := l.endOf(b.Flow); e.Cause != Closed || e.Traffic != (Traffic{1000, 1000}) || e.Attempts != 0 {
				t.Errorf("%s ended as %+v", b.Flow, e)
			}
			if l.inSet(b.Flow) {
				t.Errorf("%s is over and in the set", b.Flow)
			}
			// It lasts, and no longer needs its destination.
			c, b, err = l.dialAhead(at(far))
			if err != nil {
				t.Fatal(err)
			}
			begun.add(b)
			begun.carry(l)
			l.eventually("what lasts is accepted", func() bool { return l.inSet(b.Flow) })
			l.sh("nft flush set inet " + DefaultTable + " ahead4; nft flush set inet " + DefaultTable + " ahead6")
			if err := echoes(c, 500); err != nil {
				t.Error(err)
			}
			if n := l.deviceCount() - before; n != 0 {
				t.Errorf("%d packets came to the device", n)
			}
			_ = c.Close()
			if e := l.endOf(b.Flow); e.Cause != Closed || e.Traffic != (Traffic{500, 500}) {
				t.Errorf("%s ended as %+v", b.Flow, e)
			}
			if err := table.Admit(packet.TCP, to); err != nil {
				t.Fatal(err)
			}
			if c, b, err = l.dialAhead(at(far)); err != nil {
				t.Fatal(err)
			}
			begun.add(b)
			begun.carry(l)
			if err := table.Revoke(b.Flow); err != nil {
				t.Error(err)
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNABORTED) {
				t.Errorf("revoked: %v", err)
			}
			if e := l.endOf(b.Flow); e.Cause != Revoked || table.Len() != 0 {
				t.Errorf("revoked: %+v, %d left", e, table.Len())
			}
		}
		if whole, err := table.whole(); err != nil || !whole {
			t.Errorf("whole %v, %v", whole, err)
		}
	})
}

// begins are the connections that were told of and not carried yet.
type begins struct {
	mu  sync.Mutex
	all []Began
}

func (b *begins) add(n Began) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = append(b.all, n)
}

func (b *begins) carry(l *lab) {
	b.mu.Lock()
	all := b.all
	b.all = nil
	b.mu.Unlock()
	for _, n := range all {
		if err := l.table.Carry(n); err != nil {
			l.t.Errorf("%s: %v", n.Flow, err)
		}
	}
}

// TestLiveAheadElsewhere: the mark leads to no other destination, and to none after the time of the last
// admission: such connections come to the device, where they are decided.
func TestLiveAheadElsewhere(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.up(func(o *Options) { o.Begin = func() {} })
		l.serve()
		for _, other := range []string{other4, other6} {
			if err := l.table.Admit(packet.TCP, netip.MustParseAddrPort(at(far4)), netip.MustParseAddrPort(at(far6))); err != nil {
				t.Fatal(err)
			}
			c, b, err := l.dialAhead(at(other))
			if err != nil {
				t.Fatal(err)
			}
			if err := echoes(c, 10); err != nil || l.packets(b.Flow) == 0 {
				t.Errorf("%s: %d packets came to the device (%v)", b.Flow, l.packets(b.Flow), err)
			}
		}
		var left time.Duration
		l.eventually("some of its time is over", func() bool { left = l.leftOf("ahead4"); return left < aheadTimeout-time.Second })
		if err := l.table.Admit(packet.TCP, netip.MustParseAddrPort(at(far4))); err != nil {
			t.Fatal(err)
		}
		if now := l.leftOf("ahead4"); now <= left {
			t.Errorf("admitted again: %s left, %s before", now, left)
		}
		l.sh("nft flush set inet " + DefaultTable + " ahead4")
		if _, b, err := l.dialAhead(at(far4)); err != nil || l.packets(b.Flow) == 0 {
			t.Errorf("no longer admitted: %d packets came to the device (%v)", l.packets(b.Flow), err)
		}
	})
}

// TestLiveAheadEndsWithUs: what lets connections begin ahead is nobody else's to change, and is gone when
// its owner is, as a killed process is. The sets that stay let nothing out.
func TestLiveAheadEndsWithUs(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.up(func(o *Options) { o.Begin = func() {} })
		l.serve()
		to := netip.MustParseAddrPort(at(far4))
		if err := l.table.Admit(packet.TCP, to); err != nil {
			t.Fatal(err)
		}
		table := DefaultTable + firstSuffix
		if out, err := exec.Command("nft", "delete", "table", "inet", table).CombinedOutput(); err == nil {
			t.Errorf("somebody else deleted the table: %s", out)
		}
		l.sh("nft delete table inet " + DefaultTable)
		l.eventually("the rules are back", func() bool { whole, err := l.table.whole(); return whole && err == nil })
		if err := l.table.Admit(packet.TCP, to); err != nil {
			t.Fatal(err)
		}
		if _, b, err := l.dialAhead(at(far4)); err != nil || l.packets(b.Flow) != 0 {
			t.Errorf("%d packets came to the device (%v)", l.packets(b.Flow), err)
		}
		l.table.opening.close()
		if tables := l.sh("nft list tables"); strings.Contains(tables, table) {
			t.Errorf("it stays:\n%s", tables)
		}
		if _, b, err := l.dialAhead(at(far4)); err != nil || l.packets(b.Flow) == 0 {
			t.Errorf("its owner is gone: %d packets came to the device (%v)", l.packets(b.Flow), err)
		}
	})
}

// TestLiveAheadIsAdopted: what had just begun when its owner was killed is carried on by the next one, as all else;
// not where somebody has taken everything away in between.
func TestLiveAheadIsAdopted(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		begins := func(o *Options) { o.Begin = func() {} }
		l.up(begins)
		l.serve()
		to := []netip.AddrPort{netip.MustParseAddrPort(at(far4)), netip.MustParseAddrPort(at(far6))}
		for _, adopted := range []bool{true, false} {
			if err := l.table.Admit(packet.TCP, to...); err != nil {
				t.Fatal(err)
			}
			conns, flows := []net.Conn{}, []packet.Flow{}
			for _, d := range to {
				c, b, err := l.dialAhead(d.String())
				if err != nil {
					t.Fatal(err)
				}
				conns, flows = append(conns, c), append(flows, b.Flow)
			}
			l.table.release() // as a crash does
			if !adopted {
				if err := Recover(l.table.o); err != nil {
					t.Fatal(err)
				}
			}
			l.table = l.open(begins)
			for i, c := range conns {
				if l.table.accepted(flows[i]) != adopted || l.inSet(flows[i]) != adopted {
					t.Errorf("%s: known %t, in the set %t, want %t", flows[i], l.table.accepted(flows[i]), l.inSet(flows[i]), adopted)
				}
				if !adopted {
					continue
				}
				if err := echoes(c, 100); err != nil || l.packets(flows[i]) != 0 {
					t.Errorf("%s: %v, %d packets came to the device", flows[i], err, l.packets(flows[i]))
				}
			}
		}
	})
}

// TestLiveNothingAhead: where its table cannot be had, what is held is handed back all the same, and who asks
// is told why.
func TestLiveNothingAhead(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.sh("nft add table inet " + DefaultTable + firstSuffix)
		l.up(func(o *Options) { o.Begin = func() {} })
		l.serve()
		if err := l.table.Ahead(); err == nil || !strings.Contains(err.Error(), firstSuffix) {
			t.Errorf("who asks is told %v", err)
		}
		if err := l.table.Admit(packet.TCP, netip.MustParseAddrPort(at(far4))); err == nil {
			t.Error("connections are admitted by somebody else's table")
		}
		c, f := l.dial("tcp", at(far4))
		if err := echoes(c, 100); err != nil || !l.table.accepted(f) {
			t.Errorf("%s: %v", f, err)
		}
		_ = c.Close()
	})
}

// leftOf is the time of the only element of a set.
func (l *lab) leftOf(set string) time.Duration {
	l.t.Helper()
	text := l.sh("nft list set inet " + DefaultTable + " " + set)
	found := expires.FindAllStringSubmatch(text, -1)
	if len(found) != 1 {
		l.t.Fatalf("want one element:\n%s", text)
	}
	left, err := time.ParseDuration(found[0][1])
	if err != nil {
		l.t.Fatal(err)
	}
	return left
}

var expires = regexp.MustCompile(`expires (\w+)`)

// TestLiveAheadMany: what begins and lasts at the same time enters the set, all of it.
func TestLiveAheadMany(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		table := l.up(func(o *Options) { o.Begin = func() {} })
		l.serve()
		if err := table.Admit(packet.TCP, netip.MustParseAddrPort(at(far4))); err != nil {
			t.Fatal(err)
		}
		const many = 5 * batchLimit
		conns := make([]net.Conn, many)
		begun := make([]Began, many)
		for i := range many {
			c, b, err := l.dialAhead(at(far4))
			if err != nil {
				t.Fatal(err)
			}
			conns[i], begun[i] = c, b
		}
		for _, b := range begun {
			if err := table.Carry(b); err != nil {
				t.Error(err)
			}
		}
		l.eventually("all are accepted", func() bool {
			n := 0
			for _, b := range begun {
				if l.inSet(b.Flow) {
					n++
				}
			}
			return n == many
		})
		for i, c := range conns {
			if err := echoes(c, 10); err != nil {
				t.Fatalf("%s: %v", begun[i].Flow, err)
			}
		}
		if n := table.Len(); n != many {
			t.Errorf("%d of %d are left", n, many)
		}
	})
}

// TestLiveAheadNoRoom: a connection that lasts and that the kernel has no room for goes on until it has.
func TestLiveAheadNoRoom(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		table := l.up(func(o *Options) { o.Begin, o.Limit, o.Logger = func() {}, 2, zap.NewNop() })
		l.serve()
		set := "inet " + DefaultTable + " accept4"
		l.sh("nft add element " + set + " { 10.78.0.2 . 10.9.9.9 . tcp . 1 . 1, 10.78.0.2 . 10.9.9.9 . tcp . 1 . 2 }")
		if err := table.Admit(packet.TCP, netip.MustParseAddrPort(at(far4))); err != nil {
			t.Fatal(err)
		}
		c, b, err := l.dialAhead(at(far4))
		if err != nil {
			t.Fatal(err)
		}
		if err := table.Carry(b); err != nil {
			t.Fatal(err)
		}
		table.accept([]Began{b}) // as after its first round
		if err := echoes(c, 10); err != nil || l.inSet(b.Flow) || !table.accepted(b.Flow) {
			t.Errorf("no room: %v, in the set %t, known %t", err, l.inSet(b.Flow), table.accepted(b.Flow))
		}
		l.sh("nft flush set " + set)
		l.eventually("it is accepted", func() bool { return l.inSet(b.Flow) })
		if err := echoes(c, 10); err != nil || l.packets(b.Flow) != 0 {
			t.Errorf("%v, %d packets came to the device", err, l.packets(b.Flow))
		}
	})
}

// TestFresh: what began is old enough after one round, and nobody waits twice.
func TestFresh(t *testing.T) {
	n := fresh{wake: make(chan struct{}, 1)}
	n.add(Began{Cookie: 1})
	n.add(Began{Cookie: 2})
	if len(n.wake) != 1 {
		t.Error("nobody was woken")
	}
	if due, more := n.take(); len(due) != 0 || !more {
		t.Errorf("at once: %v, %v", due, more)
	}
	n.add(Began{Cookie: 3})
	if due, more := n.take(); len(due) != 2 || !more {
		t.Errorf("after a round: %v, %v", due, more)
	}
	if due, more := n.take(); len(due) != 1 || more {
		t.Errorf("after two rounds: %v, %v", due, more)
	}
}

// TestNamed: the end of a socket is not that of another connection with the same five values, and one that
// has lost its name is known by its cookie.
func TestNamed(t *testing.T) {
	f := packet.Flow{Proto: packet.TCP, Local: netip.MustParseAddrPort("10.0.0.1:1000"), Remote: netip.MustParseAddrPort("10.0.0.2:80")}
	table := &Table{flows: map[packet.Flow]entry{}, ports: map[port][]packet.Flow{}, cookies: map[uint64]packet.Flow{7: f}}
	table.keep(f, entry{cookie: 7, ahead: true})
	if flows, left := table.named([]socket{{Flow: f, cookie: 6}}); len(flows) != 0 || len(left) != 1 {
		t.Errorf("another socket: %v, %v", flows, left)
	}
	lost := f
	lost.Local = netip.MustParseAddrPort("0.0.0.0:1000")
	flows, left := table.named([]socket{{Flow: lost, cookie: 7, known: true, carried: carried{Traffic: Traffic{Sent: 3}}}, {Flow: f, cookie: 8}})
	if len(flows) != 1 || flows[0] != f || len(left) != 1 || table.flows[f].Sent != 3 {
		t.Errorf("its own: %v, %v", flows, left)
	}
	if _, ok := table.take(f); !ok || len(table.cookies) != 0 {
		t.Error("the cookie stays")
	}
}
