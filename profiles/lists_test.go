package profiles

import (
	"slices"
	"testing"
	"time"

	"gatun/attribution"
	"gatun/intel"
)

// TestListSettings: the first layer that names lists wins as a whole; the lists are not stacked.
func TestListSettings(t *testing.T) {
	global := overlay{set: map[string]setting{
		"filter/lists": {value: "TRAC MAL UNBREAK"}, "filter/includeSubdomains": {value: true}, "filter/includeCNAMEs": {value: true},
	}}
	own := overlay{set: map[string]setting{"filter/lists": {value: "mine", profile: "web"}, "filter/includeCNAMEs": {value: false, profile: "web"}}}
	s := own.over(global).settings()
	if !slices.Equal(s.Lists, []string{"mine"}) || s.ListsProfile != "web" || !s.IncludeSubdomains || s.IncludeCNAMEs {
		t.Errorf("a profile over the global settings: %+v", s)
	}
	s = global.settings()
	if !slices.Equal(s.Lists, []string{"TRAC", "MAL", "UNBREAK"}) || s.ListsProfile != "" || !s.IncludeCNAMEs {
		t.Errorf("the global settings: %+v", s)
	}
	none := overlay{set: map[string]setting{"filter/lists": {value: ""}}}
	if s = none.over(global).settings(); len(s.Lists) != 0 {
		t.Errorf("a profile that names none: %+v", s.Lists)
	}
}

// TestPartsOfCategories: a rule about a category means what it is made of, not the reverse.
func TestPartsOfCategories(t *testing.T) {
	for _, c := range []struct {
		rule, category string
		want           Match
	}{{"- L:TRAC", "ADS", Matched}, {"- L:ADS", "ADS", Matched}, {"- L:ADS", "TRAC", NoMatch}, {"- L:TRAC", "TRAC", Matched}, {"- L:MAL", "ADS", NoMatch}, {"- L:NSFW,DECEP", "PHISH", Matched}} {
		r, err := ParseRule(c.rule, refOf(c.rule, "f", 1, 1))
		if err != nil {
			t.Fatal(err)
		}
		f := Facts{Final: true}
		f.Entity.Stamp = &intel.Stamp{Lists: []intel.Match{{ID: "x", Category: c.category}}}
		if got := r.Match(&f); got != c.want {
			t.Errorf("%s on a list of %s: %v, want %v", c.rule, c.category, got, c.want)
		}
		if _, got, _ := NewRuleSet([]Rule{r}).First(&f, nil); got != c.want {
			t.Errorf("%s on a list of %s, by the index: %v, want %v", c.rule, c.category, got, c.want)
		}
	}
}

// TestRenew: nothing that was kept at the revision before holds any more, and nothing else changes.
func TestRenew(t *testing.T) {
	s := newStore(t, "version: 1\nfilter: {lists: [TRAC]}\nprofiles: [{name: curl, match: [{path: /usr/bin/curl}], filter: {lists: [mine]}}]\n", Options{})
	curl := owner(attribution.Process{Path: "/usr/bin/curl"})
	if _, err := s.AddTemporary(Temporary{Rule: "- .example.org"}); err != nil {
		t.Fatal(err)
	}
	s.Pause(time.Now().Add(time.Hour))
	before, revision := s.For(curl), s.Revision()
	s.Renew()
	after := s.For(curl)
	if s.Revision() != revision+1 || after.Revision != s.Revision() || before.Revision != revision {
		t.Errorf("revision %d, settings of %d; it was %d", s.Revision(), after.Revision, revision)
	}
	if !slices.Equal(after.Lists, before.Lists) || !after.Paused || len(after.Endpoints) != len(before.Endpoints) || after.ProfileID != "curl" || len(s.Temporaries()) != 1 {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// TestNeedsGeo: wherever the rule is, and however deep in it.
func TestNeedsGeo(t *testing.T) {
	for text, want := range map[string]bool{
		"version: 1\n": false,
		"version: 1\nfilter: {endpoints: [\"- L:ads\", \"+ .example.org\", \"- {10.0.0.0/8,!LAN}\"]}\n":             false,
		"version: 1\nfilter: {endpoints: [\"+ *\", \"- {10.0.0.0/8,!C:EU}\"]}\n":                                    true,
		"version: 1\nprofiles: [{name: a, match: [{path: /a}], filter: {serviceEndpoints: [\"+ AS64500 TCP\"]}}]\n": true,
	} {
		if got := newStore(t, text, Options{}).NeedsGeo(); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}
