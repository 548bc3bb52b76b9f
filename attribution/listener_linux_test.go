package attribution

import (
	"context"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
	"gatun/network/state"
)

func reusable(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
}

// inboundTo is a flow from somebody to an address of this machine.
func inboundTo(proto packet.Proto, at net.Addr, host string) packet.Flow {
	port := netip.MustParseAddrPort(at.String()).Port()
	local := netip.MustParseAddr(host)
	remote := netip.MustParseAddrPort("192.0.2.9:4000")
	if local.Is6() {
		remote = netip.MustParseAddrPort("[2001:db8::9]:4000")
	}
	return packet.Flow{Proto: proto, Local: netip.AddrPortFrom(local, port), Remote: remote}
}

// TestListener names this process as the one that waits, whatever it is bound to.
func TestListener(t *testing.T) {
	f := newFinder(t)
	for _, c := range []struct{ network, at, host string }{
		{"tcp4", "0.0.0.0:0", "192.0.2.1"}, {"tcp", "[::]:0", "192.0.2.1"}, {"tcp", "[::]:0", "2001:db8::1"}, {"tcp4", "127.0.0.1:0", "127.0.0.1"},
		{"udp4", "0.0.0.0:0", "192.0.2.1"}, {"udp", "[::]:0", "192.0.2.1"}, {"udp", "[::]:0", "2001:db8::1"}, {"udp4", "127.0.0.1:0", "127.0.0.1"},
	} {
		t.Run(c.network+" "+c.at+" "+c.host, func(t *testing.T) {
			var at net.Addr
			proto := packet.TCP
			if c.network[:3] == "tcp" {
				l, err := net.Listen(c.network, c.at)
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				at = l.Addr()
			} else {
				u, err := net.ListenPacket(c.network, c.at)
				if err != nil {
					t.Fatal(err)
				}
				defer u.Close()
				at, proto = u.LocalAddr(), packet.UDP
			}
			flow := inboundTo(proto, at, c.host)
			if o := f.Listener(t.Context(), flow); o.Process.PID != os.Getpid() || o.Process.Kind != KindSelf || o.Confidence != Exact {
				t.Errorf("%s: %+v %+v", flow, o, o.Process)
			}
			other := flow
			other.Local = netip.AddrPortFrom(flow.Local.Addr(), 1) // tcpmux: nobody has it
			if o := f.Listener(t.Context(), other); o.Process.Kind != KindUnsolicited || o.Cause != CauseNoListener {
				t.Errorf("%s: %+v %+v", other, o, o.Process)
			}
		})
	}
}

// A listener of another address does not wait for this flow.
func TestListenerOfAnotherAddress(t *testing.T) {
	f := newFinder(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if o := f.Listener(t.Context(), inboundTo(packet.TCP, l.Addr(), "127.0.0.2")); o.Process.Kind != KindUnsolicited {
		t.Errorf("%+v %+v", o, o.Process)
	}
}

// Programs that share the address are not told apart; of one that is bound closer there is no doubt.
func TestListenerShared(t *testing.T) {
	f := newFinder(t)
	python := needPython(t)
	lc := net.ListenConfig{Control: reusable}
	l, err := lc.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	flow := inboundTo(packet.TCP, l.Addr(), "127.0.0.1")
	h := start(t, python, "-c", `import socket,sys
s=socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); s.bind(("127.0.0.1", int(sys.argv[1]))); s.listen()
print("listening", flush=True); sys.stdin.read()`, netip.MustParseAddrPort(l.Addr().String()).String()[len("127.0.0.1:"):])
	h.line()
	if o := f.Listener(t.Context(), flow); o.Process.Kind != KindUnidentified || o.Confidence != Ambiguous {
		t.Errorf("shared: %+v %+v", o, o.Process)
	}
}

// The kernel's order: connected, bound to the address, bound to all; the flow's own family first.
func TestReceivers(t *testing.T) {
	ap := netip.MustParseAddrPort
	flow := packet.Flow{Proto: packet.UDP, Local: ap("10.0.0.1:53"), Remote: ap("10.0.0.9:4000")}
	connected := state.Socket{Inode: 1, Local: ap("10.0.0.1:53"), Remote: ap("10.0.0.9:4000")}
	bound := state.Socket{Inode: 2, Local: ap("10.0.0.1:53"), Remote: ap("0.0.0.0:0")}
	all4 := state.Socket{Inode: 3, Local: ap("0.0.0.0:53"), Remote: ap("0.0.0.0:0")}
	all6 := state.Socket{Inode: 4, Local: ap("[::]:53"), Remote: ap("[::]:0")}
	else1 := state.Socket{Inode: 5, Local: ap("10.0.0.2:53"), Remote: ap("0.0.0.0:0")}
	else2 := state.Socket{Inode: 6, Local: ap("10.0.0.1:53"), Remote: ap("10.0.0.8:4000")}
	for _, c := range []struct {
		have []state.Socket
		want []uint64
	}{
		{[]state.Socket{all6, all4, bound, else1, connected, else2}, []uint64{1}},
		{[]state.Socket{all6, all4, bound, else1, else2}, []uint64{2}},
		{[]state.Socket{all6, all4, else1, all4}, []uint64{3, 3}},
		{[]state.Socket{else2, all6}, []uint64{4}},
		{[]state.Socket{else1, else2}, nil},
	} {
		var got []uint64
		for _, s := range receivers(c.have, flow) {
			got = append(got, s.Inode)
		}
		if len(got) != len(c.want) {
			t.Fatalf("%v, want %v", got, c.want)
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%v, want %v", got, c.want)
			}
		}
	}
}
