package interception

import (
	"net/netip"
	"testing"
	"time"

	"gatun/network"
	"gatun/network/packet"
)

// parkedFlow is what the stack remembers of a pair.
type parkedFlow struct{ forgotten bool }

func (f *parkedFlow) LastActive() time.Time    { return time.Time{} }
func (f *parkedFlow) Forget()                  { f.forgotten = true }
func (f *parkedFlow) Drop()                    {}
func (f *parkedFlow) Reject(*packet.ICMPError) {}

func TestSocketClosed(t *testing.T) {
	g := &Gate{Table: network.NewTable(time.Now), Clock: time.Now}
	use := func(local string) (*network.Link, *parkedFlow) {
		l, _ := g.Table.Link(packet.Flow{Proto: packet.UDP, Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort("198.51.100.1:443")})
		f := &parkedFlow{}
		g.sockets.add(l, f)
		return l, f
	}
	relayed, _ := use("192.0.2.2:1000")
	var killed string
	relayed.OnKill(func(cause string) { killed = cause; g.Ended(relayed, cause) })
	denied, deniedFlow := use("192.0.2.2:1001")
	other, otherFlow := use("192.0.2.3:1000")
	for _, l := range []*network.Link{relayed, denied, other} {
		if g.sockets.settle(l) {
			t.Fatal("nobody has closed it")
		}
	}

	g.SocketClosed(packet.UDP, netip.MustParseAddrPort("192.0.2.2:1000"))
	if killed != causeSocketClosed || !relayed.Ended() || other.Ended() {
		t.Errorf("killed %q, relayed ended %v, a socket on another address ended %v", killed, relayed.Ended(), other.Ended())
	}
	g.SocketClosed(packet.TCP, netip.MustParseAddrPort("192.0.2.2:1001"))
	if denied.Ended() {
		t.Error("a TCP socket with the same port is not the UDP socket")
	}
	g.SocketClosed(packet.UDP, netip.MustParseAddrPort("0.0.0.0:1001"))
	if !denied.Ended() || !deniedFlow.forgotten || otherFlow.forgotten {
		t.Error("a socket on the wildcard address stands for every address")
	}
}

// A fire-and-forget sender has closed its socket before the verdict: what it sent is still
// carried, and only then the pair ends.
func TestSocketClosedWhileHeld(t *testing.T) {
	g := &Gate{Table: network.NewTable(time.Now), Clock: time.Now}
	l, _ := g.Table.Link(packet.Flow{Proto: packet.UDP, Local: netip.MustParseAddrPort("192.0.2.2:1000"), Remote: netip.MustParseAddrPort("198.51.100.1:443")})
	g.sockets.add(l, &parkedFlow{})
	g.SocketClosed(packet.UDP, l.Flow.Local)
	if l.Ended() {
		t.Fatal("a held flow was ended before its verdict")
	}
	if !g.sockets.settle(l) {
		t.Error("the close was forgotten")
	}
}
