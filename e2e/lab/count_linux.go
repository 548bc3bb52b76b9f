package lab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
)

// The router counts before anything else sees a packet (and before conntrack reassembles
// fragments): by protocol, source and destination, and by destination port where there is one.
// The sets are dynamic, so that nothing has to be announced.
const counterRules = `table inet lab {
	set port4 { typeof meta l4proto . ip saddr . ip daddr . th dport; flags dynamic; size 200000; counter; }
	set port6 { typeof meta l4proto . ip6 saddr . ip6 daddr . th dport; flags dynamic; size 200000; counter; }
	set any4 { typeof meta l4proto . ip saddr . ip daddr; flags dynamic; size 65535; counter; }
	set any6 { typeof meta l4proto . ip6 saddr . ip6 daddr; flags dynamic; size 65535; counter; }
	chain seen {
		type filter hook prerouting priority -450; policy accept;
		iifname "br0" meta nfproto ipv4 update @any4 { meta l4proto . ip saddr . ip daddr counter }
		iifname "br0" meta nfproto ipv6 update @any6 { meta l4proto . ip6 saddr . ip6 daddr counter }
		iifname "br0" meta nfproto ipv4 meta l4proto { tcp, udp } update @port4 { meta l4proto . ip saddr . ip daddr . th dport counter }
		iifname "br0" meta nfproto ipv6 meta l4proto { tcp, udp } update @port6 { meta l4proto . ip6 saddr . ip6 daddr . th dport counter }
	}
}
`

var counterSets = [...]string{"port4", "port6", "any4", "any6"}

func (l *Lab) counters() error {
	if l.opt.NoCount {
		return nil
	}
	cmd := exec.Command("ip", "netns", "exec", string(l.Router), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(counterRules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("counters on the router: %w: %s", err, out)
	}
	return nil
}

// Seen is one counter of the router.
type Seen struct {
	Proto    string // tcp, udp, icmp, ipv6-icmp, …
	Src, Dst netip.Addr
	Port     int // 0: the counter of all packets between the two
	Packets  int
}

// Match selects counters. The zero value matches everything but the twin's packets.
type Match struct {
	Proto string     // "" any; icmp means both families
	Dst   netip.Addr // invalid: any
	Port  int        // 0: any
	Twin  bool       // only the twin's packets instead of everybody else's
}

// ParseMatch reads "tcp 198.51.100.10:80", "icmp 198.51.100.10", "any 203.0.113.10", "udp *:53".
func ParseMatch(proto, dst string) (Match, error) {
	m := Match{Proto: proto}
	if proto == "any" {
		m.Proto = ""
	}
	if port, ok := strings.CutPrefix(dst, "*:"); ok {
		n, err := strconv.Atoi(port)
		m.Port = n
		return m, err
	}
	if dst == "*" {
		return m, nil
	}
	if ap, err := netip.ParseAddrPort(dst); err == nil {
		m.Dst, m.Port = ap.Addr(), int(ap.Port())
		return m, nil
	}
	a, err := netip.ParseAddr(dst)
	m.Dst = a
	return m, err
}

// Hit says whether a counter is one that m selects.
func (m Match) Hit(s Seen) bool {
	twin := s.Src == netip.MustParseAddr(Twin4) || s.Src == netip.MustParseAddr(Twin6)
	proto := s.Proto
	if proto == "ipv6-icmp" {
		proto = "icmp"
	}
	return twin == m.Twin && (m.Proto == "" || m.Proto == proto) &&
		(!m.Dst.IsValid() || m.Dst == s.Dst) && m.Port == s.Port
}

// Count returns how many packets that match the router has received from the host's side.
func (l *Lab) Count(m Match) (int, error) {
	seen, err := l.Seen()
	n := 0
	for _, s := range seen {
		if m.Hit(s) {
			n += s.Packets
		}
	}
	return n, err
}

// ResetCounters starts the counting anew.
func (l *Lab) ResetCounters() error {
	var script strings.Builder
	for _, set := range counterSets {
		fmt.Fprintf(&script, "nft flush set inet lab %s\n", set)
	}
	_, err := l.Router.Output("sh", "-ec", script.String())
	return err
}

// Seen returns every counter of the router.
func (l *Lab) Seen() ([]Seen, error) {
	var all []Seen
	for _, set := range counterSets {
		out, err := l.Router.Output("nft", "-j", "list", "set", "inet", "lab", set)
		if err != nil {
			return nil, err
		}
		seen, err := parseSet([]byte(out))
		if err != nil {
			return nil, fmt.Errorf("nft list set %s: %w", set, err)
		}
		all = append(all, seen...)
	}
	return all, nil
}

func parseSet(b []byte) ([]Seen, error) {
	var doc struct {
		Nftables []struct {
			Set struct {
				Elem []struct {
					Elem struct {
						Val     struct{ Concat []any }
						Counter struct{ Packets int }
					}
				}
			}
		}
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	var seen []Seen
	for _, n := range doc.Nftables {
		for _, e := range n.Set.Elem {
			s, err := parseElem(e.Elem.Val.Concat)
			if err != nil {
				return nil, err
			}
			s.Packets = e.Elem.Counter.Packets
			seen = append(seen, s)
		}
	}
	return seen, nil
}

func parseElem(key []any) (Seen, error) {
	if len(key) < 3 {
		return Seen{}, fmt.Errorf("a key of %d parts: %v", len(key), key)
	}
	s := Seen{Proto: fmt.Sprint(key[0])}
	var err error
	if s.Src, err = netip.ParseAddr(fmt.Sprint(key[1])); err != nil {
		return s, err
	}
	if s.Dst, err = netip.ParseAddr(fmt.Sprint(key[2])); err != nil {
		return s, err
	}
	if len(key) == 4 {
		port, ok := key[3].(float64)
		if !ok {
			return s, fmt.Errorf("port %v is no number", key[3])
		}
		s.Port = int(port)
	}
	return s, nil
}
