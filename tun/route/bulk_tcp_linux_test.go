package route

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
)

// TestOffer fills the way to a server that does not read, waits until it does, and loses nothing.
func TestOffer(t *testing.T) {
	l := newDialLab(t)
	sent := make([]byte, 32<<20)
	rand.Read(sent)
	start, got := make(chan struct{}), make(chan []byte)
	to := l.serveTCP(t, "10.78.2.2:0", func(c *net.TCPConn) {
		<-start
		b, _ := io.ReadAll(c)
		got <- b
	})
	c, err := l.dial(t, &Dialer{}, "10.78.1.2", to.String(), 64)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	rest, waits := sent, 0
	for len(rest) > 0 {
		n, err := c.Offer(rest)
		if err != nil {
			t.Fatal(err)
		}
		if rest = rest[n:]; len(rest) == 0 {
			break
		}
		if waits++; waits == 1 {
			close(start)
		}
		if err := c.WaitWritable(); err != nil {
			t.Fatal(err)
		}
	}
	if waits == 0 {
		t.Error("32 MiB found room at once")
	}
	_ = c.CloseWrite()
	if b := <-got; !bytes.Equal(b, sent) {
		t.Fatalf("the server got %d bytes of %d, or others", len(b), len(sent))
	}
	if _, err := c.Offer([]byte("x")); !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after our FIN: %v", err)
	}
	c.Close()
	if _, err := c.Offer([]byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := c.WaitWritable(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("WaitWritable after Close: %v", err)
	}
}
