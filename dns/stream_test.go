package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"gatun/network"
)

// dialStream runs ServeConn on one end of a real TCP connection.
func dialStream(t *testing.T, r *rig) (c *net.TCPConn, done chan error, cancel context.CancelFunc) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if c, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr)); err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done = make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		done <- r.ServeConn(ctx, tcpFlow, owner("/usr/bin/app", 0), far)
	}()
	t.Cleanup(func() { cancel(); c.Close(); <-ended })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c, done, cancel
}

func frame(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }

func readReply(t *testing.T, c io.Reader) *mdns.Msg {
	t.Helper()
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		t.Fatalf("no reply: %v", err)
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	m := new(mdns.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatal(err)
	}
	return m
}

func ended(t *testing.T, done chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("ServeConn did not end")
		return nil
	}
}

func TestPipelining(t *testing.T) {
	release := make(chan struct{})
	up := newUpstream(t, func(q *mdns.Msg, _ []byte, _ netip.AddrPort, send func([]byte)) {
		b := packed(t, respond(t, q, mdns.RcodeSuccess, q.Question[0].Name+" 60 IN A 198.51.100.1"))
		if q.Question[0].Name != "slow.example." {
			send(b)
			return
		}
		go func() { <-release; send(b) }()
	}, nil)
	r := newRig(t, nil, up.resolver())
	c, done, _ := dialStream(t, r)
	var all []byte
	ids := map[uint16]string{}
	for i, name := range []string{"slow.example.", "b.example.", "c.example.", "d.example."} {
		m := ask(name, mdns.TypeA)
		m.Id = uint16(i + 1)
		ids[m.Id] = name
		all = append(all, frame(packed(t, m))...)
	}
	for i := range all { // one byte per segment
		if _, err := c.Write(all[i : i+1]); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		if i == 3 {
			c.CloseWrite() // what was asked before is still answered
			close(release)
		}
		m := readReply(t, c)
		if m.Question[0].Name != ids[m.Id] || len(m.Answer) != 1 || (m.Id == 1) != (i == 3) {
			t.Fatalf("reply %d: %v", i, m)
		}
		delete(ids, m.Id)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("want EOF, got %v", err)
	}
	if err := ended(t, done); err != nil {
		t.Fatal(err)
	}
	if len(r.table.All()) != 4 {
		t.Fatalf("%d queries recorded", len(r.table.All()))
	}
}

// TestDeepPipeline asks far more than one connection may have under way.
func TestDeepPipeline(t *testing.T) {
	up := simple(t)
	r := newRig(t, nil, up.resolver())
	c, done, _ := dialStream(t, r)
	const n = 1000
	go func() {
		for i := range n {
			m := ask("a.example", mdns.TypeA)
			m.Id = uint16(i)
			b, _ := m.Pack()
			if _, err := c.Write(frame(b)); err != nil {
				t.Error(err)
				return
			}
		}
		c.CloseWrite()
	}()
	seen := map[uint16]bool{}
	for range n {
		seen[readReply(t, c).Id] = true
	}
	if err := ended(t, done); err != nil || len(seen) != n {
		t.Fatalf("%d replies, %v", len(seen), err)
	}
}

func TestNotDNS(t *testing.T) {
	hello := append([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), bytes.Repeat([]byte{0xab}, 200)...)
	for name, first := range map[string][]byte{
		"HTTP":        []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"SSH":         []byte("SSH-2.0-OpenSSH_9.6\r\n"),
		"TLS":         hello,
		"a DNS reply": frame(join(header(flagQR, 1, 0, 0, 0), []byte("\x00\x00\x01\x00\x01"))),
		"length 0":    make([]byte, 14),
		"length 5":    append([]byte{0, 5}, make([]byte, 12)...),
		"huge":        append([]byte{0xff, 0xff}, header(0, 1, 0, 0, 0)...),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			c, done, _ := dialStream(t, r)
			start := time.Now()
			c.Write(first)
			if err := ended(t, done); !errors.Is(err, ErrNotDNS) || time.Since(start) > r.idle/2 {
				t.Fatalf("got %v after %v", err, time.Since(start))
			}
			if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Fatal("something was answered")
			}
		})
	}
	t.Run("cut", func(t *testing.T) {
		r := newRig(t, nil)
		c, done, _ := dialStream(t, r)
		c.Write(frame(packed(t, ask("a.example", mdns.TypeA)))[:9])
		c.CloseWrite()
		if err := ended(t, done); !errors.Is(err, ErrNotDNS) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("nothing", func(t *testing.T) {
		r := newRig(t, nil)
		c, done, _ := dialStream(t, r)
		c.CloseWrite()
		if err := ended(t, done); err != nil {
			t.Fatalf("got %v", err)
		}
	})
}

func TestStreamEnds(t *testing.T) {
	t.Run("with the context", func(t *testing.T) {
		silent := newUpstream(t, func(*mdns.Msg, []byte, netip.AddrPort, func([]byte)) {}, nil)
		r := newRig(t, nil, silent.resolver())
		c, done, cancel := dialStream(t, r)
		c.Write(frame(packed(t, ask("a.example", mdns.TypeA))))
		for silent.queries.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
		if err := ended(t, done); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("idle", func(t *testing.T) {
		up := simple(t)
		r := newRig(t, nil, up.resolver())
		r.idle = 300 * time.Millisecond
		c, done, _ := dialStream(t, r)
		start := time.Now()
		c.Write(frame(packed(t, ask("a.example", mdns.TypeA))))
		readReply(t, c)
		if _, err := c.Read(make([]byte, 1)); err != io.EOF || time.Since(start) < r.idle {
			t.Fatalf("got %v after %v", err, time.Since(start))
		}
		if err := ended(t, done); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("not while an answer is awaited", func(t *testing.T) {
		up := newUpstream(t, func(q *mdns.Msg, _ []byte, _ netip.AddrPort, send func([]byte)) {
			time.Sleep(1500 * time.Millisecond)
			send(packed(t, respond(t, q, mdns.RcodeSuccess, "a.example. 60 IN A 198.51.100.1")))
		}, nil)
		r := newRig(t, nil, up.resolver())
		r.idle = time.Second // a busy machine may pause between the two queries
		c, _, _ := dialStream(t, r)
		for range 2 { // the connection is still there for the next one
			c.Write(frame(packed(t, ask("a.example", mdns.TypeA))))
			if m := readReply(t, c); len(m.Answer) != 1 {
				t.Fatalf("got %v", m)
			}
		}
	})
	t.Run("a dropped query is silent", func(t *testing.T) {
		r := newRig(t, nil)
		r.firewall.before = func(q *Query) network.Decision {
			if q.Name == "drop.example" {
				return network.Decision{Verdict: network.Drop}
			}
			return network.Decision{Verdict: network.Block}
		}
		c, _, _ := dialStream(t, r)
		c.Write(frame(packed(t, ask("drop.example", mdns.TypeA))))
		c.Write(frame(packed(t, ask("block.example", mdns.TypeA))))
		if m := readReply(t, c); m.Question[0].Name != "block.example." || m.Rcode != mdns.RcodeNameError {
			t.Fatalf("got %v", m)
		}
	})
}
