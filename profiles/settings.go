package profiles

import (
	"time"

	"gatun/config"
	"gatun/status"
)

// Origin says for people where a value comes from: "default", "preset server",
// "/etc/gatun/gatun.yaml:12", "flag only".
type Origin string

// Switch is a graded setting, already interpreted by the network rating.
type Switch struct {
	Active  bool
	Origin  Origin
	Profile string // ID of the profile whose layer set it, "" for the global one
}

// Ping says what becomes of echo requests.
type Ping uint8

// The values of filter/ping.
const (
	PingPermit Ping = iota // relayed, not in the monitor
	PingRules              // decided and shown like any flow
)

// BlockStyle says what a program is told about a name that it may not resolve.
type BlockStyle uint8

// The values of dns/blockStyle.
const (
	NXDomain BlockStyle = iota
	Refused
	Zero
)

// Settings is everything that holds for one identity: the values of its profile over the
// global ones. It is immutable and shared by all processes of the profile.
type Settings struct {
	Revision    uint64 // of the policy; grows with every change
	ProfileID   string // "" where only the global settings hold
	ProfileName string

	DefaultAction        Action // Allow, Block or Ask
	DefaultActionOrigin  Origin
	DefaultActionProfile string // ID of the profile whose layer set it
	// DefaultActionForNames says that the default action holds for DNS queries as well, which
	// are otherwise answered if no rule speaks about the name.
	DefaultActionForNames bool

	BlockInternet, BlockLAN, BlockLocal, BlockP2P, BlockInbound Switch

	Endpoints        []Layer // outgoing rules, evaluated one after another, the global list last
	ServiceEndpoints []Layer // incoming rules

	AskTimeout        time.Duration // how long a flow waits for a person's answer
	AutoPermitRelated bool
	GeoMissingBlocks  bool // a rule about a country blocks where no country is known
	Paused            bool // a person lets everything through for a while

	Ping                 Ping
	BlockStyle           BlockStyle
	PermanentVerdicts    bool
	DNSQueryInterception bool
	Reevaluate           bool
	RemoveOutOfScopeDNS  bool
	RemoveBlockedDNS     bool
}

// resolver makes Settings of one profile, or of none, over the global values.
type resolver struct {
	cfg     *config.Config
	profile *config.ProfileSpec // nil: the global settings alone
	rating  status.Rating
}

// value returns the value of the first layer that sets it, and that layer's profile.
func (r *resolver) value(key string) (v config.Value, profile string) {
	if r.profile != nil {
		if v, ok := r.profile.Value(key); ok {
			return v, r.profile.Name
		}
	}
	return r.cfg.Value(key), ""
}

func (r *resolver) origin(v config.Value, profile string) Origin {
	if profile == "" {
		return Origin(v.Origin.String())
	}
	return Origin("profile " + profile + " (" + v.Origin.String() + ")")
}

func (r *resolver) toggle(key string) Switch {
	v, profile := r.value(key)
	g, ok := v.Any().(config.Grade)
	return Switch{Active: !ok || status.Active(g, r.rating), Origin: r.origin(v, profile), Profile: profile}
}

func (r *resolver) on(key string) bool {
	v, _ := r.value(key)
	return v.Any() == true
}

func (r *resolver) text(key string) string {
	v, _ := r.value(key)
	s, _ := v.Any().(string)
	return s
}

// settings resolves everything but the rules.
func (r *resolver) settings() Settings {
	s := Settings{
		BlockInternet: r.toggle("filter/blockInternet"), BlockLAN: r.toggle("filter/blockLAN"), BlockLocal: r.toggle("filter/blockLocal"),
		BlockP2P: r.toggle("filter/blockP2P"), BlockInbound: r.toggle("filter/blockInbound"),
		PermanentVerdicts: r.on("filter/permanentVerdicts"), DNSQueryInterception: r.on("filter/dnsQueryInterception"),
		Reevaluate: r.on("filter/reevaluate"), RemoveOutOfScopeDNS: r.on("filter/removeOutOfScopeDNS"), RemoveBlockedDNS: r.on("filter/removeBlockedDNS"),
	}
	if r.profile != nil {
		s.ProfileID, s.ProfileName = r.profile.Name, r.profile.Name
	}
	v, profile := r.value("filter/defaultAction")
	s.DefaultActionOrigin, s.DefaultActionProfile = r.origin(v, profile), profile
	switch v.Any() {
	case "permit":
		s.DefaultAction = Allow
	case "ask":
		s.DefaultAction = Ask
	}
	if r.text("filter/ping") == "rules" {
		s.Ping = PingRules
	}
	switch r.text("dns/blockStyle") {
	case "refused":
		s.BlockStyle = Refused
	case "zero":
		s.BlockStyle = Zero
	}
	return s
}
