package dns

import (
	"bytes"
	"context"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"gatun/network"
	"gatun/network/packet"
)

// cookieOf returns the cookie option of a reply, nil if it has none.
func cookieOf(t *testing.T, m *mdns.Msg) []byte {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if c, ok := o.(*mdns.EDNS0_COOKIE); ok {
				b, err := hex.DecodeString(c.Cookie)
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
		}
	}
	return nil
}

func withCookie(m *mdns.Msg, cookie string) *mdns.Msg {
	m.SetEdns0(1232, false)
	m.IsEdns0().Option = append(m.IsEdns0().Option, &mdns.EDNS0_COOKIE{Code: mdns.EDNS0COOKIE, Cookie: hex.EncodeToString([]byte(cookie))})
	return m
}

// TestCookies: RFC 7873. A client gets its cookie back with one of ours, which depends on it and
// on its address; none is ever required.
func TestCookies(t *testing.T) {
	up := simple(t)
	now := time.Unix(1_800_000_000, 0)
	r := newRig(t, func(o *Options) { o.Clock = func() time.Time { return now } }, up.resolver())
	get := func(m *mdns.Msg) *mdns.Msg { return r.query(t, m) }
	first := cookieOf(t, get(withCookie(ask("a.example", mdns.TypeA), "client-1")))
	if len(first) != 24 || string(first[:8]) != "client-1" || first[8] != 1 || !bytes.Equal(first[12:16], []byte{0x6b, 0x49, 0xd2, 0}) {
		t.Fatalf("cookie %x", first)
	}
	if again := cookieOf(t, get(withCookie(ask("b.example", mdns.TypeA), "client-1"))); !bytes.Equal(again, first) {
		t.Errorf("the same client at the same time: %x and %x", first, again)
	}
	other := cookieOf(t, get(withCookie(ask("a.example", mdns.TypeA), "client-2")))
	elsewhere := new(mdns.Msg)
	flow := packet.Flow{Proto: packet.UDP, Local: netip.MustParseAddrPort("10.9.0.3:40000"), Remote: clientFlow.Remote}
	if err := elsewhere.Unpack(r.ServeUDP(context.Background(), flow, owner("/bin/a", 0), packed(t, withCookie(ask("a.example", mdns.TypeA), "client-1")))); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Second)
	later := cookieOf(t, get(withCookie(ask("a.example", mdns.TypeA), "client-1")))
	r2 := newRig(t, func(o *Options) { o.Clock = func() time.Time { return now.Add(-time.Second) } }, up.resolver())
	restarted := cookieOf(t, r2.query(t, withCookie(ask("a.example", mdns.TypeA), "client-1")))
	for what, c := range map[string][]byte{"another client": other, "another address": cookieOf(t, elsewhere), "later": later, "another secret": restarted} {
		if len(c) != 24 || bytes.Equal(c[8:], first[8:]) {
			t.Errorf("%s: the same server cookie %x", what, c)
		}
	}
	for what, cookie := range map[string]string{
		"ours given back": string(first), "an old one of ours": string(later), "one of another server": "client-1" + strings.Repeat("x", 16),
		"the shortest": "client-1" + strings.Repeat("x", 8), "the longest": "client-1" + strings.Repeat("x", 32),
	} {
		reply := get(withCookie(ask("a.example", mdns.TypeA), cookie))
		if c := cookieOf(t, reply); reply.Rcode != mdns.RcodeSuccess || len(reply.Answer) != 1 || string(c[:8]) != cookie[:8] {
			t.Errorf("%s: got %v", what, reply)
		}
	}
	for _, n := range []int{0, 1, 7, 9, 15, 41} {
		reply := get(withCookie(ask("a.example", mdns.TypeA), strings.Repeat("c", n)))
		if reply.Rcode != mdns.RcodeFormatError || cookieOf(t, reply) != nil {
			t.Errorf("a cookie of %d bytes: got %v", n, reply)
		}
	}
	if c := cookieOf(t, get(ask("a.example", mdns.TypeA).SetEdns0(1232, false))); c != nil {
		t.Errorf("a cookie nobody sent: %x", c)
	}
	// It is in errors, in what is cut, and beside the reason, and counts for the size.
	r.firewall.before = func(*Query) network.Decision {
		return network.Decision{Verdict: network.Block, Stage: network.StageBeforeIntel, Reason: strings.Repeat("why ", 50)}
	}
	m := withCookie(ask("a.example", mdns.TypeA), "client-1")
	m.IsEdns0().SetUDPSize(512)
	b := r.ServeUDP(context.Background(), clientFlow, owner("/bin/a", 0), packed(t, m))
	reply := new(mdns.Msg)
	if err := reply.Unpack(b); err != nil || len(b) > 512 || cookieOf(t, reply) == nil {
		t.Fatalf("%d bytes, %v: %v", len(b), err, reply)
	}
	if code, text := ede(reply); code != mdns.ExtendedErrorCodeBlocked || !strings.HasPrefix(text, "why") {
		t.Errorf("EDE %d %q", code, text)
	}
	if n := up.queries.Load(); n != 3 { // a.example twice (two servers), b.example
		t.Errorf("%d upstream queries", n)
	}
}

// TestCookieStaysHere: what a client sends in EDNS is between it and us.
func TestOptionsStayHere(t *testing.T) {
	up := newUpstream(t, func(q *mdns.Msg, raw []byte, _ netip.AddrPort, send func([]byte)) {
		if opt := q.IsEdns0(); opt == nil || len(opt.Option) != 0 || opt.UDPSize() != maxUDP {
			t.Errorf("the upstream sees %v", opt)
		}
		send(packed(t, respond(t, q, mdns.RcodeSuccess, q.Question[0].Name+" 60 IN A 198.51.100.7")))
	}, nil)
	r := newRig(t, nil, up.resolver())
	m := withCookie(ask("a.example", mdns.TypeA), "client-1")
	opt := m.IsEdns0()
	opt.SetUDPSize(4000)
	opt.Option = append(opt.Option,
		&mdns.EDNS0_SUBNET{Code: mdns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: []byte{192, 0, 2, 0}},
		&mdns.EDNS0_NSID{Code: mdns.EDNS0NSID}, &mdns.EDNS0_LOCAL{Code: 65001, Data: []byte("device-id")})
	if reply := r.query(t, m); len(reply.Answer) != 1 {
		t.Fatalf("got %v", reply)
	}
}
