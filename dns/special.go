package dns

import (
	"net"
	"strings"

	mdns "github.com/miekg/dns"
)

// route says who answers a name.
type route uint8

const (
	routeUpstream     route = iota // the configured nameservers, or the system's
	routeSystem                    // only those of this network: the name means something there only
	routeMulticast                 // like routeSystem, but multicast is asked first
	routeLocal                     // this package
	routeSearch                    // the nameservers chosen for a domain that the name is part of
	routeConnectivity              // the system's, past the cache: a captive portal gives false answers
)

// String says for people whom a name of that route leads to.
func (r route) String() string {
	switch r {
	case routeSystem:
		return "network"
	case routeMulticast:
		return "multicast"
	case routeLocal:
		return "local"
	case routeSearch:
		return "search"
	case routeConnectivity:
		return "connectivity"
	default:
		return "configured"
	}
}

// ownZone holds the names that mean this program.
const ownZone = "gatun"

// routeOf sorts a name by RFC 6761, 6762, 7686, 8375, 9462 and 9476, the private top-level domains
// of RFC 6762, appendix G, and the private reverse zones of RFC 6303. routeSearch and
// routeConnectivity are not about the name's form, so they are not among its results.
func routeOf(name string) route {
	switch lastLabel(name) {
	case "localhost", "invalid", "onion", "alt", ownZone:
		return routeLocal
	case "local":
		return routeMulticast
	case "test", "internal":
		return routeSystem
	case "intranet", "private", "corp", "home", "lan", "localdomain":
		if strings.Contains(name, ".") { // alone it is a host's name, like any single label
			return routeSystem
		}
	case "arpa":
		return routeArpa(name)
	}
	return routeUpstream
}

func routeArpa(name string) route {
	switch {
	case within(name, "resolver.arpa"):
		return routeLocal // discovery of encrypted resolvers would lead the program past us
	case isLoopbackReverse(name):
		return routeLocal
	case within(name, "home.arpa"):
		return routeSystem
	}
	for _, zone := range [...]string{"254.169.in-addr.arpa", "8.e.f.ip6.arpa", "9.e.f.ip6.arpa", "a.e.f.ip6.arpa", "b.e.f.ip6.arpa"} {
		if within(name, zone) {
			return routeMulticast // RFC 6762, section 4
		}
	}
	for _, zone := range [...]string{"10.in-addr.arpa", "168.192.in-addr.arpa", "127.in-addr.arpa", "0.in-addr.arpa", "c.f.ip6.arpa", "d.f.ip6.arpa"} {
		if within(name, zone) {
			return routeSystem
		}
	}
	if second, ok := labelBefore(name, "172.in-addr.arpa"); ok && inRange(second, 16, 31) {
		return routeSystem
	}
	if second, ok := labelBefore(name, "100.in-addr.arpa"); ok && inRange(second, 64, 127) {
		return routeSystem
	}
	return routeUpstream
}

// isLoopbackReverse reports the names of 127.0.0.1 and ::1, which are localhost everywhere (RFC 6303).
func isLoopbackReverse(name string) bool {
	return name == "1.0.0.127.in-addr.arpa" || name == "1"+strings.Repeat(".0", 31)+".ip6.arpa"
}

func lastLabel(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// within reports whether name is the zone or below it.
func within(name, zone string) bool {
	rest, ok := strings.CutSuffix(name, zone)
	return ok && (rest == "" || rest[len(rest)-1] == '.')
}

// labelBefore returns the label right below the zone.
func labelBefore(name, zone string) (string, bool) {
	rest, ok := strings.CutSuffix(name, "."+zone)
	return lastLabel(rest), ok
}

func inRange(label string, from, to int) bool {
	n := 0
	for i := range len(label) {
		if label[i] < '0' || label[i] > '9' || i > 2 {
			return false
		}
		n = n*10 + int(label[i]-'0')
	}
	return label != "" && n >= from && n <= to
}

// local answers the names of routeLocal without asking anybody.
func local(name string, qtype uint16) *answer {
	var rr mdns.RR
	header := mdns.RR_Header{Name: mdns.Fqdn(name), Rrtype: qtype, Class: mdns.ClassINET}
	switch zone := lastLabel(name); {
	case zone == "localhost" && qtype == mdns.TypeA:
		rr = &mdns.A{Hdr: header, A: net.IPv4(127, 0, 0, 1)}
	case zone == "localhost" && qtype == mdns.TypeAAAA:
		rr = &mdns.AAAA{Hdr: header, AAAA: net.IPv6loopback}
	case isLoopbackReverse(name) && qtype == mdns.TypePTR:
		rr = &mdns.PTR{Hdr: header, Ptr: "localhost."}
	case name == "info."+ownZone && qtype == mdns.TypeTXT:
		rr = &mdns.TXT{Hdr: header, Txt: []string{"answered by gatun; a blocked name carries its reason in this record"}}
	case zone == "localhost", zone == "arpa", name == ownZone, name == "info."+ownZone:
		return &answer{}
	default:
		return &answer{rcode: mdns.RcodeNameError}
	}
	a, err := newAnswer(name, qtype, mdns.RcodeSuccess, []mdns.RR{rr}, nil, 0)
	if err != nil {
		return &answer{rcode: mdns.RcodeServerFailure}
	}
	return a
}
