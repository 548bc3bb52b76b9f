package config

import (
	"slices"
	"time"
)

// The parts of the program that a setting may wait for.
const (
	needsInspection = "inspection"
	needsHistory    = "the history"
	needsTunnels    = "tunnels"
	needsGateway    = "the gateway mode"

	needsTCPAPI = "the API over TCP"
)

// Table returns every setting, in the order of the settings reference. The caller owns the
// slice.
func Table() []Setting {
	return slices.Concat(filterTable(), dnsTable(), tunnelTable(), otherTable(), coreTable())
}

func filterTable() []Setting {
	return []Setting{
		{Key: "filter/defaultAction", Name: "Default action", Type: TypeString, Default: "permit", PerApp: true,
			Description: "What happens to an outgoing connection that no rule mentions.", PossibleValues: []string{"permit", "block", "ask"}},
		{Key: "filter/askTimeout", Name: "Prompt time-out", Type: TypeDuration, Default: 60 * time.Second, Check: checkAskTimeout,
			Description: "How long a connection is held for an answer before the default action is applied once."},
		{Key: "filter/blockInternet", Name: "Block Internet access", Type: TypeGrade, Default: Off, PerApp: true,
			Description: "Blocks connections to public addresses."},
		{Key: "filter/blockLAN", Name: "Block LAN access", Type: TypeGrade, Default: Off, PerApp: true,
			Description: "Blocks connections to private, link-local, multicast and broadcast addresses."},
		{Key: "filter/blockP2P", Name: "Block peer-to-peer connections", Type: TypeGrade, Default: Off, PerApp: true,
			Description: "Blocks connections to addresses that no name was resolved for."},
		{Key: "filter/blockLocal", Name: "Block this device", Type: TypeGrade, Default: Off, PerApp: true, Expertise: Expert,
			Description: "Refuses DNS answers that point to this device. Loopback traffic itself is not seen."},
		{Key: "filter/blockInbound", Name: "Block incoming connections", Type: TypeGrade, Default: On, PerApp: true,
			Description: "Drops connections from elsewhere; a profile switches it off for a program, then its incoming rules decide."},
		{Key: "filter/endpoints", Name: "Outgoing rules", Type: TypeRules, PerApp: true, Stacked: true,
			Description: "Rules for outgoing connections. The first match wins; a program's own rules come before these."},
		{Key: "filter/serviceEndpoints", Name: "Incoming rules", Type: TypeRules, PerApp: true, Stacked: true, Expertise: Expert,
			Description: "Rules for incoming connections, where blockInbound is off. No match drops."},
		{Key: "filter/lists", Name: "Filter lists", Type: TypeStrings, Default: itemsOf("TRAC", "MAL", "DECEP", "BAD", "UNBREAK"), PerApp: true, Check: checkListName,
			Description: "Categories and lists of the section lists that are blocked. What is on one of UNBREAK is not blocked by the others."},
		{Key: "filter/customLists", Name: "Custom filter lists", Type: TypeStrings, Expertise: Expert, Check: checkCustomList,
			Description: "Files or URLs with further names and addresses to block, in any format that lists have. UNBREAK does not take them back."},
		{Key: "filter/includeSubdomains", Name: "Filter subdomains", Type: TypeBool, Default: true, PerApp: true,
			Description: "A listed name also stands for the names below it."},
		{Key: "filter/includeCNAMEs", Name: "Filter aliases", Type: TypeBool, Default: true, PerApp: true, Expertise: Expert,
			Description: "The names that a name is an alias of are looked up as well."},
		{Key: "filter/remoteIntel", Name: "Remote intelligence", Type: TypeString, Default: "", Expertise: Expert, Check: checkRemoteIntel,
			Description: "An https URL that is asked about each name while it is resolved; empty: nobody is told which names are asked for."},
		{Key: "filter/removeOutOfScopeDNS", Name: "Remove out of scope answers", Type: TypeBool, Default: true, PerApp: true, Expertise: Developer,
			Description: "Removes addresses from a DNS answer that the resolver has no business to give, such as private ones for public names."},
		{Key: "filter/removeBlockedDNS", Name: "Remove blocked answers", Type: TypeBool, Default: true, PerApp: true, Expertise: Developer,
			Description: "Removes addresses from a DNS answer that the program would not be allowed to connect to."},
		{Key: "filter/domainHeuristics", Name: "Domain heuristics", Type: TypeBool, Default: true, PerApp: true, Expertise: Expert,
			Description: "Blocks names that look generated, as malware makes them, and queries that carry data in names."},
		{Key: "filter/preventBypassing", Name: "Prevent bypassing", Type: TypeBool, Default: true, PerApp: true,
			Description: "Blocks other ways to resolve names."},
		{Key: "filter/autoPermitRelated", Name: "Permit related domains", Type: TypeBool, Default: false, PerApp: true, Release: Beta,
			Description: "Permits names that belong to the program's maker."},
		{Key: "filter/requireEncryption", Name: "Require encryption", Type: TypeGrade, Default: Off, PerApp: true, Missing: needsInspection,
			Description: "Blocks connections that turn out not to be encrypted."},
		{Key: "filter/permanentVerdicts", Name: "Permanent verdicts", Type: TypeBool, Default: true, Expertise: Developer, Release: Experimental,
			Description: "Permitted TCP and UDP flows whose bytes nobody needs are handed back to the system's kernel, which carries them at its own speed; `up` on Linux. Denied UDP flows that send on and on are swallowed by it. A change of the policy takes them back."},
		{Key: "filter/dnsQueryInterception", Name: "Intercept DNS queries", Type: TypeBool, Default: true, Expertise: Developer, Release: Experimental,
			Description: "Every query on port 53 is answered by the built-in nameserver, whatever server was asked."},
		{Key: "filter/reevaluate", Name: "Decide live connections again", Type: TypeBool, Default: true, Expertise: Expert,
			Description: "On a change live connections are decided again and those that are no longer allowed are closed."},
		{Key: "filter/geoMissing", Name: "Missing country data", Type: TypeString, Default: "nomatch", Expertise: Expert,
			Description: "What a rule with a country or ASN means where nothing is known of the address.", PossibleValues: []string{"nomatch", "block"}},
		{Key: "filter/ping", Name: "Ping", Type: TypeString, Default: "permit", Expertise: Expert,
			Description: "permit relays every ping and does not show it; rules decides and shows it like any flow.", PossibleValues: []string{"permit", "rules"}},
	}
}

