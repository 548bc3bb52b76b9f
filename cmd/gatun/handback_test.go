package main

import (
	"strings"
	"testing"
	"time"

	"gatun/status"
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

// TestTrackingModule: it warns before new connections are lost.
func TestTrackingModule(t *testing.T) {
	for _, c := range []struct {
		flows, most uint64
		known       bool
		state       status.ModuleState
		says        string
	}{
		{0, 0, false, status.OK, "not in use"},
		{94, 100, true, status.OK, "94 of 100 flows"},
		{95, 100, true, status.Warning, "nf_conntrack_max"},
		{100, 100, true, status.Warning, "nearly full (100 of 100 flows)"},
	} {
		if m := trackingModule(c.flows, c.most, c.known); m.State != c.state || !strings.Contains(m.Message, c.says) {
			t.Errorf("%d of %d: %+v", c.flows, c.most, m)
		}
	}
}
