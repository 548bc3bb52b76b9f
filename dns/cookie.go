package dns

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"time"
)

// Lengths of a DNS cookie (RFC 7873, section 4).
const (
	clientCookie    = 8
	minServerCookie = 8
	maxServerCookie = 32
)

// cookies makes server cookies. They are never required: who asks us is on this machine, and is
// known by more than its address. Clients that send cookies get theirs back, and so can tell our
// replies from forged ones.
type cookies struct {
	secret [sha256.Size]byte
}

func (c *cookies) init() { _, _ = rand.Read(c.secret[:]) } // never fails, see crypto/rand

// wholeCookie reports whether b has the form of a cookie in a query.
func wholeCookie(b []byte) bool {
	server := len(b) - clientCookie
	return server == 0 || server >= minServerCookie && server <= maxServerCookie
}

// serve returns the client's cookie with one of ours, in the layout of RFC 9018: version,
// reserved, time, and a keyed hash of all that with the client's address.
func (c *cookies) serve(asked []byte, from netip.Addr, now time.Time) []byte {
	b := make([]byte, 0, clientCookie+16+sha256.Size)
	b = append(b, asked[:clientCookie]...)
	b = append(b, 1, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(now.Unix()))
	mac := hmac.New(sha256.New, c.secret[:])
	mac.Write(b)
	mac.Write(from.Unmap().AsSlice())
	return mac.Sum(b)[:clientCookie+16]
}