func dnsTable() []Setting {
	return []Setting{
		{Key: "dns/nameservers", Name: "Nameservers", Type: TypeStrings, PerApp: true, Check: checkNameservers,
			Description: "Resolvers in the order of preference; the system's where the list is empty."},
		{Key: "dns/noAssignedNameservers", Name: "Ignore the system's nameservers", Type: TypeBool, Default: false, Expertise: Expert,
			Description: "Never asks the nameservers that the network assigned."},
		{Key: "dns/noMulticastDNS", Name: "No multicast DNS", Type: TypeBool, Default: false, Expertise: Expert,
			Description: "Never resolves names by multicast."},
		{Key: "dns/noInsecureProtocols", Name: "No unencrypted DNS", Type: TypeBool, Default: false, Expertise: Expert,
			Description: "Never asks a nameserver over a protocol without encryption."},
		{Key: "dns/useStaleCache", Name: "Serve stale answers", Type: TypeBool, Default: false,
			Description: "Answers from the cache after the time to live while a fresh answer is fetched."},
		{Key: "dns/dontResolveSpecialDomains", Name: "Keep special names local", Type: TypeBool, Default: true, Expertise: Expert,
			Description: "Names for special use are never sent to public resolvers."},
		{Key: "dns/nameserverRetryRate", Name: "Retry of failed nameservers", Type: TypeDuration, Default: 300 * time.Second, Expertise: Developer, Check: checkRetryRate,
			Description: "How often a failed nameserver is tried again."},
		{Key: "dns/blockStyle", Name: "Answer for blocked names", Type: TypeString, Default: "nxdomain", Expertise: Expert,
			Description: "What a program is told about a name that it may not resolve.", PossibleValues: []string{"nxdomain", "refused", "zero"}},
	}
}

func tunnelTable() []Setting {
	return []Setting{
		{Key: "tunnel/use", Name: "Use tunnels", Type: TypeBool, Default: false, PerApp: true, Missing: needsTunnels,
			Description: "Sends connections into a tunnel."},
		{Key: "tunnel/usagePolicy", Name: "What uses tunnels", Type: TypeRules, PerApp: true, Stacked: true, Missing: needsTunnels,
			Description: "Rules: + goes into a tunnel, - does not."},
		{Key: "tunnel/exitPolicy", Name: "Exits", Type: TypeRules, PerApp: true, Stacked: true, Missing: needsTunnels,
			Description: "Rules that choose the exit."},
		{Key: "tunnel/hops", Name: "Hops", Type: TypeInt, Default: 1, PerApp: true, Missing: needsTunnels,
			Description: "How many tunnels are chained."},
		{Key: "tunnel/via", Name: "Tunnel", Type: TypeString, Default: "", PerApp: true, Missing: needsTunnels,
			Description: "The tunnel that is used."},
		{Key: "tunnel/dnsExitPolicy", Name: "Exits for DNS", Type: TypeRules, Stacked: true, Expertise: Expert, Missing: needsTunnels,
			Description: "Rules that choose the exit for queries."},
	}
}

