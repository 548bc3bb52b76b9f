package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"

	mdns "github.com/miekg/dns"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// Error codes of DNS over QUIC (RFC 9250, 4.3).
const (
	doqNoError          = 0x0
	doqRequestCancelled = 0x3
)

// packetConn makes of the connected socket that a Dialer returns what QUIC wants. Being
// connected, the kernel passes only packets of the resolver, and its ICMP errors.
type packetConn struct {
	net.Conn
}

// ReadFrom implements net.PacketConn.
func (c packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, err := c.Read(b)
	return n, c.RemoteAddr(), err
}

// WriteTo implements net.PacketConn.
func (c packetConn) WriteTo(b []byte, _ net.Addr) (int, error) { return c.Write(b) }

// SetReadBuffer does nothing: answers of a resolver fit the usual size. It is here because the
// library writes to the standard error output where it is missing.
func (c packetConn) SetReadBuffer(int) error { return nil }

// SetWriteBuffer does nothing either.
func (c packetConn) SetWriteBuffer(int) error { return nil }

// dialQUIC connects. When the connection ends, for whatever reason, its socket is closed.
func (t *transport) dialQUIC(ctx context.Context, protocol string, uniStreams int64) (*quic.Conn, error) {
	raw, err := t.dial(ctx, "udp")
	if err != nil {
		return nil, err
	}
	pc := packetConn{raw}
	carrier := &quic.Transport{Conn: pc}
	conn, err := carrier.Dial(ctx, raw.RemoteAddr(), t.config(protocol), &quic.Config{
		HandshakeIdleTimeout: dialLimit, MaxIdleTimeout: 2 * lineIdle,
		InitialStreamReceiveWindow: windowOfStream, MaxStreamReceiveWindow: windowOfStream,
		InitialConnectionReceiveWindow: windowOfConnection, MaxConnectionReceiveWindow: windowOfConnection,
		MaxIncomingStreams: -1, MaxIncomingUniStreams: uniStreams,
		DisablePathMTUDiscovery: true,
	})
	hangUp := func() {
		carrier.Close()
		raw.Close()
	}
	if err != nil {
		hangUp()
		return nil, t.explain(err)
	}
	context.AfterFunc(conn.Context(), hangUp)
	return conn, nil
}

// doq is one connection of DNS over QUIC: a stream for each query (RFC 9250).
type doq struct{ conn *quic.Conn }

func (t *transport) openDoQ(ctx context.Context) (session, error) {
	conn, err := t.dialQUIC(ctx, "doq", -1)
	if err != nil {
		return nil, err
	}
	return &doq{conn}, nil
}

func (d *doq) ask(ctx context.Context, q inquiry, form packing) (*mdns.Msg, error) {
	query, err := q.pack(0, form) // RFC 9250, 4.2.1
	if err != nil {
		return nil, err
	}
	s, err := d.conn.OpenStreamSync(ctx)
	if err != nil {
		return nil, d.broken(ctx, err)
	}
	cancel := func() {
		s.CancelRead(doqRequestCancelled)
		s.CancelWrite(doqRequestCancelled)
	}
	stop := context.AfterFunc(ctx, cancel)
	defer func() {
		stop()
		s.CancelRead(doqRequestCancelled) // what follows the answer is not for us
	}()
	if _, err := s.Write(framed(query)); err != nil {
		cancel()
		return nil, d.broken(ctx, err)
	}
	if err := s.Close(); err != nil {
		return nil, d.broken(ctx, err)
	}
	b, err := readFrame(s)
	if err != nil {
		return nil, d.broken(ctx, err)
	}
	return streamReply(b, 0, q)
}

func readFrame(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

// broken says why a stream failed: because the query was given up, or because of the connection.
func (d *doq) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errLostReply
	}
	return &brokenError{err}
}

func (d *doq) usable() bool { return d.conn.Context().Err() == nil }

func (d *doq) close() { d.conn.CloseWithError(doqNoError, "") }

// h3 is a session over one HTTP/3 connection.
type h3 struct {
	doh
	conn *quic.Conn
}

// uniStreams are the control stream and the two of QPACK, and some that nobody knows.
const uniStreams = 8

func (t *transport) openHTTP3(ctx context.Context) (session, error) {
	conn, err := t.dialQUIC(ctx, http3.NextProtoH3, uniStreams)
	if err != nil {
		return nil, err
	}
	client := (&http3.Transport{DisableCompression: true, MaxResponseHeaderBytes: maxHeaders}).NewClientConn(conn)
	return &h3{doh: doh{url: t.dohURL(), round: client.RoundTrip}, conn: conn}, nil
}

func (h *h3) usable() bool { return h.conn.Context().Err() == nil }

func (h *h3) close() { h.conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "") }
