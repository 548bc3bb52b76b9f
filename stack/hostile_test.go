package stack

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"gatun/network/packet"
)

// corrupt returns b with its last byte changed.
func corrupt(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)-1] ^= 1
	return b
}

// sourceRouted adds a loose source route to an IPv4 packet, a routing header to an IPv6 one.
func sourceRouted(f family, b []byte) []byte {
	if f.prog.Is4() {
		head := append(bytes.Clone(b[:20]), 131, 7, 4, 203, 0, 113, 9, 0)
		head[0] = 0x47
		binary.BigEndian.PutUint16(head[2:], uint16(len(b)+8))
		head[10], head[11] = 0, 0
		binary.BigEndian.PutUint16(head[10:], packet.Fold(packet.Sum(head, 0)))
		return append(head, b[20:]...)
	}
	head := bytes.Clone(b[:40])
	next := head[6]
	head[6] = 43
	binary.BigEndian.PutUint16(head[4:], uint16(len(b)-40+8))
	head = append(head, next, 0, 4, 0, 0, 0, 0, 0)
	return append(head, b[40:]...)
}

func TestHostilePackets(t *testing.T) {
	multicast := []netip.Addr{netip.MustParseAddr("224.0.0.251"), netip.MustParseAddr("ff02::fb")}
	loop := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	none := []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	for i, f := range families {
		dg := func(src, dst netip.Addr) []byte { return udpPacket(at(src, 5000), at(dst, 53), []byte("payload")) }
		good := dg(f.prog, f.peer)
		syn := segment(f, at(f.prog, 5000), at(f.peer, 80), packet.TCPSyn, 1, 0, nil)
		tests := []struct {
			name string
			pkt  []byte
			got  func(Counters) uint64
		}{
			{"spoofed udp", dg(f.secret, f.peer), func(c Counters) uint64 { return c.Spoofed }},
			{"spoofed syn", segment(f, at(f.secret, 5000), at(f.peer, 80), packet.TCPSyn, 1, 0, nil), func(c Counters) uint64 { return c.Spoofed }},
			{"unspecified source", dg(none[i], f.peer), func(c Counters) uint64 { return c.Spoofed }},
			{"loopback source", dg(loop[i], f.peer), func(c Counters) uint64 { return c.Spoofed }},
			{"udp checksum", corrupt(good), func(c Counters) uint64 { return c.Checksum }},
			{"tcp checksum", corrupt(syn), func(c Counters) uint64 { return c.Checksum }},
			{"echo checksum", corrupt(echoPacket(f.prog, f.peer, 1, 1, []byte("x"))), func(c Counters) uint64 { return c.Checksum }},
			{"source route", sourceRouted(f, good), func(c Counters) uint64 { return c.SourceRoute }},
			{"multicast", dg(f.prog, multicast[i]), func(c Counters) uint64 { return c.Destination }},
			{"loopback", dg(f.prog, loop[i]), func(c Counters) uint64 { return c.Destination }},
			{"unspecified", dg(f.prog, none[i]), func(c Counters) uint64 { return c.Destination }},
			{"truncated", good[:len(good)-1], func(c Counters) uint64 { return c.Malformed }},
			{"empty", nil, func(c Counters) uint64 { return c.Malformed }},
			{"version", append([]byte{0x50}, good[1:]...), func(c Counters) uint64 { return c.Malformed }},
			{"icmp error", packet.AppendICMPError(nil, packet.PortUnreachable(f.prog), udpPacket(at(f.peer, 1), at(f.prog, 2), nil)), func(c Counters) uint64 { return c.ICMP }},
		}
		if f.prog.Is4() {
			badHeader := bytes.Clone(good)
			badHeader[8]--
			tests = append(tests, struct {
				name string
				pkt  []byte
				got  func(Counters) uint64
			}{"header checksum", badHeader, func(c Counters) uint64 { return c.Checksum }}, struct {
				name string
				pkt  []byte
				got  func(Counters) uint64
			}{"broadcast", dg(f.prog, broadcast4()), func(c Counters) uint64 { return c.Destination }})
		}
		for _, tt := range tests {
			t.Run(f.name+"/"+tt.name, func(t *testing.T) {
				l := newLab(t, &handler{}, Limits{}) // any flow fails the test
				l.send(tt.pkt)
				eventually(t, "counted", func() bool { return l.s.Counters().PacketsIn == 1 })
				if c := l.s.Counters(); tt.got(c) != 1 {
					t.Errorf("counted elsewhere: %+v", c)
				}
				if got := l.recv(10 * time.Millisecond); got != nil {
					t.Errorf("answered: %x", got)
				}
			})
		}
	}
}

