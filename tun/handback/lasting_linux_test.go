package handback

import (
	"encoding/hex"
	"net"
	"os"
	"strconv"
	"syscall"
	"testing"

	"gatun/network/packet"
)

// lasts uses a connection until its packets are not looked up any more, and returns what it sent, in bytes of
// payload.
func (l *lab) lasts(c net.Conn, f packet.Flow) (sent uint64) {
	l.t.Helper()
	l.eventually(f.String()+": nobody looks it up", func() bool {
		for range 100 {
			if err := echoes(c, 20); err != nil {
				l.t.Fatalf("%s: %v (%v)", f, err, l.failures())
			}
			sent += 20
		}
		return l.trackedMark(f) == l.names().LastingMark && markOf(l.t, sysConn(c)) == l.names().BackMark
	})
	return sent
}

// trackedMark is the mark of a flow in connection tracking; 0 where it has none.
func (l *lab) trackedMark(f packet.Flow) (mark uint32) {
	l.t.Helper()
	err := l.table.eachPart([]packet.Flow{f}, func(w *wire, part []packet.Flow) error {
		entries, err := w.entries(part)
		if err == nil {
			mark = entries[0].mark
		}
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return mark
}

// countedBySet is how many packets of a flow the set has counted.
func (l *lab) countedBySet(f packet.Flow) (n uint64) {
	l.t.Helper()
	if err := l.table.get(setAccept, []packet.Flow{f}, func(_ int, e found) { n = e.sent.Packets }); err != nil {
		l.t.Fatal(err)
	}
	return n
}

func (l *lab) trafficOf(f packet.Flow) (all Traffic) {
	l.t.Helper()
	if err := l.table.Traffic(func(g packet.Flow, is Traffic) {
		if g == f {
			all = is
		}
	}); err != nil {
		l.t.Fatal(err)
	}
	return all
}

func ourselves(o *Options) { o.Holder = func(packet.Flow) int { return os.Getpid() } }

// A flow that lasts is not looked up in the set, all that it sends is counted, through a renewal and through
// a connection tracking that forgets it; and taken out of the set it does not pass any more.
func TestLiveFlowsThatLast(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up(ourselves)
		for _, far := range fars {
			for _, network := range []string{"tcp", "udp"} {
				c, f := l.dial(network, at(far))
				sent, missed := l.lasts(c, f), uint64(20) // a packet that left when the counting was handed over
				use := func(what string) {
					t.Helper()
					for range 300 {
						if err := echoes(c, 30); err != nil {
							t.Fatalf("%s, %s: %v", f, what, err)
						}
						sent += 30
					}
					if got := l.trafficOf(f); got.Sent > sent || got.Sent+missed < sent || got.Received != sent {
						t.Errorf("%s, %s: %+v counted, %d were sent", f, what, got, sent)
					}
				}
				before, device := l.countedBySet(f), l.deviceCount()
				use("not looked up")
				if n := l.countedBySet(f) - before; n != 0 {
					t.Errorf("%s: %d packets were looked up", f, n)
				}
				if err := l.table.renew([]packet.Flow{f}); err != nil {
					t.Fatal(err)
				}
				use("renewed")
				if err := l.table.Restore(); err != nil {
					t.Fatal(err)
				}
				use("restored")
				l.sh("nft delete table inet " + DefaultTable)
				l.eventually("the rules are back", func() bool { whole, err := l.table.whole(); return err == nil && whole && l.held(f) })
				use("put back")
				l.sh("conntrack -D -p " + network + " --orig-port-src " + port16(f) + " >/dev/null 2>&1")
				use("forgotten by connection tracking")
				if n := l.deviceCount() - device; n != 0 {
					t.Errorf("%s: %d packets on the device", f, n)
				}
				sent, missed = sent+l.lasts(c, f), 2*missed // again
				use("again")
				if network == "tcp" {
					if err := l.table.Revoke(f); err != nil {
						t.Fatal(err)
					}
					if echoes(c, 10) == nil {
						t.Errorf("%s: goes on after it was revoked", f)
					}
				} else {
					if err := l.table.Forget(f); err != nil {
						t.Fatal(err)
					}
					if e := l.end(f); e.Traffic.Sent > sent || e.Traffic.Sent+missed < sent || e.Traffic.Received != sent {
						t.Errorf("%s: ended with %+v, %d were sent", f, e.Traffic, sent)
					}
					l.deny(true)
					l.silent(c, f)
					l.deny(false)
				}
				if m := l.trackedMark(f); m == l.names().LastingMark {
					t.Errorf("%s: connection tracking still lets it pass", f)
				}
			}
		}
	})
}

