package profiles

import (
	"strings"
	"time"
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
	LayerNames  []string // what the settings were made of, the first on top: "curl", "browsers", "global"

	DefaultAction        Action // Allow, Block or Ask
	DefaultActionOrigin  Origin
	DefaultActionProfile string // ID of the profile whose layer set it
	// DefaultActionForNames says that the default action holds for DNS queries as well, which
	// are otherwise answered if no rule speaks about the name.
	DefaultActionForNames bool

	BlockInternet, BlockLAN, BlockLocal, BlockP2P, BlockInbound Switch

	Endpoints        []Layer // outgoing rules, evaluated one after another, the global list last
	ServiceEndpoints []Layer // incoming rules

	Lists                            []string // ids and categories of the filter lists that block
	ListsProfile                     string   // ID of the profile whose layer set them
	IncludeSubdomains, IncludeCNAMEs bool     // names below a listed one, and names that are aliases of one, count as listed

	AskTimeout        time.Duration // how long a flow waits for a person's answer
	AutoPermitRelated bool
	GeoMissingBlocks  bool // a rule about a country blocks where no country is known
	Paused            bool // a person lets everything through for a while

	PreventBypassing bool   // other ways to resolve names than the built-in nameserver
	DomainHeuristics bool   // generated names and tunnels through DNS
	Portal           bool   // a captive portal holds this machine: names that tell of one must be reachable
	PortalHost       string // its page, a name or address, "" unknown

	Nameservers []string // resolver URLs of the program's own layers; none: the global ones

	Ping                 Ping
	BlockStyle           BlockStyle
	PermanentVerdicts    bool
	DNSQueryInterception bool
	Reevaluate           bool
	RemoveOutOfScopeDNS  bool
	RemoveBlockedDNS     bool
}

// settings resolves what the layers say.
func (o overlay) settings() Settings {
	s := Settings{
		BlockInternet: o.toggle("filter/blockInternet"), BlockLAN: o.toggle("filter/blockLAN"), BlockLocal: o.toggle("filter/blockLocal"),
		BlockP2P: o.toggle("filter/blockP2P"), BlockInbound: o.toggle("filter/blockInbound"),
		PermanentVerdicts: o.on("filter/permanentVerdicts"), DNSQueryInterception: o.on("filter/dnsQueryInterception"),
		Reevaluate: o.on("filter/reevaluate"), RemoveOutOfScopeDNS: o.on("filter/removeOutOfScopeDNS"), RemoveBlockedDNS: o.on("filter/removeBlockedDNS"),
		AutoPermitRelated: o.on("filter/autoPermitRelated"), GeoMissingBlocks: o.text("filter/geoMissing") == "block",
		PreventBypassing: o.on("filter/preventBypassing"), DomainHeuristics: o.on("filter/domainHeuristics"),
		DefaultActionForNames: o.on(keyOnly),
		Endpoints:             o.endpoints, ServiceEndpoints: o.services, LayerNames: o.names,
	}
	lists := o.set["filter/lists"]
	s.Lists, s.ListsProfile = strings.Fields(o.text("filter/lists")), lists.profile
	if servers := o.set["dns/nameservers"]; servers.profile != "" {
		s.Nameservers = strings.Fields(o.text("dns/nameservers"))
	}
	s.IncludeSubdomains, s.IncludeCNAMEs = o.on("filter/includeSubdomains"), o.on("filter/includeCNAMEs")
	s.AskTimeout, _ = o.set["filter/askTimeout"].value.(time.Duration)
	action := o.set["filter/defaultAction"]
	s.DefaultActionOrigin, s.DefaultActionProfile = action.origin, action.profile
	switch action.value {
	case "permit":
		s.DefaultAction = Allow
	case "ask":
		s.DefaultAction = Ask
	}
	if o.text("filter/ping") == "rules" {
		s.Ping = PingRules
	}
	switch o.text("dns/blockStyle") {
	case "refused":
		s.BlockStyle = Refused
	case "zero":
		s.BlockStyle = Zero
	}
	return s
}

// toggle reads a graded setting. What is not there counts as active: graded settings restrict.
func (o overlay) toggle(key string) Switch {
	v := o.set[key]
	return Switch{Active: v.value != false, Origin: v.origin, Profile: v.profile}
}

func (o overlay) on(key string) bool { return o.set[key].value == true }

func (o overlay) text(key string) string {
	text, _ := o.set[key].value.(string)
	return text
}
