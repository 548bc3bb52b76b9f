package policytest

import (
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

const (
	outgoing = "filter/endpoints"
	incoming = "filter/serviceEndpoints"
)

// Evaluator judges by one policy in one network.
type Evaluator struct {
	p      *Policy
	net    Network
	data   *Data
	rating string
	parsed map[string]*parsed
}

// New returns the evaluator of a policy that was rendered; data may be nil.
func New(p *Policy, net Network, data *Data) *Evaluator {
	e := &Evaluator{p: p, net: net, data: data, parsed: map[string]*parsed{}}
	e.rating = e.rate()
	return e
}

// layer is one level of settings, the nearest first; the last is the global one.
type layer struct {
	name     string
	settings map[string]string
	lists    map[string][]Rule
}

// layers are the levels that hold for a program: temporary rules, its own profile, those that this
// one names, those whose condition on the network holds, the global settings.
func (e *Evaluator) layers(prog *Program) []layer {
	var names []string
	own := ""
	if p := e.profile(prog); p != nil {
		own, names = p.Name, e.under(p.Name, nil)
	}
	for i := range e.p.Profiles {
		if p := &e.p.Profiles[i]; p.When != nil && e.holds(p.When) {
			names = append(names, p.Name)
		}
	}
	temporary := layer{name: "temporary", lists: map[string][]Rule{}}
	for _, t := range slices.Backward(e.p.Temporary) {
		if t.Profile == "" || t.Profile == own {
			temporary.lists[outgoing] = append(temporary.lists[outgoing], Rule{Text: t.Rule})
		}
	}
	list := []layer{temporary}
	for _, name := range names {
		p := e.named(name)
		list = append(list, layer{p.Name, p.Settings, p.Lists})
	}
	return append(list, e.global())
}

// global is the lowest layer: the file's settings, and those that were changed at run time where
// the file says nothing.
func (e *Evaluator) global() layer {
	settings := maps.Clone(e.p.Runtime)
	if settings == nil {
		settings = map[string]string{}
	}
	maps.Copy(settings, e.p.Settings)
	return layer{"", settings, e.p.Lists}
}

// under returns the name of a profile and of all that lie under it, each once.
func (e *Evaluator) under(name string, seen []string) []string {
	if slices.Contains(seen, name) {
		return seen
	}
	seen = append(seen, name)
	for _, below := range e.named(name).Layers {
		seen = e.under(below, seen)
	}
	return seen
}

func (e *Evaluator) named(name string) *Profile {
	return &e.p.Profiles[slices.IndexFunc(e.p.Profiles, func(p Profile) bool { return p.Name == name })]
}

// profile is the one that fits best, the first of equals; nil if none fits.
func (e *Evaluator) profile(prog *Program) *Profile {
	var best *Profile
	highest := 0
	for i := range e.p.Profiles {
		for _, f := range e.p.Profiles[i].Match {
			if s := f.score(prog); s > highest {
				highest, best = s, &e.p.Profiles[i]
			}
		}
	}
	return best
}

// score is 0 where the fingerprint does not fit.
func (f *Fingerprint) score(prog *Program) int {
	var have string
	switch f.Type {
	case "path":
		have = prog.Path
	case "cmdline":
		have = prog.Cmdline
	case "env":
		have = prog.Env[f.Name]
	case "tag":
		have = prog.Tags[f.Name]
		if f.Name == "special" {
			have = prog.Special
		}
	}
	if prog.Special != "" && f.Name != "special" { // nobody knows which program it is
		return 0
	}
	fits := false
	switch f.Op {
	case "equals":
		fits = have == f.Value
	case "prefix":
		fits = strings.HasPrefix(have, f.Value)
	case "regex":
		fits = regexp.MustCompile(f.Value).MatchString(have)
	}
	if have == "" || !fits {
		return 0
	}
	return map[string]int{"tag": 50000, "cmdline": 40000, "env": 30000, "path": 10000}[f.Type] +
		map[string]int{"equals": 3000, "prefix": 2000, "regex": 1000}[f.Op] + min(len(f.Value), 499)
}

// holds tells whether all that a condition says is so of one interface.
func (e *Evaluator) holds(c *Condition) bool {
	for name, addrs := range e.net.Interfaces {
		gateway, ok := e.net.Gateways[name]
		switch {
		case c.Interface != "" && c.Interface != name:
		case c.Gateway != "" && (!ok || gateway != netip.MustParseAddr(c.Gateway)):
		case c.Address != "" && !slices.ContainsFunc(addrs, func(a netip.Prefix) bool { return netip.MustParsePrefix(c.Address).Contains(a.Addr()) }):
		default:
			return true
		}
	}
	return false
}

// rate is the network's rating: what somebody set by hand while the program ran, else the first
// rule that holds, else the setting.
func (e *Evaluator) rate() string {
	if _, pinned := e.p.Settings["network/rating"]; !pinned && e.p.Runtime["network/rating"] != "" {
		return e.p.Runtime["network/rating"]
	}
	for _, r := range e.p.Ratings {
		if e.holds(&r.When) {
			return r.Rating
		}
	}
	return e.all("network/rating")
}

// all is the value of a setting that is the same for all programs.
func (e *Evaluator) all(key string) string {
	v, _ := e.value([]layer{e.global()}, key)
	return v
}

// value is what the first layer that sets a setting says, and the layer's name. A value whose
// release level is above the active one does not count.
func (e *Evaluator) value(layers []layer, key string) (value, profile string) {
	release := map[string]int{"filter/dnsQueryInterception": 2, "filter/permanentVerdicts": 2, "filter/autoPermitRelated": 1}[key]
	active := slices.Index([]string{"stable", "beta", "experimental"}, e.global().settings["core/releaseLevel"])
	for _, l := range layers {
		if v, ok := l.settings[key]; ok && release <= max(active, 0) {
			return v, l.name
		}
	}
	if key == "filter/blockInbound" && e.p.Preset != "" && e.p.Preset != "desktop" {
		return "off", ""
	}
	return map[string]string{
		"filter/defaultAction": "permit", "filter/blockInbound": "on", "filter/removeBlockedDNS": "on",
		"filter/lists": "[TRAC, MAL, DECEP, BAD, UNBREAK]", "filter/includeSubdomains": "on", "filter/includeCNAMEs": "on",
		"filter/dnsQueryInterception": "on", "filter/removeOutOfScopeDNS": "on", "filter/preventBypassing": "on", heuristics: "on", "filter/geoMissing": "nomatch", "network/rating": "trusted",
	}[key], ""
}

// active tells whether a graded or switched setting is in effect now, and whose value that is.
func (e *Evaluator) active(layers []layer, key string) (on bool, profile string) {
	v, profile := e.value(layers, key)
	switch v {
	case "on", "true":
		return true, profile
	case "", "off", "false":
		return false, profile
	}
	order := []string{"trusted", "untrusted", "danger"}
	return slices.Index(order, e.rating) >= slices.Index(order, v), profile
}

// rules goes through the lists of one key, layer by layer. waits: an allow or ask rule needs a
// fact that is not there, so that nothing after it may decide.
func (e *Evaluator) rules(layers []layer, key string, f *facts) (d Decision, found, waits bool) {
	if key == outgoing {
		var only []Rule
		for _, text := range e.p.Only {
			only = append(only, Rule{Text: "+ " + text})
		}
		layers = slices.Concat([]layer{{"", nil, map[string][]Rule{key: only}}}, layers)
	}
	for _, l := range layers {
		for _, rule := range l.lists[key] {
			r := e.parsed[rule.Text]
			if r == nil {
				r = parse(rule.Text)
				e.parsed[rule.Text] = r
			}
			switch t := r.match(f); {
			case t == yes:
				verdict := map[string]string{"+": "accept", "-": "block", "--": "drop", "?": "ask"}[r.verdict]
				if verdict == "block" && key == incoming {
					verdict = "drop"
				}
				return Decision{verdict, key, l.name, rule}, true, false
			case t == unknown && !r.takes():
				return Decision{}, false, true
			}
		}
	}
	return Decision{}, false, false
}

// BeforeIntel decides on a name before it is resolved: accept, block, drop, or undecided where
// addresses are needed.
func (e *Evaluator) BeforeIntel(f *Flow) Decision {
	return e.name(f, &facts{domain: f.Domain, port: -1, geoMissing: e.all("filter/geoMissing")})
}

// AfterIntel decides on a name with what it resolved to. removed are the addresses that the
// program must not see; a name without any other is denied as its first one is.
func (e *Evaluator) AfterIntel(f *Flow) (d Decision, removed []netip.Addr) {
	fa := facts{domain: f.Domain, cnames: f.CNAMEs, port: -1, geoMissing: e.all("filter/geoMissing")}
	if len(f.Answer) == 0 {
		return settle(e.name(f, &fa)), nil
	}
	remove, _ := e.active(e.layers(&f.Program), "filter/removeBlockedDNS")
	var first, kept *Decision
	for _, a := range f.Answer {
		fa.addr, fa.stamp = a, e.data.stamp(f.Domain, f.CNAMEs, a)
		d := settle(e.name(f, &fa))
		if first == nil {
			first = &d
		}
		if kept == nil && d.Permits() {
			kept = &d
		}
		if !d.Permits() && (remove || e.outOfScope(e.layers(&f.Program), f.Domain, a)) {
			removed = append(removed, a)
		}
	}
	if kept == nil {
		return *first, removed
	}
	return *kept, removed
}

// settle ends the DNS stages: what is still undecided there is decided on the connection.
func settle(d Decision) Decision {
	if d.Verdict == "undecided" {
		return Decision{Verdict: "accept"}
	}
	return d
}

// name runs the deciders of the DNS stages: own traffic, scope, rules, invalid addresses.
func (e *Evaluator) name(f *Flow, fa *facts) Decision {
	layers := e.layers(&f.Program)
	if f.Program.Special == "self" {
		return Decision{Verdict: "block"}
	}
	if e.p.Paused {
		return Decision{Verdict: "accept"}
	}
	if fa.addr.IsValid() {
		if d, ok := e.scope(layers, fa.addr); ok {
			return d
		}
	}
	d, found, waits := e.rules(layers, outgoing, fa)
	listed, onList := e.filtered(layers, f, e.data.stamp(f.Domain, fa.cnames, fa.addr))
	switch {
	case waits:
		return Decision{Verdict: "undecided"}
	case found && d.Verdict == "ask": // the connection is asked
		return Decision{Verdict: "undecided"}
	case found:
		return d
	case fa.addr.IsValid() && invalid(fa.addr):
		return Decision{Verdict: "block"}
	case e.outOfScope(layers, f.Domain, fa.addr):
		return Decision{Verdict: "block", Setting: "filter/removeOutOfScopeDNS"}
	case e.bypasses(layers, f, -1):
		return Decision{Verdict: "block", Setting: "filter/preventBypassing"}
	case onList:
		return listed
	case e.generated(layers, f):
		return Decision{Verdict: "block", Setting: heuristics}
	case e.isRelated(layers, f):
		return related()
	case e.p.Only != nil:
		return Decision{Verdict: "block", Setting: "filter/defaultAction"}
	default:
		return Decision{Verdict: "accept"}
	}
}

const heuristics = "filter/domainHeuristics"

// generated: a program made the name. What looks like that is decided elsewhere; the world has one
// such name, and one that only has a host like that.
func (e *Evaluator) generated(layers []layer, f *Flow) bool {
	on, _ := e.active(layers, heuristics)
	return on && !f.Inbound && f.Domain == "www.xkvbnqwrtzplmc.com"
}

func related() Decision { return Decision{Verdict: "accept", Setting: "filter/autoPermitRelated"} }

// isRelated: the domain that somebody registered is a word of the program's path.
func (e *Evaluator) isRelated(layers []layer, f *Flow) bool {
	on, _ := e.active(layers, "filter/autoPermitRelated")
	labels := strings.Split(f.Domain, ".")
	if !on || len(labels) < 2 || f.Program.Special != "" || f.Inbound {
		return false
	}
	label := labels[len(labels)-2]
	return len(label) >= 4 && slices.Contains(strings.Split(f.Program.Path, "/"), label)
}

func (e *Evaluator) scope(layers []layer, a netip.Addr) (Decision, bool) {
	key := map[string]string{"Internet": "filter/blockInternet", "LAN": "filter/blockLAN", "Localhost": "filter/blockLocal"}[scope(a)]
	if on, profile := e.active(layers, key); on {
		return Decision{Verdict: "block", Setting: key, Profile: profile}, true
	}
	return Decision{}, false
}

// invalid: no host can have the address.
func invalid(a netip.Addr) bool {
	first := a.As16()[12]
	return a.IsUnspecified() || a.Is4() && (first == 0 || first >= 240 && a.String() != "255.255.255.255")
}

// outOfScope: a public name leads to an address that is not public.
func (e *Evaluator) outOfScope(layers []layer, domain string, a netip.Addr) bool {
	on, _ := e.active(layers, "filter/removeOutOfScopeDNS")
	local := slices.Contains([]string{"localhost", "local", "test", "internal", "intranet", "private", "corp", "home", "lan", "localdomain"}, domain[strings.LastIndex(domain, ".")+1:])
	if !on || !a.IsValid() || !strings.Contains(domain, ".") || local || strings.HasSuffix("."+domain, ".home.arpa") {
		return false
	}
	if b := a.As16(); a.Is6() && strings.HasPrefix(a.String(), "64:ff9b::") {
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	return scope(a) != "Internet"
}

// bypasses: the name, or the port at its address, resolves names.
func (e *Evaluator) bypasses(layers []layer, f *Flow, port int) bool {
	on, _ := e.active(layers, "filter/preventBypassing")
	switch {
	case !on:
		return false
	case slices.Contains([]string{"use-application-dns.net", "mask.icloud.com", "mask-h2.icloud.com"}, f.Domain):
		return true
	case slices.ContainsFunc([]string{"dns.google", "cloudflare-dns.com"}, func(r string) bool { return f.Domain == r || strings.HasSuffix(f.Domain, "."+r) }):
		return true
	case port < 0 || f.Proto != 6 && f.Proto != 17:
		return false
	case port == 443:
		return slices.Contains([]string{"1.1.1.1", "8.8.8.8", "2606:4700:4700::1111"}, f.Remote.String())
	default:
		return slices.Contains([]int{53, 853, 5353, 5355, 5443}, port)
	}
}

// FirstPacket decides on a flow with all that is known of it.
func (e *Evaluator) FirstPacket(f *Flow) Decision {
	layers := e.layers(&f.Program)
	intercept, _ := e.active([]layer{e.global()}, "filter/dnsQueryInterception")
	switch {
	case f.Program.Special == "self":
		return Decision{Verdict: "block"}
	case intercept && !f.Inbound && hasPorts(f.Proto) && f.RemotePort == 53:
		return Decision{Verdict: "nameserver", Setting: "filter/dnsQueryInterception"}
	case e.p.Paused, f.Inbound && f.Solicited:
		return Decision{Verdict: "accept"}
	}
	if on, profile := e.active(layers, "filter/blockInbound"); on && f.Inbound && scope(f.Remote) != "Localhost" {
		return Decision{Verdict: "drop", Setting: "filter/blockInbound", Profile: profile}
	}
	if on, profile := e.active(layers, "filter/blockP2P"); on && p2p(f) {
		return Decision{Verdict: "block", Setting: "filter/blockP2P", Profile: profile}
	}
	if d, ok := e.scope(layers, f.Remote); ok {
		return d
	}
	key, port := outgoing, f.RemotePort
	if f.Inbound {
		key, port = incoming, f.LocalPort
	}
	if !hasPorts(f.Proto) {
		port = -1
	}
	fa := &facts{domain: f.Domain, cnames: f.CNAMEs, addr: f.Remote, stamp: e.data.stamp(f.Domain, f.CNAMEs, f.Remote), proto: f.Proto, port: port, last: true, geoMissing: e.all("filter/geoMissing")}
	if d, found, _ := e.rules(layers, key, fa); found {
		return d
	}
	if invalid(f.Remote) {
		return Decision{Verdict: "block"}
	}
	if !f.Inbound && e.outOfScope(layers, f.Domain, f.Remote) {
		return Decision{Verdict: "block", Setting: "filter/removeOutOfScopeDNS"}
	}
	if !f.Inbound && e.bypasses(layers, f, port) {
		return Decision{Verdict: "block", Setting: "filter/preventBypassing"}
	}
	if d, ok := e.filtered(layers, f, fa.stamp); ok {
		return d
	}
	if e.generated(layers, f) {
		return Decision{Verdict: "block", Setting: heuristics}
	}
	if e.isRelated(layers, f) {
		return related()
	}
	return e.byDefault(layers, f)
}

// p2p: an address on the Internet that no name was resolved for, or the ports of STUN.
func p2p(f *Flow) bool {
	stun := hasPorts(f.Proto) && (f.RemotePort == 3478 || f.RemotePort == 5349 || f.RemotePort >= 19302 && f.RemotePort <= 19309)
	return !f.Inbound && scope(f.Remote) == "Internet" && (f.Domain == "" || stun)
}

func (e *Evaluator) byDefault(layers []layer, f *Flow) Decision {
	if f.Inbound {
		return Decision{Verdict: "drop", Setting: incoming}
	}
	if e.p.Only != nil {
		return Decision{Verdict: "block", Setting: "filter/defaultAction"}
	}
	v, profile := e.value(layers, "filter/defaultAction")
	return Decision{Verdict: map[string]string{"permit": "accept", "block": "block", "ask": "ask"}[v], Setting: "filter/defaultAction", Profile: profile}
}

// Why decides as a flow would meet the stages, one after another.
func (e *Evaluator) Why(f *Flow) Decision {
	if f.Domain != "" && !f.Inbound {
		if d := e.BeforeIntel(f); !d.Permits() {
			return d
		}
		asked := *f
		asked.Answer = []netip.Addr{f.Remote}
		if d, _ := e.AfterIntel(&asked); !d.Permits() {
			return d
		}
	}
	return e.FirstPacket(f)
}
