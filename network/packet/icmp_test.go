package packet

import (
	"bytes"
	"errors"
	"net/netip"
	"syscall"
	"testing"
)

func TestICMPErrorMeaning(t *testing.T) {
	tests := []struct {
		name   string
		make   func(netip.Addr) *ICMPError
		errno4 syscall.Errno
		errno6 syscall.Errno
		wire4  [2]uint8
		wire6  [2]uint8
		text   string
	}{
		{"port", PortUnreachable, syscall.ECONNREFUSED, syscall.ECONNREFUSED, [2]uint8{3, 3}, [2]uint8{1, 4}, "port unreachable"},
		{"host", HostUnreachable, syscall.EHOSTUNREACH, syscall.EHOSTUNREACH, [2]uint8{3, 1}, [2]uint8{1, 3}, "host unreachable"},
		{"net", NetUnreachable, syscall.ENETUNREACH, syscall.ENETUNREACH, [2]uint8{3, 0}, [2]uint8{1, 0}, "network unreachable"},
		{"admin", AdminProhibited, syscall.EHOSTUNREACH, syscall.EACCES, [2]uint8{3, 13}, [2]uint8{1, 1}, "administratively prohibited"},
		{"protocol", ProtocolUnreachable, syscall.ENOPROTOOPT, syscall.EPROTO, [2]uint8{3, 2}, [2]uint8{4, 1}, "protocol unreachable"},
		{"ttl", TimeExceeded, syscall.EHOSTUNREACH, syscall.EHOSTUNREACH, [2]uint8{11, 0}, [2]uint8{3, 0}, "time exceeded"},
		{"mtu", func(a netip.Addr) *ICMPError { return TooBig(a, 1400) }, syscall.EMSGSIZE, syscall.EMSGSIZE, [2]uint8{3, 4}, [2]uint8{2, 0}, "packet too big, next hop takes 1400 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e4, e6, ours := tt.make(b4), tt.make(b6), tt.make(netip.Addr{})
			if !errors.Is(e4, tt.errno4) || !errors.Is(e6, tt.errno6) || !errors.Is(ours, tt.errno4) {
				t.Errorf("errno: %v, %v, %v", e4.Unwrap(), e6.Unwrap(), ours.Unwrap())
			}
			if got := [2]uint8{e4.Type, e4.Code}; got != tt.wire4 {
				t.Errorf("IPv4 %v, want %v", got, tt.wire4)
			}
			if got := [2]uint8{e6.Type, e6.Code}; got != tt.wire6 {
				t.Errorf("IPv6 %v, want %v", got, tt.wire6)
			}
			if x := ours.As6(); [2]uint8{x.Type, x.Code} != tt.wire6 || x.From.IsValid() {
				t.Errorf("translated to %+v", x)
			}
			if x := e6.As4(); [2]uint8{x.Type, x.Code} != tt.wire4 || x.From.IsValid() {
				t.Errorf("translated back to %+v", x)
			}
			if ours.Error() != tt.text || e6.Error() != "2001:db8::1: "+tt.text {
				t.Errorf("says %q and %q", ours, e6)
			}
		})
	}
}

func TestICMPErrorOfRouters(t *testing.T) {
	tests := []struct {
		e    ICMPError
		want error
	}{
		{ICMPError{From: b4, Type: 3, Code: 5}, syscall.EOPNOTSUPP},
		{ICMPError{From: b4, Type: 3, Code: 6}, syscall.ENETUNREACH},
		{ICMPError{From: b4, Type: 3, Code: 7}, syscall.EHOSTDOWN},
		{ICMPError{From: b4, Type: 3, Code: 10}, syscall.EHOSTUNREACH},
		{ICMPError{From: b4, Type: 12}, syscall.EPROTO},
		{ICMPError{From: b4, Type: 0}, nil},
		{ICMPError{From: b6, Type: 1, Code: 5}, syscall.EACCES},
		{ICMPError{From: b6, Type: 1, Code: 2}, syscall.EHOSTUNREACH},
		{ICMPError{From: b6, Type: 4}, syscall.EPROTO},
		{ICMPError{From: b6, Type: 129}, nil},
	}
	for _, tt := range tests {
		if got := tt.e.Unwrap(); got != tt.want {
			t.Errorf("%+v is %v, want %v", tt.e, got, tt.want)
		}
	}
}