func TestUDPZeroChecksum(t *testing.T) {
	sink := &recorder{}
	l := newLab(t, &handler{udp: func(u *UDPFlow) { u.Accept(sink) }}, Limits{})
	for _, f := range families {
		p := udpPacket(at(f.prog, 5000), at(f.peer, 53), []byte(f.name))
		hl := len(p) - len(f.name) - 8
		p[hl+6], p[hl+7] = 0, 0
		l.send(p)
	}
	eventually(t, "read", func() bool { return l.s.Counters().PacketsIn == 2 && len(sink.all()) > 0 })
	if got := sink.all(); len(got) != 1 || got[0] != "v4" || l.s.Counters().Checksum != 1 {
		t.Errorf("passed %v; a zero checksum is fine over IPv4 only", got)
	}
}

// pieces cuts a packet for small links.
func pieces(b []byte, mtu int) (all [][]byte) {
	packet.Split(b, mtu, rand.Uint32(), func(p []byte) { all = append(all, bytes.Clone(p)) })
	return all
}

func TestFragmentsReassembled(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		sink, ping := &recorder{}, make(echoes, 99)
		syns := make(chan packet.Flow, 9)
		l := newLab(t, &handler{
			udp:  func(u *UDPFlow) { u.Accept(sink) },
			ping: func(p *PingFlow) { p.Accept(ping) },
			tcp:  func(s *TCPFlow) { syns <- s.Flow(); s.Drop() },
		}, Limits{})
		payload := make([]byte, 5000)
		rng := rand.New(rand.NewPCG(1, 2))
		for i := range payload {
			payload[i] = byte(rng.Uint32())
		}
		whole := udpPacket(at(f.prog, 5000), at(f.peer, 53), payload)
		for range 20 { // any order, with duplicates
			ps := pieces(whole, 600)
			ps = append(ps, ps[:3]...)
			rng.Shuffle(len(ps), func(i, j int) { ps[i], ps[j] = ps[j], ps[i] })
			// A duplicate that comes after completion starts a packet that never completes:
			// the next round has another identification.
			for _, p := range ps {
				l.send(p)
			}
			eventually(t, "reassembled", func() bool { return len(sink.all()) > 0 })
			if got := sink.all(); got[0] != string(payload) {
				t.Fatal("reassembled to something else")
			}
			sink.mu.Lock()
			sink.got = nil
			sink.mu.Unlock()
			bump(f, whole)
		}
		l.send(pieces(echoPacket(f.prog, f.peer, 7, 1, payload), 600)...)
		if e := <-ping; !bytes.Equal(e.Payload, payload) {
			t.Error("echo reassembled to something else")
		}
		l.send(pieces(segment(f, at(f.prog, 6000), at(f.peer, 80), packet.TCPSyn, 1, 0, payload[:700]), 600)...)
		if got := <-syns; got.Remote != at(f.peer, 80) {
			t.Errorf("SYN in fragments: %v", got)
		}
	})
}

// bump gives an IPv4 packet a new identification; IPv6 has it in the pieces only.
func bump(f family, b []byte) {
	if f.prog.Is6() {
		return
	}
	binary.BigEndian.PutUint16(b[4:], binary.BigEndian.Uint16(b[4:])+1)
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], packet.Fold(packet.Sum(b[:20], 0)))
}

// fragment makes one piece by hand.
func fragment(f family, off int, more bool, data []byte) []byte {
	if f.prog.Is4() {
		b := ipPacket(f, packet.UDP, f.prog, f.peer, data)
		v := uint16(off / 8)
		if more {
			v |= 0x2000
		}
		binary.BigEndian.PutUint16(b[6:], v)
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], packet.Fold(packet.Sum(b[:20], 0)))
		return b
	}
	ext := []byte{17, 0, byte(off >> 8), byte(off), 0, 0, 0, 77}
	if more {
		ext[3] |= 1
	}
	return ipPacket(f, 44, f.prog, f.peer, append(ext, data...))
}