// Nothing passes beside the set of which a new process does not know, or that it does not count.
func TestLiveLastingEndsWithTheProcess(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		table := l.up(ourselves)
		tcp, tcpFlow := l.dial("tcp", at(far4))
		udp, udpFlow := l.dial("udp", at(far6))
		l.lasts(tcp, tcpFlow)
		l.lasts(udp, udpFlow)
		table.release() // as a crash does
		l.table = l.open()
		for _, f := range []packet.Flow{tcpFlow, udpFlow} {
			if m := l.trackedMark(f); m != l.names().BackMark {
				t.Errorf("%s: mark %#x in connection tracking after the restart", f, m)
			}
		}
		l.use([]net.Conn{tcp, udp})
		for _, f := range []packet.Flow{tcpFlow, udpFlow} {
			if n := l.packets(f); n != 1 {
				t.Errorf("%s: %d packets decided", f, n)
			}
		}
	})
}

// Where connection tracking does not count, datagrams go on to be counted by the set.
func TestLiveLastingNeedsCounts(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up(ourselves)
		l.sh("sysctl -qw net.netfilter.nf_conntrack_acct=0")
		c, f := l.dial("udp", at(far4))
		sent := uint64(0)
		l.eventually("the mark on the socket", func() bool {
			for range 100 {
				if err := echoes(c, 20); err != nil {
					t.Fatal(err)
				}
				sent += 20
			}
			return markOf(t, sysConn(c)) == l.names().BackMark
		})
		for range 100 {
			if err := echoes(c, 20); err != nil {
				t.Fatal(err)
			}
			sent += 20
		}
		if m, got := l.trackedMark(f), l.trafficOf(f).Sent; m != l.names().BackMark || got != sent {
			t.Errorf("mark %#x, %d bytes counted; %d were sent", m, got, sent)
		}
	})
}

// FuzzParseTracked: what the kernel would have to be broken to send ends no process.
func FuzzParseTracked(f *testing.F) {
	f.Add(mustHex("02000000" + "0800080067650000" + "1c000980" + "0c00010000000000000000070c00020000000000000001f4"))
	f.Fuzz(func(t *testing.T, body []byte) {
		e := parseTracked(body)
		if !e.counts && e.sent != (Counter{}) {
			t.Errorf("%+v counts without a counter", e)
		}
		if k, ok := keyOfEntry(body); ok {
			if _, is := flowOf(k.b[:k.len]); !is {
				t.Errorf("%x is no key", k.b[:k.len])
			}
		}
	})
}

func TestParseTracked(t *testing.T) {
	got := parseTracked(mustHex("02000000" + "0800080067650000" + "1c000980" + "0c00010000000000000000070c00020000000000000001f4"))
	if want := (tracked{mark: 0x67650000, counts: true, sent: Counter{Packets: 7, Bytes: 500}}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	entry := "02000000" + "34000180" + "14000180" + "08000100c0000202" + "08000200c6336401" + "1c000280" + "0500010011000000" + "06000200d4310000" + "0600030000350000"
	k, ok := keyOfEntry(mustHex(entry))
	f, _ := flowOf(k.b[:k.len])
	if want := (packet.Flow{Proto: packet.UDP, Local: at2("192.0.2.2", 54321), Remote: at2("198.51.100.1", 53)}); !ok || f != want {
		t.Errorf("got %v (%v), want %v", f, ok, want)
	}
	if _, ok := keyOfEntry(mustHex(entry[:60])); ok {
		t.Error("a truncated entry has a key")
	}
}

func mustHex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

func sysConn(c net.Conn) syscall.Conn { return c.(syscall.Conn) }

func port16(f packet.Flow) string { return strconv.Itoa(int(f.Local.Port())) }
