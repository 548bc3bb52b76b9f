package main

import (
	"go.uber.org/zap"

	"gatun/attribution"
	"gatun/dns"
	"gatun/profiles"
	"gatun/status"
	"gatun/tun/route"
)

// openRedirect opens the sockets to which port 53 is redirected. Without them it takes the TUN
// device, and what programs ask on loopback is not seen: status says why.
func (u *up) openRedirect() {
	u.redirect, u.noRedirect = route.ListenDNS()
	if u.noRedirect != nil {
		u.log.Warn("DNS to resolvers on loopback is not intercepted", zap.Error(u.noRedirect))
	}
}

func (u *up) closeRedirect() {
	if u.redirect != nil {
		u.redirect.Close()
	}
}

// interceptsDNS is the same for all programs.
func interceptsDNS(s *profiles.Store) bool {
	return s.For(attribution.Unidentified("")).DNSQueryInterception
}

// dnsPort is where port 53 is to be redirected as the policy is now; 0: nowhere.
func (u *up) dnsPort() uint16 {
	if u.redirect == nil || !interceptsDNS(u.policy.store) {
		return 0
	}
	return u.redirect.Port
}

// namesForAll knows whose names count for everybody. A resolver on loopback asks for all programs,
// but only while these are not seen asking it.
func (u *up) namesForAll(o attribution.Owner) bool {
	return u.manager.DNSPort() == 0 && dns.IsSystemResolver(o)
}

// redirectModule says whether queries to resolvers on loopback belong to the programs that ask.
func (u *up) redirectModule(m route.Status) status.Module {
	mod := status.Module{Name: "dns-redirect"}
	why := ""
	switch {
	case m.DNSPort != 0:
		mod.Message = "DNS to loopback resolvers is intercepted"
		return mod
	case !interceptsDNS(u.policy.store):
		mod.State, why = status.Info, "filter/dnsQueryInterception is off"
	case u.noRedirect != nil:
		mod.State, why = status.Warning, u.noRedirect.Error()
	case m.DNSRefused != "":
		mod.State, why = status.Warning, "the kernel does not redirect: "+m.DNSRefused
	default:
		mod.State, why = status.Info, "the redirect is not in place"
	}
	mod.Message = "DNS to loopback resolvers is not intercepted (" + why + "): what they resolve counts for every program"
	return mod
}
