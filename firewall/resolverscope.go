package firewall

import (
	"net/netip"

	"gatun/network"
)

// codeOutOfScope marks the decisions of resolverScope, which removes single addresses.
const codeOutOfScope = "out-of-scope"

// resolverScope refuses addresses of this machine and network for names that are public: a web
// page whose name is changed to lead there reaches past the browser's borders into what trusts
// its neighbours (DNS rebinding). Who answers for a name of this network may give them.
func resolverScope(r *request) outcome {
	e := r.facts.Entity
	if !r.settings.RemoveOutOfScopeDNS || r.direction != network.Outbound || e.Domain == "" || e.Local || network.LocalName(e.Domain) || r.leadsToPortal() {
		return outcome{}
	}
	if !e.Addr.IsValid() {
		return outcome{unknown: true}
	}
	if !outOfScope(e.Addr) {
		return outcome{}
	}
	return decided(network.Decision{
		Verdict: network.Block, Code: codeOutOfScope, Setting: "filter/removeOutOfScopeDNS",
		Reason: "a public name leads to an address of this machine or network (DNS rebinding)",
	})
}

// outOfScope knows the addresses that no public name leads to, also in the disguise of IPv6.
func outOfScope(a netip.Addr) bool {
	if network.ScopeOf(a) != network.Internet {
		return true
	}
	if a.Unmap().Is4() {
		return false
	}
	b := a.As16()
	inner := func(at int) bool {
		return network.ScopeOf(netip.AddrFrom4([4]byte(b[at:at+4]))) != network.Internet
	}
	switch {
	case siteLocal.Contains(a): // RFC 3879 took it back, systems route it yet
		return true
	case translated.Contains(a), translatedLocal.Contains(a), compatible.Contains(a):
		return inner(12)
	case sixToFour.Contains(a):
		return inner(2)
	}
	return false
}

// Prefixes that carry an IPv4 address.
var (
	translated      = netip.MustParsePrefix("64:ff9b::/96")   // NAT64, RFC 6052
	translatedLocal = netip.MustParsePrefix("64:ff9b:1::/48") // NAT64 of this network, RFC 8215; mostly used as a /96
	compatible      = netip.MustParsePrefix("::/96")          // RFC 4291, 2.5.5.1
	sixToFour       = netip.MustParsePrefix("2002::/16")      // RFC 3056
	siteLocal       = netip.MustParsePrefix("fec0::/10")
)

// connectivity lets the names through by which programs find out that a captive portal waits, as
// long as one does: else nobody would see its page.
func connectivity(r *request) outcome {
	if !r.leadsToPortal() {
		return outcome{}
	}
	return decided(network.Decision{Verdict: network.Accept, Code: "connectivity", Reason: "a captive portal is there, and this leads to its page"})
}

// leadsToPortal knows, while a captive portal is there, what leads a person to its page: the names
// by which one is found, and the page's own host. Both may be addresses of this network.
func (r *request) leadsToPortal() bool {
	s, e := r.settings, r.facts.Entity
	if !s.Portal || r.direction != network.Outbound {
		return false
	}
	if e.Domain == "" {
		return e.Addr.IsValid() && e.Addr.String() == s.PortalHost
	}
	return network.ConnectivityName(e.Domain) || e.Domain == s.PortalHost
}
