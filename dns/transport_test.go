package dns

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/zap"
)

// testClient is a client that is closed with the test.
func testClient(t testing.TB) *client {
	t.Helper()
	c := newClient(&netDialer{}, time.Now, zap.NewNop(), nil)
	t.Cleanup(c.close)
	return c
}

// secureClient trusts the authority.
func secureClient(t testing.TB, a *authority) *client {
	c := testClient(t)
	c.roots = a.roots()
	return c
}

// tryAsk asks for a name's address.
func tryAsk(c *client, r Resolver, name string) (*mdns.Msg, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return c.server(r, time.Now()).exchange(ctx, inquiry{name: name, qtype: mdns.TypeA})
}

func mustAsk(t testing.TB, c *client, r Resolver, name string) {
	t.Helper()
	m, err := tryAsk(c, r, name)
	if err != nil || len(m.Answer) != 1 || bareName(m.Answer[0].Header().Name) != name {
		t.Fatalf("%s over %s: %v, %v", name, r.Scheme, m, err)
	}
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after 10 s: %s", what)
		}
	}
}

// TestOneConnection: 100 queries one after another and 100 at once need one connection, and all
// get their own answer.
func TestOneConnection(t *testing.T) {
	for _, scheme := range kept() {
		t.Run(string(scheme), func(t *testing.T) {
			a := newAuthority(t)
			p := newPeer(t).serve(scheme, a, nil)
			c := secureClient(t, a)
			for i := range 100 {
				mustAsk(t, c, p.resolver(scheme), fmt.Sprintf("n%d.example", i))
			}
			var group sync.WaitGroup
			for i := range 100 {
				group.Go(func() {
					name := fmt.Sprintf("c%d.example", i)
					if m, err := tryAsk(c, p.resolver(scheme), name); err != nil || len(m.Answer) != 1 || bareName(m.Answer[0].Header().Name) != name {
						t.Errorf("%s: %v, %v", name, m, err)
					}
				})
			}
			group.Wait()
			t.Logf("%d queries over %d connections", p.queries.Load(), p.opened.Load())
			if p.queries.Load() != 200 || p.opened.Load() != 1 {
				t.Fatalf("%d queries over %d connections, want 200 over 1", p.queries.Load(), p.opened.Load())
			}
			if scheme.http() {
				if _, ok := p.serverNames.Load(fmt.Sprintf("%s:%d", serverName, p.addr.Port())); !ok {
					t.Error("the server was asked by another name")
				}
			}
		})
	}
}

// TestReconnects: a connection that the server closed meanwhile costs no query, also while many
// are on it.
func TestReconnects(t *testing.T) {
	for _, scheme := range kept() {
		t.Run(string(scheme), func(t *testing.T) {
			a := newAuthority(t)
			p := newPeer(t).serve(scheme, a, nil)
			c := secureClient(t, a)
			for i := range 20 {
				mustAsk(t, c, p.resolver(scheme), fmt.Sprintf("n%d.example", i))
				p.hangUp()
			}
			mustAsk(t, c, p.resolver(scheme), "last.example")
			if n := p.opened.Load(); n != 21 {
				t.Fatalf("%d connections for 20 hang-ups", n)
			}
		})
	}
	for _, scheme := range []Scheme{SchemeTCP, SchemeDoT} {
		t.Run(string(scheme)+" with few queries on a connection", func(t *testing.T) {
			a := newAuthority(t)
			p := newPeer(t)
			p.maxQueries = 7
			p.serve(scheme, a, nil)
			c := secureClient(t, a)
			for i := range 100 {
				mustAsk(t, c, p.resolver(scheme), fmt.Sprintf("n%d.example", i))
			}
			if n := p.opened.Load(); n < 14 || n > 30 {
				t.Fatalf("%d connections for 100 queries, 7 on each", n)
			}
		})
	}
}

// moodyDialer can make the connections that exist swallow everything, as a NAT does that has
// forgotten them.
type moodyDialer struct {
	mu    sync.Mutex
	conns []*moodyConn
}

type moodyConn struct {
	net.Conn
	deaf atomic.Bool
}

func (d *moodyDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	m := &moodyConn{Conn: c}
	d.mu.Lock()
	d.conns = append(d.conns, m)
	d.mu.Unlock()
	return m, nil
}

func (d *moodyDialer) silence() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.conns {
		c.deaf.Store(true)
	}
}

