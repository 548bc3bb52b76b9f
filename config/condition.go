package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// NetworkCondition speaks about the networks that this machine is connected to. All fields that
// are given have to hold; where none is given it always holds. Package status says whether.
type NetworkCondition struct {
	Position
	Interface  string // name of an interface that is up
	SSID       string // of a wireless network; never holds in this version
	DNSSuffix  string // one of the search domains that came with the system's nameservers; lower-case, without a final dot
	Gateway    netip.Addr
	GatewayMAC string       // lower-case, with colons
	Address    netip.Prefix // one of this machine's addresses is in it
	VPN        *bool        // traffic leads into another VPN
	Portal     *bool        // behind a captive portal
	Time       string       // "22:00-06:00", local time
}

// RatingRule rates the network while its condition holds.
type RatingRule struct {
	Position
	Rating string // trusted, untrusted or danger
	When   NetworkCondition
}

// RatingRules returns network/ratingRules; the first one that holds counts.
func (c *Config) RatingRules() []RatingRule {
	rules, _ := c.Value("network/ratingRules").v.([]RatingRule)
	return rules
}

// Window returns when Time begins and ends, in minutes after midnight; it ends the next day
// where from is greater than to. ok is false where no time is given.
func (n *NetworkCondition) Window() (from, to int, ok bool) { return parseWindow(n.Time) }

// parseWindow reads HH:MM-HH:MM, where the end may be 24:00.
func parseWindow(s string) (from, to int, ok bool) {
	begin, end, found := strings.Cut(s, "-")
	from, ok1 := parseClock(begin)
	to, ok2 := parseClock(end)
	return from, to, found && ok1 && ok2 && from != to && from < 24*60
}

func parseClock(s string) (minutes int, ok bool) {
	if len(s) != 5 || s[2] != ':' {
		return 0, false
	}
	for _, i := range []int{0, 1, 3, 4} {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	hour, minute := int(s[0]-'0')*10+int(s[1]-'0'), int(s[3]-'0')*10+int(s[4]-'0')
	return hour*60 + minute, minute < 60 && hour*60+minute <= 24*60
}

// conditionKeys are the keys of a condition, in the order of the canonical form.
func conditionKeys() []string {
	return []string{"interface", "ssid", "dnsSuffix", "gateway", "gatewayMAC", "address", "vpn", "portal", "time"}
}

// missingConditions names what tells whether a condition holds and is not there.
func missingConditions() map[string]string {
	return map[string]string{"ssid": "the names of wireless networks"}
}

// condition reads the fields of a condition; those it does not know go to other.
func (w *walker) condition(s *scope, key string, n *yaml.Node, other func(name string, k, v *yaml.Node)) NetworkCondition {
	c := NetworkCondition{Position: s.at(n)}
	w.fields(s, key, n, func(name string, k, v *yaml.Node) {
		if !slices.Contains(conditionKeys(), name) {
			other(name, k, v)
			return
		}
		path := join(key, name)
		if part, ok := missingConditions()[name]; ok {
			w.warn(s.at(k), s.name(path), "never holds in this version: it needs "+part)
		}
		if message, suggestion := c.set(name, v); message != "" {
			w.problem(s.at(v), s.name(path), message, suggestion)
		}
	})
	return c
}

// set reads one field.
func (n *NetworkCondition) set(name string, v *yaml.Node) (message, suggestion string) {
	switch name {
	case "vpn", "portal":
		return n.setSwitch(name, v)
	}
	if v.Kind != yaml.ScalarNode || v.Tag != "!!str" || !validText(v.Value) {
		return "want text in quotes, got " + describe(v.Value, v.Tag), ""
	}
	switch name {
	case "interface":
		n.Interface = v.Value
	case "ssid":
		n.SSID = v.Value
	case "dnsSuffix":
		n.DNSSuffix = strings.ToLower(strings.Trim(v.Value, "."))
		if n.DNSSuffix == "" || strings.ContainsAny(n.DNSSuffix, " \t") {
			return fmt.Sprintf("want one domain such as corp.example, got %q", v.Value), ""
		}
	case "time":
		if _, _, ok := parseWindow(v.Value); !ok {
			return fmt.Sprintf("want a time of day such as 22:00-06:00, got %q", v.Value), ""
		}
		n.Time = v.Value
	default:
		return n.setAddress(name, v.Value)
	}
	return "", ""
}

func (n *NetworkCondition) setSwitch(name string, v *yaml.Node) (message, suggestion string) {
	if v.Kind != yaml.ScalarNode {
		return "want on or off, got " + describe("", v.Tag), ""
	}
	value, message, suggestion := parseSwitch(v.Value)
	if message != "" {
		return message, suggestion
	}
	on := value.(bool)
	if name == "vpn" {
		n.VPN = &on
	} else {
		n.Portal = &on
	}
	return "", ""
}

func (n *NetworkCondition) setAddress(name, text string) (message, suggestion string) {
	switch name {
	case "gateway":
		a, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Sprintf("want an address such as 192.0.2.1, got %q", text), ""
		}
		n.Gateway = a.Unmap()
	case "gatewayMAC":
		mac, err := net.ParseMAC(text)
		if err != nil {
			return fmt.Sprintf("want a hardware address such as 02:00:5e:10:00:01, got %q", text), ""
		}
		n.GatewayMAC = mac.String()
	default:
		if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
			a = a.Unmap()
			n.Address = netip.PrefixFrom(a, a.BitLen())
			return "", ""
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Sprintf("want a network such as 192.0.2.0/24, got %q", text), ""
		}
		n.Address = p.Masked()
	}
	return "", ""
}

// ratingRules reads the value of network/ratingRules.
func (w *walker) ratingRules(s *scope, set *Setting, n *yaml.Node) ([]RatingRule, bool) {
	const example = "[{rating: danger, interface: wlan0}]"
	if n.Kind != yaml.SequenceNode {
		w.problem(s.at(n), s.name(set.Key), "want a list such as "+example+", got "+describe(n.Value, n.Tag), "")
		return nil, false
	}
	before := len(w.problems)
	rules := make([]RatingRule, 0, len(n.Content))
	for i, item := range n.Content {
		item = resolve(item)
		key := fmt.Sprintf("%s[%d]", set.Key, i)
		if item.Kind != yaml.MappingNode {
			w.problem(s.at(item), s.name(key), "want a rating and conditions as in "+example+", got "+describe(item.Value, item.Tag), "")
			continue
		}
		rules = append(rules, w.ratingRule(s, key, item))
	}
	return rules, len(w.problems) == before
}

func (w *walker) ratingRule(s *scope, key string, n *yaml.Node) RatingRule {
	r := RatingRule{Position: s.at(n)}
	ratings := w.table["network/rating"]
	hasRating := false
	r.When = w.condition(s, key, n, func(name string, k, v *yaml.Node) {
		path := join(key, name)
		switch {
		case name != "rating":
			w.problem(s.at(k), s.name(path), "unknown key", nearest(name, append(conditionKeys(), "rating")))
		case v.Kind != yaml.ScalarNode:
			hasRating = true
			w.problem(s.at(v), s.name(path), wanted(ratings)+", got "+describe("", v.Tag), "")
		default:
			hasRating = true
			rating, message, suggestion := ratings.parse(v.Value, v.Tag)
			if message != "" {
				w.problem(s.at(v), s.name(path), message, suggestion)
				return
			}
			r.Rating = rating.(string)
		}
	})
	if !hasRating {
		w.problem(r.Position, s.name(key), "want rating: "+oneOf(ratings.PossibleValues), "")
	}
	return r
}
