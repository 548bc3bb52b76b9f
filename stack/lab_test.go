package stack

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"gatun/network/packet"
	"gatun/tun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// family is one row of the tests that run over IPv4 and IPv6.
type family struct {
	name           string
	prog, peer     netip.Addr
	router, secret netip.Addr // a hop; a source that is not ours
}

var families = []family{
	{"v4", netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("10.9.0.3")},
	{"v6", netip.MustParseAddr("fd00:9::2"), netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("fd00:9::3")},
}

func eachFamily(t *testing.T, run func(t *testing.T, f family)) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) { run(t, f) })
	}
}

// handler calls the function that is set; a flow without one fails the test.
type handler struct {
	t     testing.TB
	tcp   func(*TCPFlow)
	udp   func(*UDPFlow)
	ping  func(*PingFlow)
	other func(*OtherFlow)
}

func (h *handler) HandleTCP(f *TCPFlow) {
	if h.tcp == nil {
		h.t.Errorf("unexpected %v", f.Flow())
		return
	}
	h.tcp(f)
}

func (h *handler) HandleUDP(f *UDPFlow) {
	if h.udp == nil {
		h.t.Errorf("unexpected %v", f.Flow())
		return
	}
	h.udp(f)
}

func (h *handler) HandlePing(f *PingFlow) {
	if h.ping == nil {
		h.t.Errorf("unexpected %v", f.Flow())
		return
	}
	h.ping(f)
}

func (h *handler) HandleOther(f *OtherFlow) {
	if h.other == nil {
		h.t.Errorf("unexpected %v", f.Flow())
		return
	}
	h.other(f)
}

// lab is a running Stack; the test holds the program's end of its device.
type lab struct {
	t      testing.TB
	s      *Stack
	prog   *tun.PipeEnd
	cancel context.CancelFunc
	ended  chan struct{}
	err    error

	reading sync.Once // recv
	got     chan []byte
}

func newLab(t testing.TB, h *handler, limits Limits) *lab { return newLabMTU(t, h, limits, 1500) }

func newLabMTU(t testing.TB, h *handler, limits Limits, mtu int) *lab {
	t.Helper()
	return newLabWith(t, h, limits, mtu, func(*Stack) {})
}

// newLabWith lets the test change the Stack before it runs.
func newLabWith(t testing.TB, h *handler, limits Limits, mtu int, change func(*Stack)) *lab {
	t.Helper()
	h.t = t
	dev, prog := tun.Pipe(mtu)
	isLocal := func(a netip.Addr) bool { return a == families[0].prog || a == families[1].prog }
	s, err := New(Options{Device: dev, Handler: h, Local: isLocal, Limits: limits,
		Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	change(s)
	ctx, cancel := context.WithCancel(context.Background())
	l := &lab{t: t, s: s, prog: prog, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		l.err = s.Run(ctx)
	}()
	t.Cleanup(l.stop)
	return l
}

// stop ends the Stack and fails the test when that goes wrong.
func (l *lab) stop() {
	l.cancel()
	select {
	case <-l.ended:
		if l.err != nil {
			l.t.Errorf("Run: %v", l.err)
		}
	case <-time.After(15 * time.Second):
		l.t.Error("Run does not end")
	}
}

// send writes packets as the program's kernel would.
func (l *lab) send(pkts ...[]byte) {
	l.t.Helper()
	for _, p := range pkts {
		if n, err := l.prog.Write([][]byte{p}); n != 1 || err != nil {
			l.t.Fatalf("write to pipe: %d, %v", n, err)
		}
	}
}

// recv returns the next packet for the program, or nil after wait.
func (l *lab) recv(wait time.Duration) []byte {
	l.reading.Do(func() {
		l.got = make(chan []byte, 4096)
		go func() {
			for {
				buf, sizes := [][]byte{make([]byte, 65536)}, []int{0}
				n, err := l.prog.Read(buf, sizes)
				if err != nil {
					return
				}
				if n == 1 {
					l.got <- buf[0][:sizes[0]]
				}
			}
		}()
	})
	select {
	case b := <-l.got:
		return b
	case <-time.After(wait):
		return nil
	}
}

// eventually waits until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// program is a second netstack at the other end of the pipe: a whole kernel to the Stack.
type program struct {
	net  *stack.Stack
	once sync.Once
	wg   sync.WaitGroup
	link *channel.Endpoint
}

func newProgram(t testing.TB, l *lab) *program {
	t.Helper()
	p := &program{link: channel.New(1024, uint32(l.prog.MTU()), "")}
	p.net = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := p.net.CreateNIC(1, p.link); err != nil {
		t.Fatal(err)
	}
	for i, proto := range []tcpip.NetworkProtocolNumber{ipv4.ProtocolNumber, ipv6.ProtocolNumber} {
		a := tcpip.AddrFromSlice(families[i].prog.AsSlice())
		if err := p.net.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: proto, AddressWithPrefix: a.WithPrefix()}, stack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
	}
	p.net.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}, {Destination: header.IPv6EmptySubnet, NIC: 1}})
	ctx, cancel := context.WithCancel(context.Background())
	p.wg.Go(func() { p.outbound(ctx, l.prog) })
	p.wg.Go(func() { p.inbound(l.prog) })
	t.Cleanup(func() {
		l.stop()
		cancel()
		p.wg.Wait()
		p.net.Destroy()
	})
	return p
}

