package state

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"gatun/network/packet"
)

var compareAddrs = cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{})

func flow(p packet.Proto, local, remote string) packet.Flow {
	return packet.Flow{Proto: p, Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote)}
}

// reply builds one netlink message as the kernel answers an inet_diag query.
func reply(kind, flags uint16, seq uint32, body []byte) []byte {
	le := binary.NativeEndian
	b := le.AppendUint32(nil, uint32(headerLen+len(body)))
	b = le.AppendUint16(b, kind)
	b = le.AppendUint16(b, flags)
	b = le.AppendUint32(b, seq)
	b = le.AppendUint32(b, 0)
	b = append(b, body...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// diagMsg builds one struct inet_diag_msg with a V6ONLY and a CGROUP_ID attribute.
func diagMsg(family uint8, local, remote netip.AddrPort, inode uint32) []byte {
	le := binary.NativeEndian
	b := []byte{family, byte(Established), 0, 0}
	b = binary.BigEndian.AppendUint16(b, local.Port())
	b = binary.BigEndian.AppendUint16(b, remote.Port())
	b = appendAddr(b, local.Addr(), family)
	b = appendAddr(b, remote.Addr(), family)
	b = le.AppendUint32(b, 7)          // interface
	b = le.AppendUint32(b, 0x89abcdef) // cookie
	b = le.AppendUint32(b, 0x01234567)
	b = append(b, make([]byte, 12)...) // expires, queues
	b = le.AppendUint32(b, 1000)
	b = le.AppendUint32(b, inode)
	b = append(b, 5, 0, attrSKV6Only, 0, 1, 0, 0, 0)
	b = append(b, 12, 0, attrCGroupID, 0)
	return le.AppendUint64(b, 4711)
}

func TestParseReply(t *testing.T) {
	local4, remote4 := netip.MustParseAddrPort("10.0.0.2:40000"), netip.MustParseAddrPort("192.0.2.1:443")
	mapped := netip.AddrPortFrom(netip.AddrFrom16(local4.Addr().As16()), 40000)
	want := Socket{Proto: packet.TCP, Local: local4, Remote: remote4, State: Established, Inode: 99,
		Cookie: 0x0123456789abcdef, UID: 1000, CGroup: 4711, Device: 7, V6Only: true}
	message := diagMsg(familyV4, local4, remote4, 99)
	enoent := int32(-2)
	for name, test := range map[string]struct {
		in   []byte
		want []Socket
		done bool
		err  string
	}{
		"exact":              {in: reply(sockDiagByFamily, 0, 1, message), want: []Socket{want}, done: true},
		"dump goes on":       {in: reply(sockDiagByFamily, 2, 1, message), want: []Socket{want}},
		"dump ends":          {in: append(reply(sockDiagByFamily, 2, 1, message), reply(nlmsgDone, 2, 1, make([]byte, 4))...), want: []Socket{want}, done: true},
		"mapped is unmapped": {in: reply(sockDiagByFamily, 0, 1, diagMsg(familyV6, mapped, remote4, 99)), want: []Socket{want}, done: true},
		"stale answer":       {in: append(reply(nlmsgError, 0, 7, make([]byte, 20)), reply(sockDiagByFamily, 0, 1, message)...), want: []Socket{want}, done: true},
		"not found":          {in: reply(nlmsgError, 0, 1, binary.NativeEndian.AppendUint32(nil, uint32(enoent))), done: true, err: errNotFound.Error()},
		"short header":       {in: []byte{1, 2, 3}, err: errTruncated.Error()},
		"short message":      {in: reply(sockDiagByFamily, 0, 1, message[:40]), err: errTruncated.Error()},
		"length lies":        {in: reply(sockDiagByFamily, 0, 1, message)[:50], err: errTruncated.Error()},
		"attribute lies":     {in: reply(sockDiagByFamily, 0, 1, append(message[:diagMsgLen:diagMsgLen], 200, 0, 1, 0)), err: errTruncated.Error()},
		"unknown family":     {in: reply(sockDiagByFamily, 0, 1, append([]byte{99}, message[1:]...)), err: "family 99"},
	} {
		t.Run(name, func(t *testing.T) {
			got, done, err := parseReply(nil, test.in, 1, packet.TCP)
			if done != test.done || (err == nil) != (test.err == "") || (err != nil && !strings.Contains(err.Error(), test.err)) {
				t.Fatalf("done %t, error %v; want %t, %q", done, err, test.done, test.err)
			}
			if d := cmp.Diff(test.want, got, compareAddrs); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestParseProcNet(t *testing.T) {
	const text = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
   97: 0200000A:0061 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 9021 2 0000000000000000 0

  151: 00000000000000000000000001000000:003A 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 9022 2 0000000000000000 0
`
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the text above is that of a little-endian machine")
	}
	ping, err := parseProcNet(nil, []byte(text), pingTable, packet.ICMP)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := parseProcNet(nil, []byte(text), rawTable, packet.ICMP)
	if err != nil {
		t.Fatal(err)
	}
	any4, any6 := netip.MustParseAddrPort("0.0.0.0:0"), netip.MustParseAddrPort("[::]:0")
	want := []Socket{
		{Proto: packet.ICMP, Local: netip.MustParseAddrPort("10.0.0.2:97"), Remote: any4, State: Closed, Inode: 9021, UID: 1000},
		{Proto: packet.ICMPv6, Local: netip.MustParseAddrPort("[::1]:0"), Remote: any6, State: Closed, Inode: 9022, Raw: true},
	}
	if d := cmp.Diff(want, []Socket{ping[0], raw[1]}, compareAddrs); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"x\na b c", "x\n0: 0100007F 0:0 1 1 1 1 1 1 1", "x\n0: 0100007F:1 0100007F:1 zz 1 1 1 1 1 1",
		"x\n0: 0100007F:1 0100007F:1 07 1 1 1 -1 1 1", "x\n0: 0100007F:1 0100007F:1 07 1 1 1 1 1 one", "x\n0: 0100007G:1 0100007F:1 07 1 1 1 1 1 1"} {
		if _, err := parseProcNet(nil, []byte(bad), pingTable, packet.ICMP); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestOwnersOfDatagram(t *testing.T) {
	socket := func(local, remote string) Socket {
		return Socket{Proto: packet.UDP, Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote)}
	}
	bound4, other4 := socket("10.0.0.2:500", "0.0.0.0:0"), socket("127.0.0.1:500", "0.0.0.0:0")
	any4, any6 := socket("0.0.0.0:500", "0.0.0.0:0"), socket("[::]:500", "[::]:0")
	only6 := any6
	only6.V6Only = true
	connected, elsewhere := socket("10.0.0.2:500", "192.0.2.1:53"), socket("10.0.0.2:500", "192.0.2.9:53")
	bound6 := socket("[2001:db8::2]:500", "[::]:0")
	v4 := flow(packet.UDP, "10.0.0.2:500", "192.0.2.1:53")
	v6 := flow(packet.UDP, "[2001:db8::2]:500", "[2001:db8::1]:53")
	for name, test := range map[string]struct {
		f    packet.Flow
		in   []Socket
		want []Socket
	}{
		"bound to the address":               {v4, []Socket{bound4}, []Socket{bound4}},
		"bound to any":                       {v4, []Socket{any4}, []Socket{any4}},
		"dual stack":                         {v4, []Socket{any6}, []Socket{any6}},
		"IPv6 only cannot":                   {v4, []Socket{only6}, nil},
		"IPv4 cannot send IPv6":              {v6, []Socket{any4, bound4}, nil},
		"IPv6 beside IPv4":                   {v6, []Socket{any4, bound6}, []Socket{bound6}},
		"connected":                          {v4, []Socket{connected}, []Socket{connected}},
		"connected elsewhere":                {v4, []Socket{elsewhere}, nil},
		"bound elsewhere":                    {v4, []Socket{other4}, nil},
		"another port":                       {v4, []Socket{socket("10.0.0.2:501", "0.0.0.0:0")}, nil},
		"shared port is ambiguous":           {v4, []Socket{bound4, any4}, []Socket{bound4, any4}},
		"a thief on loopback is a candidate": {v4, []Socket{bound4, other4}, []Socket{bound4, other4}},
		"a thief connected is a candidate":   {v4, []Socket{bound4, elsewhere}, []Socket{bound4, elsewhere}},
	} {
		t.Run(name, func(t *testing.T) {
			marker := socket("1.1.1.1:1", "1.1.1.1:1")
			got := ownersOfDatagram(append([]Socket{marker}, test.in...), 1, test.f)
			if d := cmp.Diff(append([]Socket{marker}, test.want...), got, compareAddrs); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestOwnersOfRaw(t *testing.T) {
	any4 := netip.MustParseAddrPort("0.0.0.0:0")
	ping := Socket{Proto: packet.ICMP, Local: netip.MustParseAddrPort("0.0.0.0:97"), Remote: any4}
	other := Socket{Proto: packet.ICMP, Local: netip.MustParseAddrPort("0.0.0.0:98"), Remote: any4}
	raw := Socket{Proto: packet.ICMP, Local: any4, Remote: any4, Raw: true}
	header := Socket{Proto: 255, Local: any4, Remote: any4, Raw: true}
	gre := Socket{Proto: 47, Local: any4, Remote: any4, Raw: true}
	tied := Socket{Proto: packet.ICMP, Local: any4, Remote: netip.MustParseAddrPort("192.0.2.9:0"), Raw: true}
	f := flow(packet.ICMP, "10.0.0.2:97", "192.0.2.1:0")
	for name, test := range map[string]struct{ in, want []Socket }{
		"ping socket with the identifier": {[]Socket{other, ping, raw}, []Socket{ping}},
		"one raw socket":                  {[]Socket{other, raw, gre, tied}, []Socket{raw}},
		"own header counts":               {[]Socket{raw, header}, []Socket{raw, header}},
		"nothing fits":                    {[]Socket{other, gre, tied}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(test.want, ownersOfRaw(test.in, 0, f), compareAddrs, cmpopts.EquateEmpty()); d != "" {
				t.Error(d)
			}
		})
	}
}

func FuzzParseReply(f *testing.F) {
	local, remote := netip.MustParseAddrPort("10.0.0.2:40000"), netip.MustParseAddrPort("192.0.2.1:443")
	f.Add(reply(sockDiagByFamily, 2, 1, diagMsg(familyV4, local, remote, 5)))
	f.Add(reply(sockDiagByFamily, 0, 1, diagMsg(familyV6, local, remote, 5)))
	f.Add(reply(nlmsgDone, 2, 1, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		sockets, _, _ := parseReply(nil, b, 1, packet.TCP)
		for _, s := range sockets {
			if s.Local.Addr().Is4In6() || s.Remote.Addr().Is4In6() || !s.Local.Addr().IsValid() {
				t.Errorf("mapped or missing address in %+v", s)
			}
		}
		if len(sockets)*(headerLen+diagMsgLen) > len(b)+3 {
			t.Errorf("%d sockets out of %d bytes", len(sockets), len(b))
		}
	})
}

func FuzzParseProcNet(f *testing.F) {
	f.Add([]byte("head\n 97: 0200000A:0061 00000000:0000 07 0:0 00:0 0 1000 0 9021 2 0 0\n"))
	f.Add([]byte("head\n 1: 00000000000000000000000001000000:003A 00000000000000000000000000000000:0000 07 0 0 0 0 0 9022\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, kind := range []tableKind{pingTable, rawTable} {
			sockets, _ := parseProcNet(nil, b, kind, packet.ICMP)
			for _, s := range sockets {
				if !s.Local.Addr().IsValid() || s.Local.Addr().Is4In6() || s.Raw != (kind == rawTable) {
					t.Errorf("%+v", s)
				}
			}
		}
	})
}
