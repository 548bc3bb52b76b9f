package main

import (
	"slices"
	"strings"

	"gatun/e2e/lab"
)

// The columns of the table. What they have in common is the lab and the policy, which permits
// everything.
const (
	modeUp    = "up"    // `gatun up`: what is permitted for good is handed back to the kernel
	modeRelay = "relay" // `gatun up` that hands nothing back: every flow is relayed in userspace
	modeRun   = "run"   // `gatun run`, which always relays
)

// limits are the two bars of a figure in one column; nil is no bar.
type limits struct{ must, aim *float64 }

func bars(must, aim float64) limits { return limits{&must, &aim} }

// figure is one line of the table: a number of a load's result, and what it has to reach.
type figure struct {
	Name, Unit string
	key        string  // of the load's result; empty: what was done per second
	scale      float64 // from the load's unit to ours; 0: 1
	cost       bool    // less is better
	absolute   bool    // the number itself counts, not its ratio to the kernel's
	cpu        bool    // the daemon's processor time per unit of work
	back       limits  // handed back
	relayed    limits
}

func (f figure) limits(mode string) limits {
	if mode == modeUp {
		return f.back
	}
	return f.relayed
}

// work is one kind of load and the figures that it gives.
type work struct {
	args    []string
	figures []figure
	modes   []string // empty: all
	unit    float64  // operations in the load's result that make one unit of work for processor time; 0: 1
	served  bool     // gatun answers itself: how packets reach it is no matter
	long    bool     // throughput: nine rounds where it is handed back, because its spread is wide
	seated  bool     // handed back, client and server have a processor each: where the kernel puts them says more than the path
	special func(*bench, work, string) ([]row, error)
}

func (w work) names() (names []string) {
	for _, f := range w.figures {
		names = append(names, f.Name)
	}
	return names
}

func (w work) in(mode string) bool { return len(w.modes) == 0 || slices.Contains(w.modes, mode) }

const (
	gigabyte = 1e9
	gigabit  = 8 / gigabyte
	// almostNone is printed as 0.00: what the clock of the scheduler cannot tell from nothing.
	almostNone = 0.0049
)

// works are performance.md's table. A must is the best peer of the class and a tenth, or the aim
// where that is easier.
func works() []work {
	return slices.Concat(throughput(), connections(), datagrams(), requests(), standing())
}

func throughput() []work {
	bulk := func(name string, back, relayed limits, more []figure, args ...string) work {
		f := figure{Name: name, Unit: "Gbit/s", scale: gigabit, back: back, relayed: relayed}
		return work{args: args, figures: append([]figure{f}, more...), unit: gigabyte, long: true, seated: args[0] != "-workers"}
	}
	cpu := func(name string, relayed limits) []figure {
		return []figure{{Name: name, Unit: "s/GB", cpu: true, cost: true, absolute: true, back: bars(almostNone, almostNone), relayed: relayed}}
	}
	back := bars(0.90, 0.95)
	return []work{
		bulk("tcp-up-1", back, bars(0.43, 0.55), cpu("cpu-up", bars(0.76, 0.55)), "up", lab.Server4),
		bulk("tcp-down-1", back, bars(0.24, 0.45), cpu("cpu-down", bars(1.32, 0.70)), "down", lab.Server4),
		bulk("tcp-up-8", back, bars(0.38, 0.60), nil, "-workers", "8", "up", lab.Server4),
		bulk("tcp-down-8", back, bars(0.40, 0.45), nil, "-workers", "8", "down", lab.Server4),
		bulk("tcp-up-v6", back, bars(0.43, 0.55), nil, "up", lab.Server6),
		bulk("tcp-down-v6", back, bars(0.24, 0.45), nil, "down", lab.Server6),
	}
}

