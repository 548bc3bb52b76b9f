//go:build linux

package route

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

// diverts captures with a Diverter. serve gets our end of each connection.
func (l *lab) diverts(serve func(f packet.Flow, c *TCPConn, err error)) (*Manager, *Diverter) {
	l.t.Helper()
	d := &Dialer{}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.Watch(ctx) })
	l.t.Cleanup(func() { cancel(); wg.Wait() })
	l.eventually(patience, "connections are watched", func() bool { return d.watch.Load() != nil })
	files, err := OpenDiverterFiles(DefaultNames().DivertMark)
	if err != nil {
		l.t.Fatal(err)
	}
	v, err := NewDiverter(files, d, true)
	if err != nil {
		l.t.Fatal(err)
	}
	l.answer = func(b []byte) bool {
		h, err := packet.Parse(b)
		if err == nil && h.Flow.Proto == packet.TCP && h.TCPFlags == packet.TCPSyn && h.Flow.Remote.Port() == echoPort {
			syn := bytes.Clone(b)
			go func() {
				c, err := v.Divert(ctx, h.Flow, syn)
				serve(h.Flow, c, err)
			}()
		}
		return false
	}
	l.openTun(false)
	m := l.manager(func(o *Options) { o.Policy.DivertPort = v.Port() })
	l.up(m)
	if !m.Diverts() {
		l.t.Fatal("the kernel does not divert")
	}
	return m, v
}

// names answers with the server's address that the program sees, then echoes.
func echoNames(f packet.Flow, c *TCPConn, err error) {
	if err != nil {
		return
	}
	_, _ = fmt.Fprintf(c, "%v>%v\n", f.Local, f.Remote)
	_, _ = io.Copy(c, c)
	_ = c.Close()
}

// The kernel ends a connection for us: the program talks to the server that it asked, no packet after the
// SYN comes to the device, none leaves.
func TestLiveDiverted(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.diverts(echoNames)
		before, left := l.captured.Load(), l.packets("far")
		for i, far := range []string{far4, far6, far4, far6} {
			c, err := net.Dial("tcp", at(far))
			if err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf("%v>%v\n", c.LocalAddr(), c.RemoteAddr())
			got := make([]byte, len(want))
			_ = c.SetDeadline(time.Now().Add(patience))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
				t.Fatalf("%s: %q %v, want %q", far, got, err, want)
			}
			if err := echoes(c); err != nil {
				t.Errorf("%s: %v", far, err)
			}
			raw, _ := c.(*net.TCPConn).SyscallConn()
			_ = raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) })
			urgent := make([]byte, 1)
			if _, e := io.ReadFull(c, urgent); err != nil || e != nil || urgent[0] != '!' {
				t.Errorf("%s: an urgent byte: %q %v %v", far, urgent, err, e)
			}
			_ = c.(*net.TCPConn).CloseWrite()
			if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
				t.Errorf("%s: after the FIN: %q %v", far, rest, err)
			}
			_ = c.Close()
			if n := l.captured.Load() - before; n != int64(i+1) {
				t.Errorf("%d packets on the device after %d connections", n, i+1)
			}
		}
		if n := l.packets("far") - left; n != 0 {
			t.Errorf("%d packets left the machine", n)
		}
	})
}

// A reset of ours is a reset for the program, and the other way round.
func TestLiveDivertedReset(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		ends := make(chan *TCPConn, 1)
		l.diverts(func(_ packet.Flow, c *TCPConn, err error) {
			if err == nil {
				ends <- c
			}
		})
		for _, far := range []string{far4, far6} {
			c, err := net.Dial("tcp", at(far))
			if err != nil {
				t.Fatal(err)
			}
			(<-ends).Abort()
			_ = c.SetDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: the program sees %v", far, err)
			}
			_ = c.Close()
			if c, err = net.Dial("tcp", at(far)); err != nil {
				t.Fatal(err)
			}
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
			if _, err := (<-ends).Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: we see %v", far, err)
			}
		}
	})
}

// Two connections from one port are two, each with its own server; and many at once are kept apart.
func TestLiveDivertedApart(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.diverts(echoNames)
		for _, hosts := range [][]string{{host4, far4, router4}, {host6, far6, router6}} {
			var port int
			for _, far := range hosts[1:] {
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(hosts[0]), Port: port}, Control: func(_, _ string, c syscall.RawConn) error {
					return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
				}}
				c, err := d.Dial("tcp", at(far))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				port = c.LocalAddr().(*net.TCPAddr).Port
				l.isAnsweredBy(c)
			}
		}
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				for range 5 {
					c, err := net.Dial("tcp", at([]string{far4, far6, router4, router6}[i%4]))
					if err != nil {
						t.Error(err)
						return
					}
					l.isAnsweredBy(c)
					_ = c.Close()
				}
			})
		}
		wg.Wait()
	})
}

// isAnsweredBy fails unless the other end knows the connection by the program's names.
func (l *lab) isAnsweredBy(c net.Conn) {
	want := fmt.Sprintf("%v>%v\n", c.LocalAddr(), c.RemoteAddr())
	got := make([]byte, len(want))
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		l.t.Errorf("%q %v, want %q", got, err, want)
	}
}

