package main

import (
	"encoding/json"
	"encoding/xml"
	"strings"
	"testing"
)

// TestSmoke: timings live outside of go test (.ci/run calls `bench -smoke`); here only the judge.
func TestSmoke(t *testing.T) {
	good, bad := row{Ratio: 0.2, smoke: 0.5}, row{Ratio: 0.1, smoke: 0.5, Mode: "up", Name: "x"}
	if err := smoke([]row{good}); err != nil {
		t.Errorf("got %v", err)
	}
	if err := smoke([]row{good, bad}); err == nil || !strings.Contains(err.Error(), "up x") {
		t.Errorf("got %v", err)
	}
}

func TestMet(t *testing.T) {
	for _, c := range []struct {
		r     row
		slack float64
		want  bool
	}{
		{row{Ratio: 0.5, Must: 0.4}, 1, true}, {row{Ratio: 0.3, Must: 0.4}, 1, false}, {row{Ratio: 0.14, Must: 0.4}, 3, true},
		{row{Ratio: 0.13, Must: 0.4}, 3, false}, {row{Ratio: 4, Must: 4.1, Cost: true}, 1, true}, {row{Ratio: 5, Must: 4.1, Cost: true}, 1, false},
		{row{Ratio: 13, Must: 4.1, Cost: true}, 3, false},
	} {
		if got := c.r.within(c.r.Must, c.slack); got != c.want {
			t.Errorf("%+v with slack %v: met is %v", c.r, c.slack, got)
		}
	}
}

func TestPrint(t *testing.T) {
	rows := []row{
		{Mode: "up", Name: "tcp-up-1", Unit: "Gbit/s", Kernel: 10, Gatun: 5, Ratio: 0.5, Min: 0.4, Max: 0.6, Must: 0.43, CPU: 1.2},
		{Mode: "run", Name: "rtt-tcp", Unit: "µs", Kernel: 20, Gatun: 200, Ratio: 10, Min: 9, Max: 11, Must: 4.8, Cost: true},
	}
	var out strings.Builder
	if err := table(&out, rows); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || !strings.Contains(lines[1], "yes") || !strings.Contains(lines[2], "no") {
		t.Errorf("table:\n%s", out.String())
	}
	if err := xml.Unmarshal([]byte(draw(rows)), new(struct{})); err != nil {
		t.Errorf("the picture is no XML: %v", err)
	}
	if b, err := json.Marshal(rows[0]); err != nil || !strings.Contains(string(b), `"cpu_s_per_gb":1.2`) {
		t.Errorf("%s %v", b, err)
	}
}
