package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"gatun/e2e/lab"
)

// proveAttribution lets five binaries, eight at a time and in random order, open flows to the
// same destinations. The truth is what each program says of itself (pid, path, start, and the
// port or name it used), and the token that the server received.
func proveAttribution(b *bench) error {
	for _, mode := range []string{"up", "run"} {
		if err := attribute(b, mode); err != nil {
			return fmt.Errorf("%s: %w", mode, err)
		}
	}
	return nil
}

func attribute(b *bench, mode string) (err error) {
	l, err := b.lab(lab.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	g, err := started(l, mode, "version: 1\n")
	if err != nil {
		return err
	}
	hooks := false
	if mode == "up" {
		if hooks, err = hooked(b, g); err != nil {
			return err
		}
	}
	events, err := watch(l, g)
	if err != nil {
		return err
	}
	bins, err := fiveBinaries(l)
	if err != nil {
		return err
	}
	held, err := flock(l, g, "tcp", b.size(2000, 160), bins, func(i int) []string {
		if i%4 == 0 {
			return []string{"dns", fmt.Sprintf("t%d.example.org", i), lab.Resolver4}
		}
		return []string{"token", lab.Server4 + ":5001"}
	})
	if err != nil {
		return err
	}
	thrown, err := flock(l, g, "udp", b.size(1000, 80), bins, func(int) []string {
		return []string{"token", "-net", "udp", lab.Server4 + ":5001"}
	})
	if err != nil {
		return err
	}
	asked, err := flock(l, g, "query", b.size(1000, 80), bins, func(int) []string {
		return []string{"token", "-net", "udp", lab.Server4 + ":53"}
	})
	if err != nil {
		return err
	}
	time.Sleep(time.Second) // the last events
	flows, err := decided(events)
	if err != nil {
		return err
	}
	b.verdict(mode, judge(held, flows), map[string]score{"datagrams": judge(thrown, flows), "queries": judge(asked, flows)}, hooks)
	return nil
}

// hooked waits until gatun says whether the kernel tells it who sends.
func hooked(b *bench, g *lab.Gatun) (bool, error) {
	for range 100 {
		out, err := g.Client("status", "--json")
		if err != nil {
			return false, err
		}
		var s struct {
			Modules []struct{ Name, Message string }
		}
		if err := json.Unmarshal(out, &s); err != nil {
			return false, err
		}
		for _, m := range s.Modules {
			if m.Name == "attribution" && !strings.Contains(m.Message, "being attached") {
				b.note("up: attribution", m.Message)
				return strings.Contains(m.Message, "at once"), nil
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	return false, errors.New("gatun does not say how it finds owners")
}

// verdict prints what came out of one mode: held flows, thrown datagrams, causes. With hooks
// the thrown ones are held to the same limit.
func (b *bench) verdict(mode string, h score, thrown map[string]score, hooks bool) {
	least := 0.999
	if b.small {
		least = 0.98 // of so few, one is more than a thousandth
	}
	b.atLeast(mode+": held flows (TCP, DNS), owner right", h.share(h.right), least, fmt.Sprintf("of %d", h.all))
	b.note(mode+": held flows, unidentified, or no event", fmt.Sprintf("%d, %d", h.unknown, h.missing))
	b.atMost(mode+": held flows, owner wrong", float64(h.wrong), 0, "flows")
	for _, what := range slices.Sorted(maps.Keys(thrown)) {
		u := thrown[what]
		if hooks {
			b.atLeast(mode+": fire-and-forget "+what+", owner right", u.share(u.right), least, fmt.Sprintf("of %d", u.all))
		} else {
			b.note(mode+": fire-and-forget "+what+", owner named", fmt.Sprintf("%.3f of %d", u.share(u.right), u.all))
		}
		b.atMost(mode+": fire-and-forget "+what+", owner wrong", float64(u.wrong), 0, "flows")
	}
	for _, c := range causes(append(slices.Collect(maps.Values(thrown)), h)...) {
		b.note(mode+": owner_cause", c)
	}
}

// watch returns the file into which every event goes.
func watch(l *lab.Lab, g *lab.Gatun) (string, error) {
	if g.Mode == "run" {
		return g.Events, nil
	}
	file := filepath.Join(l.Dir, "watch.ndjson")
	_, err := l.Start(l.Host, lab.Spec{Env: l.Env(), Log: file}, l.Bins.Gatun, "flows", "--watch", "--json")
	time.Sleep(300 * time.Millisecond)
	return file, err
}

// fiveBinaries are five programs: copies of the helper, so that each has a path and a file of
// its own.
func fiveBinaries(l *lab.Lab) ([]string, error) {
	code, err := os.ReadFile(l.Bins.Peer)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, name := range []string{"alder", "birch", "cedar", "dogwood", "elm"} {
		path := filepath.Join(l.Dir, name)
		if err := os.WriteFile(path, code, 0o755); err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// flock runs n programs and returns what each said, by the key of its flow. proto is that of
// everything but DNS queries.
func flock(l *lab.Lab, g *lab.Gatun, proto string, n int, bins []string, args func(i int) []string) (map[string][]lab.Result, error) {
	dir, err := os.MkdirTemp(l.Dir, "flock-")
	if err != nil {
		return nil, err
	}
	if err := os.Chown(dir, lab.Nobody, lab.Nobody); err != nil {
		return nil, err
	}
	var list strings.Builder
	for i := range n {
		line, err := json.Marshal(append([]string{bins[rand.IntN(len(bins))]}, args(i)...))
		if err != nil {
			return nil, err
		}
		list.Write(append(line, '\n'))
	}
	file := filepath.Join(dir, "list")
	if err := os.WriteFile(file, []byte(list.String()), 0o644); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r, err := g.Program(ctx, "flock", file)
	if err != nil {
		return nil, err
	}
	if r.Extra["failed"] > 0 {
		return nil, fmt.Errorf("%v programs failed", r.Extra["failed"])
	}
	return readFlock(file+".out", proto)
}

// key names a flow: the same local port may serve other protocols and peers at the same time.
func key(proto, local, remote string) string { return proto + " " + local + " " + remote }

func readFlock(file, proto string) (map[string][]lab.Result, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	truth := map[string][]lab.Result{}
	for dec := json.NewDecoder(f); ; {
		var r lab.Result
		if err := dec.Decode(&r); errors.Is(err, io.EOF) {
			return truth, nil
		} else if err != nil {
			return nil, err
		}
		if r.Result != "sent" && r.Result != "NOERROR" {
			return nil, fmt.Errorf("a program saw %s (%s)", r.Result, r.Error)
		}
		k := key(proto, r.Local, r.Remote)
		if strings.HasSuffix(r.Remote, ":53") {
			k = key("udp", r.Local, r.Remote)
		}
		truth[k] = append(truth[k], r)
	}
}

// decided reads the decided flows from a file of events, by their key.
func decided(file string) (map[string][]lab.Flow, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	flows := map[string][]lab.Flow{}
	lines := bufio.NewScanner(f)
	lines.Buffer(make([]byte, 1<<20), 1<<20)
	for lines.Scan() {
		var e struct {
			Event string
			Flow  lab.Flow
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("event %q: %w", lines.Text(), err)
		}
		if e.Flow == nil || e.Event != "decided" && e.Event != "dns" {
			continue
		}
		k := key(e.Flow.Field("proto"), e.Flow.Field("local"), e.Flow.Field("remote"))
		flows[k] = append(flows[k], e.Flow)
	}
	return flows, lines.Err()
}

// score counts how many owners were right.
type score struct {
	all, right, wrong, unknown, missing int
	causes                              map[string]int
}

func (s score) share(n int) float64 {
	if s.all == 0 {
		return 0
	}
	return float64(n) / float64(s.all)
}

// judge compares truth and flows. A port may be used twice, and a flow counts for one program
// only; a query over TCP is two flows of one program. An owner is wrong if no program that used
// the port is the one that was named.
func judge(truth map[string][]lab.Result, flows map[string][]lab.Flow) score {
	s := score{causes: map[string]int{}}
	for local, programs := range truth {
		s.all += len(programs)
		rest := onePerID(flows[local])
		for _, p := range programs {
			i := find(rest, identity(p))
			if i < 0 {
				continue
			}
			s.right++
			s.causes[rest[i].Field("owner_confidence")+": "+rest[i].Field("owner_cause")]++
			rest = append(rest[:i:i], rest[i+1:]...)
		}
		for _, f := range rest {
			if slices.ContainsFunc(programs, func(p lab.Result) bool { return f.Match(identity(p)) }) {
				continue
			}
			s.causes[f.Field("owner_confidence")+": "+f.Field("owner_cause")]++
			if named := f.Field("owner_confidence"); named == "exact" || named == "inherited" {
				s.wrong++
			} else {
				s.unknown++
			}
		}
	}
	s.missing = s.all - s.right - s.wrong - s.unknown
	return s
}

func identity(p lab.Result) map[string]string {
	return map[string]string{"pid": fmt.Sprint(p.PID), "path": p.Path, "start": p.Start.Format(time.RFC3339Nano)}
}

func onePerID(flows []lab.Flow) []lab.Flow {
	seen := map[string]bool{}
	var out []lab.Flow
	for _, f := range flows {
		if id := f.Field("id"); !seen[id] {
			seen[id] = true
			out = append(out, f)
		}
	}
	return out
}

func find(flows []lab.Flow, want map[string]string) int {
	for i, f := range flows {
		if f.Match(want) {
			return i
		}
	}
	return -1
}

func causes(scores ...score) []string {
	total := map[string]int{}
	for _, s := range scores {
		for c, n := range s.causes {
			total[c] += n
		}
	}
	var out []string
	for c, n := range total {
		out = append(out, fmt.Sprintf("%5d %s", n, c))
	}
	sort.Strings(out)
	return out
}