func otherTable() []Setting {
	return []Setting{
		{Key: "network/rating", Name: "Network rating", Type: TypeString, Default: "trusted",
			Description: "How far the network is trusted; graded settings are active from their rating on.", PossibleValues: []string{"trusted", "untrusted", "danger"}},
		{Key: "network/ratingRules", Name: "Rating rules", Type: TypeObjects,
			Description: "Rate the network by what is known of it: the first rule whose conditions all hold counts, before network/rating of the file."},
		{Key: "network/onlineCheck", Name: "Online check", Type: TypeString, Default: "http://detectportal.firefox.com/success.txt", Expertise: Expert, Check: checkOnlineCheck,
			Description: "A page in plain HTTP by which `up` finds out whether it is online or behind a captive portal; what it has to say stands behind a #, else it is the word success or status 204. off: nobody is asked, and portals are not found."},
		{Key: "history/enable", Name: "History", Type: TypeBool, Default: false, PerApp: true, Missing: needsHistory,
			Description: "Keeps ended connections on disk."},
		{Key: "history/keep", Name: "Keep history", Type: TypeDuration, Default: 30 * 24 * time.Hour, PerApp: true, Missing: needsHistory,
			Description: "How long ended connections are kept."},
		{Key: "inspection/domainConflict", Name: "Conflicting names", Type: TypeString, Default: "prefer-dns", Expertise: Expert, Missing: needsInspection,
			Description: "What counts where the connection names another host than DNS did.", PossibleValues: []string{"prefer-dns", "prefer-sni", "block"}},
		{Key: "handback/afterCrash", Name: "Handed-back connections after a crash", Type: TypeString, Default: "keep", Expertise: Expert, RestartRequired: true,
			Description: "keep: the kernel goes on carrying them. kill: they end within 20 s.", PossibleValues: []string{"keep", "kill"}},
	}
}

func coreTable() []Setting {
	return []Setting{
		{Key: "core/failOpen", Name: "Fail open", Type: TypeBool, Default: false, Expertise: Expert, RestartRequired: true, Check: checkFailOpen,
			Description: "Lets traffic pass when gatun fails. Off: a failure closes the network until `recover`."},
		{Key: "core/autoProfiles", Name: "Automatic profiles", Type: TypeBool, Default: true, Expertise: Expert,
			Description: "Makes a profile when a program is first seen."},
		{Key: "core/state", Name: "State directory", Type: TypeString, Default: "/var/lib/gatun", Expertise: Developer, RestartRequired: true, Check: checkPath,
			Outside:     "--state or GATUN_STATE",
			Description: "Where gatun keeps what it must remember."},
		{Key: "core/socket", Name: "API socket", Type: TypeString, Default: "", Expertise: Developer, RestartRequired: true, Check: checkPath,
			Outside:     "--socket or GATUN_SOCKET",
			Description: "The unix socket of the API; empty: chosen by the mode."},
		{Key: "core/mark", Name: "Packet mark", Type: TypeInt, Default: 0, Expertise: Developer, RestartRequired: true, Check: checkMark,
			Description: "The mark of gatun's own packets; 0: chosen by gatun."},
		{Key: "core/table", Name: "Routing table", Type: TypeInt, Default: 0, Expertise: Developer, RestartRequired: true, Check: checkRoutingTable,
			Description: "The number of gatun's routing table; 0: chosen by gatun."},
		{Key: "core/expertiseLevel", Name: "Expertise level", Type: TypeString, Default: "user",
			Description: "Which settings are shown. A hidden setting stays in effect.", PossibleValues: []string{"user", "expert", "developer"}},
		{Key: "core/releaseLevel", Name: "Release level", Type: TypeString, Default: "stable", Expertise: Developer,
			Description: "Which settings are used. A setting above the level has its default, and its stored value comes back with the level.", PossibleValues: []string{"stable", "beta", "experimental"}},
		{Key: "core/logLevel", Name: "Log level", Type: TypeString, Default: "info", Expertise: Developer,
			Description: "What is logged.", PossibleValues: []string{"debug", "info", "warn", "error"}},
		{Key: "core/listenAddress", Name: "API address", Type: TypeString, Default: "", Expertise: Developer, RestartRequired: true, Missing: needsTCPAPI,
			Description: "A loopback address and port for the API; empty: the unix socket only."},
		{Key: "core/apiKeys", Name: "API keys", Type: TypeStrings, Expertise: Developer, Sensitive: true, Missing: needsTCPAPI,
			Description: "Tokens that open the API over TCP."},
	}
}

// missingSection is a top-level key of the file whose part of the program is not there.
type missingSection struct {
	needs string
	list  bool // of objects, else one object
}

func missingSections() map[string]missingSection {
	return map[string]missingSection{
		"tunnels": {needsTunnels, true}, "peers": {needsTunnels, true}, "gateway": {needsGateway, false},
	}
}

// preset returns the defaults that a preset changes; ok is false for an unknown one.
func preset(name string) (values map[string]any, ok bool) {
	switch name {
	case "desktop":
		return map[string]any{}, true
	case "server":
		return map[string]any{"filter/blockInbound": Off, "core/autoProfiles": false}, true
	case "gateway": // its devices are applications, so profiles are made for them
		return map[string]any{"filter/blockInbound": Off}, true
	default:
		return nil, false
	}
}

// missingPresets names the part of the program that a preset is made for and that is not there.
func missingPresets() map[string]string { return map[string]string{"gateway": needsGateway} }

// presets lists the names that preset knows.
func presets() []string { return []string{"desktop", "server", "gateway"} }
