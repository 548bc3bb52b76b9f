package route

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// syncRoutes makes our table hold exactly want and returns what it had to change. New entries
// come before old ones go, so there is never less than the floor.
func syncRoutes(n Names, want []Route) (changes []string, err error) {
	have, err := listRoutes(n)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, r := range want {
		if _, ok := have[r]; ok {
			delete(have, r)
			continue
		}
		if err := addRoute(n, r); err != nil {
			errs = append(errs, err)
			continue
		}
		changes = append(changes, r.String())
		for old := range have { // the entry that was replaced
			if old.Dst == r.Dst && old.Metric == r.Metric && old.Unreachable == r.Unreachable && old.Link == r.Link {
				delete(have, old)
			}
		}
	}
	for r, k := range have {
		if err := deleteRoute(k); err != nil {
			errs = append(errs, err)
			continue
		}
		changes = append(changes, "delete "+r.String())
	}
	return changes, errors.Join(errs...)
}

// syncRules makes our rules be exactly want. It returns what it had to change, and the rules
// of others that matter: those before ours can take flows away from the TUN device (into the
// guard, which drops them); those behind have no word, since what is let out takes main.
func syncRules(n Names, want []Rule) (changes, conflicts []string, err error) {
	listed, err := listRules()
	if err != nil {
		return nil, nil, err
	}
	missing := map[Rule]bool{}
	for _, r := range want {
		missing[r] = true
	}
	var errs []error
	var stale []listedRule
	for _, l := range listed {
		switch {
		case !l.ours(n):
			if l.rule.Priority < n.PriorityTun && l.rule.Table != tableLocal {
				conflicts = append(conflicts, fmt.Sprintf("%s comes before gatun's", l.rule))
			}
			if l.leadsElsewhere(n) {
				conflicts = append(conflicts, fmt.Sprintf("%s is not followed: what it leads another way, as a VPN does, leaves by the main table", l.rule))
			}
		case missing[l.rule]:
			missing[l.rule] = false
		default:
			stale = append(stale, l)
		}
	}
	for _, r := range want {
		if !missing[r] {
			continue
		}
		if err := addRule(n, r); err != nil {
			errs = append(errs, err)
			continue
		}
		changes = append(changes, r.String())
	}
	for _, l := range stale {
		if err := deleteRule(l); err != nil {
			errs = append(errs, err)
			continue
		}
		changes = append(changes, "delete "+l.rule.String())
	}
	return changes, conflicts, errors.Join(errs...)
}

// leadsElsewhere reports whether a rule of others, which comes behind ours, would lead what this machine sends
// to a table of its own.
func (l listedRule) leadsElsewhere(n Names) bool {
	switch l.rule.Table {
	case tableLocal, tableMain, unix.RT_TABLE_DEFAULT, unix.RT_TABLE_UNSPEC, n.Table:
		return false
	}
	return l.rule.Priority > n.PriorityTun && l.kernel.IifName == ""
}

// foreignTable returns an error if somebody else uses our table.
func foreignTable(n Names) error {
	have, err := listRoutes(n)
	if err != nil {
		return err
	}
	for r, k := range have {
		if k.Protocol != netlink.RouteProtocol(n.Protocol) {
			return fmt.Errorf("routing table %d is used by somebody else (%s): set core/table to a free number", n.Table, r)
		}
	}
	return nil
}

// sweep removes rules, routes and the device, in this order: whatever carries our names,
// whoever left it. The guard is not touched.
func sweep(n Names) error {
	var errs []error
	rules, err := listRules()
	errs = append(errs, err)
	for _, l := range rules {
		if l.ours(n) {
			errs = append(errs, deleteRule(l))
		}
	}
	errs = append(errs, sweepRoutes(n, 0), deleteDevice(n.Device))
	return errors.Join(errs...)
}

// sweepRoutes deletes our routes from every table but one.
func sweepRoutes(n Names, except int) error {
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		errs = append(errs, err)
		for _, r := range routes {
			if r.Protocol == netlink.RouteProtocol(n.Protocol) && r.Table != except {
				errs = append(errs, deleteRoute(r))
			}
		}
	}
	return errors.Join(errs...)
}

// deleteDevice deletes the TUN device if it is there and is one.
func deleteDevice(name string) error {
	l, err := netlink.LinkByName(name)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if l.Type() != "tuntap" && l.Type() != "tun" {
		return fmt.Errorf("link %s is a %s and not a TUN device: gatun has not made it and leaves it alone", name, l.Type())
	}
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}
