package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	mdns "github.com/miekg/dns"
)

// maxReplyUDP is more than we advertise: some servers do not look.
const maxReplyUDP = 4096

// Dialer opens the connections to the upstream nameservers, around the TUN.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// exchange asks one upstream once: over UDP, and over TCP where the answer does not fit or the
// resolver wants it; without EDNS if the server does not understand it.
func exchange(ctx context.Context, d Dialer, r Resolver, q inquiry) (*mdns.Msg, error) {
	m, err := exchangeOnce(ctx, d, r, q, true)
	if err == nil && (m.Rcode == mdns.RcodeFormatError || m.Rcode == mdns.RcodeNotImplemented || m.Rcode == mdns.RcodeBadVers) {
		return exchangeOnce(ctx, d, r, q, false)
	}
	return m, err
}

func exchangeOnce(ctx context.Context, d Dialer, r Resolver, q inquiry, edns bool) (*mdns.Msg, error) {
	id, err := randomID()
	if err != nil {
		return nil, err
	}
	query, err := q.pack(id, edns)
	if err != nil {
		return nil, fmt.Errorf("packing the query for %s: %w", r, err)
	}
	if r.Scheme == SchemeDNS {
		m, err := talk(ctx, d, "udp", r, func(c net.Conn) (*mdns.Msg, error) { return askUDP(c, query, id, q) })
		if err != nil || !m.Truncated {
			return m, err
		}
	}
	return talk(ctx, d, "tcp", r, func(c net.Conn) (*mdns.Msg, error) { return askTCP(c, query, id, q) })
}

// randomID is unpredictable: with the source port it is all that an off-path attacker has to
// guess.
func randomID() (uint16, error) {
	var b [2]byte
	if _, err := rand.Read(b[:]); err != nil {
		return 0, fmt.Errorf("no random query ID: %w", err)
	}
	return binary.BigEndian.Uint16(b[:]), nil
}

// talk runs ask on a new connection, which means on a new random port, and ends it with ctx,
// whose deadline is the only one.
func talk(ctx context.Context, d Dialer, network string, r Resolver, ask func(net.Conn) (*mdns.Msg, error)) (*mdns.Msg, error) {
	c, err := d.DialContext(ctx, network, r.Addr.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	m, err := ask(c)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return m, err
}

// askUDP waits for the true reply until the deadline, whatever else arrives.
func askUDP(c net.Conn, query []byte, id uint16, q inquiry) (*mdns.Msg, error) {
	if _, err := c.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, maxReplyUDP)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		m, err := parseReply(buf[:n], id, q)
		if !errors.Is(err, errBogus) {
			return m, err
		}
	}
}

// askTCP reads one reply. On a stream nobody can inject without having broken it, so a reply
// that is not ours is an error.
func askTCP(c net.Conn, query []byte, id uint16, q inquiry) (*mdns.Msg, error) {
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, buf); err != nil {
		return nil, err
	}
	m, err := parseReply(buf, id, q)
	if err == nil && m.Truncated {
		return nil, errBogus
	}
	return m, err
}
