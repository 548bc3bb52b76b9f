package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"gatun/e2e/lab"
)

// row is one line of the table.
type row struct {
	Mode     string   `json:"mode"`
	Name     string   `json:"name"`
	Unit     string   `json:"unit"`
	Kernel   float64  `json:"kernel"` // median of the rounds, on the twin
	Gatun    float64  `json:"gatun"`  // and on the host
	Figure   float64  `json:"figure"` // what the bars are for: the median of the rounds' ratios or, where absolute, of the numbers themselves
	Min      float64  `json:"min"`
	Max      float64  `json:"max"`
	Rounds   int      `json:"rounds"`
	Must     *float64 `json:"must,omitempty"`
	Aim      *float64 `json:"aim,omitempty"`
	Cost     bool     `json:"cost"` // less is better
	Absolute bool     `json:"absolute"`
	MustMet  bool     `json:"must_met"`
	AimMet   bool     `json:"aim_met"`
	CPU      float64  `json:"cpu"` // the daemon's processor time: seconds per GB, or microseconds per operation
	CPUUnit  string   `json:"cpu_unit,omitempty"`
	Crossed  *float64 `json:"tun_packets_per_flow,omitempty"` // on the device's own counters; only `up` can be seen
	Wrong    string   `json:"wrong,omitempty"`                // why the row does not show what its mode claims
	Failed   float64  `json:"failed"`                         // operations that failed on the host
	Reason   string   `json:"reason,omitempty"`               // why the last of them did
	Note     string   `json:"note,omitempty"`
}

// met says what the row reaches: aim, must or no.
func (r row) met() string {
	switch {
	case r.Must == nil && r.Aim == nil:
		return ""
	case r.AimMet:
		return "aim"
	case r.MustMet:
		return "must"
	default:
		return "no"
	}
}

// within says whether the row reaches a bar, slack times wider.
func (r row) within(bar *float64, slack float64) bool {
	switch {
	case r.Wrong != "":
		return false
	case bar == nil:
		return true
	case r.Cost:
		return r.Figure <= *bar*slack
	default:
		return r.Figure >= *bar/slack
	}
}

// judged returns the row with its bars applied.
func (r row) judged() row {
	r.MustMet, r.AimMet = r.within(r.Must, 1), r.within(r.Aim, 1)
	return r
}

// sample is one round: the same load on both paths.
type sample struct {
	direct, through lab.Result
	cpu             time.Duration // the daemon's
	length          time.Duration
}

// measured are a work's rows. A smoke test that fails is tried once more and longer: what else
// the machine did may have been the cause.
func (b *bench) measured(l *lab.Lab, g *lab.Gatun, w work, mode string) []row {
	rows, err := b.measure(l, g, w, mode, b.roundsOf(w, mode))
	if b.o.smoke && (err != nil || smoke(rows) != nil) {
		b.note("%s %s was measured twice: first %v", mode, w.figures[0].Name, errors.Join(err, smoke(rows)))
		rows, err = b.measure(l, g, w, mode, 3)
	}
	if err != nil {
		return w.failed(mode, err)
	}
	return rows
}

// measure does a work in alternation and returns its rows.
func (b *bench) measure(l *lab.Lab, g *lab.Gatun, w work, mode string, rounds int) ([]row, error) {
	var samples []sample
	leave, err := w.seats(l, mode)
	defer leave()
	if err != nil {
		return nil, err
	}
	for i := range rounds + 1 { // the first is the warm-up
		fmt.Fprintf(b.o.talk, "\r%-5s %-16s %d/%d ", mode, w.figures[0].Name, i, rounds)
		length := b.o.length
		if i == 0 {
			length /= 4
		}
		s, err := b.round(l, g, w, length, i%2 == 0)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			samples = append(samples, s)
		}
	}
	return w.rows(mode, samples), nil
}

func (b *bench) roundsOf(w work, mode string) int {
	if w.long && mode == modeUp && !b.o.smoke {
		return max(b.o.rounds, b.o.long)
	}
	return b.o.rounds
}

// round does the work once on both paths, in either order: what was done before may leave its traces.
func (b *bench) round(l *lab.Lab, g *lab.Gatun, w work, length time.Duration, directFirst bool) (s sample, err error) {
	args := append([]string{"load", "-for", length.String()}, w.args...)
	s.length = length
	var idle, loaded usage
	direct := func() error {
		b.quiet()
		idle, err = timed(g, func() (err error) {
			s.direct, err = l.Peer(context.Background(), l.Twin, args...)
			return err
		})
		return err
	}
	through := func() error {
		b.quiet()
		loaded, err = timed(g, func() (err error) {
			s.through, err = g.Program(context.Background(), args...)
			return err
		})
		return err
	}
	order := []func() error{direct, through}
	if !directFirst {
		slices.Reverse(order)
	}
	for _, do := range order {
		if err := do(); err != nil {
			return s, err
		}
	}
	if s.direct.Extra["value"] == 0 || s.direct.Result != "done" || s.through.Result != "done" {
		return s, fmt.Errorf("nothing was measured: %+v, %+v", s.direct, s.through)
	}
	s.cpu = loaded.cpu
	if w.long { // a connection leaves nothing to do while the twin works: that is the daemon's own
		s.cpu = loaded.over(idle)
	}
	return s, nil
}

// usage is the daemon's processor time during something.
type usage struct {
	cpu, wall time.Duration
}

// over is the processor time that it used more than it uses while idle.
func (u usage) over(idle usage) time.Duration {
	own := time.Duration(float64(idle.cpu) * float64(u.wall) / float64(max(idle.wall, 1)))
	return max(0, u.cpu-own)
}

