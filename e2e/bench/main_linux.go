// Command bench measures gatun against the plain kernel path on the same machine, in the same run:
//
//	go run ./e2e/bench                          # as root: every row, half an hour
//	go run ./e2e/bench -modes relay -rows tcp   # one column, the rows that begin with tcp-
//	go run ./e2e/bench -markdown                # the table as docs/performance.md has it
//	go run ./e2e/bench -json -svg bench.svg     # for programs, and as a picture
//	go run ./e2e/bench -profile connections-64  # where the daemon spends its time in that row
//	go run ./e2e/bench -curves                  # what a decision costs as rules, lists, flows … grow
//	go run ./e2e/bench -smoke                   # a minute; fails if a row is three times worse than its bar
//
// The lab has two equal clients: the host, where gatun works, and the twin, where it does not.
// Each work is done alternately on both, round by round; what is reported is the median of the
// rounds' ratios, with the smallest and the largest. Only ratios are comparable between machines.
//
// The modes are columns: up (what is permitted for good is handed back to the kernel), relay (the
// same, handing nothing back) and run. Whether a mode does what it is called is measured on the
// device's own counters, and said in the row if it does not.
//
// It uses only the built binary and the lab; nobody imports it.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"gatun/e2e/lab"
)

// options are the command's flags.
type options struct {
	modes    []string
	rows     []string
	rounds   int
	long     int // rounds of throughput where it is handed back
	length   time.Duration
	patience time.Duration
	json     bool
	markdown bool
	svg      string
	profile  string
	curves   bool
	smoke    bool
	talk     io.Writer // progress, on a terminal only
}

// bench is one run of the command.
type bench struct {
	o        options
	bins     lab.Binaries
	dir      string
	notes    []string
	back     bool          // this gatun hands flows back to the kernel
	patience time.Duration // left for waiting until the machine is quiet
	waits    int
	busy     int // waits that did not help
}

// report is what -json prints.
type report struct {
	Schema  string   `json:"schema"`
	Machine machine  `json:"machine"`
	Notes   []string `json:"notes"`
	Rows    []row    `json:"rows"`
}

func main() {
	if err := run(os.Stdout, parse(os.Args[1:])); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) options {
	o := options{talk: io.Discard}
	var modes, rows string
	var seconds float64
	f := flag.NewFlagSet("bench", flag.ExitOnError)
	f.StringVar(&modes, "modes", modeUp+","+modeRelay+","+modeRun, "columns, separated by commas")
	f.StringVar(&rows, "rows", "", "names of rows or beginnings of them, separated by commas; empty: all")
	f.IntVar(&o.rounds, "rounds", 3, "alternations of kernel path and gatun")
	f.IntVar(&o.long, "long", 9, "alternations for throughput that is handed back, whose spread is wide")
	f.Float64Var(&seconds, "seconds", 2, "length of one measurement")
	f.DurationVar(&o.patience, "patience", 5*time.Minute, "how long to wait in all for the machine to be quiet")
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.BoolVar(&o.markdown, "markdown", false, "print a table for docs/performance.md")
	f.StringVar(&o.svg, "svg", "", "draw the table, or the curves, into this file")
	f.StringVar(&o.profile, "profile", "", "measure only this row, and write the daemon's CPU profile to gatun-cpu-MODE-ROW.pprof in the temporary folder")
	f.BoolVar(&o.curves, "curves", false, "measure what a decision costs as rules, lists, live flows, processes and profiles grow")
	f.BoolVar(&o.smoke, "smoke", false, "a few rows for a moment; fail if one is three times worse than its bar")
	_ = f.Parse(args) // ends the program itself
	o.modes, o.length = strings.Split(modes, ","), time.Duration(seconds*float64(time.Second))
	if rows != "" {
		o.rows = strings.Split(rows, ",")
	}
	if o.profile != "" {
		o.rows = []string{o.profile}
	}
	if o.smoke {
		o.rounds, o.length, o.patience = 1, 500*time.Millisecond, 3*time.Second
	}
	if info, err := os.Stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		o.talk = os.Stderr
	}
	return o
}

