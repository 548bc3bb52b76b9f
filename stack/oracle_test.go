package stack

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/header/parse"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"gatun/network/packet"
)

// oracle is what netstack's parser says about a packet.
type oracle struct {
	ok               bool
	src, dst         netip.Addr
	proto            packet.Proto
	fragment         bool
	srcPort, dstPort uint16
	network          int
}

// gvisorParse parses b as netstack does on its way in.
func gvisorParse(b []byte) oracle {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	defer pkt.DecRef()
	var o oracle
	switch {
	case header.IPVersion(b) == 4 && parse.IPv4(pkt):
		h := header.IPv4(pkt.NetworkHeader().Slice())
		if !h.IsValid(pkt.Data().Size() + len(h)) {
			return o
		}
		o = oracle{ok: true, src: addr(h.SourceAddress()), dst: addr(h.DestinationAddress()), proto: packet.Proto(h.Protocol()),
			fragment: h.More() || h.FragmentOffset() != 0, network: len(h)}
	case header.IPVersion(b) == 6:
		proto, _, off, more, ok := parse.IPv6(pkt)
		if !ok {
			return o
		}
		h := header.IPv6(pkt.NetworkHeader().Slice())
		o = oracle{ok: true, src: addr(h.SourceAddress()), dst: addr(h.DestinationAddress()), proto: packet.Proto(proto),
			fragment: more || off != 0, network: len(h)}
	default:
		return o
	}
	if o.fragment {
		return o
	}
	switch o.proto {
	case packet.TCP:
		if o.ok = parse.TCP(pkt); o.ok {
			h := header.TCP(pkt.TransportHeader().Slice())
			o.srcPort, o.dstPort = h.SourcePort(), h.DestinationPort()
		}
	case packet.UDP:
		if o.ok = parse.UDP(pkt); o.ok {
			h := header.UDP(pkt.TransportHeader().Slice())
			o.srcPort, o.dstPort = h.SourcePort(), h.DestinationPort()
		}
	}
	return o
}

// FuzzParseOracle compares our parser with netstack's: what we take, it reads the same way.
// We are stricter on purpose (hiding fragments, mapped addresses, long chains), so what we
// refuse says nothing.
func FuzzParseOracle(f *testing.F) {
	for _, fam := range families {
		dg := udpPacket(at(fam.prog, 5000), at(fam.peer, 53), []byte("payload of some length"))
		f.Add(dg)
		f.Add(segment(fam, at(fam.prog, 5000), at(fam.peer, 80), packet.TCPSyn, 1, 0, []byte("x")))
		f.Add(echoPacket(fam.prog, fam.peer, 1, 2, []byte("x")))
		f.Add(sourceRouted(fam, dg))
		for _, p := range pieces(udpPacket(at(fam.prog, 5000), at(fam.peer, 53), make([]byte, 1000)), 600) {
			f.Add(p)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := packet.Parse(b)
		if err != nil {
			return
		}
		switch h.Flow.Proto {
		case packet.TCP, packet.UDP, packet.ICMP, packet.ICMPv6:
		default:
			return // netstack never gets it; it takes 59 and 253 for extension headers, we for protocols
		}
		o := gvisorParse(b)
		if !o.ok {
			t.Fatalf("netstack refuses %+v", h)
		}
		got := oracle{ok: true, src: h.Flow.Local.Addr(), dst: h.Flow.Remote.Addr(), proto: h.Flow.Proto, fragment: h.Fragment, network: h.NetworkLen}
		if h.Flow.Proto == packet.TCP || h.Flow.Proto == packet.UDP {
			got.srcPort, got.dstPort = h.Flow.Local.Port(), h.Flow.Remote.Port()
		}
		if o.fragment { // netstack does not look for it in pieces
			o.proto = got.proto
		}
		if got != o {
			t.Fatalf("we:       %+v\nnetstack: %+v", got, o)
		}
	})
}

// FuzzChecksum compares our checksum with netstack's.
func FuzzChecksum(f *testing.F) {
	f.Add([]byte("odd"), uint16(0xffff))
	f.Add(make([]byte, 100), uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, start uint16) {
		if got, want := ^packet.Fold(packet.Sum(b, uint64(start))), checksum.Checksum(b, start); got != want && got^want != 0xffff {
			t.Fatalf("got %x, want %x", got, want)
		}
	})
}
