package firewall

import (
	"fmt"
	"net/netip"
	"slices"

	"gatun/intel"
	"gatun/network"
	"gatun/profiles"
)

// Intel knows what there is to know of a name, the names that it is an alias of, and an address;
// each may be missing. The answer is never nil and comes at once: nothing is fetched.
type Intel interface {
	Stamp(domain string, cnames []string, addr netip.Addr) *intel.Stamp
}

// stamp puts what is known of the other end into the facts of rules. Without the address most of
// it is unknown yet, and rules must not read its absence as a no.
func (r *request) stamp() {
	if e := &r.facts.Entity; r.intel != nil && (e.Addr.IsValid() || r.facts.Final) {
		e.Stamp = r.intel.Stamp(e.Domain, e.CNAMEs, e.Addr)
	}
}

// filterLists blocks what is on a list that the program's settings name, unless a list says that
// blocking it breaks something. A name is judged before it is resolved: a blocked one never is.
func filterLists(r *request) outcome {
	s, e := r.settings, r.facts.Entity
	stamp := e.Stamp
	if len(s.Lists) == 0 {
		return outcome{}
	}
	if stamp == nil && r.intel != nil {
		stamp = r.intel.Stamp(e.Domain, e.CNAMEs, e.Addr)
	}
	later := outcome{unknown: !e.Addr.IsValid()} // a list may have an address of it
	if stamp == nil {
		return later
	}
	var on *intel.Match
	for i := range stamp.Lists {
		m := &stamp.Lists[i]
		switch {
		case !listed(s, m):
		case m.Category != intel.Unbreak:
			if on == nil {
				on = m
			}
		case !m.Alias: // an alias may be of anybody's making: it can block, not free
			later.note = fmt.Sprintf("%s is on the list %s of what must not be blocked", m.Name, m.ID)
			return later
		}
	}
	if on == nil {
		return later
	}
	return decided(network.Decision{
		Verdict: verdictOf(profiles.Block, r.direction), Code: "filter-list", Setting: "filter/lists", Profile: s.ListsProfile, List: on.ID,
		Reason: fmt.Sprintf("%s is on the filter list %s (%s)", on.Name, on.ID, on.Category),
	})
}

// listed reports whether a match counts for the program: it names the list or a category that the
// list is of.
func listed(s *profiles.Settings, m *intel.Match) bool {
	if m.Above && !s.IncludeSubdomains || m.Alias && !s.IncludeCNAMEs {
		return false
	}
	return slices.Contains(s.Lists, m.ID) || slices.Contains(s.Lists, m.Category) || slices.Contains(s.Lists, intel.PartOf(m.Category))
}