func run(out io.Writer, o options) error {
	if o.curves {
		return runCurves(out, o)
	}
	rep, err := measureAll(o)
	if err != nil {
		return err
	}
	if o.smoke {
		err = smoke(rep.Rows)
	}
	if o.svg != "" {
		if err := os.WriteFile(o.svg, []byte(draw(rep.Rows)), 0o644); err != nil {
			return err
		}
	}
	switch {
	case o.json:
		return errors.Join(json.NewEncoder(out).Encode(rep), err)
	case o.markdown:
		return errors.Join(markdown(out, rep), err)
	default:
		return errors.Join(table(out, rep), err)
	}
}

// smokeRows are those that tell most in a minute, by mode.
func smokeRows(mode string) []string {
	switch mode {
	case modeUp:
		return []string{"tcp-up-1", "connections-64", "udp-64"}
	case modeRelay:
		return []string{"tcp-up-1", "tcp-down-8", "connections-64", "rtt-udp", "udp-64", "dns-cached", "http-close"}
	default:
		return []string{"tcp-down-8", "connections-64", "rtt-tcp"}
	}
}

// smoke fails if a row is three times worse than its bar: a machine that does other things at
// the same time says nothing finer.
func smoke(rows []row) error {
	var errs []error
	for _, r := range rows {
		switch {
		case r.Wrong != "":
			errs = append(errs, fmt.Errorf("%s %s: %s", r.Mode, r.Name, r.Wrong))
		case !r.Absolute && !r.within(r.Must, 3):
			errs = append(errs, fmt.Errorf("%s %s: ratio %.3f is more than three times off %.2f", r.Mode, r.Name, r.Figure, *r.Must))
		}
	}
	return errors.Join(errs...)
}

func measureAll(o options) (rep report, err error) {
	if os.Geteuid() != 0 {
		return rep, lab.ErrNotRoot
	}
	dir, err := os.MkdirTemp("", "gatun-bench-")
	if err != nil {
		return rep, err
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(os.Chmod(dir, 0o755), lab.Sweep()); err != nil {
		return rep, err
	}
	b := &bench{o: o, dir: dir, patience: o.patience}
	if b.bins, err = lab.Build(dir); err != nil {
		return rep, err
	}
	modes, err := b.modes()
	if err != nil {
		return rep, err
	}
	for _, mode := range modes {
		rows, err := b.measureMode(mode)
		if err != nil {
			return rep, fmt.Errorf("%s: %w", mode, err)
		}
		rep.Rows = append(rep.Rows, rows...)
	}
	if len(rep.Rows) == 0 {
		return rep, fmt.Errorf("no row is called %q in %q", o.rows, modes)
	}
	if b.busy > 0 {
		b.note("the machine was busy with other work at %d of %d measurements", b.busy, b.waits)
	}
	rep.Schema, rep.Machine, rep.Notes = "gatun/v1", thisMachine(), b.notes
	return rep, nil
}

func (b *bench) note(format string, args ...any) {
	b.notes = append(b.notes, fmt.Sprintf(format, args...))
}

// measureMode measures a column: what is a load in one lab, all else in labs of their own.
func (b *bench) measureMode(mode string) (rows []row, err error) {
	var loads, others []work
	asked := b.o.rows
	if b.o.smoke {
		asked = smokeRows(mode)
	}
	for _, w := range works() {
		switch {
		case !wanted(w.names(), asked) || !w.in(mode):
		case w.special != nil:
			others = append(others, w)
		default:
			loads = append(loads, w)
		}
	}
	if len(loads) > 0 {
		if rows, err = b.measureLoads(loads, mode); err != nil {
			return rows, err
		}
	}
	for _, w := range others {
		fmt.Fprintf(b.o.talk, "\r%-5s %-16s     ", mode, w.figures[0].Name)
		r, err := w.special(b, w, mode)
		if err != nil {
			r = w.failed(mode, err)
		}
		rows = append(rows, r...)
	}
	var kept []row
	for _, r := range rows {
		if wanted([]string{r.Name}, asked) {
			kept = append(kept, r)
		}
	}
	return kept, nil
}

func (b *bench) measureLoads(loads []work, mode string) (rows []row, err error) {
	l, g, end, err := b.fresh(mode)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	if err := b.checkMode(l, g, mode); err != nil {
		return nil, err
	}
	for _, w := range loads {
		rows = append(rows, b.measured(l, g, w, mode)...)
	}
	return rows, nil
}