func TestICMPErrorIsNeverSentAbout(t *testing.T) {
	ip4, ip6 := IP{Src: a4, Dst: b4, TTL: 1}, IP{Src: a6, Dst: b6, TTL: 1}
	u4, u6 := AppendUDP(nil, &ip4, 1, 2, nil), AppendUDP(nil, &ip6, 1, 2, nil)
	var pieces [][]byte
	Split(AppendUDP(nil, &ip4, 1, 2, make([]byte, 3000)), 1500, 1, func(b []byte) { pieces = append(pieces, bytes.Clone(b)) })
	port := PortUnreachable(netip.Addr{})
	for name, b := range map[string][]byte{
		"nothing":             nil,
		"noise":               []byte("\x00 not a packet at all, but longer than the headers"),
		"an ICMP error":       AppendICMPError(nil, port, u4),
		"an ICMPv6 error":     AppendICMPError(nil, port, u6),
		"a later fragment":    pieces[1],
		"half a header":       u4[:20],
		"half an IPv6 packet": u6[:44],
	} {
		if got := AppendICMPError([]byte("x"), port, b); string(got) != "x" {
			t.Errorf("about %s: %x", name, got)
		}
	}
	if got := AppendICMPError(nil, port, pieces[0]); len(got) == 0 {
		t.Error("a first fragment is not answered")
	}
}

func TestICMPErrorSource(t *testing.T) {
	ip := IP{Src: a4, Dst: b4, TTL: 1}
	u := AppendUDP(nil, &ip, 1, 2, nil)
	hop := netip.MustParseAddr("198.51.100.1")
	for _, tt := range []struct {
		e    *ICMPError
		want netip.Addr
	}{
		{TimeExceeded(hop), hop}, {TimeExceeded(netip.Addr{}), b4}, {TimeExceeded(b6), b4},
	} {
		b := AppendICMPError(nil, tt.e, u)
		h, err := Parse(b)
		if err != nil || h.Flow.Local.Addr() != tt.want || h.Flow.Remote.Addr() != a4 || h.ICMPType != ICMP4TimeExceeded {
			t.Errorf("%v: %+v, %v", tt.e, h, err)
		}
	}
}

func TestSplit(t *testing.T) {
	for _, ip := range []IP{{Src: a4, Dst: b4, TTL: 64, ID: 9}, {Src: a6, Dst: b6, TTL: 64}} {
		payload := make([]byte, 10000)
		for i := range payload {
			payload[i] = byte(i * 7)
		}
		whole := AppendUDP(nil, &ip, 1, 2, payload)
		body, next := []byte{}, 0
		Split(whole, 1280, 99, func(b []byte) {
			h, err := Parse(b)
			if err != nil || !h.Fragment || h.FragmentOffset != next || len(b) > 1280 || !h.HeaderChecksumOK(b) {
				t.Fatalf("piece at %d: %+v, %v", next, h, err)
			}
			next += h.TotalLen - h.HeaderLen
			body = append(body, b[h.HeaderLen:]...)
		})
		if !bytes.HasSuffix(whole, body) || len(whole)-len(body) > 40 {
			t.Errorf("pieces have %d bytes of %d", len(body), len(whole))
		}
		n := 0
		Split(whole[:1280], 1280, 1, func(b []byte) { n += len(b) })
		if n != 1280 {
			t.Errorf("a packet that fits came out with %d bytes", n)
		}
	}
}

func TestBuildersDoNotAllocate(t *testing.T) {
	buf, payload := make([]byte, 0, 2048), make([]byte, 1200)
	ip := IP{Src: a6, Dst: b6, TTL: 64}
	if n := testing.AllocsPerRun(100, func() { AppendUDP(buf, &ip, 1, 2, payload) }); n != 0 {
		t.Errorf("AppendUDP: %v allocations", n)
	}
}
