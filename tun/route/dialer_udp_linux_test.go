package route

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// echoUDP answers every datagram with itself, and first with an empty one.
func echoUDP(t testing.TB, address string, empty bool) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addrport(address)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if empty {
				_, _ = c.WriteToUDPAddrPort(nil, from)
			}
			_, _ = c.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	return c
}

// The connected socket behaves as package net's: whole datagrams, empty ones too, deadlines,
// refusals, and Close that ends a blocked Read.
func TestDialContextUDP(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		server := echoUDP(t, address, true).LocalAddr().String()
		c, err := (&Dialer{}).DialContext(t.Context(), "udp", server)
		if err != nil {
			t.Fatal(err)
		}
		if c.RemoteAddr().String() != server || c.RemoteAddr().Network() != "udp" {
			t.Errorf("remote %v, want %v", c.RemoteAddr(), server)
		}
		if local := c.LocalAddr().(*net.UDPAddr); local.Port == 0 || !local.IP.IsLoopback() {
			t.Errorf("local %v", local)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Write([]byte("question")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		if n, err := c.Read(buf); n != 0 || err != nil {
			t.Errorf("an empty datagram: %d %v", n, err)
		}
		if n, err := c.Read(buf); string(buf[:n]) != "question" || err != nil {
			t.Errorf("%q %v", buf[:n], err)
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := c.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("deadline: %v", err)
		}
		_ = c.SetReadDeadline(time.Time{})
		ended := make(chan error, 1)
		go func() { _, err := c.Read(buf); ended <- err }()
		time.Sleep(5 * time.Millisecond) // mostly it blocks by then; it must end either way
		c.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed while reading: %v", err)
		}
		if _, err := c.Write(buf); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed twice: %v", err)
		}
	}
	nobody, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addrport("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	c, err := (&Dialer{}).DialContext(t.Context(), "udp", nobody.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = c.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&Dialer{}).DialContext(gone, "udp", "127.0.0.1:9"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// BenchmarkDialContextUDP is one question to a nameserver: a socket, a datagram out, one in.
func BenchmarkDialContextUDP(b *testing.B) {
	server := echoUDP(b, "127.0.0.1:0", false).LocalAddr().String()
	for name, dial := range map[string]func(context.Context, string, string) (net.Conn, error){
		"ours": (&Dialer{}).DialContext, "net": (&net.Dialer{Control: (&Dialer{}).control}).DialContext,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			buf := make([]byte, 100)
			for b.Loop() {
				c, err := dial(context.Background(), "udp", server)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = c.Write([]byte("question"))
				if _, err := c.Read(buf); err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
		})
	}
}