func timed(g *lab.Gatun, do func() error) (u usage, err error) {
	before, err := lab.CPU(g.Process.PID)
	if err != nil {
		return u, err
	}
	begin := time.Now()
	if err := do(); err != nil {
		return u, err
	}
	u.wall = time.Since(begin)
	after, err := lab.CPU(g.Process.PID)
	u.cpu = after - before
	return u, err
}

// rows are the work's figures out of all rounds.
func (w work) rows(mode string, samples []sample) (rows []row) {
	for _, f := range w.figures {
		r := f.row(mode)
		var kernel, gatun, figures, cpu []float64
		for _, s := range samples {
			perUnit := w.processorTime(s)
			k, g := f.value(s.direct, 0), f.value(s.through, perUnit)
			kernel, gatun, cpu = append(kernel, k), append(gatun, g), append(cpu, perUnit)
			if f.absolute {
				figures = append(figures, g)
			} else {
				figures = append(figures, g/k)
			}
			if n := s.through.Extra["failed"]; n > 0 {
				r.Failed, r.Reason = r.Failed+n, s.through.Error
			}
		}
		r.Kernel, r.Gatun, r.CPU, r.CPUUnit = median(kernel), median(gatun), median(cpu), "s/GB"
		if w.unit == 0 {
			r.CPU, r.CPUUnit = r.CPU*1e6, "µs/op"
		}
		r = r.spread(figures)
		if mode != modeRun && !w.served { // inside `gatun run` the program cannot see the device
			r = r.crossed(mode, samples)
		}
		rows = append(rows, r.judged())
	}
	return rows
}

func (f figure) row(mode string) row {
	bars := f.limits(mode)
	return row{Mode: mode, Name: f.Name, Unit: f.Unit, Must: bars.must, Aim: bars.aim, Cost: f.cost, Absolute: f.absolute}
}

// failed are the work's rows where it could not be measured: the others are worth having.
func (w work) failed(mode string, err error) (rows []row) {
	for _, f := range w.figures {
		r := f.row(mode)
		r.Wrong = "NOT measured: " + err.Error()
		rows = append(rows, r.judged())
	}
	return rows
}

// spread fills in what the bars are for.
func (r row) spread(figures []float64) row {
	r.Figure, r.Rounds = median(figures), len(figures)
	if len(figures) > 0 {
		r.Min, r.Max = slices.Min(figures), slices.Max(figures)
	}
	return r
}

// crossed counts the packets on the device per flow, and says so where a mode does not do what it
// claims: handed back means one packet per flow. Datagrams that the program sends while the first
// one is decided are few of many. A relayed connection may have one packet as well, because the kernel ends
// it for gatun; but it costs processor time.
func (r row) crossed(mode string, samples []sample) row {
	packets, flows, operations, cpu := 0.0, 0.0, 0.0, 0.0
	for _, s := range samples {
		packets += float64(s.through.TunTX + s.through.TunRX)
		flows += s.through.Extra["flows"]
		operations += s.through.Extra["packets"]
		cpu += s.cpu.Seconds()
	}
	if flows == 0 {
		return r
	}
	per := packets / flows
	r.Crossed = &per
	back := packets <= 1.1*flows+0.05*operations+2
	switch {
	case mode == modeUp && !back:
		r.Wrong = fmt.Sprintf("NOT handed back: %.0f packets of %.0f flows crossed the device", packets, flows)
	case mode == modeRelay && back && operations > 3*flows && cpu < leastRelayed*operations:
		r.Wrong = fmt.Sprintf("NOT relayed: only %.0f packets of %.0f flows crossed the device, at no cost", packets, flows)
	}
	return r
}

// leastRelayed is less processor time than a packet costs that is relayed, in seconds.
const leastRelayed = 1e-7

// processorTime is the daemon's, in seconds per unit of work.
func (w work) processorTime(s sample) float64 {
	units := s.through.Extra["value"] * s.length.Seconds() / max(w.unit, 1)
	if units <= 0 {
		return 0
	}
	return s.cpu.Seconds() / units
}

// value is the figure out of a result, in its own unit.
func (f figure) value(r lab.Result, perUnit float64) float64 {
	if f.cpu {
		return perUnit
	}
	key, scale := f.key, f.scale
	if key == "" {
		key = "value"
	}
	if scale == 0 {
		scale = 1
	}
	return r.Extra[key] * scale
}

// quiet waits until fewer than one task runs beside us. The waiting has a budget for the whole
// run; how often it did not help is told.
func (b *bench) quiet() {
	begin := time.Now()
	defer func() { b.patience -= time.Since(begin) }()
	b.waits++
	for busy := busy(); busy; busy = busyAfter(50 * time.Millisecond) {
		if time.Since(begin) > min(b.patience, 2*time.Second) {
			b.busy++
			return
		}
	}
}

func busyAfter(d time.Duration) bool {
	time.Sleep(d)
	return busy()
}

func busy() bool {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return false
	}
	return running(string(text)) > 1 // who reads this runs
}

// running is the number of running tasks in the text of /proc/loadavg.
func running(loadavg string) int {
	f := strings.Fields(loadavg)
	if len(f) < 4 {
		return 0
	}
	number, _, _ := strings.Cut(f[3], "/")
	n, err := strconv.Atoi(number)
	if err != nil {
		return 0
	}
	return n
}

// median is the middle of the values, and of the two in the middle the mean.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Clone(v)
	slices.Sort(s)
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// quantile is the value that a share of all does not exceed.
func quantile(sorted []float64, share float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(math.Ceil(share*float64(len(sorted))))-1)]
}
