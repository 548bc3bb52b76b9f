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
// # Rules
//
//	rule   = verdict WS entity [ WS proto [ "/" ports ] ] [ WS "app=" protocol ] [ WS "#" comment ]
//	verdict= "+" allow | "-" block | "--" drop | "?" ask
//	entity = "*" | IP | CIDR | IP-IP | scope *("," scope) | domain | "{" entity *("," entity) "}" | "!" entity
//	domain = "example.com" exact | ".example.com" zone incl. itself | "*xample.com" suffix
//	       | "example.*" prefix | "*example*" contains | "/regex/"
//	scope  = Localhost | LAN | Internet
//	proto  = name | number 1..255 | "*"      ports = port | port-port | port,port,…
//
// Countries (US), continents (C:EU), ASNs (AS64500) and lists (L:id) are part of the grammar
// and refused with a message until their data is there: a rule that silently never matches is
// worse than none.
//
// A rule is matched, not matched or unknown. It is unknown while a fact that it needs is not
// there yet, for example the address before a name is resolved. A set is matched if one of its
// entities is; "!" turns matched and not matched around and leaves unknown.
//
// Names that a name is an alias of (CNAMEs) can only make a decision stricter: "-" and "--"
// match them too, "+" and "?" do not, and "!" turns that around. Who answers for a name
// chooses its aliases and could else lend himself any name that is allowed.
//
// ICMP as a name means ICMP for both families; the numbers 1 and 58 mean one of them. A rule
// with ports never matches a protocol without ports.
package profiles
