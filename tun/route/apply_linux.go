package route

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sysctlPath turns the dotted key into its file.
func sysctlPath(key string) string { return "/proc/sys/" + strings.ReplaceAll(key, ".", "/") }

func getSysctl(key string) (string, error) {
	b, err := os.ReadFile(sysctlPath(key))
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func setSysctl(key, value string) error {
	if now, err := getSysctl(key); err == nil && now == value {
		return nil // also right where /proc/sys is read-only
	}
	if err := os.WriteFile(sysctlPath(key), []byte(value), 0); err != nil {
		return fmt.Errorf("write sysctl: %w", err)
	}
	return nil
}

// restoreSysctl puts a value back, but only if the setting still has ours.
func restoreSysctl(r sysctlRecord) error {
	now, err := getSysctl(r.Key)
	if err != nil {
		return err
	}
	if now != r.New || r.Old == r.New {
		return nil
	}
	return setSysctl(r.Key, r.Old)
}

// ErrNoDevice means that the TUN device does not exist: open it, then call Up.
var ErrNoDevice = errors.New("the TUN device does not exist")

// setupLink does what LinkSetup says, if it is not so already.
func setupLink(d LinkSetup) error {
	l, err := netlink.LinkByName(d.Link)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return fmt.Errorf("%s: %w", d.Link, ErrNoDevice)
	}
	if err != nil {
		return fmt.Errorf("link %s: %w", d.Link, err)
	}
	a := l.Attrs()
	up := a.Flags&net.FlagUp != 0
	// The mode decides at the moment of going up, so it comes first. Without IPv6 there is none.
	if !ipv6Off() {
		if err := setupIPv6(l, up); err != nil {
			return fmt.Errorf("link %s: %w", d.Link, err)
		}
	}
	if a.Flags&net.FlagMulticast != 0 {
		err = errors.Join(err, netlink.LinkSetMulticastOff(l))
	}
	if a.MTU != d.MTU && d.MTU > 0 {
		err = errors.Join(err, netlink.LinkSetMTU(l, d.MTU))
	}
	if !up {
		err = errors.Join(err, netlink.LinkSetUp(l))
	}
	if err != nil {
		return fmt.Errorf("link %s: %w", d.Link, err)
	}
	return nil
}

// setupIPv6 makes the device take IPv6 routes, also where new interfaces have IPv6 disabled
// while others have it. The setting belongs to the device and goes with it.
func setupIPv6(l netlink.Link, up bool) error {
	if err := setSysctl("net.ipv6.conf."+l.Attrs().Name+".disable_ipv6", "0"); err != nil {
		return err
	}
	if up {
		return nil
	}
	return netlink.LinkSetIP6AddrGenMode(l, nlAddrGenNone)
}

// nlAddrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const nlAddrGenNone = 1

// linkReady reports whether setupLink would change nothing.
func linkReady(d LinkSetup) bool {
	l, err := netlink.LinkByName(d.Link)
	return err == nil && l.Attrs().Flags&net.FlagUp != 0 && l.Attrs().Flags&net.FlagMulticast == 0 && (d.MTU <= 0 || l.Attrs().MTU == d.MTU)
}

// kernelRoute converts r.
func kernelRoute(n Names, r Route) (*netlink.Route, error) {
	k := &netlink.Route{Table: r.Table, Dst: ipNet(r.Dst), Priority: r.Metric, Protocol: netlink.RouteProtocol(n.Protocol), Type: unix.RTN_UNICAST}
	k.Family = netlink.FAMILY_V4
	if r.Dst.Addr().Is6() {
		k.Family = netlink.FAMILY_V6
	}
	if r.Unreachable {
		k.Type = unix.RTN_UNREACHABLE
		return k, nil
	}
	l, err := netlink.LinkByName(r.Link)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	k.LinkIndex = l.Attrs().Index
	if r.Dst.Addr().Is4() {
		k.Scope = netlink.SCOPE_LINK
	}
	if r.Src.IsValid() {
		k.Src = r.Src.AsSlice()
	}
	return k, nil
}

// addRoute adds r or replaces the entry with the same destination and metric.
func addRoute(n Names, r Route) error {
	k, err := kernelRoute(n, r)
	if err != nil {
		return err
	}
	if err := netlink.RouteReplace(k); err != nil {
		return fmt.Errorf("%s: %w", r, err)
	}
	return nil
}

// listRoutes returns what our table holds, as the kernel has it and as comparable values.
// Routes of a device other than ours come back with that link's name and so are never equal
// to a planned one.
func listRoutes(n Names) (map[Route]netlink.Route, error) {
	out := map[Route]netlink.Route{}
	names := map[int]string{}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: n.Table}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list table %d: %w", n.Table, err)
		}
		for _, k := range routes {
			r := Route{Table: n.Table, Unreachable: k.Type == unix.RTN_UNREACHABLE, Src: addrOf(k.Src), Metric: k.Priority}
			if !r.Unreachable {
				r.Link = names[k.LinkIndex]
			}
			dst, ok := prefixOf(k.Dst, family == netlink.FAMILY_V6)
			if !ok {
				continue
			}
			r.Dst = dst
			out[r] = k
		}
	}
	return out, nil
}

func kernelRule(n Names, r Rule) *netlink.Rule {
	k := netlink.NewRule()
	k.Priority, k.Table, k.Protocol = r.Priority, r.Table, uint8(n.Protocol)
	k.Family = netlink.FAMILY_V4
	if r.V6 {
		k.Family = netlink.FAMILY_V6
	}
	if r.Unreachable {
		k.Type = unix.RTN_UNREACHABLE
	}
	if r.Mask != 0 {
		mask := r.Mask
		k.Mark, k.Mask = r.Mark, &mask
	}
	if r.To.IsValid() {
		k.Dst = ipNet(r.To)
	}
	return k
}

// addRule adds r. It is no error if it is there.
func addRule(n Names, r Rule) error {
	if err := netlink.RuleAdd(kernelRule(n, r)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s: %w", r, err)
	}
	return nil
}

// listedRule is a rule of the kernel, and what it is as a plan's rule.
type listedRule struct {
	rule   Rule
	kernel netlink.Rule
}

// listRules returns all rules of both families.
func listRules() ([]listedRule, error) {
	var out []listedRule
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := dump(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
		if err != nil {
			return nil, fmt.Errorf("list rules: %w", err)
		}
		for _, k := range rules {
			// The library does not tell what a rule without a table does; of ours it is this.
			r := Rule{V6: family == netlink.FAMILY_V6, Priority: k.Priority, Mark: k.Mark, Table: k.Table, Unreachable: k.Table == unix.RT_TABLE_UNSPEC}
			if k.Mask != nil {
				r.Mask = *k.Mask
			}
			if k.Dst != nil {
				if dst, ok := prefixOf(k.Dst, r.V6); ok {
					r.To = dst
				}
			}
			k.Family = family
			out = append(out, listedRule{r, k})
		}
	}
	return out, nil
}

// ours reports whether gatun has added the rule.
func (l listedRule) ours(n Names) bool { return l.kernel.Protocol == uint8(n.Protocol) }

// deleteRule deletes exactly that rule. It is no error if it is gone.
func deleteRule(l listedRule) error {
	k := l.kernel
	if err := netlink.RuleDel(&k); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete %s: %w", l.rule, err)
	}
	return nil
}

// deleteRoute deletes exactly that route. It is no error if it is gone.
func deleteRoute(k netlink.Route) error {
	if err := netlink.RouteDel(&k); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("delete route in table %d: %w", k.Table, err)
	}
	return nil
}