func (c *moodyConn) Write(b []byte) (int, error) {
	if c.deaf.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// TestSilentConnection: a connection that swallows everything is left for a new one while its
// query waits.
func TestSilentConnection(t *testing.T) {
	for _, scheme := range kept() {
		t.Run(string(scheme), func(t *testing.T) {
			t.Parallel()
			a := newAuthority(t)
			p := newPeer(t).serve(scheme, a, nil)
			d := &moodyDialer{}
			c := newClient(d, time.Now, zap.NewNop(), nil)
			c.roots = a.roots()
			defer c.close()
			groups := [][]Resolver{{p.resolver(scheme)}}
			for i := range 2 {
				start := time.Now()
				m, from, err := c.ask(context.Background(), inquiry{name: fmt.Sprintf("n%d.example", i), qtype: mdns.TypeA}, groups)
				if err != nil || len(m.Answer) != 1 || from != groups[0][0] {
					t.Fatalf("%v, %v, %v", m, from, err)
				}
				if took := time.Since(start); i == 1 && took < retryDelay/2 {
					t.Errorf("%v: the silent connection was not asked first", took)
				}
				d.silence()
			}
		})
	}
}

// TestRefusedCertificates: whoever cannot prove to be the resolver gets no query, and the error
// says why and what to do.
func TestRefusedCertificates(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	cases := []struct {
		name   string
		signer *authority
		change func(*x509.Certificate)
		want   string
	}{
		{"good", a, nil, ""},
		{"wrong name", a, func(c *x509.Certificate) { c.DNSNames = []string{"other.example"} }, "the certificate is not for dns.example: check the resolver's ip"},
		{"name in the subject only", a, func(c *x509.Certificate) { c.DNSNames = nil }, "the certificate is not for dns.example"},
		{"parent", a, func(c *x509.Certificate) { c.DNSNames = []string{"example"} }, "the certificate is not for dns.example"},
		{"foreign wildcard", a, func(c *x509.Certificate) { c.DNSNames = []string{"*.dns.example"} }, "the certificate is not for dns.example"},
		{"address", a, func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, []net.IP{net.IPv4(127, 0, 0, 1)} }, "the certificate is not for dns.example"},
		{"expired", a, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}, "is expired or not yet valid: check this machine's clock"},
		{"not yet valid", a, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour / 2) }, "is expired or not yet valid: check this machine's clock"},
		{"unknown authority", stranger, nil, "is not trusted: somebody is in between"},
		{"for clients", a, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, "is not trusted: somebody is in between"},
	}
	for _, scheme := range encrypted() {
		for _, c := range cases {
			t.Run(string(scheme)+" "+c.name, func(t *testing.T) {
				p := newPeer(t).serve(scheme, c.signer, c.change)
				m, err := tryAsk(secureClient(t, a), p.resolver(scheme), "a.example")
				if c.want == "" {
					if err != nil || p.queries.Load() != 1 {
						t.Fatalf("the control: %v, %v", m, err)
					}
					return
				}
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("got %v, %v; want an error with %q", m, err, c.want)
				}
				if p.queries.Load() != 0 {
					t.Fatalf("%d queries went out", p.queries.Load())
				}
			})
		}
	}
}

// TestVerify: an address as host is checked for the name or the address that verify gives.
func TestVerify(t *testing.T) {
	a := newAuthority(t)
	p := newPeer(t).serve(SchemeDoT, a, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 1)} })
	for verify, ok := range map[string]bool{serverName: true, "192.0.2.1": true, "other.example": false, "127.0.0.1": false} {
		_, err := tryAsk(secureClient(t, a), Resolver{Scheme: SchemeDoT, Addr: p.addr, Verify: verify}, "a.example")
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "the certificate is not for "+verify+": check verify") {
			t.Errorf("%s: %v", verify, err)
		}
	}
	if _, err := tryAsk(testClient(t), p.resolver(SchemeDoT), "a.example"); err == nil || !strings.Contains(err.Error(), "is not trusted") {
		t.Errorf("a private authority is trusted without being asked to: %v", err)
	}
}

