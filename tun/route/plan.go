package route

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Policy is what the caller decides about the plan.
type Policy struct {
	// UID is the user that gatun's own sockets belong to. A mark is not an identity
	// (CAP_NET_RAW is enough to set one), so the guard wants mark and user.
	UID uint32
	// MTU of the TUN device.
	MTU int
	// BlockLAN refuses multicast, broadcast and link-local destinations too.
	BlockLAN bool
	// DNSPort is the port of our own listeners on 127.0.0.1 and ::1 (ListenDNS) to which what
	// programs of this machine send to port 53 is redirected; 0 leaves it on its way into the TUN
	// device, and what they send to loopback unseen.
	DNSPort uint16
	// DivertPort is the port of a Diverter, to which the connections that it sends once more are led; 0
	// leaves them on their way into the TUN device.
	DivertPort uint16
	// Inbound is what becomes of new inbound flows. Where the kernel cannot queue, the Manager
	// turns InboundQueued into InboundCompat, or else into InboundDropped or InboundFree as
	// BlockInbound says: what holds for everybody, because then no program is asked about.
	Inbound      InboundMode
	BlockInbound bool
}

// Plan is an ordered list of operations. Doing them from first to last brings the traffic into
// the TUN device; each is idempotent.
type Plan struct {
	Ops []Op
}

// String gives one operation a line (the guard has several).
func (p Plan) String() string {
	var b strings.Builder
	for _, op := range p.Ops {
		b.WriteString(op.String())
		b.WriteByte('\n')
	}
	return b.String()
}

// Op is one operation. The dynamic types on Linux are Guard, Snapshot, Sysctl, LinkSetup, Route
// and Rule; on other systems Command.
type Op interface {
	fmt.Stringer
	// Name is short and names the object: one line for the journal and the log.
	Name() string
}

// Snapshot lets the flows that are open already keep their old path until they end.
type Snapshot struct{}

// Name is also all that there is to say.
func (s Snapshot) Name() string { return s.String() }

// String is the operation as text.
func (Snapshot) String() string { return "snapshot established flows into est4 and est6" }

// Name of the operation.
func (s Sysctl) Name() string { return s.String() }

// String is the operation as text.
func (s Sysctl) String() string { return "sysctl " + s.Key + "=" + s.Value }

// Name of the operation.
func (d LinkSetup) Name() string { return "link " + d.Link }

// Name of the operation.
func (r Route) Name() string { return r.String() }

// Name of the operation.
func (r Rule) Name() string { return r.String() }

// Name of the operation.
func (c Command) Name() string { return string(c) }

// String is the operation as text.
func (c Command) String() string { return string(c) }

// The kernel settings that are changed.
const (
	strictKey = "net.ipv4.conf.all.src_valid_mark"
	countKey  = "net.netfilter.nf_conntrack_acct"
)

// Sysctl is a kernel setting, its key in the dotted form of sysctl(8).
type Sysctl struct{ Key, Value string }

// LinkSetup makes the TUN device ready. No addresses: programs keep the addresses of the real
// interfaces (Route.Src), so that a flow that is handed back looks the same on both paths. No
// link-local address and no multicast either: the device is not a place to discover things.
type LinkSetup struct {
	Link string
	MTU  int
}

// String is the operation as text.
func (d LinkSetup) String() string {
	return fmt.Sprintf("link set %s addrgenmode none multicast off mtu %d up", d.Link, d.MTU)
}

// Route is an entry of our table. It is comparable.
type Route struct {
	Table       int
	Dst         netip.Prefix
	Unreachable bool   // the floor below everything: closed when the device is gone
	Link        string // unless Unreachable
	Src         netip.Addr
	Metric      int
}

// String is the route in the language of ip-route(8).
func (r Route) String() string {
	var b strings.Builder
	b.WriteString("route add ")
	if r.Unreachable {
		b.WriteString("unreachable ")
	}
	b.WriteString(r.Dst.String())
	if r.Link != "" {
		b.WriteString(" dev " + r.Link)
	}
	fmt.Fprintf(&b, " table %d", r.Table)
	if r.Src.IsValid() {
		b.WriteString(" src " + r.Src.String())
	}
	if r.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", r.Metric)
	}
	return b.String()
}

// Rule is a policy routing rule. It is comparable. An invalid To means every destination,
// Mask 0 every mark.
type Rule struct {
	V6          bool
	Priority    int
	Mark, Mask  uint32
	To          netip.Prefix
	Table       int
	Unreachable bool // instead of a table
}

// String is the rule in the language of ip-rule(8).
func (r Rule) String() string {
	var b strings.Builder
	if r.V6 {
		b.WriteString("-6 ")
	}
	fmt.Fprintf(&b, "rule add priority %d", r.Priority)
	if r.Mask != 0 {
		fmt.Fprintf(&b, " fwmark %#08x/%#08x", r.Mark, r.Mask)
	}
	if r.To.IsValid() {
		b.WriteString(" to " + r.To.String())
	}
	switch {
	case r.Unreachable:
		b.WriteString(" unreachable")
	case r.Table == tableMain:
		b.WriteString(" lookup main")
	default:
		fmt.Fprintf(&b, " lookup %d", r.Table)
	}
	return b.String()
}

// metricV6 is IPv6's default; an explicit value makes the entry comparable. metricFloor loses
// against everything.
const (
	metricV6    = 1024
	metricFloor = 4000000
)

