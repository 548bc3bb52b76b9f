package policytest

import (
	"fmt"
	"net/netip"
	"slices"
)

// Flow is one wish of a program, with all that can be known of it. A flow with a domain was
// resolved by the program before.
type Flow struct {
	Program    Program
	Inbound    bool
	Solicited  bool // inbound, and it answers a query of this machine
	Proto      int  // IP protocol number
	Remote     netip.Addr
	RemotePort int
	LocalPort  int
	Domain     string // "" unknown
	CNAMEs     []string
	Answer     []netip.Addr // what the name resolves to; Remote is one of them
}

// Program is who wants it. Special is "" for a program, else the identity that stands in for
// one: unidentified, unsolicited, system, self. An unidentified one with a path is a program of
// which it is not sure that it is this one.
type Program struct {
	Path, Cmdline, Special string
	Tags                   map[string]string // by name: user, systemd-unit, container, flatpak, script
	Env                    map[string]string
}

// Network is what is known of the network, for conditions.
type Network struct {
	Interfaces map[string][]netip.Prefix // by name: the addresses of those that are up
	Gateways   map[string]netip.Addr     // by interface
}

// Decision is what becomes of a flow, and by what.
type Decision struct {
	Verdict string // accept, block, drop, ask, nameserver, undecided
	Setting string // key of the setting that decided, "" where none did
	Profile string // whose layer it is, "" global
	Rule    Rule
}

// Permits reports whether the flow, or the query, goes through now or may later.
func (d Decision) Permits() bool { return d.Verdict != "block" && d.Verdict != "drop" }

// String tells the decision in one line.
func (d Decision) String() string {
	return fmt.Sprintf("%s by %q of profile %q, rule %q in line %d", d.Verdict, d.Setting, d.Profile, d.Rule.Text, d.Rule.Line)
}

// scope is the scope of an address as rules name it, "" of none.
func scope(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	a = a.Unmap()
	in := func(prefixes ...string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return netip.MustParsePrefix(p).Contains(a) })
	}
	switch {
	case in("127.0.0.0/8", "0.0.0.0/32", "::1/128", "::/128"):
		return "Localhost"
	case in("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10", "0.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32",
		"fc00::/7", "fe80::/10", "ff00::/8"):
		return "LAN"
	default:
		return "Internet"
	}
}

func hasPorts(proto int) bool { return proto == 6 || proto == 17 }
