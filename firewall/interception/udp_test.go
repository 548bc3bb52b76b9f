package interception

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatun/network/packet"
	"gatun/stack"
)

func nowForTests() time.Time { return time.Unix(1_800_000_000, 0) }

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 3 s: %s", what)
		}
	}
}

func TestUDPSharesOneSocketPerLocalSocket(t *testing.T) {
	r := newRig(t)
	a, _ := r.udpPair(1, "10.0.0.2:5000", "192.0.2.1:1000")
	b, _ := r.udpPair(1, "10.0.0.2:5000", "192.0.2.2:1000")
	c, _ := r.udpPair(1, "10.0.0.2:5001", "192.0.2.1:1000")
	if n := r.net.opened.Load(); n != 2 {
		t.Fatalf("%d sockets for two local sockets", n)
	}
	if all, own := r.Files.Used(OwnerKey{PID: 1}); all != 2 || own != 2 {
		t.Errorf("%d and %d files counted, want 2", all, own)
	}
	socks := r.net.sockets()
	a.send("to a")
	b.send("to b")
	want := []sentDatagram{{"to a", a.flow.Remote, 64, 4, true}, {"to b", b.flow.Remote, 64, 4, true}}
	for _, w := range want {
		if got := <-socks[0].sent; got != w {
			t.Errorf("sent %+v, want %+v", got, w)
		}
	}
	datagram, report := socks[0].served(t)
	datagram([]byte("from b"), b.flow.Remote, 0)
	datagram([]byte("stranger"), netip.MustParseAddrPort("192.0.2.3:1000"), 0)
	datagram([]byte("other port"), netip.MustParseAddrPort("192.0.2.2:1001"), 0)
	report(a.flow.Remote, packet.PortUnreachable(a.flow.Remote.Addr()))
	report(netip.MustParseAddrPort("192.0.2.9:9"), packet.PortUnreachable(a.flow.Remote.Addr()))
	if !reflect.DeepEqual(b.replies, []string{"from b"}) || len(a.replies)+len(c.replies) != 0 {
		t.Errorf("replies: a %q, b %q, c %q", a.replies, b.replies, c.replies)
	}
	if len(a.errs) != 1 || len(b.errs)+len(c.errs) != 0 {
		t.Errorf("errors: a %v, b %v, c %v", a.errs, b.errs, c.errs)
	}
	if n := r.Counters().UDPUnsolicited; n != 2 {
		t.Errorf("%d datagrams counted as unsolicited, want 2", n)
	}
}

// TestUDPAttached: a socket that others serve needs no goroutine, and a panic in what it is called with
// ends its pairs only.
func TestUDPAttached(t *testing.T) {
	r := newRig(t)
	r.net.attaches = true
	a, _ := r.udpPair(1, "10.0.0.2:5000", "192.0.2.1:1000")
	b, _ := r.udpPair(1, "10.0.0.2:5001", "192.0.2.2:1000")
	socks := r.net.sockets()
	datagram, report := socks[0].served(t)
	datagram([]byte("answer"), a.flow.Remote, 0)
	report(a.flow.Remote, packet.PortUnreachable(a.flow.Remote.Addr()))
	if !slices.Equal(a.replies, []string{"answer"}) || len(a.errs) != 1 || len(b.replies)+len(b.errs) != 0 {
		t.Errorf("a got %q and %v, b %q and %v", a.replies, a.errs, b.replies, b.errs)
	}
	a.bug = true
	datagram([]byte("x"), a.flow.Remote, 0)
	if a.forgot == 0 || b.forgot != 0 || r.Counters().Panics != 1 || r.net.closed.Load() != 1 {
		t.Errorf("forgot a %d, b %d; %d panics, %d sockets closed", a.forgot, b.forgot, r.Counters().Panics, r.net.closed.Load())
	}
	if got := r.causesOf(a.flow); !slices.Equal(got, []string{"upstream socket failed"}) {
		t.Errorf("causes %q", got)
	}
	datagram, _ = socks[1].served(t)
	datagram([]byte("goes on"), b.flow.Remote, 0)
	if !slices.Equal(b.replies, []string{"goes on"}) {
		t.Errorf("b got %q", b.replies)
	}
}

