package state

import (
	"context"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"gatun/network/packet"
)

// TestClosings: the kernel tells of every closed UDP socket, connected or not, of both families.
func TestClosings(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("joining the groups needs CAP_NET_ADMIN")
	}
	c, err := OpenClosings()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ports := make(chan uint16, 64)
	done := make(chan error, 1)
	go func() {
		done <- c.Run(ctx, func(p packet.Proto, a netip.AddrPort) {
			if p == packet.UDP {
				ports <- a.Port()
			}
		}, func() { t.Error("lost") })
	}()
	for network, any := range map[string]string{"udp4": "127.0.0.1:0", "udp6": "[::1]:0"} {
		open, err := net.ListenPacket(network, any)
		if err != nil {
			t.Fatal(err)
		}
		connected, err := net.Dial(network, open.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []interface {
			Close() error
			LocalAddr() net.Addr
		}{connected, open} {
			want := netip.MustParseAddrPort(s.LocalAddr().String()).Port()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			await(t, ports, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func await(t *testing.T, ports <-chan uint16, want uint16) {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case got := <-ports:
			if got == want {
				return
			}
		case <-timeout:
			t.Fatalf("nobody said that the socket on port %d was closed", want)
		}
	}
}
