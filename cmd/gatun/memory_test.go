package main

import "testing"

func TestPeak(t *testing.T) {
	var p peak
	for i, step := range []struct {
		live int
		over bool
	}{
		{10, false}, {900, false}, {10, false}, // never many
		{5000, false}, {18000, false}, {17000, false}, {9000, false}, {3000, false}, {100, false}, {100, true}, {90, true}, {100, true}, {100, false}, // a flood
		{2000, false}, {0, false}, {0, true}, {3000, true}, {3000, true}, {3000, false}, // another
	} {
		if got := p.over(step.live); got != step.over {
			t.Errorf("step %d, %d links: got %v", i, step.live, got)
		}
	}
}
