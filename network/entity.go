package network

import (
	"net/netip"

	"gatun/intel"
)

// Scope says how far away an address is.
type Scope uint8

// The scopes of policy.md section 3. ScopeUnknown is the scope of no address.
const (
	ScopeUnknown Scope = iota
	Localhost
	LAN
	Internet
)

// String returns the scope as rules spell it.
func (s Scope) String() string {
	switch s {
	case Localhost:
		return "Localhost"
	case LAN:
		return "LAN"
	case Internet:
		return "Internet"
	default:
		return ""
	}
}

// DomainSource says where the name of an Entity comes from.
type DomainSource uint8

// The sources of a name (product.md, domain_source).
const (
	DomainNone DomainSource = iota
	DomainDNS
	DomainSNI
	DomainQUIC
	DomainHTTP
)

// String returns the JSON value of domain_source.
func (s DomainSource) String() string {
	switch s {
	case DomainDNS:
		return "dns"
	case DomainSNI:
		return "sni"
	case DomainQUIC:
		return "quic"
	case DomainHTTP:
		return "http"
	default:
		return "none"
	}
}

// Entity is the other end of a flow: an address, a name, or both. It is a value; its slices
// are never written after it was made.
//
// Domain is lower-case, punycode, without the final dot. It is the name under which *this
// process* resolved the address (dns.Memory), or the queried name at a DNS stage; "" where
// none is known. CNAMEs are the names that Domain was an alias of, in order.
type Entity struct {
	Addr   netip.Addr // invalid at a DNS stage before the answer is there
	Domain string
	Source DomainSource
	CNAMEs []string
	Others []string // other names of the address that this process resolved, newest first: for "why"

	// Local says that who answered for Domain may give addresses of this network: a nameserver
	// that the user chose for that name, or the network's own for a name of the network.
	Local bool

	Stamp *intel.Stamp // what intelligence says; nil: it was not asked yet
}

// Scope is the scope of the entity's address, ScopeUnknown where there is none.
func (e Entity) Scope() Scope { return ScopeOf(e.Addr) }

// ScopeOf classifies an address: loopback and the unspecified address are Localhost; private
// (RFC 1918, RFC 4193), link-local, shared (RFC 6598), multicast and broadcast addresses are
// LAN; everything else is Internet. An IPv4-mapped address counts as its IPv4 address.
func ScopeOf(a netip.Addr) Scope {
	if !a.IsValid() {
		return ScopeUnknown
	}
	a = a.Unmap()
	switch {
	case a.IsLoopback(), a.IsUnspecified():
		return Localhost
	case a.IsPrivate(), a.IsLinkLocalUnicast(), a.IsMulticast(), isSharedOrBroadcast(a):
		return LAN
	default:
		return Internet
	}
}

func isSharedOrBroadcast(a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	b := a.As4()
	return b[0] == 100 && b[1]&0xc0 == 64 || b == [4]byte{255, 255, 255, 255} || b[0] == 0
}
