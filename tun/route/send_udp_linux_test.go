package route

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

func payloads(sizes ...int) [][]byte {
	b := make([][]byte, len(sizes))
	for i, n := range sizes {
		b[i] = bytes.Repeat([]byte{byte(i)}, n)
	}
	return b
}

func TestTrainLength(t *testing.T) {
	for _, tc := range []struct {
		sizes []int
		want  int
	}{
		{[]int{5}, 1},
		{[]int{0, 0}, 1}, // nothing to cut: an empty datagram goes alone
		{[]int{5, 0}, 1},
		{[]int{5, 5, 5}, 3},
		{[]int{5, 5, 4, 5}, 3},
		{[]int{5, 5, 6}, 2},
		{[]int{1400, 1400, 1400, 30, 30}, 4},
		{slices.Repeat([]int{1}, 100), maxTrain},
		{slices.Repeat([]int{1400}, 100), maxTrainBytes / 1400},
		{[]int{40000, 40000}, 1},
	} {
		if got := trainLength(payloads(tc.sizes...)); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.sizes, got, tc.want)
		}
	}
}

// TestUDPTrainKeepsBoundaries: whatever the sizes, each datagram arrives once, whole and in order,
// with its TTL and TOS, with trains and without.
func TestUDPTrainKeepsBoundaries(t *testing.T) {
	l := newDialLab(t)
	train := payloads(append(append(slices.Repeat([]int{1000}, 12), 400, 900, 900, 900, 0, 0, 5, 700), slices.Repeat([]int{100}, 20)...)...)
	for _, fam := range []struct{ name, local, server string }{
		{"v4", "10.78.1.2", "10.78.2.2:0"}, {"v6", "fd78:1::2", "[fd78:2::2]:0"},
	} {
		for _, single := range []bool{false, true} {
			t.Run(fam.name, func(t *testing.T) {
				to, arrived := l.serveUDP(t, fam.server)
				u := l.listenUDP(t, &Dialer{BindSource: true}, fam.local)
				u.single.Store(single)
				if n, err := u.Send(train, to, 9, 0xb8, true); n != len(train) || err != nil {
					t.Fatalf("%d of %d sent: %v", n, len(train), err)
				}
				if u.single.Load() != single {
					t.Error("this kernel takes no trains")
				}
				for i, b := range train {
					if s := within(t, arrived, "datagram at the server"); s.size != len(b) || s.ttl != 8 || s.tos != 0xb8 {
						t.Errorf("datagram %d arrived as %+v, want %d bytes, TTL 8, TOS 0xb8", i, s, len(b))
					}
					if got := within(t, u.got, "reply"); got.b != string(b) {
						t.Errorf("datagram %d came back with %d bytes, want %d", i, len(got.b), len(b))
					}
				}
			})
		}
	}
}

// TestUDPTrainIsOnePacket: the kernel gets the train whole. A receiver that takes trains
// (UDP_GRO) shows it.
func TestUDPTrainIsOnePacket(t *testing.T) {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	setopt(t, c, unix.SOL_UDP, unix.UDP_GRO, 1)
	s, err := (&Dialer{}).ListenUDP(addr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	train := payloads(append(slices.Repeat([]int{100}, 10), 50)...)
	if n, err := s.Send(train, c.LocalAddr().(*net.UDPAddr).AddrPort(), 64, 0, false); n != len(train) || err != nil {
		t.Fatal(n, err)
	}
	b := make([]byte, 4096)
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, err := c.Read(b)
	if err != nil || !bytes.Equal(b[:n], bytes.Join(train, nil)) {
		t.Errorf("%d bytes came at once, want 1050 (%v)", n, err)
	}
}

// TestUDPTrainTooBig: where a train does not fit, each of its datagrams is tried, and the one that
// is too big is named by its place.
func TestUDPTrainTooBig(t *testing.T) {
	l := newDialLab(t)
	to, arrived := l.serveUDP(t, "10.78.2.2:0")
	u := l.listenUDP(t, &Dialer{}, "10.78.1.2")
	train := payloads(3000, 3000, 500)
	var n int
	var err error
	l.in(t, l.client, func() { n, err = u.Send(train, to, 64, 0, true) }) // it asks for the MTU by a new socket
	var icmp *packet.ICMPError
	if n != 0 || !errors.As(err, &icmp) || icmp.MTU != 1500 || !errors.Is(err, syscall.EMSGSIZE) {
		t.Fatalf("%d sent, then %v, want too big with the link's 1500", n, err)
	}
	l.in(t, l.client, func() { n, err = u.Send(train[2:], to, 64, 0, true) })
	if n != 1 || err != nil || within(t, arrived, "the one that fits").size != 500 {
		t.Errorf("%d sent, then %v", n, err)
	}
	if u.single.Load() {
		t.Error("large datagrams ended all trains")
	}
	if n, err = u.Send(train, to, 64, 0, false); n != 3 || err != nil { // without DF they go in fragments
		t.Fatalf("%d sent, then %v", n, err)
	}
	for i, b := range train {
		if s := within(t, arrived, "large datagram"); s.size != len(b) {
			t.Errorf("datagram %d arrived with %d bytes, want %d", i, s.size, len(b))
		}
	}
}
