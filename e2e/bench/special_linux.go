package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"gatun/e2e/lab"
)

// measureClose asks for pages over new connections without a pause. A stall is a request that
// fails or takes three seconds, or a slice of the time in which half of the usual is done.
func measureClose(b *bench, w work, mode string) (rows []row, err error) {
	l, g, end, err := b.fresh(mode)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	var rates []float64
	r := w.figures[0].row(mode)
	stalls, longest, slow := 0.0, 0.0, 0.0
	for range 10 {
		s, err := g.Program(context.Background(), "load", "-workers", "32", "-for", b.o.length.String(), "close", lab.Server4)
		if err != nil {
			return nil, err
		}
		rates = append(rates, s.Extra["value"])
		longest, slow = max(longest, s.Extra["max_us"]/1e6), slow+s.Extra["slow"]
		if s.Extra["failed"] > 0 {
			r.Failed, r.Reason = r.Failed+s.Extra["failed"], s.Error
		}
		if s.Extra["max_us"] > 3e6 {
			stalls++
		}
	}
	stalls += r.Failed + float64(slower(rates, median(rates)/2))
	direct, err := l.Peer(context.Background(), l.Twin, "load", "-workers", "32", "-for", b.o.length.String(), "close", lab.Server4)
	if err != nil {
		return nil, err
	}
	r.Gatun = stalls
	r.Note = fmt.Sprintf("%s of load, %.0f requests/s (kernel path: %.0f), the longest took %.2f s, %.0f took a second",
		10*b.o.length, median(rates), direct.Extra["value"], longest, slow)
	return []row{r.spread([]float64{stalls}).judged()}, nil
}

// slower counts the values below a limit.
func slower(values []float64, limit float64) (n int) {
	for _, v := range values {
		if v < limit {
			n++
		}
	}
	return n
}

// measureStartup is the time from exec until gatun tells its service manager that traffic is
// captured or, in run, until the command runs.
func measureStartup(b *bench, w work, mode string) (rows []row, err error) {
	l, err := b.lab()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	file, err := b.policy(l, mode)
	if err != nil {
		return nil, err
	}
	start := startUp
	if mode == modeRun {
		start = startRun
	}
	var took []float64
	for i := range max(b.o.rounds, 5) + 1 {
		b.quiet()
		ms, err := start(l, file)
		if err != nil {
			return nil, err
		}
		if i > 0 { // the first reads the file from disk
			took = append(took, ms)
		}
	}
	r := w.figures[0].row(mode).spread(took)
	r.Gatun = r.Figure
	r.Note = "with `ip netns exec` of the lab"
	return []row{r.judged()}, nil
}

func startUp(l *lab.Lab, file string) (float64, error) {
	path := filepath.Join(l.Dir, fmt.Sprintf("notify-%d", time.Now().UnixNano()))
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	l.GatunEnv = []string{"NOTIFY_SOCKET=" + path}
	begin := time.Now()
	g, err := l.StartUp(file)
	if err != nil {
		return 0, err
	}
	if err := c.SetReadDeadline(begin.Add(20 * time.Second)); err != nil {
		return 0, err
	}
	text := make([]byte, 64)
	n, err := c.Read(text)
	took := time.Since(begin)
	if err != nil || string(text[:n]) != "READY=1" {
		return 0, fmt.Errorf("gatun up said %q: %w: %s", text[:n], err, g.Tail())
	}
	_, err = g.Down()
	return milliseconds(took), err
}

func startRun(l *lab.Lab, file string) (float64, error) {
	runtime, err := os.MkdirTemp(l.Dir, "runtime-")
	if err == nil {
		err = os.Chown(runtime, lab.Nobody, lab.Nobody)
	}
	if err != nil {
		return 0, err
	}
	spec := lab.Spec{User: lab.Nobody, Env: []string{"XDG_RUNTIME_DIR=" + runtime, "HOME=" + runtime}}
	cmd := l.Host.Command(context.Background(), spec, l.Bins.Gatun, "run", "-q", "-c", file, "--", "date", "+%s%N")
	begin := time.Now()
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("gatun run: %w", err)
	}
	ran, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	return milliseconds(time.Unix(0, ran).Sub(begin)), err
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// The crowd of performance.md's memory row, and enough pairs to see one.
const (
	idleFlows   = 18000
	pairPeers   = 782
	pairSockets = 64
)

