package main

import (
	"gatun/attribution"
	"gatun/config"
	"gatun/dns"
	"gatun/firewall"
	"gatun/network"
	"gatun/profiles"
)

// dnsFirewall lets the nameserver ask the firewall.
type dnsFirewall struct {
	master *firewall.Master
}

// BeforeIntel implements dns.Firewall.
func (f dnsFirewall) BeforeIntel(q *dns.Query) network.Decision {
	return f.master.DecideOnCommunicationBeforeIntel(firewall.Name{Owner: q.Owner, Domain: q.Name})
}

// AfterIntel implements dns.Firewall.
func (f dnsFirewall) AfterIntel(q *dns.Query, a *dns.Answer) network.Decision {
	d, remove := f.master.DecideOnCommunicationAfterIntel(firewall.Name{Owner: q.Owner, Domain: q.Name, CNAMEs: a.CNAMEs}, a.Addrs)
	a.Remove = remove
	return d
}

// newNameserver wires the nameserver of an engine.
func newNameserver(e *engine) *dns.Server {
	return dns.New(dns.Options{
		Firewall: dnsFirewall{e.master}, Dialer: e.opt.dialer, Memory: e.names, Recorder: e.table,
		System:     e.system.Resolvers,
		BlockStyle: func(o attribution.Owner, d network.Decision) dns.BlockStyle { return styleOf(e.master.Settings(o), d) },
		Profile:    func(o attribution.Owner) string { return e.master.Settings(o).ProfileName },
		Config:     dnsConfig(e.opt.cfg),
		Logger:     e.opt.log,
	})
}

// styleOf says how a blocked name is answered. That of the canary does not exist whatever the
// setting says, because nothing else turns a browser's own resolver off.
func styleOf(s *profiles.Settings, d network.Decision) dns.BlockStyle {
	if d.Code == "bypass-canary" {
		return dns.NXDomain
	}
	return blockStyle(s.BlockStyle)
}

func blockStyle(s profiles.BlockStyle) dns.BlockStyle {
	switch s {
	case profiles.Refused:
		return dns.Refused
	case profiles.Zero:
		return dns.Zero
	default:
		return dns.NXDomain
	}
}

// dnsConfig takes the resolvers from a checked configuration.
func dnsConfig(cfg *config.Config) dns.Config {
	c := dns.Config{NoAssigned: cfg.Bool("dns/noAssignedNameservers"), ResolveSpecial: !cfg.Bool("dns/dontResolveSpecialDomains")}
	for _, text := range cfg.Strings("dns/nameservers") {
		if r, err := dns.ParseResolver(text); err == nil { // config has checked them
			c.Nameservers = append(c.Nameservers, r)
		}
	}
	return c
}