func TestUDPIdleLimits(t *testing.T) {
	r := newRig(t)
	dns, _ := r.udpPair(1, "10.0.0.2:1", "192.0.2.1:53")
	one, _ := r.udpPair(1, "10.0.0.2:2", "192.0.2.1:1000")
	two, _ := r.udpPair(1, "10.0.0.2:3", "192.0.2.1:1000")
	datagram, _ := r.net.sockets()[2].served(t)
	datagram([]byte("answer"), two.flow.Remote, 0)
	age := map[*fakeFlow]int{}
	for s := 1; s <= 200; s++ {
		r.pass(1)
		for _, f := range []*fakeFlow{dns, one, two} {
			if f.forgot > 0 && age[f] == 0 {
				age[f] = s
			}
		}
	}
	for f, limit := range map[*fakeFlow]int{dns: 10, one: 30, two: 180} {
		if age[f] < limit || age[f] > limit+1 {
			t.Errorf("%v ended after %d s, want %d", f.flow, age[f], limit)
		}
		if got := r.causesOf(f.flow); !slices.Equal(got, []string{"idle"}) {
			t.Errorf("%v: causes %q", f.flow, got)
		}
	}
	if n := r.net.closed.Load(); n != 3 {
		t.Errorf("%d of 3 sockets closed", n)
	}
}

func TestUDPActivityKeepsAPair(t *testing.T) {
	r := newRig(t)
	f, _ := r.udpPair(1, "10.0.0.2:1", "192.0.2.1:1000")
	for range 4 {
		r.pass(20)
		f.send("x")
	}
	if f.forgot != 0 {
		t.Error("ended though in use")
	}
	f2, _ := r.udpPair(1, "10.0.0.2:1", "192.0.2.2:1000")
	r.pass(25)
	f.send("x")
	r.pass(10)
	if f.forgot != 0 || f2.forgot == 0 || r.net.closed.Load() != 0 {
		t.Errorf("in use: forgot %d; idle: forgot %d; sockets closed: %d", f.forgot, f2.forgot, r.net.closed.Load())
	}
	again, _ := r.udpPair(1, "10.0.0.2:1", "192.0.2.2:1000")
	if r.net.opened.Load() != 1 {
		t.Error("the socket is not shared by a peer that came back")
	}
	r.pass(40)
	if again.forgot == 0 || r.net.closed.Load() != 1 {
		t.Error("the last pair did not close the socket")
	}
	late, _ := r.udpPair(1, "10.0.0.2:1", "192.0.2.2:1000")
	late.send("x")
	if r.net.opened.Load() != 2 || len(r.net.sockets()[1].sent) != 1 {
		t.Error("after the close there is no new socket")
	}
	again.send("lost")
	if n := r.Counters().UDPSendDropped; n != 1 {
		t.Errorf("a datagram of an ended pair: %d dropped, want 1", n)
	}
}

// TestUDPReplacedPair: the stack forgot a pair before we did, and the program goes on.
func TestUDPReplacedPair(t *testing.T) {
	r := newRig(t)
	old, _ := r.udpPair(1, "10.0.0.2:1", "192.0.2.1:1000")
	f := &fakeFlow{flow: old.flow}
	r.udp.start(f, r.link(f.flow, 1))
	if old.forgot != 1 || f.forgot != 0 || r.net.opened.Load() != 1 || r.udp.pairs != 1 {
		t.Errorf("old forgot %d, new forgot %d, %d sockets, %d pairs", old.forgot, f.forgot, r.net.opened.Load(), r.udp.pairs)
	}
	f.send("x")
	datagram, _ := r.net.sockets()[0].served(t)
	datagram([]byte("y"), f.flow.Remote, 0)
	if len(r.net.sockets()[0].sent) != 1 || len(f.replies) != 1 || len(old.replies) != 0 {
		t.Errorf("new pair: %d sent, replies %q; old: %q", len(r.net.sockets()[0].sent), f.replies, old.replies)
	}
}

func TestUDPKill(t *testing.T) {
	r := newRig(t)
	f, l := r.udpPair(1, "10.0.0.2:1", "192.0.2.1:1000")
	if !l.Kill("killed by hand") || l.Kill("twice") {
		t.Error("Kill must work once")
	}
	if got := r.causesOf(f.flow); !slices.Equal(got, []string{"killed by hand"}) || f.forgot != 1 {
		t.Errorf("causes %q, forgot %d", got, f.forgot)
	}
}

func TestUDPRefused(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want packet.ICMPError
	}{
		{os.NewSyscallError("socket", syscall.EMFILE), *packet.AdminProhibited(netip.Addr{})},
		{os.NewSyscallError("bind", syscall.ENETUNREACH), *packet.NetUnreachable(netip.Addr{})},
	} {
		r := newRig(t)
		r.net.listenErr = tc.err
		f, _ := r.udpPair(1, "10.0.0.2:1", "192.0.2.1:1000")
		if len(f.rejected) != 1 || *f.rejected[0] != tc.want || f.forgot != 1 || f.sink != nil {
			t.Errorf("%v: rejected %v, forgot %d", tc.err, f.rejected, f.forgot)
		}
		r.net.listenErr = nil
		g, _ := r.udpPair(1, "10.0.0.2:1", "192.0.2.1:1000") // the next one is tried anew
		if g.sink == nil || r.Counters().UDPRefused != 1 {
			t.Errorf("after the error: accepted %v, %+v", g.sink != nil, r.Counters())
		}
	}
}

