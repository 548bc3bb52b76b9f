package main

import (
	"context"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"time"

	"gatun/e2e/lab"
)

// work is one kind of load and the bar that it must reach (docs/performance.md).
type work struct {
	Name string
	Unit string
	args []string
	key  string  // the figure of the load that counts
	Must float64 // the ratio that binds: a floor where more is better, else a ceiling
	cost bool    // less is better
	bulk bool    // bytes: the processor time per gigabyte is of interest
}

func works() []work {
	server, dns := lab.Server4, lab.Resolver4
	return []work{
		{Name: "tcp-up-1", Unit: "Gbit/s", args: []string{"up", server}, Must: 0.43, bulk: true},
		{Name: "tcp-down-1", Unit: "Gbit/s", args: []string{"down", server}, Must: 0.24, bulk: true},
		{Name: "tcp-up-8", Unit: "Gbit/s", args: []string{"-workers", "8", "up", server}, Must: 0.38, bulk: true},
		{Name: "tcp-down-8", Unit: "Gbit/s", args: []string{"-workers", "8", "down", server}, Must: 0.40, bulk: true},
		{Name: "connections-64", Unit: "1/s", args: []string{"-workers", "64", "conns", server}, Must: 0.23},
		{Name: "connections-1", Unit: "1/s", args: []string{"conns", server}, Must: 0.275},
		{Name: "connect-p50", Unit: "µs", args: []string{"conns", server}, key: "p50_us", Must: 4.1, cost: true},
		{Name: "rtt-tcp", Unit: "µs", args: []string{"rtt-tcp", server}, key: "p50_us", Must: 4.8, cost: true},
		{Name: "rtt-udp", Unit: "µs", args: []string{"rtt-udp", server}, key: "p50_us", Must: 3.3, cost: true},
		{Name: "udp-64", Unit: "1/s", args: []string{"-size", "64", "pps", server}, Must: 0.25},
		{Name: "udp-1200", Unit: "1/s", args: []string{"-size", "1200", "pps", server}, Must: 0.07},
		{Name: "udp-flows", Unit: "1/s", args: []string{"-workers", "8", "flows", server}, Must: 0.27},
		{Name: "http-close", Unit: "1/s", args: []string{"-workers", "16", "close", server}, Must: 0.26},
		{Name: "http-keep", Unit: "1/s", args: []string{"-workers", "16", "keep", server}, Must: 0.31},
		{Name: "dns-cached", Unit: "1/s", args: []string{"-workers", "8", "dns-cached", dns}, Must: 0.60},
		{Name: "dns-distinct", Unit: "1/s", args: []string{"-workers", "8", "dns", dns}, Must: 0.20},
	}
}

// smokeBar is the ratio that the smoke test measures against.
func (w work) smokeBar() float64 {
	return w.Must
}

// row is one line of the table.
type row struct {
	Mode   string  `json:"mode"`
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	Kernel float64 `json:"kernel"` // median of the rounds, on the twin
	Gatun  float64 `json:"gatun"`  // and on the host
	Ratio  float64 `json:"ratio"`  // median of the rounds' ratios
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	Must   float64 `json:"must"`
	Cost   bool    `json:"cost"` // less is better
	smoke  float64
	CPU    float64 `json:"cpu_s_per_gb,omitempty"`
	Failed float64 `json:"failed"`           // operations that failed on the host
	Reason string  `json:"reason,omitempty"` // why the last of them did
}

// met says whether the row reaches its bar.
func (r row) met() bool { return r.within(r.Must, 1) }

// within says whether the row reaches a bar, slack times wider.
func (r row) within(bar, slack float64) bool {
	if r.Cost {
		return r.Ratio <= bar*slack
	}
	return r.Ratio >= bar/slack
}

func measure(o options, l *lab.Lab, g *lab.Gatun, w work) (row, error) {
	r := row{Mode: g.Mode, Name: w.Name, Unit: w.Unit, Must: w.Must, Cost: w.cost, smoke: w.smokeBar()}
	var kernel, through, ratios, cpu []float64
	for i := range o.rounds + 1 { // the first is the warm-up
		fmt.Fprintf(o.talk, "\r%-4s %-16s %d/%d ", g.Mode, w.Name, i, o.rounds)
		quiet(2 * time.Second)
		length := o.length
		if i == 0 {
			length = o.length / 4
		}
		args := append([]string{"load", "-for", length.String()}, w.args...)
		direct, err := l.Peer(context.Background(), l.Twin, args...)
		if err != nil {
			return r, err
		}
		before, err := lab.CPU(g.Process.PID)
		if err != nil {
			return r, err
		}
		gatun, err := g.Program(context.Background(), args...)
		if err != nil {
			return r, err
		}
		after, err := lab.CPU(g.Process.PID)
		if err != nil {
			return r, err
		}
		a, b := w.value(direct), w.value(gatun)
		if a == 0 || direct.Result != "done" || gatun.Result != "done" {
			return r, fmt.Errorf("nothing was measured: %+v, %+v", direct, gatun)
		}
		if i == 0 {
			continue
		}
		kernel, through, ratios = append(kernel, a), append(through, b), append(ratios, b/a)
		if n := gatun.Extra["failed"]; n > 0 {
			r.Failed, r.Reason = r.Failed+n, gatun.Error
		}
		if gb := gatun.Extra["value"] * length.Seconds() / 1e9; w.bulk && gb > 0 {
			cpu = append(cpu, (after-before).Seconds()/gb)
		}
	}
	r.Kernel, r.Gatun, r.Ratio, r.CPU = median(kernel), median(through), median(ratios), median(cpu)
	sort.Float64s(ratios)
	r.Min, r.Max = ratios[0], ratios[len(ratios)-1]
	return r, nil
}

// value is the figure that counts, in the row's unit.
func (w work) value(r lab.Result) float64 {
	if w.key != "" {
		return r.Extra[w.key]
	}
	if w.bulk {
		return r.Extra["value"] * 8 / 1e9
	}
	return r.Extra["value"]
}

// quiet waits, at most so long, until fewer than one task runs beside us.
func quiet(limit time.Duration) {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		b, err := os.ReadFile("/proc/loadavg")
		if err != nil {
			return
		}
		running, _, _ := strings.Cut(strings.Fields(string(b))[3], "/")
		if n, err := strconv.Atoi(running); err != nil || n <= 1 {
			return
		}
	}
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := append([]float64(nil), v...)
	sort.Float64s(s)
	return s[len(s)/2]
}
