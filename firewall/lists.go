package firewall

import (
	"fmt"
	"net/netip"
	"slices"

	"gatun/intel"
	"gatun/network"
	"gatun/network/packet"
	"gatun/profiles"
)

// Intel knows what there is to know of a name, the names that it is an alias of, and an address;
// each may be missing. The answer is never nil and comes at once: nothing is fetched.
type Intel interface {
	Stamp(domain string, cnames []string, addr netip.Addr) *intel.Stamp
}

// Stamp returns what is known of the other end of a flow of c, for the record. It is that of the
// flow's own address: the links of one name lead to many.
func (m *Master) Stamp(c *network.Communication, f packet.Flow) *intel.Stamp {
	if m.Intel == nil {
		return c.Entity.Stamp
	}
	return m.Intel.Stamp(c.Entity.Domain, c.Entity.CNAMEs, f.Remote.Addr())
}

// stamp puts what is known of the other end into the facts of rules. Without the address most of
// it is unknown yet, and rules must not read its absence as a no.
func (r *request) stamp() {
	if e := &r.facts.Entity; r.intel != nil && (e.Addr.IsValid() || r.facts.Final) {
		e.Stamp = r.intel.Stamp(e.Domain, e.CNAMEs, e.Addr)
	}
}

// listed returns what is known of the other end for the deciders that look at lists, nil if
// nothing is. Unlike rules they judge a name by itself. more tells that an address which is not
// known yet may be on further lists.
func (r *request) listed() (s *intel.Stamp, more bool) {
	e := &r.facts.Entity
	s = e.Stamp
	if s == nil && r.intel != nil {
		if r.byName == nil { // the deciders of one stage share it
			r.byName = r.intel.Stamp(e.Domain, e.CNAMEs, e.Addr)
		}
		s = r.byName
	}
	if s == nil {
		return nil, !e.Addr.IsValid()
	}
	return s, s.MoreByAddr
}

// filterLists blocks what is on a list that the program's settings name, unless a list says that
// blocking it breaks something. A name is judged before it is resolved: a blocked one never is.
func filterLists(r *request) outcome {
	if len(r.settings.Lists) == 0 {
		return outcome{}
	}
	stamp, more := r.listed()
	if stamp == nil {
		return outcome{unknown: more}
	}
	later := outcome{unknown: more}
	var on *intel.Match
	for i := range stamp.Lists {
		m := &stamp.Lists[i]
		switch {
		case !chosen(r.settings, m):
		case m.Category != intel.Unbreak:
			if on == nil {
				on = m
			}
		case !m.Alias: // an alias may be of anybody's making: it can block, not free
			later.note = fmt.Sprintf("%s is on the list %s of what must not be blocked", m.Name, m.ID)
			later.match = m
			return later
		}
	}
	if on == nil {
		return later
	}
	o := decided(network.Decision{
		Verdict: verdictOf(profiles.Block, r.direction), Code: "filter-list", Setting: "filter/lists", Profile: r.settings.ListsProfile, List: on.ID,
		Reason: fmt.Sprintf("%s is on the filter list %s (%s)", on.Name, on.ID, on.Category),
	})
	o.match = on
	return o
}

// customLists blocks what is on a list of the user's own, for all programs. No list takes that
// back.
func customLists(r *request) outcome {
	stamp, more := r.listed()
	if stamp == nil {
		return outcome{unknown: more}
	}
	for i := range stamp.Lists {
		m := &stamp.Lists[i]
		if m.Category != intel.Custom || !counts(r.settings, m) {
			continue
		}
		o := decided(network.Decision{
			Verdict: verdictOf(profiles.Block, r.direction), Code: "custom-list", Setting: "filter/customLists", List: m.ID,
			Reason: fmt.Sprintf("%s is on the custom list %s", m.Name, m.ID),
		})
		o.match = m
		return o
	}
	return outcome{unknown: more}
}

// chosen reports whether the program's settings name the list of a match, or a category that it
// is of.
func chosen(s *profiles.Settings, m *intel.Match) bool {
	return counts(s, m) && (slices.Contains(s.Lists, m.ID) || slices.Contains(s.Lists, m.Category) || slices.Contains(s.Lists, intel.PartOf(m.Category)))
}

// counts reports whether a match says something of the name itself, by the program's settings.
func counts(s *profiles.Settings, m *intel.Match) bool {
	return !(m.Above && !s.IncludeSubdomains || m.Alias && !s.IncludeCNAMEs)
}
