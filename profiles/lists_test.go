package profiles

import (
	"slices"
	"testing"

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