func connections() []work {
	micro := func(name, key string, back, relayed limits) figure {
		return figure{Name: name, Unit: "µs", key: key, cost: true, back: back, relayed: relayed}
	}
	return []work{
		{args: []string{"-workers", "64", "conns", lab.Server4}, figures: []figure{
			{Name: "connections-64", Unit: "1/s", back: bars(0.60, 0.80), relayed: bars(0.23, 0.45)}}},
		{args: []string{"conns", lab.Server4}, figures: []figure{
			{Name: "connections-1", Unit: "1/s", back: bars(0.60, 0.75), relayed: bars(0.275, 0.40)},
			micro("connect-p50", "p50_us", bars(6.4, 1.6), bars(4.1, 3))}},
		{args: []string{"rtt-tcp", lab.Server4}, figures: []figure{micro("rtt-tcp", "p50_us", bars(1.1, 1.1), bars(4.8, 3.5))}, seated: true},
		{args: []string{"rtt-udp", lab.Server4}, figures: []figure{micro("rtt-udp", "p50_us", bars(2.27, 1.1), bars(3.3, 3))}, seated: true},
	}
}

func datagrams() []work {
	return []work{
		{args: []string{"-size", "64", "pps", lab.Server4}, figures: []figure{
			{Name: "udp-64", Unit: "1/s", back: bars(0.90, 0.95), relayed: bars(0.25, 0.60)}}, long: true},
		{args: []string{"-size", "1200", "lossless", lab.Server4}, figures: []figure{
			{Name: "udp-1200", Unit: "1/s", back: bars(0.605, 0.90), relayed: bars(0.077, 0.40)}}},
		{args: []string{"-workers", "8", "flows", lab.Server4}, figures: []figure{
			{Name: "udp-flows", Unit: "1/s", back: bars(0.12, 0.60), relayed: bars(0.27, 0.45)}}},
	}
}

func requests() []work {
	names := []string{modeRelay, modeRun} // the built-in server answers in every mode
	return []work{
		{args: []string{"-workers", "16", "close", lab.Server4}, figures: []figure{
			{Name: "http-close", Unit: "1/s", back: bars(0.08, 0.75), relayed: bars(0.26, 0.45)}}},
		{args: []string{"-workers", "16", "keep", lab.Server4}, figures: []figure{
			{Name: "http-keep", Unit: "1/s", back: bars(0.90, 0.95), relayed: bars(0.31, 0.50)}}},
		{args: []string{"-workers", "8", "dns-cached", lab.Resolver4}, modes: names, served: true, figures: []figure{
			{Name: "dns-cached", Unit: "1/s", relayed: bars(0.60, 1.2)}}},
		{args: []string{"-workers", "8", "dns", lab.Resolver4}, modes: names, served: true, figures: []figure{
			{Name: "dns-distinct", Unit: "1/s", relayed: bars(0.20, 0.50)}}},
	}
}

// standing are what is no load per second; each has a measurement of its own.
func standing() []work {
	whole := []string{modeUp, modeRelay} // a command of `gatun run` cannot be left in the background
	abs := func(name, unit string, back, relayed limits) figure {
		return figure{Name: name, Unit: unit, cost: true, absolute: true, back: back, relayed: relayed}
	}
	syn := bars(400, 150)
	return []work{
		{special: measureSYN, figures: []figure{abs("syn-p50", "µs", syn, syn), abs("syn-p99", "µs", bars(6000, 1000), bars(6000, 1000))}},
		{special: measureClose, figures: []figure{abs("close-stalls", "stalls", bars(0, 0), bars(0, 0))}},
		{special: measureStartup, figures: []figure{abs("exec-to-capture", "ms", bars(155, 120), bars(155, 120))}},
		{special: measureMemory, modes: whole, figures: []figure{
			abs("memory-18000", "MiB", bars(41, 40), bars(773, 288)),
			abs("memory-tcp-flow", "KiB", limits{}, bars(44, 16)),
			abs("memory-udp-flow", "KiB", limits{}, bars(8, 8)),
			abs("memory-after", "x", bars(1.2, 1.2), bars(1.2, 1.2)),
		}},
	}
}

// wanted says whether one of the names is asked for, by itself or by the beginning of its words.
func wanted(names, asked []string) bool {
	for _, a := range asked {
		for _, n := range names {
			if n == a || strings.HasPrefix(n, a+"-") {
				return true
			}
		}
	}
	return len(asked) == 0
}
