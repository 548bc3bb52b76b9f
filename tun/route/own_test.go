//go:build linux

package route

import (
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func marked(mark int) net.Dialer {
	return net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) }); cerr != nil {
			return cerr
		}
		return err
	}}
}

// gatun's own sockets get out and get their answers, whatever the reverse-path filter; what
// the kernel sends for them after they are closed gets out too; another user's id does not.
func TestLiveOwnTraffic(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.atServer(l.serveFar)
		own := marked(DefaultMark)
		for _, rpFilter := range []string{"0", "1", "2"} {
			l.sh("sysctl -qw net.ipv4.conf.all.rp_filter=" + rpFilter + " net.ipv4.conf.eth0.rp_filter=" + rpFilter)
			l.openTun(false)
			m := l.manager()
			l.up(m)
			for _, network := range []string{"tcp", "udp"} {
				for _, far := range []string{far4, far6, router4, router6} {
					c, err := own.DialContext(t.Context(), network, at(far))
					if err == nil {
						err = echoes(c)
						_ = c.Close()
					}
					if err != nil {
						t.Errorf("rp_filter %s: own %s to %s: %v", rpFilter, network, far, err)
					}
				}
			}
			if err := m.Down(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		l.openTun(false)
		m := l.manager(func(o *Options) { o.Policy.UID = 4321 })
		l.up(m)
		own.Timeout = 200 * time.Millisecond
		if c, err := own.DialContext(t.Context(), "tcp", at(far4)); err == nil {
			t.Errorf("the mark alone was enough: %v", c.LocalAddr())
		}
	})
}

// A socket that is closed while the peer still has to hear of it has no user any more: its FIN
// must reach the peer nevertheless, through the connection mark.
func TestLiveOwnSocketsAfterClose(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		heard := make(chan error, 1)
		var ln net.Listener
		l.atServer(func() {
			var err error
			if ln, err = net.Listen("tcp", at(far4)); err != nil {
				t.Error(err)
			}
		})
		go func() {
			c, err := ln.Accept()
			if err != nil {
				heard <- err
				return
			}
			time.Sleep(300 * time.Millisecond) // the receive buffer fills: the FIN waits behind the data
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			n := 0
			buf := make([]byte, 1<<16)
			for err == nil {
				var k int
				k, err = c.Read(buf)
				n += k
			}
			if n != 4<<20 {
				t.Errorf("got %d bytes", n)
			}
			heard <- err
		}()
		l.openTun(false)
		m := l.manager()
		l.up(m)
		own := marked(DefaultMark)
		c, err := own.DialContext(t.Context(), "tcp", at(far4))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.(*net.TCPConn).SetWriteBuffer(8 << 20)
		if _, err := c.Write(make([]byte, 4<<20)); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		if err := <-heard; err == nil || err.Error() != "EOF" {
			t.Errorf("the peer heard %v, want EOF", err)
		}
	})
}

// answerFromTun makes the lab's TUN device answer every UDP datagram with itself. Swapping
// addresses and ports leaves every checksum right.
func answerFromTun(b []byte) bool {
	swap := func(i, j, n int) {
		for k := range n {
			b[i+k], b[j+k] = b[j+k], b[i+k]
		}
	}
	switch {
	case len(b) > 28 && b[0] == 0x45 && b[9] == unix.IPPROTO_UDP:
		swap(12, 16, 4)
		swap(20, 22, 2)
	case len(b) > 48 && b[0]>>4 == 6 && b[6] == unix.IPPROTO_UDP:
		swap(8, 24, 16)
		swap(40, 42, 2)
	default:
		return false
	}
	return true
}

// A captured flow has the machine's real address, and answers that come out of the TUN device
// reach the program, whatever the reverse-path filter. Loopback is not captured.
func TestLiveCapturedFlowsGetTheirAnswers(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve("127.0.0.1:7001")
		l.serve(net.JoinHostPort(host4, "7001"))
		l.serve(net.JoinHostPort(host6, "7001"))
		l.answer = answerFromTun
		for _, rpFilter := range []string{"0", "1", "2"} {
			l.openTun(false)
			l.sh("sysctl -qw net.ipv4.conf.all.rp_filter=" + rpFilter + " net.ipv4.conf.gatun0.rp_filter=" + rpFilter)
			m := l.manager()
			l.up(m)
			for far, src := range map[string]string{far4: host4, far6: host6, router4: host4, router6: host6, "203.0.113.9": host4} {
				c, err := net.Dial("udp", at(far))
				if err != nil {
					t.Fatal(err)
				}
				if err := echoes(c); err != nil {
					t.Errorf("rp_filter %s: %s: %v", rpFilter, far, err)
				}
				if got, _, _ := net.SplitHostPort(c.LocalAddr().String()); got != src {
					t.Errorf("%s: source %s, want %s", far, got, src)
				}
			}
			captured := l.captured.Load()
			for _, local := range []string{"127.0.0.1", host4, host6} {
				c, err := net.Dial("tcp", net.JoinHostPort(local, "7001"))
				if err == nil {
					err = echoes(c)
				}
				if err != nil {
					t.Errorf("rp_filter %s: %s: %v", rpFilter, local, err)
				}
			}
			if l.captured.Load() != captured {
				t.Error("loopback traffic was captured")
			}
			if err := m.Down(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}