func (p *program) outbound(ctx context.Context, dev *tun.PipeEnd) {
	for {
		pkt := p.link.ReadContext(ctx)
		if pkt == nil {
			return
		}
		v := pkt.ToView()
		dev.Write([][]byte{v.AsSlice()})
		v.Release()
		pkt.DecRef()
	}
}

func (p *program) inbound(dev *tun.PipeEnd) {
	bufs, sizes := [][]byte{make([]byte, 65536)}, []int{0}
	for {
		n, err := dev.Read(bufs, sizes)
		if err != nil {
			return
		}
		if n == 0 {
			continue
		}
		proto := header.IPv4ProtocolNumber
		if bufs[0][0]>>4 == 6 {
			proto = header.IPv6ProtocolNumber
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(bufs[0][:sizes[0]])})
		p.link.InjectInbound(proto, pkt)
		pkt.DecRef()
	}
}

func (p *program) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	proto := ipv4.ProtocolNumber
	if to.Addr().Is6() {
		proto = ipv6.ProtocolNumber
	}
	a := tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(to.Addr().AsSlice()), Port: to.Port()}
	c, err := gonet.DialContextTCP(ctx, p.net, a, proto)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// segment makes a TCP packet of a program.
func segment(f family, src, dst netip.AddrPort, flags uint8, seq, ack uint32, payload []byte) []byte {
	b := make([]byte, 20, 20+len(payload))
	h := header.TCP(b)
	h.Encode(&header.TCPFields{SrcPort: src.Port(), DstPort: dst.Port(), SeqNum: seq, AckNum: ack,
		DataOffset: 20, Flags: header.TCPFlags(flags), WindowSize: 65535})
	b = append(b, payload...)
	sum := packet.PseudoSum(src.Addr(), dst.Addr(), packet.TCP, len(b))
	h = header.TCP(b)
	h.SetChecksum(packet.Fold(packet.Sum(b, sum)))
	return ipPacket(f, packet.TCP, src.Addr(), dst.Addr(), b)
}

// ipPacket puts an IP header before body.
func ipPacket(f family, proto packet.Proto, src, dst netip.Addr, body []byte) []byte {
	if f.prog.Is4() {
		b := make([]byte, 20, 20+len(body))
		h := header.IPv4(b)
		h.Encode(&header.IPv4Fields{TotalLength: uint16(20 + len(body)), TTL: 61, TOS: 0x28, Protocol: uint8(proto),
			ID: 77, SrcAddr: tcpip.AddrFromSlice(src.AsSlice()), DstAddr: tcpip.AddrFromSlice(dst.AsSlice())})
		h.SetChecksum(^h.CalculateChecksum())
		return append(b, body...)
	}
	b := make([]byte, 40, 40+len(body))
	header.IPv6(b).Encode(&header.IPv6Fields{PayloadLength: uint16(len(body)), HopLimit: 61, TrafficClass: 0x28,
		TransportProtocol: tcpip.TransportProtocolNumber(proto),
		SrcAddr:           tcpip.AddrFromSlice(src.AsSlice()), DstAddr: tcpip.AddrFromSlice(dst.AsSlice())})
	return append(b, body...)
}

// udpPacket makes a datagram of a program.
func udpPacket(src, dst netip.AddrPort, payload []byte) []byte {
	ip := packet.IP{Src: src.Addr(), Dst: dst.Addr(), TTL: 61, TOS: 0x28, ID: 9}
	return packet.AppendUDP(nil, &ip, src.Port(), dst.Port(), payload)
}

// echoPacket makes an echo request of a program.
func echoPacket(src, dst netip.Addr, id, seq uint16, payload []byte) []byte {
	ip := packet.IP{Src: src, Dst: dst, TTL: 61, TOS: 0x28, ID: 9}
	b := packet.AppendEchoReply(nil, &ip, id, seq, payload)
	at, typ, start := 20, byte(packet.ICMP4Echo), uint64(0)
	if dst.Is6() {
		at, typ = 40, packet.ICMP6Echo
		start = packet.PseudoSum(src, dst, packet.ICMPv6, len(b)-40)
	}
	b[at], b[at+2], b[at+3] = typ, 0, 0
	sum := packet.Fold(packet.Sum(b[at:], start))
	b[at+2], b[at+3] = byte(sum>>8), byte(sum)
	return b
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
