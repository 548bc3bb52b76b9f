package main

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestParseSYN: only what opens a connection counts, whatever options the IP header has.
func TestParseSYN(t *testing.T) {
	packet := func(header int, proto, flags byte) []byte {
		b := make([]byte, header+20)
		b[0], b[9] = 0x40|byte(header/4), proto
		copy(b[12:], []byte{192, 0, 2, 2})
		binary.BigEndian.PutUint16(b[header+2:], 2007)
		b[header+13] = flags
		return b
	}
	for _, c := range []struct {
		name string
		b    []byte
		ok   bool
	}{
		{"SYN", packet(20, 6, 0x02), true},
		{"SYN with options of IP", packet(24, 6, 0x02), true},
		{"SYN with ECN", packet(20, 6, 0xc2), true},
		{"answer", packet(20, 6, 0x12), false},
		{"data", packet(20, 6, 0x10), false},
		{"UDP", packet(20, 17, 0x02), false},
		{"cut short", packet(20, 6, 0x02)[:39], false},
		{"nothing", nil, false},
	} {
		source, port, ok := parseSYN(c.b)
		if ok != c.ok || ok && (port != 2007 || source != netip.MustParseAddr("192.0.2.2")) {
			t.Errorf("%s: %v %v %v", c.name, source, port, ok)
		}
	}
}

// TestPace: a rate is kept, and what is missing at the sink is lost.
func TestPace(t *testing.T) {
	sink, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	c, err := net.Dial("udp", sink.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l := &load{size: 100}
	sent, took, err := l.pace(c, 2000, 50*time.Millisecond)
	if err != nil || took < 50*time.Millisecond || sent == 0 || float64(sent) > 2000*took.Seconds() {
		t.Errorf("%d datagrams in %s: %v", sent, took, err)
	}
	b := make([]byte, 2000)
	if n, _, err := sink.ReadFrom(b); err != nil || n != 100 {
		t.Errorf("%d bytes, %v", n, err)
	}
	if got := (trial{offered: 1000, arrived: 985}).lost(); got < 0.0149 || got > 0.0151 {
		t.Errorf("lost %v", got)
	}
	if (trial{}).lost() <= fewLost {
		t.Error("nothing sent passes as nothing lost")
	}
}
