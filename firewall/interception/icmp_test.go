package interception

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"

	"gatun/network"
	"gatun/network/packet"
	"gatun/stack"
)

// fakePing is the stack's side of a flow of echo requests.
type fakePing struct {
	flow packet.Flow

	mu   sync.Mutex
	sink stack.PingSink
	saw  []string
}

func (f *fakePing) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.saw = append(f.saw, fmt.Sprintf(format, args...))
}

func (f *fakePing) sees() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.saw)
}

func (f *fakePing) Flow() packet.Flow                     { return f.flow }
func (f *fakePing) Accept(s stack.PingSink)               { f.sink = s }
func (f *fakePing) Reject(e *packet.ICMPError)            { f.note("rejected: %v", e) }
func (f *fakePing) Error(seq uint16, e *packet.ICMPError) { f.note("%d: %v", seq, e) }
func (f *fakePing) Forget()                               { f.note("forgotten") }
func (f *fakePing) Reply(seq uint16, b []byte, ttl uint8) error {
	f.note("%d: reply %q ttl %d", seq, b, ttl)
	return nil
}

func (r *rig) ping(pid, id int) (*fakePing, *network.Link) {
	f := &fakePing{flow: packet.Flow{Proto: packet.ICMP, Local: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(id)),
		Remote: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), 0)}}
	l := r.link(f.flow, pid)
	r.pings.start(f, l)
	return f, l
}

func (s *fakeEcho) served(t *testing.T) {
	t.Helper()
	waitFor(t, "the ping's reader", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.reply != nil
	})
}

func TestPing(t *testing.T) {
	r := newRig(t)
	f, l := r.ping(1, 7)
	s := r.net.echos[0]
	s.served(t)
	f.sink.Echo(nil, stack.Echo{Seq: 1, Payload: []byte("abcd"), TTL: 64})
	s.reply(1, []byte("abcd"), 61)
	s.report(2, packet.TimeExceeded(netip.MustParseAddr("198.51.100.1")))
	s.sendErr = packet.TooBig(netip.Addr{}, 1400)
	f.sink.Echo(nil, stack.Echo{Seq: 3, Payload: []byte("abcd"), TTL: 64})
	s.sendErr = os.NewSyscallError("send", syscall.EAGAIN)
	f.sink.Echo(nil, stack.Echo{Seq: 4, TTL: 64})
	want := []string{`1: reply "abcd" ttl 61`, "2: 198.51.100.1: time exceeded", "3: packet too big, next hop takes 1400 bytes"}
	if got := f.sees(); !slices.Equal(got, want) {
		t.Errorf("program sees %q, want %q", got, want)
	}
	if sent, received := l.Bytes(); sent != 4 || received != 4 {
		t.Errorf("counted %d and %d bytes", sent, received)
	}
	r.pass(30)
	if slices.Contains(f.sees(), "forgotten") {
		t.Error("ended before its time")
	}
	r.pass(2)
	if got := r.causesOf(f.flow); !slices.Equal(got, []string{"idle"}) || !slices.Contains(f.sees(), "forgotten") {
		t.Errorf("causes %q, program sees %q", got, f.sees())
	}
	waitFor(t, "the file is given back", func() bool { all, _ := r.Files.Used(OwnerKey{}); return all == 0 })
}

func TestPingForbidden(t *testing.T) {
	r := newRig(t)
	r.net.echoErr = fmt.Errorf("echo requests cannot be relayed: %w", syscall.EPERM)
	f, _ := r.ping(1, 7)
	if got := f.sees(); !slices.Equal(got, []string{"rejected: administratively prohibited", "forgotten"}) {
		t.Errorf("program sees %q", got)
	}
	if got := r.causesOf(f.flow); !slices.Equal(got, []string{r.net.echoErr.Error()}) || r.Counters().PingRefused != 1 {
		t.Errorf("cause %q must be the reason; %+v", got, r.Counters())
	}
}

func TestPingKillAndLimit(t *testing.T) {
	r := newRig(t)
	r.Limits.PingsPerProg = 3
	other, _ := r.ping(2, 1)
	var mine []*fakePing
	for i := range 3 {
		f, _ := r.ping(1, 10+i)
		mine = append(mine, f)
		r.pass(1)
	}
	_, l := r.ping(1, 20)
	if !slices.Contains(mine[0].sees(), "forgotten") || len(mine[1].sees())+len(other.sees()) != 0 || r.Counters().PingEvicted != 1 {
		t.Errorf("oldest sees %q, next %q, another program's %q", mine[0].sees(), mine[1].sees(), other.sees())
	}
	if !l.Kill("killed by hand") {
		t.Error("nobody carries the ping")
	}
	if got := r.causesOf(l.Flow); !slices.Equal(got, []string{"killed by hand"}) {
		t.Errorf("causes %q", got)
	}
	waitFor(t, "two files are given back", func() bool { all, _ := r.Files.Used(OwnerKey{}); return all == 3 })
}
