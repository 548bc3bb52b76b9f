// Package profiles holds what one program may do: the rules, the settings of its profile over
// the global ones, and the profile that fits a process.
//
// The firewall, the nameserver and the Gate ask a Store for the *Settings of an owner; cmd
// swaps the configuration below it. Settings are immutable snapshots: reading them takes no
// lock.
//
// It does not decide on flows (firewall does, in the order of its deciders), does not find
// processes, reads no files and never looks at a flow's bytes.
//
// # Profiles
//
// A program has the profile with the best fingerprint: tag over command line over environment
// over path, equals over prefix over regular expression, the longer over the shorter; of equal
// ones that of the human's file over one made at run time over one that the program made itself,
// and then the first, which is reported. A program that none fits gets a profile of its own at
// first sight, if core/autoProfiles is on. Who is no program for sure (unidentified,
// unsolicited, system, self) has a built-in profile, or the one that names it by the tag
// special, and never that of a program.
//
// What holds is laid over each other: temporary rules, the profile, its groups in their order,
// the profiles whose condition on the network holds, the global settings. The first layer that
// sets a value wins; the rules of all layers are evaluated one after another.
//
// The revision is one number for everybody. It grows when the settings of anybody change, and
// stays when a file says the same again or a profile was made automatically.
//
// # Rules
//
//	rule   = verdict WS entity [ WS proto [ "/" ports ] ] [ WS "app=" protocol ] [ WS "#" comment ]
//	verdict= "+" allow | "-" block | "--" drop | "?" ask
//	entity = "*" | IP | CIDR | IP-IP | CC | "C:" continent | "AS" digits | scope *("," scope)
//	       | "L:" id *("," id) | domain | "{" entity *("," entity) "}" | "!" entity
//	domain = "example.com" exact | ".example.com" zone incl. itself | "*xample.com" suffix
//	       | "example.*" prefix | "*example*" contains | "/regex/"
//	scope  = Localhost | LAN | Internet
//	proto  = name | number 1..255 | "*"      ports = port | port-port | port,port,…
//
// A word is tried in this order: any, address, prefix, range, country, continent, ASN, scopes,
// lists, name. Countries are two upper-case letters of ISO 3166-1; "us" is refused. A list is
// named by its id or by its category. Tunnel policies have the same grammar: "+" uses, "-"
// excludes.
//
// A rule is matched, not matched or unknown. It is unknown while a fact that it needs is not
// there yet, for example the address before a name is resolved. A set is matched if one of its
// entities is; "!" turns matched and not matched around and leaves unknown.
//
// Rules about countries, continents and ASNs need an address and its Stamp. Where the data has
// nothing about a public address such a rule does not match, with "!" neither, and
// RuleSet.GeoMissing counts; under filter/geoMissing: block, "-" and "--" match. A local address
// is in no country: that is no hole in the data.
//
// Names that a name is an alias of (CNAMEs) can only make a decision stricter: "-" and "--"
// match them too, "+" and "?" do not, and "!" turns that around. Who answers for a name
// chooses its aliases and could else lend himself any name that is allowed.
//
// ICMP as a name means ICMP for both families; the numbers 1 and 58 mean one of them. A rule
// with ports never matches a protocol without ports.
package profiles
