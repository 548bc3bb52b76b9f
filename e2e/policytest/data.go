package policytest

import (
	"net/netip"
	"slices"
	"strings"
)

// Data is what is known of names and addresses beside them: filter lists and where networks are.
type Data struct {
	Lists  []List
	Places []Place // that do not overlap
}

// List is one filter list. An entry is a name, ".name" for one with all names below it, an
// address, or a network. The category of a person's own lists is CUSTOM.
type List struct {
	ID, Category string
	Entries      []string
}

// Place is where the addresses of a network are; what is "" or 0 is not known.
type Place struct {
	Prefix, Country, Continent string
	ASN                        uint32
}

// Stamp is what data says of the other end.
type Stamp struct {
	Country, Continent string
	ASN                uint32
	Lists              []Listed
}

// Listed is one list that the other end is on. Above: the list has a name above it, and does not
// say that it means the names below. Alias: it has a name that the name is an alias of.
type Listed struct {
	ID, Category string
	Above, Alias bool
}

// DefaultData knows something of most of the default world.
func DefaultData() *Data {
	return &Data{
		Lists: []List{
			{"ads", "ADS", []string{"tracker.test", "198.51.100.1"}},
			{"mal", "MAL", []string{"203.0.113.8/31", "2001:db8:7::/48"}},
			{"fake", "PHISH", []string{".b.example"}},
			{"fix", "UNBREAK", []string{"intranet.b.example", "198.51.100.1", "edge.tracker.test"}},
			{"own", "CUSTOM", []string{".xn--bcher-kva.example", "198.51.100.2"}},
		},
		Places: []Place{
			{"198.51.100.0/25", "DE", "EU", 64500},
			{"198.51.100.128/25", "US", "NA", 64501},
			{"203.0.113.0/25", "US", "NA", 0},
			{"2001:db8::/48", "FR", "EU", 64502},
			{"10.0.0.0/8", "DE", "EU", 64500}, // of no use: the address is none of the Internet
		},
	}
}

// categories are what a list may be named by: its own category, and the one that this is part of.
func categories(c string) []string {
	return append([]string{c}, map[string][]string{"ADS": {"TRAC"}, "PHISH": {"DECEP"}}[c]...)
}

// stamp looks everything up, one entry after another.
func (d *Data) stamp(domain string, cnames []string, addr netip.Addr) *Stamp {
	if d == nil {
		return nil
	}
	s := &Stamp{}
	for _, l := range d.Lists {
		for _, e := range l.Entries {
			for i, name := range append([]string{domain}, cnames...) {
				on, above := hasName(e, name)
				if on {
					s.Lists = append(s.Lists, Listed{l.ID, l.Category, above, i > 0})
				}
			}
			if hasAddr(e, addr) {
				s.Lists = append(s.Lists, Listed{l.ID, l.Category, false, false})
			}
		}
	}
	for _, p := range d.Places {
		if scope(addr) == "Internet" && hasAddr(p.Prefix, addr) {
			s.Country, s.Continent, s.ASN = p.Country, p.Continent, p.ASN
		}
	}
	return s
}

func hasName(entry, name string) (on, above bool) {
	zone := strings.TrimPrefix(entry, ".")
	below := strings.HasSuffix(name, "."+zone)
	return name != "" && (name == zone || below), below && entry == zone
}

func hasAddr(entry string, a netip.Addr) bool {
	if !a.IsValid() {
		return false
	}
	if b, err := netip.ParseAddr(entry); err == nil {
		return a.Unmap() == b
	}
	p, err := netip.ParsePrefix(entry)
	return err == nil && p.Contains(a.Unmap())
}

// filtered is what the filter lists of the program's settings, and after them a person's own lists,
// say of the other end.
func (e *Evaluator) filtered(layers []layer, f *Flow, s *Stamp) (Decision, bool) {
	if s == nil {
		return Decision{}, false
	}
	value, profile := e.value(layers, "filter/lists")
	chosen := strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune("[], ", r) })
	below, _ := e.active(layers, "filter/includeSubdomains")
	aliases, _ := e.active(layers, "filter/includeCNAMEs")
	var blocked, freed, own bool
	for _, l := range s.Lists {
		names := append(categories(l.Category), l.ID)
		wanted := slices.ContainsFunc(names, func(n string) bool { return slices.Contains(chosen, n) })
		switch {
		case l.Above && !below, l.Alias && !aliases:
			continue
		case wanted && l.Category == "UNBREAK":
			freed = freed || !l.Alias
		case wanted:
			blocked = true
		}
		own = own || l.Category == "CUSTOM"
	}
	verdict := "block"
	if f.Inbound {
		verdict = "drop"
	}
	switch {
	case blocked && !freed:
		return Decision{Verdict: verdict, Setting: "filter/lists", Profile: profile}, true
	case own:
		return Decision{Verdict: verdict, Setting: "filter/customLists"}, true
	}
	return Decision{}, false
}