func TestEvilFragments(t *testing.T) {
	body := func(f family, n int) []byte { // a right datagram without its IP header
		p := udpPacket(at(f.prog, 5000), at(f.peer, 53), make([]byte, n-8))
		return p[len(p)-n:]
	}
	tests := []struct {
		name string
		pkts func(f family) [][]byte
	}{
		{"overlap", func(f family) [][]byte {
			b := body(f, 48)
			return [][]byte{fragment(f, 0, true, b[:32]), fragment(f, 24, false, b[24:]), fragment(f, 32, false, b[32:])}
		}},
		{"overlap from behind", func(f family) [][]byte {
			b := body(f, 48)
			return [][]byte{fragment(f, 24, false, b[24:]), fragment(f, 0, true, b[:32]), fragment(f, 0, true, b[:24])}
		}},
		{"rewritten piece", func(f family) [][]byte {
			b := body(f, 48)
			return [][]byte{fragment(f, 0, true, corrupt(b[:24])), fragment(f, 0, true, b[:24]), fragment(f, 24, false, b[24:])}
		}},
		{"tiny first piece", func(f family) [][]byte {
			b := body(f, 48)
			return [][]byte{fragment(f, 0, true, b[:4]), fragment(f, 8, false, b[8:])}
		}},
		{"two ends", func(f family) [][]byte {
			b := body(f, 48)
			return [][]byte{fragment(f, 40, false, b[40:]), fragment(f, 32, false, b[32:40]), fragment(f, 0, true, b[:32])}
		}},
		{"beyond the end", func(f family) [][]byte {
			b := body(f, 48)
			return [][]byte{fragment(f, 16, false, b[16:24]), fragment(f, 24, true, b[24:48]), fragment(f, 0, true, b[:16])}
		}},
		{"ping of death", func(f family) [][]byte {
			return [][]byte{fragment(f, 65528, false, make([]byte, 64)), fragment(f, 0, true, body(f, 48))}
		}},
		{"odd middle", func(f family) [][]byte { return [][]byte{fragment(f, 0, true, body(f, 45))} }},
		{"bad transport checksum", func(f family) [][]byte {
			b := corrupt(body(f, 48))
			return [][]byte{fragment(f, 0, true, b[:24]), fragment(f, 24, false, b[24:])}
		}},
		{"fragment of a fragment", func(f family) [][]byte {
			if f.prog.Is4() { // reassembly never yields a fragment over IPv4
				return [][]byte{fragment(f, 8, true, nil)}
			}
			inner := append([]byte{17, 0, 0, 1, 0, 0, 0, 1}, body(f, 48)...)
			a, b := fragment(f, 0, true, inner[:24]), fragment(f, 24, false, inner[24:])
			a[40], b[40] = 44, 44
			return [][]byte{a, b}
		}},
		{"source route in a piece", func(f family) [][]byte {
			b := body(f, 48)
			return [][]byte{sourceRouted(f, fragment(f, 0, true, b[:24])), fragment(f, 24, false, b[24:])}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, f family) {
				l := newLab(t, &handler{}, Limits{})
				ps := tt.pkts(f)
				l.send(ps...)
				eventually(t, "read", func() bool { return l.s.Counters().PacketsIn == uint64(len(ps)) })
				c := l.s.Counters()
				if c.Fragments+c.Malformed+c.Checksum+c.SourceRoute == 0 {
					t.Errorf("nothing counted: %+v", c)
				}
				if got := l.recv(10 * time.Millisecond); got != nil {
					t.Errorf("answered: %x", got)
				}
			})
		})
	}
}

func TestEndlessFragments(t *testing.T) {
	var r reassembler
	r.init(1 << 20)
	now, dropped := time.Now(), 0
	for i := range 100000 {
		ip := packet.IP{Src: families[0].prog, Dst: families[0].peer, TTL: 9, ID: uint16(i / 20)}
		b := pieces(packet.AppendUDP(nil, &ip, 1, 2, make([]byte, 3000)), 1500)[0]
		binary.BigEndian.PutUint16(b[6:], 0x2000|uint16(i%20)*185)
		h, err := packet.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		whole, n := r.add(&h, b, now)
		if whole != nil {
			t.Fatal("completed what has no end")
		}
		dropped += n
		if r.bytes > 1<<20+maxPartial*pieceOverhead || len(r.partial) > maxPartial {
			t.Fatalf("holds %d bytes in %d packets", r.bytes, len(r.partial))
		}
	}
	if dropped < 90000 {
		t.Errorf("only %d of 100000 dropped", dropped)
	}
	r.sweep(now.Add(fragmentTimeout + 2*time.Second))
	if r.bytes != 0 || len(r.partial) != 0 {
		t.Errorf("after the time-out: %d bytes in %d packets", r.bytes, len(r.partial))
	}
}

// mayFragment records what each datagram says of fragmentation.
type mayFragment chan bool

func (c mayFragment) Datagrams(_ *UDPFlow, t Train) { c <- !t.DontFragment }

// TestFragmentsAllowFragments: who sent fragments allows them, also while the datagram was held;
// over IPv6 nothing but the fragments said so.
func TestFragmentsAllowFragments(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		may := make(mayFragment, 9)
		l := newLab(t, &handler{udp: func(u *UDPFlow) {
			may <- !u.First().DontFragment
			u.Accept(may)
		}}, Limits{})
		whole := udpPacket(at(f.prog, 5000), at(f.peer, 53), make([]byte, 5000))
		l.send(pieces(whole, 1280)...)
		for _, when := range []string{"first", "held"} {
			if !<-may {
				t.Errorf("%s: fragments are not allowed", when)
			}
		}
		bump(f, whole)
		l.send(pieces(whole, 1280)...)
		if !<-may {
			t.Error("accepted: fragments are not allowed")
		}
	})
}
