package main

import (
	"testing"
	"time"
)

// Few flows are counted whenever somebody looks, very many once a second.
func TestFreshFor(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		0: freshest, 200 * time.Microsecond: freshest, 10 * time.Millisecond: 200 * time.Millisecond, 900 * time.Millisecond: time.Second,
	} {
		if got := freshFor(took); got != want {
			t.Errorf("counting takes %v: %v, want %v", took, got, want)
		}
	}
}