// measureMemory looks at the daemon's memory with idle TCP flows, with (socket, peer) pairs of
// UDP, and a minute after they are gone.
func measureMemory(b *bench, w work, mode string) (rows []row, err error) {
	l, g, end, err := b.fresh(mode)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	if _, err := g.Program(context.Background(), "load", "-workers", "16", "-for", "2s", "conns", lab.Server4); err != nil {
		return nil, err
	}
	before, err := lab.Memory(g.Process.PID)
	if err != nil {
		return nil, err
	}
	tcp, err := held(l, g, "held", idleFlows, "hold", "-n", strconv.Itoa(idleFlows), lab.Server4+":7")
	if err != nil {
		return nil, err
	}
	udp, err := held(l, g, "answered", pairSockets*pairPeers, "pairs", "-peers", strconv.Itoa(pairPeers), "198.18.0.1:6000")
	if err != nil {
		return nil, err
	}
	const later = time.Minute
	time.Sleep(later)
	after, err := lab.Memory(g.Process.PID)
	if err != nil {
		return nil, err
	}
	values := []float64{mib(tcp.memory), tcp.each(before), udp.each(before), float64(after) / float64(before)}
	notes := []string{
		fmt.Sprintf("%.0f held", tcp.n), fmt.Sprintf("%.1f MiB at the start", mib(before)), fmt.Sprintf("%.0f (socket, peer) pairs", udp.n),
		fmt.Sprintf("%s after the last flow: %.1f MiB, at the start %.1f", later, mib(after), mib(before)),
	}
	for i, f := range w.figures {
		r := f.row(mode).spread(values[i : i+1])
		r.Gatun, r.Note = r.Figure, notes[i]
		rows = append(rows, r.judged())
	}
	return rows, nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// settling is how long what is held has been idle when it is measured: the daemon collects what the
// set-up of thousands of flows left once that is over.
const settling = 10 * time.Second

// crowd is the daemon's memory with n things held.
type crowd struct {
	n      float64
	memory int64
}

// each is what one of them costs, in KiB.
func (c crowd) each(before int64) float64 { return float64(c.memory-before) / 1024 / c.n }

// held runs a program that holds n things, nearly all of which must come about.
func held(l *lab.Lab, g *lab.Gatun, key string, n int, command ...string) (c crowd, err error) {
	p, err := l.Start(l.Host, lab.Spec{User: lab.Nobody, Pipe: true}, append([]string{l.Bins.Peer}, command...)...)
	if err != nil {
		return c, err
	}
	defer p.Kill()
	var r lab.Result
	if err := json.NewDecoder(p.Stdout).Decode(&r); err != nil {
		return c, fmt.Errorf("%v: %w", command, err)
	}
	if c.n = r.Extra[key]; c.n < 0.9*float64(n) {
		return c, fmt.Errorf("%v: %.0f of %d: %s", command, c.n, n, r.Error)
	}
	time.Sleep(settling)
	c.memory, err = lab.Memory(g.Process.PID)
	return c, err
}

// fresh starts gatun in a lab of its own; end ends both.
func (b *bench) fresh(mode string) (l *lab.Lab, g *lab.Gatun, end func() error, err error) {
	if l, err = b.lab(); err != nil {
		return nil, nil, nil, err
	}
	if g, err = b.begin(l, mode); err != nil {
		return nil, nil, nil, errors.Join(err, l.Close())
	}
	return l, g, func() error { return errors.Join(b.keepProfile(g, mode), l.Close()) }, nil
}

// connects is how many SYNs a round of measureSYN takes.
const connects = 500

// measureSYN is the time from connect(2) until the SYN is at the router, by the kernel's clock on
// both ends, less what the same takes on the twin: all that gatun does before the first packet
// leaves.
func measureSYN(b *bench, w work, mode string) (rows []row, err error) {
	l, g, end, err := b.fresh(mode)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	var kernel, p50, p99 []float64
	lost := 0
	for i := range b.o.rounds + 1 {
		b.quiet()
		direct, missing, err := syns(l, lab.Twin4, func(args ...string) (lab.Result, error) { return l.Peer(context.Background(), l.Twin, args...) })
		if err != nil {
			return nil, err
		}
		b.quiet()
		through, missing2, err := syns(l, lab.Host4, func(args ...string) (lab.Result, error) { return g.Program(context.Background(), args...) })
		if err != nil {
			return nil, err
		}
		if i == 0 {
			continue
		}
		lost += missing + missing2
		base := quantile(direct, 0.5)
		kernel = append(kernel, base)
		p50, p99 = append(p50, quantile(through, 0.5)-base), append(p99, quantile(through, 0.99)-base)
	}
	for i, figures := range [][]float64{p50, p99} {
		r := w.figures[i].row(mode).spread(figures)
		r.Kernel, r.Gatun = median(kernel), r.Figure+median(kernel)
		r.Note = fmt.Sprintf("connect(2) to SYN at the router, less the kernel's p50; %d connects a round, one at a time", connects)
		if lost > 0 {
			r.Note += fmt.Sprintf("; %d without a SYN in time", lost)
		}
		rows = append(rows, r.judged())
	}
	return rows, nil
}

// syns connects again and again while the router writes down the SYNs, and returns the sorted
// times between the two in microseconds, and how many connects had no SYN before the next.
func syns(l *lab.Lab, source string, program func(...string) (lab.Result, error)) (took []float64, lost int, err error) {
	watch, err := l.Start(l.Router, lab.Spec{Pipe: true}, l.Bins.Peer, "synwatch", "br0")
	if err != nil {
		return nil, 0, err
	}
	defer watch.Kill()
	out := json.NewDecoder(watch.Stdout)
	var ready, seen lab.Result
	if err := out.Decode(&ready); err != nil {
		return nil, 0, fmt.Errorf("synwatch: %w", err)
	}
	r, err := program("syns", "-n", strconv.Itoa(connects), lab.Server4)
	if err != nil {
		return nil, 0, err
	}
	if err := watch.Stdin.Close(); err != nil {
		return nil, 0, err
	}
	if err := out.Decode(&seen); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, fmt.Errorf("synwatch: %w", err)
	}
	starts, err := parseStamps(r.Data, "")
	if err != nil {
		return nil, 0, err
	}
	arrivals, err := parseStamps(seen.Data, source)
	if err != nil {
		return nil, 0, err
	}
	took, lost = matchStamps(starts, arrivals)
	if len(took) < len(starts)/2 {
		return nil, 0, fmt.Errorf("%d SYNs of %d connects were seen: %s %s", len(took), len(starts), r.Error, seen.Error)
	}
	return took, lost, nil
}

