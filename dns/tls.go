package dns

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
)

// transport opens connections to one resolver.
type transport struct {
	dialer   Dialer
	resolver Resolver
	roots    *x509.CertPool // nil: the system's, and what SSL_CERT_FILE names
}

// config verifies the certificate always; there is no way to turn that off. No session is kept
// for resumption: a ticket would let the resolver know this machine again in another network.
func (t *transport) config(protocol string) *tls.Config {
	return &tls.Config{
		ServerName: t.resolver.certificateName(),
		RootCAs:    t.roots,
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{protocol},
	}
}

func (t *transport) dial(ctx context.Context, network string) (net.Conn, error) {
	return t.dialer.DialContext(ctx, network, t.resolver.Addr.String())
}

// dialTLS connects, shakes hands and checks what was agreed on.
func (t *transport) dialTLS(ctx context.Context, protocol string) (*tls.Conn, error) {
	raw, err := t.dial(ctx, "tcp")
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, t.config(protocol))
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, t.explain(err)
	}
	return c, nil
}

// explain adds what to do to what the TLS library says.
func (t *transport) explain(err error) error {
	var (
		host    x509.HostnameError
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
		name    = t.resolver.certificateName()
		where   = "the resolver's ip"
	)
	if t.resolver.Host == "" {
		where = "verify"
	}
	switch {
	case errors.As(err, &host):
		return fmt.Errorf("the certificate is not for %s: check %s, or somebody is in between: %w", name, where, err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("the certificate of %s is expired or not yet valid: check this machine's clock: %w", name, err)
	case errors.As(err, &unknown), errors.As(err, &invalid):
		return fmt.Errorf("the certificate of %s is not trusted: somebody is in between, or its authority is not among the system's: %w", name, err)
	case errors.As(err, &record):
		return fmt.Errorf("%s does not speak TLS on port %d: check the port: %w", t.resolver.Addr.Addr(), t.resolver.Addr.Port(), err)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%s hung up during the TLS handshake: check the port: %w", t.resolver.Addr, err)
	case strings.HasSuffix(err.Error(), noProtocol):
		return fmt.Errorf("%s does not speak %s: want another scheme: %w", name, t.resolver.Scheme, err)
	}
	return err
}

// noProtocol is how the TLS library writes the alert of RFC 7301, whose type it does not export.
const noProtocol = "tls: no application protocol"

// open connects by the resolver's scheme; dns:// does so for what does not fit into a datagram.
func (t *transport) open(ctx context.Context) (session, error) {
	switch t.resolver.Scheme {
	case SchemeDNS, SchemeTCP:
		c, err := t.dial(ctx, "tcp")
		if err != nil {
			return nil, err
		}
		return newPipeline(c, frameLimit), nil
	case SchemeDoT:
		c, err := t.dialTLS(ctx, "dot")
		if err != nil {
			return nil, err
		}
		return newPipeline(c, frameLimit), nil
	case SchemeHTTPS:
		return t.openHTTP2(ctx)
	case SchemeDoQ:
		return t.openDoQ(ctx)
	case SchemeH3:
		return t.openHTTP3(ctx)
	}
	return nil, fmt.Errorf("unknown scheme %q", t.resolver.Scheme)
}
