package main

import (
	"slices"
	"testing"

	"gatun/config"
	"gatun/intel"
)

// TestListNames: config, which imports nothing of ours, accepts just what intel knows.
func TestListNames(t *testing.T) {
	if have, want := config.ListCategories(), intel.Categories(); !slices.Equal(have, want) {
		t.Errorf("categories: config has %v, intel %v", have, want)
	}
	if have, want := config.ListFormats(), intel.Formats(); !slices.Equal(have, want) {
		t.Errorf("formats: config has %v, intel %v", have, want)
	}
}
