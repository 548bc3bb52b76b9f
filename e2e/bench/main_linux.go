// Command bench measures gatun against the plain kernel path on the same machine, in the same run:
//
//	go run ./e2e/bench                  # as root: a table of ratios, several minutes
//	go run ./e2e/bench -json -rounds 5  # the same as JSON
//	go run ./e2e/bench -svg bench.svg   # and as a picture
//	go run ./e2e/bench -smoke           # a minute; fails if a work is three times worse than its bar
//
// The lab has two equal clients: the host, where gatun works, and the twin, where it does not.
// Each work is done alternately on both, round by round; what is reported is the median of the
// rounds' ratios, with the smallest and the largest. Only ratios are comparable between machines.
// It uses only the built binary and the lab; nobody imports it.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gatun/e2e/lab"
)

// options are the command's flags.
type options struct {
	modes  []string
	works  []string
	rounds int
	length time.Duration
	json   bool
	svg    string
	smoke  bool
	talk   io.Writer // progress, on a terminal only
}

func main() {
	var modes, works string
	o := options{talk: io.Discard}
	flag.StringVar(&modes, "modes", "up,run", "what to measure")
	flag.StringVar(&works, "only", "", "names of works, separated by commas; empty: all")
	flag.IntVar(&o.rounds, "rounds", 3, "alternations of kernel path and gatun")
	flag.DurationVar(&o.length, "for", 2*time.Second, "length of one measurement")
	flag.BoolVar(&o.json, "json", false, "print JSON")
	flag.StringVar(&o.svg, "svg", "", "draw the table into this file")
	flag.BoolVar(&o.smoke, "smoke", false, "a few works for a moment; fail if one is three times worse than its bar")
	flag.Parse()
	if o.smoke {
		o.rounds, o.length, works = 1, 600*time.Millisecond, smokeWorks
	}
	o.modes = strings.Split(modes, ",")
	if works != "" {
		o.works = strings.Split(works, ",")
	}
	if info, err := os.Stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		o.talk = os.Stderr
	}
	if err := run(os.Stdout, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, o options) error {
	rows, err := measureAll(o)
	if err != nil {
		return err
	}
	if o.smoke {
		err = smoke(rows)
	}
	if o.svg != "" {
		if err := os.WriteFile(o.svg, []byte(draw(rows)), 0o644); err != nil {
			return err
		}
	}
	if o.json {
		return json.NewEncoder(out).Encode(map[string]any{"schema": "gatun/v1", "rows": rows})
	}
	return errors.Join(table(out, rows), err)
}

// smokeWorks are those that tell most in a minute.
const smokeWorks = "tcp-up-1,tcp-down-8,connections-64,rtt-tcp,rtt-udp,udp-64,dns-cached,http-close"

// smoke fails if a row is three times worse than its bar: a machine that does other things at
// the same time says nothing finer.
func smoke(rows []row) error {
	var errs []error
	for _, r := range rows {
		if !r.within(r.smoke, 3) {
			errs = append(errs, fmt.Errorf("%s %s: ratio %.3f is more than three times off %.2f", r.Mode, r.Name, r.Ratio, r.smoke))
		}
	}
	return errors.Join(errs...)
}

func measureAll(o options) (rows []row, err error) {
	if os.Geteuid() != 0 {
		return nil, lab.ErrNotRoot
	}
	dir, err := os.MkdirTemp("", "gatun-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(os.Chmod(dir, 0o755), lab.Sweep()); err != nil {
		return nil, err
	}
	bins, err := lab.Build(dir)
	if err != nil {
		return nil, err
	}
	for _, mode := range o.modes {
		r, err := measureMode(o, mode, bins, dir)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", mode, err)
		}
		rows = append(rows, r...)
	}
	return rows, nil
}

func measureMode(o options, mode string, bins lab.Binaries, dir string) (rows []row, err error) {
	l, err := lab.New(lab.Options{Bins: bins, Dir: dir, NoCount: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	for _, ns := range []lab.Namespace{l.Host, l.Twin, l.Router, l.Server} {
		if _, err := ns.Output("sh", "-c", "grep -qw cubic /proc/sys/net/ipv4/tcp_available_congestion_control && echo cubic > /proc/sys/net/ipv4/tcp_congestion_control || true"); err != nil {
			return nil, err
		}
	}
	policy := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(policy, []byte("version: 1\n"), 0o644); err != nil {
		return nil, err
	}
	begin := l.Up
	if mode == "run" {
		begin = l.Run
	}
	g, err := begin(policy)
	if err != nil {
		return nil, err
	}
	for _, w := range works() {
		if !wanted(w.Name, o.works) {
			continue
		}
		r, err := measure(o, l, g, w)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", w.Name, err)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

func wanted(name string, names []string) bool {
	for _, n := range names {
		if n == name {
			return true
		}
	}
	return len(names) == 0
}