// Compute returns the plan for Linux.
//
// There is deliberately no "lookup main suppress_prefixlength 0": a route that DHCP option 121
// or a router advertisement adds to main would win over the TUN device ("TunnelVision"). Our
// table has a route for each of main's, only to name the right source address.
func Compute(n Names, h HostState, p Policy) Plan {
	ops := []Op{
		NewGuard(n, p),
		Snapshot{},
		// Strict reverse-path filters look up the way back with the mark that prerouting sets;
		// without this they would drop every reply to our own sockets.
		Sysctl{Key: strictKey, Value: "1"},
		LinkSetup{Link: n.Device, MTU: p.MTU},
	}
	if !h.NoCounts {
		ops = append(ops, Sysctl{Key: countKey, Value: "1"}) // what tun/handback does not look up it counts so
	}
	for _, r := range routes(n, h) {
		ops = append(ops, r)
	}
	for _, r := range rules(n, h) {
		ops = append(ops, r)
	}
	return Plan{Ops: ops}
}

// The destinations that stay on their interface: they mean nothing without it. 169.254.0.0/16
// is not among them: it is plain unicast, can be captured, and is where clouds keep their
// metadata servers.
func linkScope(v6 bool) []netip.Prefix {
	if v6 {
		return []netip.Prefix{netip.MustParsePrefix("ff00::/8"), netip.MustParsePrefix("fe80::/10")}
	}
	return []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("255.255.255.255/32")}
}

func linkLocal6() netip.Prefix { return netip.MustParsePrefix("fe80::/10") }

// rules returns the policy rules; the one that captures comes last. What main has no route for is
// unreachable for our own sockets and the flows on their old path, as it was without us: captured,
// it would come back to us, and the program that waits for it would hear nothing.
func rules(n Names, h HostState) []Rule {
	var out []Rule
	families := families(h)
	for _, v6 := range families {
		out = append(out,
			Rule{V6: v6, Priority: n.PriorityOwn, Mark: n.Mark, Mask: n.Mask, Table: tableMain},
			Rule{V6: v6, Priority: n.PriorityOld, Mark: n.OldMark, Mask: n.Mask, Table: tableMain},
			Rule{V6: v6, Priority: n.PriorityOld, Mark: n.BackMark, Mask: n.Mask, Table: tableMain})
		for _, to := range linkScope(v6) {
			out = append(out, Rule{V6: v6, Priority: n.PriorityLink, To: to, Table: tableMain})
		}
		out = append(out,
			Rule{V6: v6, Priority: n.PriorityLink, Mark: n.Mark, Mask: n.Mask, Unreachable: true},
			Rule{V6: v6, Priority: n.PriorityLink, Mark: n.OldMark, Mask: n.Mask, Unreachable: true},
			Rule{V6: v6, Priority: n.PriorityLink, Mark: n.BackMark, Mask: n.Mask, Unreachable: true})
	}
	for _, v6 := range families {
		out = append(out, Rule{V6: v6, Priority: n.PriorityTun, Table: n.Table})
	}
	return out
}

func families(h HostState) []bool {
	if h.NoIPv6 {
		return []bool{false}
	}
	return []bool{false, true}
}

// routes returns our table: first the floor, then the default, then a route for each of main's.
func routes(n Names, h HostState) []Route {
	var out []Route
	for _, v6 := range families(h) {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		metric := 0
		if v6 {
			all, metric = netip.PrefixFrom(netip.IPv6Unspecified(), 0), metricV6
		}
		out = append(out, Route{Table: n.Table, Dst: all, Unreachable: true, Metric: metricFloor})
		if _, ok := h.link(n.Device); !ok {
			continue // the device is gone: the floor holds until it is back
		}
		// Without an address of the family nothing can come back: the floor refuses it at once. A rule
		// would do so with the errno of a host without the family, but the kernel looks for
		// gateways by the rules too, and then nobody could add a route.
		if src := defaultSource(n, h, v6); src.IsValid() {
			out = append(out, Route{Table: n.Table, Dst: all, Link: n.Device, Src: src, Metric: metric})
		}
		for _, r := range mainRoutes(n, h, v6) {
			out = append(out, Route{Table: n.Table, Dst: r.Dst, Link: n.Device, Src: h.source(r), Metric: metric})
		}
	}
	return out
}

// defaultSource is the source of the default route: that of main's default, else any.
func defaultSource(n Names, h HostState, v6 bool) netip.Addr {
	best := MainRoute{Metric: -1}
	for _, r := range h.Routes {
		if r.Dst.Bits() == 0 && r.Dst.Addr().Is6() == v6 && r.Link != n.Device && (best.Metric < 0 || r.Metric < best.Metric) {
			best = r
		}
	}
	if best.Metric >= 0 {
		if src := h.source(best); src.IsValid() {
			return src
		}
	}
	return h.anySource(v6, n.Device)
}

// mainRoutes returns main's unicast routes of one family, the best per destination, sorted,
// without defaults and without destinations that never enter the table.
func mainRoutes(n Names, h HostState, v6 bool) []MainRoute {
	best := map[netip.Prefix]MainRoute{}
	for _, r := range h.Routes {
		l, known := h.link(r.Link)
		if r.Dst.Bits() == 0 || r.Dst.Addr().Is6() != v6 || !known || l.Loopback || l.Name == n.Device {
			continue
		}
		if slices.ContainsFunc(linkScope(v6), func(p netip.Prefix) bool { return p.Overlaps(r.Dst) && p.Bits() <= r.Dst.Bits() }) {
			continue
		}
		if old, ok := best[r.Dst]; !ok || r.Metric < old.Metric {
			best[r.Dst] = r
		}
	}
	out := make([]MainRoute, 0, len(best))
	for _, r := range best {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b MainRoute) int {
		return cmp.Or(a.Dst.Addr().Compare(b.Dst.Addr()), cmp.Compare(a.Dst.Bits(), b.Dst.Bits()))
	})
	return out
}