// Nobody reaches the listener by its own address, and nobody else's mark leads there.
func TestLiveDivertedNobodyElse(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		_, v := l.diverts(echoNames)
		for _, host := range []string{"127.0.0.1", "::1"} {
			to := net.JoinHostPort(host, fmt.Sprint(v.Port()))
			if c, err := net.DialTimeout("tcp", to, 300*time.Millisecond); err == nil {
				t.Errorf("%s: connected", to)
				_ = c.Close()
			}
		}
		left := l.packets("far")
		d := net.Dialer{Timeout: 300 * time.Millisecond, Control: (&Dialer{Mark: DefaultNames().DivertMark}).control}
		if c, err := d.Dial("tcp", at(far4)); err == nil {
			_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
			if n, _ := c.Read(make([]byte, 1)); n > 0 {
				t.Error("a program that sets the mark is served")
			}
			_ = c.Close()
		}
		if n := l.packets("far") - left; n != 0 {
			t.Errorf("%d packets of a program that sets the mark left", n)
		}
	})
}

// What never comes is given up soon, and what comes after that is reset.
func TestLiveDivertedInVain(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		_, v := l.diverts(echoNames)
		f := packet.Flow{Proto: packet.TCP, Local: netip.MustParseAddrPort(host4 + ":40001"), Remote: netip.MustParseAddrPort(at(far4))}
		ip := packet.IP{Src: f.Local.Addr(), Dst: f.Remote.Addr(), TTL: 64}
		syn := packet.AppendReset(nil, &ip, 40001, echoPort, 0)
		syn[20+13] = tcpSYN // its checksum is completed anyway
		forgotten := func(what string) {
			if state := v.origins.state(f); state != 0 {
				t.Errorf("%s: its packets are still led to the listener, in state %d", what, state)
			}
		}
		if c, err := v.Divert(t.Context(), f, syn); !errors.Is(err, syscall.ECONNABORTED) {
			t.Errorf("a SYN of nobody: %v %v", c, err)
		}
		forgotten("a SYN of nobody")
		l.sh("nft add table inet f; nft add chain inet f in { type filter hook input priority 0 \\; }; nft add rule inet f in iif lo drop")
		if c, err := v.Divert(t.Context(), f, syn); !errors.Is(err, ErrNotDiverted) {
			t.Errorf("a SYN that is filtered: %v %v", c, err)
		}
		forgotten("a SYN that is filtered")
		l.sh("nft delete table inet f")
		if v.expectsAny() {
			t.Error("it is still expected")
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := v.Divert(gone, f, syn); !errors.Is(err, context.Canceled) {
			t.Errorf("a program that has given up: %v", err)
		}
		if _, err := v.Divert(t.Context(), f, syn[:30]); err == nil {
			t.Error("half a SYN was sent")
		}
	})
}

// Who takes the rules away meanwhile does not end a connection: they are put back.
func TestLiveDivertedForeignHands(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		m, _ := l.diverts(echoNames)
		stop := l.run(m)
		defer stop()
		c, err := net.Dial("tcp", at(far4))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		l.isAnsweredBy(c)
		l.sh("nft flush ruleset")
		if err := echoes(c); err != nil {
			t.Errorf("after a flush: %v", err)
		}
	})
}

// The table of a sandbox is what its text says.
func TestLiveInsideTable(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		want := insideTable(DefaultNames(), 333)
		if err := installGuard(want, nil); err != nil {
			t.Fatal(err)
		}
		got := l.sh("nft -s list table inet " + TableName)
		l.sh("nft delete table inet " + TableName)
		file := t.TempDir() + "/table"
		if err := os.WriteFile(file, []byte(want.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		l.sh("nft -f " + file)
		if text := l.sh("nft -s list table inet " + TableName); text != got {
			t.Errorf("the kernel has\n%s\nwant\n%s", got, text)
		}
	})
}

// Bytes that move through a pipe are the same bytes, and both ends of the stream pass on.
func TestPipe(t *testing.T) {
	pair := func() (a, b *net.TCPConn) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(); s.Close() })
		return c.(*net.TCPConn), s.(*net.TCPConn)
	}
	in, from := pair()
	to, out := pair()
	p, err := OpenPipe()
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("0123456789abcdef!"), 1<<18)
	go func() { _, _ = in.Write(want); _ = in.CloseWrite() }()
	got := make(chan []byte, 1)
	go func() { b, _ := io.ReadAll(out); got <- b }()
	total := 0
	for {
		n, err := p.Fill(from)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		wrote, err := p.Drain(to)
		if err != nil || wrote != n {
			t.Fatalf("%d of %d: %v", wrote, n, err)
		}
		total += n
	}
	_ = to.CloseWrite()
	if b := <-got; total != len(want) || !bytes.Equal(b, want) {
		t.Errorf("%d bytes arrived of %d", len(b), len(want))
	}
	_ = from.SetReadDeadline(time.Unix(1, 0))
	if _, err := p.Fill(from); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("interrupted: %v", err)
	}
	_, err = in.Write([]byte("x"))
	if err == nil {
		t.Error("the stream goes on after its end")
	}
	_ = out.SetLinger(0)
	_ = out.Close()
	in2, from2 := pair()
	_, _ = in2.Write(want[:1000])
	if _, err := p.Fill(from2); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Drain(to); err == nil {
		t.Errorf("%d bytes moved into a reset connection", n)
	}
	p.Close()
}
