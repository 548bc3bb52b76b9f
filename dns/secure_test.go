package dns

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

const serverName = "dns.example"

// authority signs the certificates of the test servers.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t}
	a.key = a.newKey()
	a.cert = a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, a.key)
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

func (a *authority) sign(c, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

func (a *authority) roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// server is the TLS configuration of a server with a certificate as changed.
func (a *authority) server(change func(*x509.Certificate), protocols ...string) *tls.Config {
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: serverName}, DNSNames: []string{serverName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if change != nil {
		change(c)
	}
	key := a.newKey()
	cert := a.sign(c, a.cert, key)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}, NextProtos: protocols,
		MinVersion: tls.VersionTLS12,
	}
}

// peer is a nameserver that we did not write: miekg's over TCP and TLS, net/http's, quic-go's.
type peer struct {
	t      testing.TB
	addr   netip.AddrPort
	answer func(q *mdns.Msg) *mdns.Msg

	maxQueries int // on a connection of the server over TCP or TLS; -1: any number

	queries, opened atomic.Int64
	serverNames     sync.Map

	mu    sync.Mutex
	conns map[io.Closer]bool
	odd   []string // what a query should not be
}

func newPeer(t testing.TB) *peer {
	p := &peer{t: t, conns: map[io.Closer]bool{}, maxQueries: -1}
	p.answer = func(q *mdns.Msg) *mdns.Msg {
		return respond(t, q, mdns.RcodeSuccess, q.Question[0].Name+" 300 IN A 198.51.100.7")
	}
	t.Cleanup(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, s := range p.odd {
			t.Error(s)
		}
	})
	return p
}

func (p *peer) strange(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.odd) < 10 {
		p.odd = append(p.odd, fmt.Sprintf(format, args...))
	}
}

func (p *peer) track(c io.Closer) {
	p.opened.Add(1)
	p.mu.Lock()
	p.conns[c] = true
	p.mu.Unlock()
}

func (p *peer) lost(c io.Closer) {
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

// live is how many connections are open now.
func (p *peer) live() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// hangUp closes all connections from the server's side.
func (p *peer) hangUp() {
	p.mu.Lock()
	var all []io.Closer
	for c := range p.conns {
		all = append(all, c)
	}
	p.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}

// reply counts and checks a query and answers it.
func (p *peer) reply(raw []byte, wantZero, wantPadded bool) []byte {
	p.queries.Add(1)
	q := new(mdns.Msg)
	if err := q.Unpack(raw); err != nil {
		p.strange("the query is broken: %v", err)
		return nil
	}
	if wantZero && q.Id != 0 {
		p.strange("a query with ID %d", q.Id)
	}
	if wantPadded && q.IsEdns0() != nil && len(raw)%paddedTo != 0 {
		p.strange("a query of %d bytes, not padded to %d", len(raw), paddedTo)
	}
	m := p.answer(q)
	if m == nil {
		return nil
	}
	b, err := m.Pack()
	if err != nil {
		p.strange("answer: %v", err)
	}
	return b
}

// countingListener tracks the connections of a listener.
type countingListener struct {
	net.Listener
	p *peer
}

type countedConn struct {
	net.Conn
	p *peer
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	counted := &countedConn{c, l.p}
	l.p.track(counted)
	return counted, nil
}

func (c *countedConn) Close() error {
	c.p.lost(c)
	return c.Conn.Close()
}

func (p *peer) listen() net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	p.addr = l.Addr().(*net.TCPAddr).AddrPort()
	return countingListener{l, p}
}

// serveStream is miekg's server over TCP, or over TLS with a configuration.
func (p *peer) serveStream(config *tls.Config) *peer {
	l := p.listen()
	if config != nil {
		l = tls.NewListener(l, config)
	}
	started := make(chan struct{})
	s := &mdns.Server{Listener: l, MaxTCPQueries: p.maxQueries, NotifyStartedFunc: func() { close(started) }, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		raw, _ := q.Pack()
		if b := p.reply(raw, false, config != nil); b != nil {
			w.Write(b)
		}
	})}
	go s.ActivateAndServe()
	<-started
	p.t.Cleanup(func() { p.hangUp(); s.Shutdown() })
	return p
}

