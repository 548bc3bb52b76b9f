package main

import (
	"encoding/xml"
	"math"
	"strings"
	"testing"
)

const printed = `goos: linux
BenchmarkFirst/exact/0-2     1000   50.0 ns/op   0 B/op
BenchmarkFirst/exact/10-2    1000   100 ns/op
BenchmarkFirst/exact/10-2    1000   200 ns/op
BenchmarkFirst/exact/10-2    1000   9000 ns/op
BenchmarkFirst/exact/100000-2   1000   300 ns/op
BenchmarkFirst/regex/10-2    1000   1000 ns/op
BenchmarkFirst/regex/100000-2   1000   5000000 ns/op
BenchmarkOther/1000          20   7000 ns/op   938.9 cpu-µs/op   2.5 p50-µs   9 p99-µs
BenchmarkNoNumber-2          20   7000 ns/op
PASS
`

// TestParseCurves: medians by kind and size, a benchmark's own median first.
func TestParseCurves(t *testing.T) {
	curves := source{of: "rules", linear: []string{"regex"}}.parse(printed)
	if len(curves) != 3 {
		t.Fatalf("%+v", curves)
	}
	other, exact, regex := curves[0], curves[1], curves[2]
	if len(exact.Points) != 3 || exact.Points[1] != (point{10, 0.2}) || exact.Points[2].Micro != 0.3 || math.Abs(exact.growth()-1.5) > 1e-9 || exact.met() != "yes" {
		t.Errorf("%+v grows by %v", exact, exact.growth())
	}
	if regex.met() != "" || regex.growth() != 5000 {
		t.Errorf("%+v", regex)
	}
	if len(other.Points) != 1 || other.Points[0] != (point{1000, 2.5}) {
		t.Errorf("%+v", other)
	}
	regex.Flat = true
	if regex.met() != "no" {
		t.Errorf("%+v passes as flat", regex)
	}
}

func TestPrintCurves(t *testing.T) {
	curves := source{of: "rules & <names>"}.parse(printed)
	var text, md strings.Builder
	if err := curvesTable(&text, curves); err != nil {
		t.Fatal(err)
	}
	if err := curvesMarkdown(&md, curves); err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{text.String(), md.String()} {
		if !strings.Contains(out, "0: 0.05  10: 0.2  100k: 0.3") {
			t.Errorf("got\n%s", out)
		}
	}
	if err := xml.Unmarshal([]byte(drawCurves(curves)), new(struct{})); err != nil {
		t.Errorf("the picture is no XML: %v", err)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[float64]string{7: "7", 1000: "1k", 200_000: "200k", 1e6: "1M"} {
		if got := size(n); got != want {
			t.Errorf("%v: %s", n, got)
		}
	}
}