// stamp is a moment, in nanoseconds of the wall clock, at which something was sent to a port.
type stamp struct {
	port int
	at   int64
}

// parseStamps reads "PORT:NANOSECONDS …" or, for one source, "ADDR:PORT:NANOSECONDS …".
func parseStamps(text, source string) (stamps []stamp, err error) {
	for _, f := range strings.Fields(text) {
		parts := strings.Split(f, ":")
		if source != "" {
			if parts[0] != source {
				continue
			}
			parts = parts[1:]
		}
		if len(parts) != 2 {
			return nil, fmt.Errorf("no stamp: %q", f)
		}
		port, err1 := strconv.Atoi(parts[0])
		at, err2 := strconv.ParseInt(parts[1], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		stamps = append(stamps, stamp{port, at})
	}
	return stamps, nil
}

// matchStamps finds for each start the first arrival at its port before the next start there.
func matchStamps(starts, arrivals []stamp) (micros []float64, lost int) {
	begun, came := map[int][]int64{}, map[int][]int64{}
	for _, s := range starts {
		begun[s.port] = append(begun[s.port], s.at)
	}
	for _, s := range arrivals {
		came[s.port] = append(came[s.port], s.at)
	}
	for port, times := range begun {
		slices.Sort(times)
		slices.Sort(came[port])
		for i, at := range times {
			j, _ := slices.BinarySearch(came[port], at)
			if j == len(came[port]) || i+1 < len(times) && came[port][j] >= times[i+1] {
				lost++
				continue
			}
			micros = append(micros, float64(came[port][j]-at)/1000)
		}
	}
	slices.Sort(micros)
	return micros, lost
}
