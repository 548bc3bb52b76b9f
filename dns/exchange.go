package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	mdns "github.com/miekg/dns"
)

// maxReplyUDP is more than we advertise: some servers do not look.
const maxReplyUDP = 4096

// Dialer opens the connections to the upstream nameservers, around the TUN or through a tunnel.
// For QUIC it is asked for a connected UDP socket like that of plain DNS.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// exchange asks the resolver once: without EDNS if it does not understand it.
func (u *upstream) exchange(ctx context.Context, q inquiry) (*mdns.Msg, error) {
	form := withEDNS
	if u.Encrypted() {
		form = padded
	}
	m, err := u.exchangeAs(ctx, q, form)
	if err == nil && (m.Rcode == mdns.RcodeFormatError || m.Rcode == mdns.RcodeNotImplemented || m.Rcode == mdns.RcodeBadVers) {
		return u.exchangeAs(ctx, q, withoutEDNS)
	}
	return m, err
}

// exchangeAs asks by the resolver's scheme. Plain UDP has a socket for each query; what does not
// fit there and everything else goes over connections that are kept.
func (u *upstream) exchangeAs(ctx context.Context, q inquiry, form packing) (*mdns.Msg, error) {
	if u.Scheme == SchemeDNS {
		m, err := u.datagram(ctx, q, form)
		if err != nil || !m.Truncated {
			return m, err
		}
	}
	return u.pool.ask(ctx, q, form)
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

// datagram asks over a new socket, which means from a new random port, until ctx ends, whose
// deadline is the only one.
func (u *upstream) datagram(ctx context.Context, q inquiry, form packing) (*mdns.Msg, error) {
	id, err := randomID()
	if err != nil {
		return nil, err
	}
	query, err := q.pack(id, form)
	if err != nil {
		return nil, err
	}
	c, err := u.transport.dial(ctx, "udp")
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := u.replyBuffer()
	defer u.replies.Put(buf)
	m, err := askUDP(c, query, id, q, buf[:])
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return m, err
}

// replyBuffer is for one datagram at a time; what is parsed holds nothing of it.
func (u *upstream) replyBuffer() *[maxReplyUDP]byte {
	if b, ok := u.replies.Get().(*[maxReplyUDP]byte); ok {
		return b
	}
	return new([maxReplyUDP]byte)
}

// askUDP waits for the true reply until the deadline, whatever else arrives.
func askUDP(c net.Conn, query []byte, id uint16, q inquiry, buf []byte) (*mdns.Msg, error) {
	if _, err := c.Write(query); err != nil {
		return nil, err
	}
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
