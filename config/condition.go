package config

import "net/netip"

// NetworkCondition speaks about the networks that this machine is connected to. All fields that
// are given have to hold; where none is given it always holds. Package status says whether.
type NetworkCondition struct {
	Position
	Interface  string // name of an interface that is up
	SSID       string // of a wireless network; never holds in this version
	DNSSuffix  string // that the network assigned; never holds in this version
	Gateway    netip.Addr
	GatewayMAC string       // lower-case, with colons
	Address    netip.Prefix // one of this machine's addresses is in it
	VPN        *bool        // traffic leads into another VPN
	Portal     *bool        // behind a captive portal; never holds in this version
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
