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

func TestGCPercent(t *testing.T) {
	for _, tc := range []struct {
		name            string
		live, allocated uint64
		want            int
	}{
		{"busy and small", 5 << 20, 50 << 20, 100},
		{"quiet", 5 << 20, 100 << 10, 10},
		{"calm", 5 << 20, 3 << 20, 25},
		{"many flows, quiet", 40 << 20, 100 << 10, 25},
		{"many flows", 40 << 20, 50 << 20, 50},
		{"a flood", 100 << 20, 50 << 20, 25},
	} {
		if got := gcPercent(tc.live, tc.allocated); got != tc.want {
			t.Errorf("%s: %d", tc.name, got)
		}
	}
	p := newPace()
	if percent, changed := p.next(); percent < 10 || percent > 100 || changed != (percent != 100) {
		t.Errorf("first: %d, changed %v", percent, changed)
	}
	if p.allocated == 0 {
		t.Error("the runtime's figures are not read")
	}
}

func TestSettled(t *testing.T) {
	p := newPace()
	for i, step := range []struct {
		fresh   uint64
		settled bool
	}{
		{100 << 10, false}, {30 << 20, false}, {12 << 20, false}, {4 << 20, true}, {4 << 20, false}, // a burst, once
		{10 << 20, false}, {10 << 20, false}, {4 << 20, false}, {3 << 20, true}, {0, false},
		{90 << 20, false}, {20 << 20, false}, {9 << 20, false}, {7 << 20, true}, // a third of much is not quiet
		{3 << 20, false}, {3 << 20, false}, {3 << 20, false}, {3 << 20, false}, {3 << 20, false}, {3 << 20, false}, // all the same
	} {
		p.note(step.fresh)
		if got := p.settled(); got != step.settled {
			t.Errorf("step %d: %v", i, got)
		}
	}
}