func TestUDPSendErrors(t *testing.T) {
	r := newRig(t)
	f, _ := r.udpPair(1, "10.0.0.2:1", "192.0.2.1:1000")
	s := r.net.sockets()[0]
	for _, tc := range []struct {
		err  error
		want *packet.ICMPError
	}{
		{packet.TooBig(netip.Addr{}, 1400), packet.TooBig(netip.Addr{}, 1400)},
		{os.NewSyscallError("sendmsg", syscall.ENETUNREACH), packet.NetUnreachable(netip.Addr{})},
		{os.NewSyscallError("sendmsg", syscall.EPERM), packet.AdminProhibited(netip.Addr{})},
		{os.NewSyscallError("sendmsg", syscall.EAGAIN), nil},
	} {
		f.errs, s.sendErr = nil, tc.err
		f.send("x")
		if tc.want == nil && len(f.errs) != 0 || tc.want != nil && (len(f.errs) != 1 || *f.errs[0] != *tc.want) {
			t.Errorf("%v: program told %v, want %v", tc.err, f.errs, tc.want)
		}
	}
	if n := r.Counters().UDPSendDropped; n != 4 {
		t.Errorf("%d counted", n)
	}
}

func TestUDPEvictsOldestOfTheProgram(t *testing.T) {
	r := newRig(t)
	r.Limits.UDPPairsPerProg, r.Limits.UDPPairs = 32, 40
	other, _ := r.udpPair(2, "10.0.0.3:1", "192.0.2.1:1000")
	var mine []*fakeFlow
	add := func() {
		f, _ := r.udpPair(1, "10.0.0.2:1", fmt.Sprintf("192.0.2.1:%d", 1000+len(mine)))
		mine = append(mine, f)
	}
	for range 32 {
		add()
	}
	datagram, _ := r.net.sockets()[1].served(t)
	datagram([]byte("in use"), mine[0].flow.Remote, 0) // two-way: spared, though the oldest
	r.pass(1)
	for _, f := range mine[3:] {
		f.send("x")
	}
	add()
	gone := 0
	for i, f := range mine {
		if f.forgot > 0 {
			gone++
			if i != 1 && i != 2 {
				t.Errorf("pair %d was ended, want the oldest one-way ones, 1 and 2", i)
			}
		}
	}
	if gone != 2 || other.forgot != 0 || r.Counters().UDPEvicted != 2 {
		t.Errorf("%d ended of the flooding program, %d of another; %+v", gone, other.forgot, r.Counters())
	}
	// The limit of all programs together takes from the largest.
	var third []*fakeFlow
	for i := range 20 {
		f, _ := r.udpPair(3, "10.0.0.4:1", fmt.Sprintf("192.0.2.1:%d", 1000+i))
		third = append(third, f)
	}
	for _, f := range append(third, other) {
		if f.forgot > 0 {
			t.Errorf("%v was ended, its program is not the largest", f.flow)
		}
	}
}

func TestUDPWithoutFilesGivesUpOldestSocket(t *testing.T) {
	r := newRig(t)
	r.Files = NewFileBudget(reservedFiles + 20) // 19 before the largest must stop
	var mine []*fakeFlow
	for i := range 19 {
		f, _ := r.udpPair(1, fmt.Sprintf("10.0.0.2:%d", 1000+i), "192.0.2.1:1000")
		mine = append(mine, f)
		r.pass(1)
	}
	f, _ := r.udpPair(1, "10.0.0.2:2000", "192.0.2.1:1000")
	if f.sink == nil || mine[0].forgot == 0 || mine[2].forgot != 0 {
		t.Errorf("new one accepted %v; oldest ended %v, a later one %v", f.sink != nil, mine[0].forgot > 0, mine[2].forgot > 0)
	}
	g, _ := r.udpPair(2, "10.0.0.3:1", "192.0.2.1:1000") // another program still gets one
	if g.sink == nil {
		t.Error("a program with no file at all was refused")
	}
	if all, own := r.Files.Used(OwnerKey{PID: 1}); own > 19 || all != int(r.net.opened.Load()-r.net.closed.Load()) {
		t.Errorf("%d files of %d in use; %d opened, %d closed", own, all, r.net.opened.Load(), r.net.closed.Load())
	}
}

