package stack

import (
	"fmt"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/stack/gro"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// nicID is the only interface of the netstack.
const nicID tcpip.NICID = 1

// gsoMaxSize is the largest super-packet that netstack hands over.
const gsoMaxSize = 65000

// link is netstack's view of the device: inbound packets are injected by the reader, outbound
// ones are queued for the writer. It segments super-packets itself (see writer.segment), which
// is why it calls itself a host with segmentation offload.
type link struct {
	out        *outQueue
	mtu        uint32
	dispatcher atomic.Pointer[stack.NetworkDispatcher]
	gro        gro.GRO // the reader's
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

// inject hands one TCP packet to netstack. Consecutive segments of a connection may be merged
// until flush. Only the reader calls it.
func (l *link) inject(b []byte, six bool) {
	if d := l.dispatcher.Load(); d != nil {
		pkt := received(b, six)
		l.gro.Dispatcher = *d
		l.gro.Enqueue(pkt)
		pkt.DecRef()
	}
}

// injectLarge is inject for a packet whose buffer becomes netstack's. Its headers get a buffer of
// their own: netstack clones the one that they are in.
func (l *link) injectLarge(v *buffer.View, headers int, six bool) {
	d := l.dispatcher.Load()
	if d == nil {
		v.Release()
		return
	}
	head := buffer.NewView(headers)
	head.Grow(head.Capacity()) // no room at its end: Append would fill that from v
	head.TrimFront(head.Size() - headers)
	copy(head.AsSlice(), v.AsSlice())
	v.TrimFront(headers)
	payload := buffer.MakeWithView(head)
	_ = payload.Append(v)
	pkt := receivedIn(payload, six)
	l.gro.Dispatcher = *d
	l.gro.Enqueue(pkt)
	pkt.DecRef()
}

// injectAlone is inject for any goroutine: the packet is merged with no other.
func (l *link) injectAlone(b []byte, six bool) {
	if d := l.dispatcher.Load(); d != nil {
		pkt := received(b, six)
		(*d).DeliverNetworkPacket(pkt.NetworkProtocolNumber, pkt)
		pkt.DecRef()
	}
}

// received makes netstack's form of a packet whose checksums were verified.
func received(b []byte, six bool) *stack.PacketBuffer {
	return receivedIn(buffer.MakeWithData(b), six)
}

func receivedIn(b buffer.Buffer, six bool) *stack.PacketBuffer {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: b})
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	if six {
		pkt.NetworkProtocolNumber = header.IPv6ProtocolNumber
	}
	pkt.RXChecksumValidated = true
	return pkt
}

// flush delivers what inject has kept back.
func (l *link) flush() { l.gro.Flush() }

// WritePackets implements stack.LinkWriter. It waits while the device is slow.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, pkt := range pkts.AsSlice() {
		if !l.out.put(outItem{pkt: pkt.IncRef()}) {
			return n, &tcpip.ErrClosedForSend{}
		}
		n++
	}
	return n, nil
}

// Attach implements stack.NetworkLinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.dispatcher.Store(nil)
		return
	}
	l.dispatcher.Store(&d)
}

// IsAttached implements stack.NetworkLinkEndpoint.
func (l *link) IsAttached() bool { return l.dispatcher.Load() != nil }

// MTU implements stack.NetworkLinkEndpoint.
func (l *link) MTU() uint32 { return l.mtu }

// Capabilities implements stack.NetworkLinkEndpoint: the reader verifies checksums.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// GSOMaxSize implements stack.GSOEndpoint.
func (l *link) GSOMaxSize() uint32 { return gsoMaxSize }

// SupportedGSO implements stack.GSOEndpoint.
func (l *link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// SetMTU implements stack.NetworkLinkEndpoint; the device's MTU is fixed.
func (l *link) SetMTU(uint32) {}

// MaxHeaderLength implements stack.NetworkLinkEndpoint.
func (l *link) MaxHeaderLength() uint16 { return 0 }

// LinkAddress implements stack.NetworkLinkEndpoint.
func (l *link) LinkAddress() tcpip.LinkAddress { return "" }

// SetLinkAddress implements stack.NetworkLinkEndpoint.
func (l *link) SetLinkAddress(tcpip.LinkAddress) {}

// Wait implements stack.NetworkLinkEndpoint.
func (l *link) Wait() {}

// ARPHardwareType implements stack.NetworkLinkEndpoint.
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader implements stack.NetworkLinkEndpoint.
func (l *link) AddHeader(*stack.PacketBuffer) {}

// ParseHeader implements stack.NetworkLinkEndpoint.
func (l *link) ParseHeader(*stack.PacketBuffer) bool { return true }

// Close implements stack.NetworkLinkEndpoint.
func (l *link) Close() {}

// SetOnCloseAction implements stack.NetworkLinkEndpoint.
func (l *link) SetOnCloseAction(func()) {}

// newNetstack makes a netstack. Only TCP is registered: whatever is not TCP never reaches it,
// so it cannot answer pings or unknown ports on its own.
func (s *Stack) newNetstack() (*netstack, error) {
	ns := &netstack{link: &link{out: &s.out, mtu: uint32(s.mtu)}}
	ns.link.gro.Init(true)
	n := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocolCUBIC},
		HandleLocal:        false,
		Clock:              newClock(),
	})
	ns.net = n
	if err := setOptions(n); err != nil {
		n.Destroy()
		return nil, err
	}
	if err := n.CreateNIC(nicID, ns.link); err != nil {
		n.Destroy()
		return nil, fmt.Errorf("stack: create interface: %s", err)
	}
	// Every address is ours to receive (promiscuous) and to answer from (spoofing).
	n.SetPromiscuousMode(nicID, true)
	n.SetSpoofing(nicID, true)
	n.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	// Our own table bounds the SYNs; the forwarder's limit would drop silently.
	ns.fwd = tcp.NewForwarder(n, 0, 1<<30, s.serveTCP)
	n.SetTransportProtocolHandler(tcp.ProtocolNumber, func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		return s.unmatchedTCP(ns, id, pkt)
	})
	return ns, nil
}

func setOptions(n *stack.Stack) error {
	opts := []tcpip.SettableTransportProtocolOption{
		ptr(tcpip.TCPSACKEnabled(true)),
		// The device neither loses nor reorders: RACK's timers would cost 15-20 % CPU for nothing.
		ptr(tcpip.TCPRecovery(0)),
		ptr(tcpip.CongestionControlOption("cubic")),
		ptr(tcpip.TCPModerateReceiveBufferOption(true)),
		&tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: 4 << 20},
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: 4 << 20},
		// The program's kernel keeps no TIME_WAIT when the server closes first and reuses its
		// port at once; a 4-tuple that lingers here would swallow the new SYN.
		ptr(tcpip.TCPTimeWaitTimeoutOption(10 * time.Millisecond)),
		ptr(tcpip.TCPSynRetriesOption(3)),
		ptr(tcpip.TCPLingerTimeoutOption(30 * time.Second)),
	}
	for _, o := range opts {
		if err := n.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("stack: set %T: %s", o, err)
		}
	}
	return nil
}

func ptr[T any](v T) *T { return &v }
