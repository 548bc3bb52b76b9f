package netenv

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// pollInterval is how old the knowledge may be where the system is not listened to.
const pollInterval = 5 * time.Second

// poller is the source of systems without a monitor of their own. It compiles everywhere, so
// that it is tested everywhere. It knows no gateways.
type poller struct {
	ignore []string
	every  time.Duration
	list   func() ([]net.Interface, error)
	addrs  func(net.Interface) ([]net.Addr, error)
}

func newPoller(o Options) *poller {
	return &poller{ignore: o.Ignore, every: pollInterval, list: net.Interfaces,
		addrs: func(i net.Interface) ([]net.Addr, error) { return i.Addrs() }}
}

func (p *poller) close() {}

func (p *poller) watch(ctx context.Context, changed func()) error {
	t := time.NewTicker(p.every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			changed()
		}
	}
}

func (p *poller) look() (Snapshot, error) {
	s := Snapshot{At: time.Now()}
	list, err := p.list()
	if err != nil {
		return s, fmt.Errorf("list interfaces: %w", err)
	}
	for _, n := range list {
		if p.ignored(n.Name) {
			continue
		}
		i := Interface{Name: n.Name, Index: n.Index, Kind: kindByName(n.Name, n.Flags),
			Up: n.Flags&net.FlagUp != 0 && n.Flags&net.FlagRunning != 0}
		if len(n.HardwareAddr) == 6 {
			i.MAC = n.HardwareAddr.String()
		}
		addrs, err := p.addrs(n)
		if err != nil { // it went away after it was listed
			continue
		}
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil {
				i.Addrs = append(i.Addrs, netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()))
			}
		}
		s.VPN = s.VPN || carriesVPN(i.Kind) && i.Up && reaches(i.Addrs)
		s.DefaultRoute = s.DefaultRoute || i.Kind != kindLoopback && i.Up && reaches(i.Addrs)
		s.Interfaces = append(s.Interfaces, i)
	}
	sortInterfaces(s.Interfaces)
	return s, nil
}

func (p *poller) ignored(name string) bool {
	for _, own := range p.ignore {
		if own == name {
			return true
		}
	}
	return false
}

// reaches stands in for "a route leads to it": systems keep tunnel interfaces of their own,
// which have link-local addresses only.
func reaches(addrs []netip.Prefix) bool {
	for _, p := range addrs {
		if !p.Addr().IsLinkLocalUnicast() {
			return true
		}
	}
	return false
}

// kindByName guesses, because the portable list does not say.
func kindByName(name string, flags net.Flags) string {
	name = strings.ToLower(name)
	has := func(prefixes ...string) bool {
		for _, p := range prefixes {
			if strings.HasPrefix(name, p) {
				return true
			}
		}
		return false
	}
	switch {
	case flags&net.FlagLoopback != 0:
		return kindLoopback
	case has("wg", "wireguard"):
		return kindWireGuard
	case has("ppp"):
		return kindPPP
	case has("utun", "tun", "wintun"):
		return kindTUN
	case has("tap"):
		return kindTAP
	case has("bridge"):
		return kindBridge
	case has("wl", "wi-fi", "wifi"):
		return kindWireless
	case has("en", "eth"):
		return kindEthernet
	default:
		return kindOther
	}
}
