package packet

import (
	"net/netip"
	"testing"
)

func TestAppendReset(t *testing.T) {
	for _, c := range []struct{ src, dst string }{{"192.0.2.2", "198.51.100.7"}, {"2001:db8::2", "2001:db8::7"}} {
		ip := IP{Src: netip.MustParseAddr(c.src), Dst: netip.MustParseAddr(c.dst), TTL: DefaultTTL}
		b := AppendReset(nil, &ip, 22, 40000, 0x01020304)
		h, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		want := Flow{Proto: TCP, Local: netip.AddrPortFrom(ip.Src, 22), Remote: netip.AddrPortFrom(ip.Dst, 40000)}
		if h.Flow != want || h.TCPFlags != TCPRst|TCPAck || h.TCPSeq != 0 || !h.TransportChecksumOK(b) || !h.HeaderChecksumOK(b) {
			t.Errorf("%s: %+v, checksums %v %v", c.src, h, h.HeaderChecksumOK(b), h.TransportChecksumOK(b))
		}
		if ack := b[h.NetworkLen+8 : h.NetworkLen+12]; string(ack) != "\x01\x02\x03\x04" {
			t.Errorf("%s: acknowledges %x", c.src, ack)
		}
	}
}
