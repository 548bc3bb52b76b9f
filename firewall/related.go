package firewall

import (
	"strings"

	"golang.org/x/net/publicsuffix"

	"gatun/attribution"
	"gatun/network"
)

// minRelated is the shortest name that says anything: "go" or "sh" is part of too many paths.
const minRelated = 4

// related permits a name that a program shares with its own path: what is installed as
// /opt/spotify/spotify may talk to spotify.com without a rule.
func related(r *request) outcome {
	s := r.settings
	if !s.AutoPermitRelated || r.direction != network.Outbound || !identified(r.owner) {
		return outcome{}
	}
	if r.facts.Entity.Domain == "" || !sharesName(r.owner.Process, r.facts.Entity.Domain) {
		return outcome{}
	}
	return decided(network.Decision{
		Verdict: network.Accept, Code: "related", Setting: "filter/autoPermitRelated",
		Reason: "the name " + r.facts.Entity.Domain + " belongs to the program",
	})
}

// sharesName compares whole words, so that nobody gains a permission by a name that merely
// contains another.
func sharesName(p *attribution.Process, domain string) bool {
	label, _, _ := strings.Cut(registrable(domain), ".")
	if len(label) < minRelated {
		return false
	}
	words := strings.FieldsFunc(strings.ToLower(p.Path), func(c rune) bool { return strings.ContainsRune("/\\.-_ ", c) })
	for _, w := range words {
		if w == label {
			return true
		}
	}
	return false
}

// registrable returns the name that its owner registered: the public suffix and one label. A
// name that is a public suffix itself stands for itself.
func registrable(domain string) string {
	if r, err := publicsuffix.EffectiveTLDPlusOne(domain); err == nil {
		return r
	}
	return domain
}