// ServeHTTP answers by RFC 8484.
func (p *peer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if r.Method != http.MethodPost || r.URL.Path != "/dns-query" || r.Header.Get("Content-Type") != mediaType || r.ProtoMajor < 2 {
		p.strange("%s %s %s %v", r.Proto, r.Method, r.URL, r.Header)
	}
	for name := range r.Header {
		switch name {
		case "Content-Type", "Accept", "Content-Length":
		default:
			p.strange("a header that tells more than it has to: %s: %s", name, r.Header.Get(name))
		}
	}
	p.serverNames.Store(r.Host, true)
	if b := p.reply(raw, true, true); b != nil {
		w.Header().Set("Content-Type", mediaType)
		w.Write(b)
	} else {
		<-r.Context().Done()
	}
}

func (p *peer) serveHTTP2(config *tls.Config, h http.Handler) *peer {
	l := p.listen()
	s := &http.Server{Handler: h, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0)}
	go s.ServeTLS(l, "", "")
	p.t.Cleanup(func() { s.Close() })
	return p
}

// serveHTTP1 is a web server, with TLS or without, that has no HTTP/2.
func (p *peer) serveHTTP1(config *tls.Config) *peer {
	l := p.listen()
	if config != nil {
		l = tls.NewListener(l, config)
	}
	s := &http.Server{Handler: http.NotFoundHandler(), ErrorLog: log.New(io.Discard, "", 0)}
	go s.Serve(l)
	p.t.Cleanup(func() { s.Close() })
	return p
}

// quicListener listens on a UDP port.
func (p *peer) quicListener(config *tls.Config) *quic.Listener {
	l, err := quic.ListenAddr("127.0.0.1:0", config, &quic.Config{MaxIdleTimeout: 5 * time.Second})
	if err != nil {
		p.t.Fatal(err)
	}
	p.addr = l.Addr().(*net.UDPAddr).AddrPort()
	p.t.Cleanup(func() { p.hangUp(); l.Close() })
	return l
}

type quicCloser struct{ *quic.Conn }

func (c quicCloser) Close() error { return c.CloseWithError(0, "") }

func (p *peer) trackQUIC(c *quic.Conn) {
	p.track(quicCloser{c})
	context.AfterFunc(c.Context(), func() { p.lost(quicCloser{c}) })
}

func (p *peer) serveDoQ(config *tls.Config) *peer {
	l := p.quicListener(config)
	go func() {
		for {
			c, err := l.Accept(context.Background())
			if err != nil {
				return
			}
			p.trackQUIC(c)
			go p.serveStreams(c)
		}
	}()
	return p
}

func (p *peer) serveStreams(c *quic.Conn) {
	for {
		s, err := c.AcceptStream(c.Context())
		if err != nil {
			return
		}
		go func() {
			raw, err := io.ReadAll(s) // to the FIN
			if err != nil || len(raw) < 2 || int(binary.BigEndian.Uint16(raw)) != len(raw)-2 {
				if err == nil {
					p.strange("a stream with %x", raw)
				}
				return
			}
			if b := p.reply(raw[2:], true, true); b != nil {
				s.Write(framed(b))
				s.Close()
			}
		}()
	}
}

func (p *peer) serveHTTP3(config *tls.Config, h http.Handler) *peer {
	l := p.quicListener(http3.ConfigureTLSConfig(config))
	s := &http3.Server{Handler: h}
	go func() {
		for {
			c, err := l.Accept(context.Background())
			if err != nil {
				return
			}
			p.trackQUIC(c)
			go s.ServeQUICConn(c)
		}
	}()
	p.t.Cleanup(func() { s.Close() })
	return p
}

// serve starts the server of that scheme.
func (p *peer) serve(scheme Scheme, a *authority, change func(*x509.Certificate)) *peer {
	switch scheme {
	case SchemeTCP:
		return p.serveStream(nil)
	case SchemeDoT:
		return p.serveStream(a.server(change, "dot"))
	case SchemeHTTPS:
		return p.serveHTTP2(a.server(change, "h2"), p)
	case SchemeDoQ:
		return p.serveDoQ(a.server(change, "doq"))
	case SchemeH3:
		return p.serveHTTP3(a.server(change, "h3"), p)
	}
	p.t.Fatalf("no server for %s", scheme)
	return nil
}

// resolver is the peer as a resolver, by name or, for DNS and TCP, by address.
func (p *peer) resolver(scheme Scheme) Resolver {
	r := Resolver{Scheme: scheme, Addr: p.addr}
	if scheme.Encrypted() {
		r.Host = serverName
	}
	if scheme.http() {
		r.Path = defaultPath
	}
	return r
}

func kept() []Scheme {
	return []Scheme{SchemeTCP, SchemeDoT, SchemeHTTPS, SchemeDoQ, SchemeH3}
}

func encrypted() []Scheme { return kept()[1:] }