func TestUDPTranslate(t *testing.T) {
	r := newRig(t)
	host, lo := netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("127.0.0.1")
	r.Translate = func(a netip.Addr) netip.Addr {
		if a == host {
			return lo
		}
		return a
	}
	f, _ := r.udpPair(1, "10.0.0.2:1", "10.0.2.2:1000")
	f.send("x")
	s := r.net.sockets()[0]
	if got := <-s.sent; got.to != netip.AddrPortFrom(lo, 1000) {
		t.Errorf("sent to %v", got.to)
	}
	datagram, report := s.served(t)
	datagram([]byte("y"), netip.AddrPortFrom(lo, 1000), 0)
	report(netip.AddrPortFrom(lo, 1000), packet.PortUnreachable(lo))
	if len(f.replies) != 1 || len(f.errs) != 1 || f.errs[0].From != host {
		t.Errorf("replies %q, errors %v: the program must not see the real address", f.replies, f.errs)
	}
}

// TestUDPChurn has pairs join, end by kill and by time-out, and send, all at once. What must
// hold: every opened socket is closed, every file is given back (newRig checks both), and each
// link ends once.
func TestUDPChurn(t *testing.T) {
	r := newRig(t)
	r.Limits.OneWay = 2 * time.Second
	r.Limits.UDPPairsPerProg = 40
	var all sync.WaitGroup
	stop := make(chan struct{})
	all.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				r.pass(1)
			}
		}
	})
	var workers sync.WaitGroup
	const perWorker = 500
	for w := range 8 {
		workers.Go(func() {
			for i := range perWorker {
				// Two workers share each local socket; peers are their own.
				f, l := r.udpPair(1+w%2, fmt.Sprintf("10.0.0.2:%d", 1000+w/2), fmt.Sprintf("192.0.2.%d:%d", w+1, 1+i))
				f.send("x")
				if i%3 == 0 {
					l.Kill("killed")
				}
			}
		})
	}
	workers.Wait()
	close(stop)
	all.Wait()
	r.pass(10)
	n := 0
	r.mu.Lock()
	defer r.mu.Unlock()
	for f, c := range r.causes {
		n++
		if len(c) != 1 {
			t.Errorf("%v ended %d times: %q", f, len(c), c)
		}
	}
	if n != 8*perWorker || r.udp.pairs != 0 || len(r.udp.byOwner) != 0 || len(r.udp.socks) != 0 {
		t.Errorf("%d of %d ended; left: %d pairs, %d owners, %d sockets", n, 8*perWorker, r.udp.pairs, len(r.udp.byOwner), len(r.udp.socks))
	}
}

// What is wrong with one datagram of a train costs no other; a full buffer costs the rest.
func TestUDPTrainGoesOnBehindALostOne(t *testing.T) {
	r := newRig(t)
	f, l := r.udpPair(1, "10.0.0.2:1", "192.0.2.1:1000")
	s := r.net.sockets()[0]
	s.refused = map[string]error{"large": packet.TooBig(netip.Addr{}, 1400), "full": os.NewSyscallError("sendmsg", syscall.EAGAIN)}
	f.sendAll("a", "large", "bc", "full", "never")
	close(s.sent)
	var sent []string
	for d := range s.sent {
		sent = append(sent, d.b)
	}
	if !slices.Equal(sent, []string{"a", "bc"}) {
		t.Errorf("sent %q", sent)
	}
	if out, _ := l.Bytes(); out != 3 {
		t.Errorf("%d bytes counted as sent, want 3", out)
	}
	if n := r.Counters().UDPSendDropped; n != 3 {
		t.Errorf("%d counted as lost, want 3", n)
	}
	if len(f.errs) != 1 || f.errs[0].MTU != 1400 {
		t.Errorf("the program was told %v", f.errs)
	}
}

func BenchmarkUDPDatagram(b *testing.B) {
	r := newRig(b)
	f, _ := r.udpPair(1, "10.0.0.2:1", "192.0.2.1:1000")
	train := stack.Train{Payloads: [][]byte{[]byte("hello")}, TTL: 64}
	b.ReportAllocs()
	for b.Loop() {
		f.sink.Datagrams(nil, train)
	}
}

// BenchmarkUDPSweep is the cost of one sweep, once a second, with many pairs.
func BenchmarkUDPSweep(b *testing.B) {
	r := newRig(b)
	for i := range 50_000 {
		r.udpPair(1, fmt.Sprintf("10.0.0.2:%d", 1000+i%64), fmt.Sprintf("192.0.%d.%d:1000", i/64/250, 1+i/64%250))
	}
	b.ResetTimer()
	for b.Loop() {
		r.udp.sweep()
	}
}
