package status

import (
	"testing"

	"gatun/config"
)

// TestActive is the truth table of policy.md section 1, written out.
func TestActive(t *testing.T) {
	table := []struct {
		grade                      config.Grade
		trusted, untrusted, danger bool
	}{
		{config.Off, false, false, false},
		{config.Danger, false, false, true},
		{config.Untrusted, false, true, true},
		{config.Trusted, true, true, true},
		{config.On, true, true, true},
		{config.Grade(99), true, true, true},
	}
	for _, row := range table {
		for r, want := range map[Rating]bool{Trusted: row.trusted, Untrusted: row.untrusted, Danger: row.danger} {
			if got := Active(row.grade, r); got != want {
				t.Errorf("Active(%s, %s) = %v, want %v", row.grade, r, got, want)
			}
		}
	}
}

func TestParseRating(t *testing.T) {
	for _, r := range []Rating{Trusted, Untrusted, Danger} {
		got, err := ParseRating(r.String())
		if err != nil || got != r {
			t.Errorf("ParseRating(%q) = %v, %v", r, got, err)
		}
	}
	r, err := ParseRating("Trusted")
	if err == nil || err.Error() != `want trusted, untrusted or danger, got "Trusted"` {
		t.Errorf("error is %v", err)
	}
	if r != Danger {
		t.Errorf("a rating that cannot be read counts as %s, want danger", r)
	}
}
