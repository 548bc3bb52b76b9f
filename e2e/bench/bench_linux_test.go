package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"gatun/e2e/lab"
)

// TestSmoke measures a few works for a moment, and fails only if one is three times worse than
// its bar: a machine that does other things at the same time says nothing finer.
func TestSmoke(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: -short")
	}
	o := options{
		modes: []string{"up", "run"}, rounds: 1, length: 600 * time.Millisecond, talk: io.Discard,
		works: []string{"tcp-up-1", "tcp-down-8", "connections-64", "rtt-tcp", "rtt-udp", "udp-64", "dns-cached", "http-close"},
	}
	rows, err := measureAll(o)
	if errors.Is(err, lab.ErrNotRoot) {
		t.Skip("skipped: " + err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := table(&out, rows); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out.String())
	if len(rows) != len(o.works)*len(o.modes) {
		t.Errorf("%d rows, want %d", len(rows), len(o.works)*len(o.modes))
	}
	for _, r := range rows {
		if !r.within(r.smoke, 3) {
			t.Errorf("%s %s: ratio %.3f, more than three times off %.2f", r.Mode, r.Name, r.Ratio, r.smoke)
		}
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