// TestNotTLS: the errors for what is not the protocol that the URL says.
func TestNotTLS(t *testing.T) {
	t.Parallel() // one of the servers waits for 2 s
	a := newAuthority(t)
	plain := newPeer(t).serve(SchemeTCP, a, nil)
	web := newPeer(t).serveHTTP1(a.server(nil, "http/1.1"))
	bare := newPeer(t).serveHTTP1(nil)
	old := newPeer(t).serveStream(func() *tls.Config {
		c := a.server(nil)
		c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		return c
	}())
	for _, c := range []struct {
		name string
		p    *peer
		as   Scheme
		want string
	}{
		{"DoT to TCP", plain, SchemeDoT, "hung up during the TLS handshake: check the port"},
		{"DoT to HTTP", bare, SchemeDoT, "does not speak TLS on port"},
		{"DoH to HTTP", bare, SchemeHTTPS, "does not speak TLS on port"},
		{"DoT to HTTPS", web, SchemeDoT, "does not speak dot: want another scheme"},
		{"DoH to HTTP/1.1", web, SchemeHTTPS, "does not speak https: want another scheme"},
		{"TLS 1.1", old, SchemeDoT, "protocol version"},
	} {
		_, err := tryAsk(secureClient(t, a), c.p.resolver(c.as), "a.example")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
}

// TestIdleClose: a connection that nobody uses is closed, and so is everything with the client.
func TestIdleClose(t *testing.T) {
	for _, scheme := range kept() {
		t.Run(string(scheme), func(t *testing.T) {
			a := newAuthority(t)
			p := newPeer(t).serve(scheme, a, nil)
			c := secureClient(t, a)
			pool := c.server(p.resolver(scheme), time.Now()).pool
			pool.idle = 20 * time.Millisecond
			mustAsk(t, c, p.resolver(scheme), "a.example")
			eventually(t, "the idle connection is open", func() bool { return p.live() == 0 })
			pool.mu.Lock()
			left := len(pool.lines)
			pool.idle = time.Hour
			pool.mu.Unlock()
			if left != 0 {
				t.Fatalf("%d connections are kept", left)
			}
			mustAsk(t, c, p.resolver(scheme), "b.example")
			c.close()
			eventually(t, "a connection outlives the client", func() bool { return p.live() == 0 })
			if _, err := tryAsk(c, p.resolver(scheme), "c.example"); !errors.Is(err, errClosed) {
				t.Fatalf("after the end: %v", err)
			}
		})
	}
}

// TestSilentResolver: a resolver that takes queries and never answers holds nobody beyond the
// query's time, and gets no more than a few connections.
func TestSilentResolver(t *testing.T) {
	for _, scheme := range kept() {
		t.Run(string(scheme), func(t *testing.T) {
			a := newAuthority(t)
			p := newPeer(t)
			p.answer = func(*mdns.Msg) *mdns.Msg { return nil }
			p.serve(scheme, a, nil)
			c := secureClient(t, a)
			var group sync.WaitGroup
			for i := range 200 {
				group.Go(func() {
					ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
					defer cancel()
					start := time.Now()
					_, err := c.server(p.resolver(scheme), time.Now()).exchange(ctx, inquiry{name: fmt.Sprintf("n%d.example", i), qtype: mdns.TypeA})
					if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
						t.Errorf("%v after %v", err, time.Since(start))
					}
				})
			}
			group.Wait()
			if n := p.opened.Load(); n < 1 || n > 2*maxLines {
				t.Errorf("%d connections", n)
			}
			c.close()
			eventually(t, "a connection outlives the client", func() bool { return p.live() == 0 })
		})
	}
}

// TestOutOfOrder: replies come in any order, and each goes to who asked.
func TestOutOfOrder(t *testing.T) {
	const n = 50
	a := newAuthority(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", a.server(nil, "dot"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		var all [][]byte
		for range n {
			raw, err := readFrame(c)
			if err != nil {
				return
			}
			all = append(all, raw)
		}
		for _, raw := range slices.Backward(all) {
			q := new(mdns.Msg)
			if q.Unpack(raw) == nil {
				c.Write(framed(packed(t, respond(t, q, mdns.RcodeSuccess, q.Question[0].Name+" 60 IN A 198.51.100.1"))))
			}
		}
		readFrame(c)
	}()
	c := secureClient(t, a)
	r := Resolver{Scheme: SchemeDoT, Addr: l.Addr().(*net.TCPAddr).AddrPort(), Verify: serverName}
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			name := fmt.Sprintf("n%d.example", i)
			if m, err := tryAsk(c, r, name); err != nil || bareName(m.Answer[0].Header().Name) != name {
				t.Errorf("%s: %v, %v", name, m, err)
			}
		})
	}
	group.Wait()
}

// TestTruncatedOverOneConnection: answers that do not fit a datagram come over one connection.
func TestTruncatedOverOneConnection(t *testing.T) {
	p := newPeer(t).serve(SchemeTCP, nil, nil)
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(p.addr))
	if err != nil {
		t.Skipf("the UDP port of the same number is taken: %v", err)
	}
	s := &mdns.Server{PacketConn: udp, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := respond(t, q, mdns.RcodeSuccess)
		m.Truncated = true
		w.WriteMsg(m)
	})}
	done := make(chan error)
	started := make(chan struct{})
	s.NotifyStartedFunc = func() { close(started) }
	go func() { done <- s.ActivateAndServe() }()
	<-started
	defer func() { s.Shutdown(); <-done }()
	c := testClient(t)
	for i := range 50 {
		mustAsk(t, c, Resolver{Scheme: SchemeDNS, Addr: p.addr}, fmt.Sprintf("n%d.example", i))
	}
	if p.opened.Load() != 1 || p.queries.Load() != 50 {
		t.Fatalf("%d queries over %d connections", p.queries.Load(), p.opened.Load())
	}
}
