package main

import (
	"context"
	"errors"
	"net/netip"
	"syscall"

	"go.uber.org/zap"

	"gatun/api"
	"gatun/config"
	"gatun/dns"
	"gatun/netenv"
	"gatun/network"
	"gatun/status"
)

// probe is how this engine finds out whether it is online: its sockets and queries go around the
// TUN, as those of the programs that it relays do. `gatun run` asks nobody: what it would find
// out, its caller knows, and it changes nothing on the machine; hints count there as well.
func (e *engine) probe(cfg *config.Config) netenv.Probe {
	p := netenv.Probe{URL: cfg.String("network/onlineCheck"), Resolve: e.server.Lookup, Dial: e.opt.dialer.DialContext}
	if e.opt.mode == "run" {
		p.URL = ""
	}
	return p
}

// followProbe puts the setting in force.
func (e *engine) followProbe(cfg *config.Config) {
	if e.opt.networks != nil {
		e.opt.networks.SetProbe(e.probe(cfg))
	}
}

// hint tells what the relay and the nameserver come across.
func (e *engine) hint(h netenv.Hint, says bool) {
	if says && e.opt.networks != nil {
		e.opt.networks.Hint(h)
	}
}

// dialed implements interception.Relay.Dialed.
func (e *engine) dialed(remote netip.AddrPort, err error) {
	if network.ScopeOf(remote.Addr()) != network.Internet {
		return
	}
	e.hint(netenv.Connected, err == nil)
	e.hint(netenv.Unconnected, err != nil && tellsOfNetwork(remote.Port(), err))
}

// tellsOfNetwork reports whether a failed connection may be the network's fault. A closed port is
// the server's affair, but not that of the web, which every portal knows.
func tellsOfNetwork(port uint16, err error) bool {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return port == 80 || port == 443
	}
	for _, e := range []syscall.Errno{syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ETIMEDOUT, syscall.EACCES} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// inquired implements dns.Options.Told.
func (e *engine) inquired(err error) {
	var blocked *dns.BlockedUpstreamError
	answered := err == nil || errors.As(err, &blocked)
	e.hint(netenv.Resolved, answered)
	e.hint(netenv.Unresolved, !answered && !errors.Is(err, dns.ErrNoNameserver))
}

// systemNames is what netenv asks for the system's nameservers.
func systemNames(s *dns.System) func() ([]netip.Addr, []string) {
	return func() (addrs []netip.Addr, suffixes []string) {
		s.Refresh() // it is asked because something has changed
		for _, r := range s.Resolvers() {
			addrs = append(addrs, r.Addr.Addr())
		}
		return addrs, s.Search()
	}
}

// keepNameservers looks at the networks again when the files with their nameservers change.
func (e *engine) keepNameservers(ctx context.Context) error {
	err := config.Watch(ctx, e.system.Paths(), e.opt.networks.Look)
	if err != nil { // they are read again with the next change of the network
		e.opt.log.Warn("changes of the system's nameservers are not noticed at once", zap.Error(err))
	}
	return nil
}

// online fills what is known of the way into the Internet.
func (e *engine) online(s *api.Status) {
	env := e.environment()
	s.Online, s.Portal, s.Nameservers = env.Online.String(), env.PortalURL, []string{}
	for _, a := range env.Nameservers {
		s.Nameservers = append(s.Nameservers, a.String())
	}
}

// networksModule says how the networks are, and calls the person to a captive portal.
func (e *engine) networksModule(s *api.Status) status.Module {
	if e.opt.networks == nil {
		return status.Module{Name: "networks", State: status.Warning, Message: "nothing is known of the networks: rating rules about them do not hold"}
	}
	return networksModule(s)
}

func networksModule(s *api.Status) status.Module {
	m := status.Module{Name: "networks", Message: "rated " + s.Rating + " by " + s.RatingOrigin + "; online: " + s.Online}
	switch s.Online {
	case netenv.Portal.String():
		m.State, m.Message = status.Warning, "a captive portal holds this network back: log in at "+s.Portal
	case netenv.Offline.String():
		m.State, m.Message = status.Info, "offline: no network"
	case netenv.Limited.String():
		m.State, m.Message = status.Info, "limited: nothing in the Internet answers"
	case netenv.SemiOnline.String():
		m.State, m.Message = status.Info, "semi-online: connections work, but names are not resolved or the page of network/onlineCheck is out of reach"
	}
	return m
}
