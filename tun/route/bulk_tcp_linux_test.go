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
	"time"
)

// TestDrain: the reader has what it is said to have, what is left stays, FIN is EOF, RST is
// ECONNRESET, and a deadline ends the wait.
func TestDrain(t *testing.T) {
	l := newDialLab(t)
	sent := make([]byte, 1<<20)
	rand.Read(sent)
	end := make(chan struct{})
	to := l.serveTCP(t, "10.78.2.2:0", func(c *net.TCPConn) {
		_, _ = c.Write(sent)
		<-end
		_ = c.CloseWrite()
		<-end
		_ = c.SetLinger(0)
		_ = c.Close()
	})
	c, err := l.dial(t, &Dialer{}, "10.78.1.2", to.String(), 64)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var got bytes.Buffer
	for i := 0; got.Len() < len(sent); i++ {
		err := c.Drain(func(r io.Reader, n int) {
			if i%3 == 0 {
				return // leaves everything
			}
			b := make([]byte, 1+n/(i%3))
			m, err := io.ReadFull(r, b[:min(n, len(b))])
			if err != nil {
				t.Errorf("%d of %d bytes: %v", m, n, err)
			}
			got.Write(b[:m])
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got.Bytes(), sent) {
		t.Fatal("other bytes came than were sent")
	}
	none := func(_ io.Reader, n int) { t.Errorf("%d bytes out of nothing", n) }
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if err := c.Drain(none); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	end <- struct{}{}
	if err := c.Drain(none); err != io.EOF {
		t.Errorf("after FIN: %v", err)
	}
	close(end)
	for limit := time.Now().Add(30 * time.Second); !c.Broken() && time.Now().Before(limit); {
		time.Sleep(time.Millisecond)
	}
	if err := c.Drain(none); !errors.Is(err, syscall.ECONNRESET) && err != io.EOF { // Linux may have told the EOF for good
		t.Errorf("after RST: %v", err)
	}
	c.Close()
	if err := c.Drain(none); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

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
