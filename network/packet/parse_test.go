package packet

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"testing"
)

var (
	a4 = netip.MustParseAddr("10.0.0.2")
	b4 = netip.MustParseAddr("192.0.2.1")
	a6 = netip.MustParseAddr("fd00::2")
	b6 = netip.MustParseAddr("2001:db8::1")
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(s), []byte(" "), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Packets as tcpdump -x shows them.
const (
	syn4   = "45000034 1c464000 40065413 0a000002 c0000201 c35001bb 00000064 00000000 80022000 00000000 020405b4 01010402 01030307"
	udp4   = "4510001e 00010000 3f11b0a8 0a000002 c0000201 13880035 000a0000 6869"
	echo4  = "4500001e 00010000 4001afcb 0a000002 c0000201 08000000 12340007 6869"
	udp6   = "62800000 000a 11 3d fd000000000000000000000000000002 20010db8000000000000000000000001 13880035 000a0000 6869"
	echo6  = "60000000 000a 3a 3d fd000000000000000000000000000002 20010db8000000000000000000000001 80000000 12340007 6869"
	opts6  = "60000000 001a 3c 3d fd000000000000000000000000000002 20010db8000000000000000000000001 1100010400000000 13880035 0012 0000 00112233445566778899"
	atomic = "60000000 0012 2c 3d fd000000000000000000000000000002 20010db8000000000000000000000001 11000000 0000abcd 13880035 000a0000 6869"
	frag6  = "60000000 0018 2c 3d fd000000000000000000000000000002 20010db8000000000000000000000001 11000019 0000abcd 00112233445566778899aabbccddeeff"
	route6 = "60000000 0012 2b 3d fd000000000000000000000000000002 20010db8000000000000000000000001 1100040000000000 13880035 000a0000 6869"
	frag4  = "4500001c 00072003 4011afcb 0a000002 c0000201 0011223344556677"
	lsrr4  = "47000026 00010000 4011afcb 0a000002 c0000201 83070401020304 00 13880035 000a0000 6869"
)

func TestParse(t *testing.T) {
	ap := netip.AddrPortFrom
	tests := []struct {
		name, pkt string
		want      Header
	}{
		{"syn4", syn4, Header{Flow: Flow{TCP, ap(a4, 50000), ap(b4, 443)}, TTL: 64, DontFragment: true, FragmentID: 0x1c46,
			TCPFlags: TCPSyn, TCPSeq: 100, NetworkLen: 20, HeaderLen: 52, TotalLen: 52}},
		{"udp4", udp4, Header{Flow: Flow{UDP, ap(a4, 5000), ap(b4, 53)}, TTL: 63, TOS: 0x10, FragmentID: 1,
			NetworkLen: 20, HeaderLen: 28, TotalLen: 30}},
		{"padding", udp4 + "0000", Header{Flow: Flow{UDP, ap(a4, 5000), ap(b4, 53)}, TTL: 63, TOS: 0x10, FragmentID: 1,
			NetworkLen: 20, HeaderLen: 28, TotalLen: 30}},
		{"echo4", echo4, Header{Flow: Flow{ICMP, ap(a4, 0x1234), ap(b4, 0)}, TTL: 64, FragmentID: 1,
			ICMPType: 8, ICMPSeq: 7, NetworkLen: 20, HeaderLen: 28, TotalLen: 30}},
		{"udp6", udp6, Header{Flow: Flow{UDP, ap(a6, 5000), ap(b6, 53)}, TTL: 61, TOS: 0x28, DontFragment: true,
			NetworkLen: 40, HeaderLen: 48, TotalLen: 50}},
		{"echo6", echo6, Header{Flow: Flow{ICMPv6, ap(a6, 0x1234), ap(b6, 0)}, TTL: 61, DontFragment: true,
			ICMPType: 128, ICMPSeq: 7, NetworkLen: 40, HeaderLen: 48, TotalLen: 50}},
		{"destination options", opts6, Header{Flow: Flow{UDP, ap(a6, 5000), ap(b6, 53)}, TTL: 61, DontFragment: true,
			NetworkLen: 48, HeaderLen: 56, TotalLen: 66}},
		{"atomic fragment", atomic, Header{Flow: Flow{UDP, ap(a6, 5000), ap(b6, 53)}, TTL: 61, DontFragment: true,
			FragmentID: 0xabcd, UnfragLen: 40, UnfragNext: 6, NetworkLen: 48, HeaderLen: 56, TotalLen: 58}},
		{"fragment6", frag6, Header{Flow: Flow{UDP, ap(a6, 0), ap(b6, 0)}, TTL: 61, DontFragment: true, Fragment: true,
			MoreFragments: true, FragmentOffset: 24, FragmentID: 0xabcd, UnfragLen: 40, UnfragNext: 6,
			NetworkLen: 48, HeaderLen: 48, TotalLen: 64}},
		{"fragment4", frag4, Header{Flow: Flow{UDP, ap(a4, 0), ap(b4, 0)}, TTL: 64, Fragment: true,
			MoreFragments: true, FragmentOffset: 24, FragmentID: 7, NetworkLen: 20, HeaderLen: 20, TotalLen: 28}},
		{"routing header", route6, Header{Flow: Flow{UDP, ap(a6, 5000), ap(b6, 53)}, TTL: 61, DontFragment: true,
			SourceRoute: true, NetworkLen: 48, HeaderLen: 56, TotalLen: 58}},
		{"loose source route", lsrr4, Header{Flow: Flow{UDP, ap(a4, 5000), ap(b4, 53)}, TTL: 64, FragmentID: 1,
			SourceRoute: true, NetworkLen: 28, HeaderLen: 36, TotalLen: 38}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(unhex(t, tt.pkt))
			if err != nil || got != tt.want {
				t.Errorf("got  %+v, %v\nwant %+v", got, err, tt.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	patch := func(s string, at int, v ...byte) []byte {
		b := unhex(t, s)
		copy(b[at:], v)
		return b
	}
	tests := []struct {
		name string
		pkt  []byte
		want error
	}{
		{"empty", nil, ErrTruncated},
		{"version 5", patch(udp4, 0, 0x55), ErrVersion},
		{"short header length", patch(udp4, 0, 0x44), ErrHeader},
		{"options beyond the end", patch(udp4, 0, 0x4f), ErrHeader},
		{"total length below header", patch(udp4, 2, 0, 19), ErrHeader},
		{"total length above packet", patch(udp4, 2, 0, 31), ErrTruncated},
		{"half an IPv4 header", unhex(t, udp4)[:19], ErrTruncated},
		{"half an IPv6 header", unhex(t, udp6)[:39], ErrTruncated},
		{"payload length above packet", patch(udp6, 4, 0, 11), ErrTruncated},
		{"option without length", patch(lsrr4, 20, 7, 0), ErrHeader},
		{"option beyond header", patch(lsrr4, 21, 9), ErrHeader},
		{"udp length below 8", patch(udp4, 24, 0, 7), ErrTransport},
		{"udp length above packet", patch(udp4, 24, 0, 11), ErrTransport},
		{"tcp data offset below 20", patch(syn4, 32, 0x40), ErrTransport},
		{"tcp data offset above packet", patch(syn4, 32, 0xf0), ErrTransport},
		{"mapped source", patch(udp6, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff), ErrAddress},
		{"extension beyond the end", patch(opts6, 41, 9), ErrTruncated},
		{"hop-by-hop not first", patch(opts6, 40, 0), ErrHeader},
		{"piece that is no multiple of 8", append(patch(frag4, 2, 0, 29), 0), ErrFragment},
		{"first piece with just the udp header", patch(frag4, 6, 0x20, 0), nil},
		{"tcp header in two pieces", patch(patchProto(t, frag4, 6), 6, 0x20, 0), ErrFragment},
		{"piece that rewrites tcp flags", patch(patchProto(t, frag4, 6), 6, 0x20, 1), ErrFragment},
		{"piece beyond 65535", patch(frag4, 6, 0x1f, 0xff), ErrFragment},
		{"piece beyond 65535 in IPv6", patch(frag6, 42, 0xff, 0xf9), ErrFragment},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if h, err := Parse(tt.pkt); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v (%+v)", err, tt.want, h)
			}
		})
	}
}

// patchProto makes the fragment one of proto.
func patchProto(t *testing.T, s string, proto byte) string {
	b := unhex(t, s)
	b[9] = proto
	return hex.EncodeToString(b)
}

func TestExtensionChainIsBounded(t *testing.T) {
	b := unhex(t, udp6)[:40]
	b[6] = 60
	for range 20 {
		b = append(b, 60, 0, 1, 4, 0, 0, 0, 0)
	}
	b[4], b[5] = 0, 160
	if _, err := Parse(b); !errors.Is(err, ErrHeader) {
		t.Errorf("got %v", err)
	}
}

func TestChecksums(t *testing.T) {
	for _, ip := range []IP{{Src: a4, Dst: b4, TTL: 64, ID: 5, DontFragment: true}, {Src: a6, Dst: b6, TTL: 64, TOS: 0xb8}} {
		for n := range 70 { // every tail length of Sum
			payload := bytes.Repeat([]byte{0xa5}, n)
			for name, b := range map[string][]byte{
				"udp":  AppendUDP(nil, &ip, 1000, 2000, payload),
				"echo": AppendEchoReply(nil, &ip, 1, 2, payload),
			} {
				h, err := Parse(b)
				if err != nil || !h.HeaderChecksumOK(b) || !h.TransportChecksumOK(b) || h.TOS != ip.TOS || h.TTL != 64 {
					t.Fatalf("%s of %d: %+v, %v", name, n, h, err)
				}
				if naive := naiveSum(b[h.NetworkLen:]); naive != fold16(Sum(b[h.NetworkLen:], 0)) {
					t.Fatalf("Sum differs from the definition at %d bytes", n)
				}
				b[len(b)-1] ^= 0x10
				if h.TransportChecksumOK(b) {
					t.Fatalf("%s of %d: a flipped bit passes", name, n)
				}
			}
		}
	}
}

// naiveSum is RFC 1071 word for word.
func naiveSum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		sum += w
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

func fold16(sum uint64) uint16 { return ^Fold(sum) }

func TestSumCarries(t *testing.T) {
	b := bytes.Repeat([]byte{0xff}, 1500)
	if got, want := fold16(Sum(b, 0xffffffffffffffff)), naiveSum(b); got != want {
		t.Errorf("all ones: %x, want %x", got, want)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{syn4, udp4, echo4, udp6, echo6, opts6, atomic, frag6, frag4, route6, lsrr4} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Parse(b)
		if err != nil {
			return
		}
		if !(0 < h.NetworkLen && h.NetworkLen <= h.HeaderLen && h.HeaderLen <= h.TotalLen && h.TotalLen <= len(b)) {
			t.Fatalf("offsets out of order: %+v", h)
		}
		if h.Flow.Local.Addr().Is4() != h.Flow.Remote.Addr().Is4() || h.Flow.Local.Addr().Is4In6() {
			t.Fatalf("families: %+v", h.Flow)
		}
		h.HeaderChecksumOK(b)
		h.TransportChecksumOK(b)
		if e := AppendICMPError(nil, PortUnreachable(netip.Addr{}), b); len(e) > 0 {
			eh, err := Parse(e)
			if err != nil || !eh.HeaderChecksumOK(e) || !eh.TransportChecksumOK(e) || len(e) > MinIPv6MTU {
				t.Fatalf("error about it: %+v, %v", eh, err)
			}
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for _, bb := range []struct{ name, pkt string }{{"udp4", udp4}, {"syn4", syn4}, {"udp6", udp6}} {
		pkt := unhex(b, bb.pkt)
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			var h Header
			for b.Loop() {
				if err := h.Parse(pkt); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSum1400(b *testing.B) {
	buf := make([]byte, 1400)
	b.SetBytes(1400)
	for b.Loop() {
		Sum(buf, 0)
	}
}
