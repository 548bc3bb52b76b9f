package status

import (
	"net/netip"
	"slices"
	"time"

	"gatun/config"
	"gatun/netenv"
)

const day = 24 * time.Hour

// Holds reports whether a condition holds. All its fields have to, and those about a network
// have to hold for one and the same interface: the gateway of one network with the address of
// another is neither network. Only what is up counts. DNS suffix, portal and VPN are about all
// networks together: the system has one list of search domains, and one way into the Internet. A
// condition without fields always holds; one that asks for what is not known (SSID, and a portal
// before anybody has looked) never does.
func Holds(c *config.NetworkCondition, env netenv.Snapshot, now time.Time) bool {
	if c.SSID != "" || c.DNSSuffix != "" && !slices.Contains(env.DNSSuffixes, c.DNSSuffix) {
		return false
	}
	if c.Portal != nil && (env.Online == netenv.Unknown || *c.Portal != behindPortal(env)) {
		return false
	}
	if c.VPN != nil && *c.VPN != env.VPN || !inWindow(c, now) {
		return false
	}
	if !asksNetwork(c) {
		return true
	}
	return slices.ContainsFunc(env.Interfaces, func(i netenv.Interface) bool {
		return i.Up && (c.Interface == "" || c.Interface == i.Name) && hasAddress(c, i) && hasGateway(c, env, i.Name)
	})
}

func behindPortal(env netenv.Snapshot) bool { return env.Online == netenv.Portal }

func asksNetwork(c *config.NetworkCondition) bool {
	return c.Interface != "" || c.Address.IsValid() || asksGateway(c)
}

func asksGateway(c *config.NetworkCondition) bool { return c.Gateway.IsValid() || c.GatewayMAC != "" }

func hasAddress(c *config.NetworkCondition, i netenv.Interface) bool {
	return !c.Address.IsValid() || slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return c.Address.Contains(p.Addr()) })
}

// hasGateway wants address and MAC of one and the same gateway. An unknown MAC is not it.
func hasGateway(c *config.NetworkCondition, env netenv.Snapshot, name string) bool {
	return !asksGateway(c) || slices.ContainsFunc(env.Gateways, func(g netenv.Gateway) bool {
		zone := c.Gateway.Zone()
		return g.Interface == name && (zone == "" || zone == name) &&
			(!c.Gateway.IsValid() || c.Gateway.WithZone("") == g.Addr) &&
			(c.GatewayMAC == "" || c.GatewayMAC == g.MAC)
	})
}

// inWindow compares with what clocks on the wall show: in the night when they are put forward
// or back, a window is as much shorter or longer.
func inWindow(c *config.NetworkCondition, now time.Time) bool {
	if c.Time == "" {
		return true
	}
	from, to, ok := c.Window()
	if !ok {
		return false
	}
	minute := now.Hour()*60 + now.Minute()
	if from < to {
		return from <= minute && minute < to
	}
	return from <= minute || minute < to
}

// changes returns the first moment after now at which the window may begin or end, zero for
// never. The clock runs evenly until the zone's offset changes, so that is such a moment too.
// The result carries no monotonic reading: after a suspend it is the wall clock that counts.
func changes(c *config.NetworkCondition, now time.Time) time.Time {
	from, to, ok := c.Window()
	if !ok {
		return time.Time{}
	}
	now = now.Round(0)
	shown := time.Duration(now.Hour())*time.Hour + time.Duration(now.Minute())*time.Minute +
		time.Duration(now.Second())*time.Second + time.Duration(now.Nanosecond())
	until := func(minutes int) time.Duration {
		d := time.Duration(minutes)*time.Minute - shown
		if d <= 0 {
			d += day
		}
		return d
	}
	next := now.Add(min(until(from), until(to)))
	if _, end := now.ZoneBounds(); !end.IsZero() && end.Before(next) {
		next = end
	}
	return next
}
