package dns

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"

	mdns "github.com/miekg/dns"
)

const (
	mediaType  = "application/dns-message"
	maxHeaders = 16 << 10

	// What a server may send before we have read it.
	windowOfStream     = 128 << 10
	windowOfConnection = 1 << 20
)

// doh asks by RFC 8484 over one connection of any version of HTTP.
type doh struct {
	url   string
	round func(*http.Request) (*http.Response, error)
}

// dohURL is what is asked for: by the name that the certificate was checked for, because that
// is how the server knows itself.
func (t *transport) dohURL() string {
	host, port := t.resolver.certificateName(), t.resolver.Addr.Port()
	authority := net.JoinHostPort(host, strconv.Itoa(int(port)))
	if port == t.resolver.Scheme.port() {
		authority = strings.TrimSuffix(authority, ":"+strconv.Itoa(int(port)))
	}
	return "https://" + authority + t.resolver.Path
}

// ask posts the query, with ID 0 (RFC 8484, 4.1). Nothing is sent that tells more of us than the
// query does.
func (h *doh) ask(ctx context.Context, q inquiry, form packing) (*mdns.Msg, error) {
	query, err := q.pack(0, form)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(query))
	if err != nil {
		return nil, err
	}
	req.Header = http.Header{"Content-Type": {mediaType}, "Accept": {mediaType}, "User-Agent": {""}}
	resp, err := h.round(req)
	if err != nil {
		return nil, &brokenError{err}
	}
	defer resp.Body.Close()
	if err := checkResponse(resp); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxTCP+1))
	if err != nil {
		return nil, &brokenError{err}
	}
	if len(b) > maxTCP {
		return nil, fmt.Errorf("the resolver's answer is larger than %d bytes", maxTCP)
	}
	m, err := streamReply(b, 0, q)
	if err == nil {
		grow(m, resp.Header.Get("Age"))
	}
	return m, err
}

// checkResponse refuses what is no answer. A redirection is not followed: it would lead to a
// server that nobody chose.
func checkResponse(resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the resolver answers HTTP %d %s: check the path of its URL", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || kind != mediaType {
		return fmt.Errorf("the resolver answers with content type %q, not %s: check the path of its URL", shorten(resp.Header.Get("Content-Type")), mediaType)
	}
	return nil
}

// grow makes the records as old as the answer is in an HTTP cache on the way (RFC 8484, 5.1).
func grow(m *mdns.Msg, text string) {
	age, err := strconv.ParseUint(text, 10, 32)
	if err != nil || age == 0 {
		return
	}
	for _, section := range [][]mdns.RR{m.Answer, m.Ns} {
		for _, rr := range section {
			h := rr.Header()
			h.Ttl -= min(h.Ttl, uint32(age))
		}
	}
}

// http2 is a session over one HTTP/2 connection.
type http2 struct {
	doh
	conn *http.ClientConn
}

func (t *transport) openHTTP2(ctx context.Context) (session, error) {
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	h := &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := t.dialTLS(ctx, "h2")
			if err != nil {
				return nil, err
			}
			return t.wantHTTP2(c)
		},
		Protocols: &protocols, DisableCompression: true, MaxResponseHeaderBytes: maxHeaders,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream: windowOfStream, MaxReceiveBufferPerConnection: windowOfConnection,
			WriteByteTimeout: frameLimit,
		},
	}
	conn, err := h.NewClientConn(ctx, "https", t.resolver.Addr.String())
	if err != nil {
		return nil, err
	}
	return &http2{doh: doh{url: t.dohURL(), round: conn.RoundTrip}, conn: conn}, nil
}

func (t *transport) wantHTTP2(c *tls.Conn) (net.Conn, error) {
	if c.ConnectionState().NegotiatedProtocol != "h2" {
		c.Close()
		return nil, errors.New(t.resolver.certificateName() + " does not speak HTTP/2 here: check the port, or ask it by dot:// or h3://")
	}
	return c, nil
}

func (h *http2) usable() bool { return h.conn.Err() == nil && h.conn.Available() > 0 }

func (h *http2) close() { h.conn.Close() }
