package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"gatun/e2e/lab"
)

func at(v float64) *float64 { return &v }

// TestSmoke: timings live outside of go test (.ci/run calls `bench -smoke`); here only the judge.
func TestSmoke(t *testing.T) {
	good, bad := row{Figure: 0.2, Must: at(0.5)}, row{Figure: 0.1, Must: at(0.5), Mode: "up", Name: "x"}
	if err := smoke([]row{good}); err != nil {
		t.Errorf("got %v", err)
	}
	if err := smoke([]row{good, bad}); err == nil || !strings.Contains(err.Error(), "up x") {
		t.Errorf("got %v", err)
	}
	if err := smoke([]row{{Figure: 99, Must: at(0.5), Absolute: true, Cost: true}}); err != nil {
		t.Errorf("a number that is no ratio: %v", err)
	}
	wrong := row{Figure: 2, Must: at(0.5), Wrong: "NOT handed back"}
	if err := smoke([]row{wrong}); err == nil || !strings.Contains(err.Error(), "NOT handed back") {
		t.Errorf("got %v", err)
	}
}

func TestMet(t *testing.T) {
	for _, c := range []struct {
		r    row
		want string
	}{
		{row{Figure: 0.5, Must: at(0.4), Aim: at(0.6)}, "must"},
		{row{Figure: 0.6, Must: at(0.4), Aim: at(0.6)}, "aim"},
		{row{Figure: 0.3, Must: at(0.4), Aim: at(0.6)}, "no"},
		{row{Figure: 4, Must: at(4.1), Aim: at(3), Cost: true}, "must"},
		{row{Figure: 5, Must: at(4.1), Aim: at(3), Cost: true}, "no"},
		{row{Figure: 0, Must: at(0), Aim: at(0), Cost: true, Absolute: true}, "aim"},
		{row{Figure: 1, Must: at(0), Aim: at(0), Cost: true, Absolute: true}, "no"},
		{row{Figure: 1}, ""},
		{row{Figure: 2, Must: at(0.9), Aim: at(0.95), Wrong: "was relayed"}, "no"},
	} {
		if got := c.r.judged().met(); got != c.want {
			t.Errorf("%+v: met is %q, want %q", c.r, got, c.want)
		}
	}
}

func TestWithinSlack(t *testing.T) {
	for _, c := range []struct {
		r    row
		want bool
	}{
		{row{Figure: 0.14, Must: at(0.4)}, true}, {row{Figure: 0.13, Must: at(0.4)}, false},
		{row{Figure: 12, Must: at(4.1), Cost: true}, true}, {row{Figure: 13, Must: at(4.1), Cost: true}, false},
	} {
		if got := c.r.within(c.r.Must, 3); got != c.want {
			t.Errorf("%+v three times wider: %v", c.r, got)
		}
	}
}

// result is a load's result with the packets that its TUN counted.
func result(value float64, tun int, extra ...float64) lab.Result {
	x := map[string]float64{"value": value, "p50_us": 1e6 / value}
	if len(extra) == 2 {
		x["flows"], x["packets"] = extra[0], extra[1]
	}
	return lab.Result{Result: "done", Extra: x, TunTX: tun}
}

// TestRows: medians of the rounds' ratios, not the ratio of the medians; a row that costs is
// turned round by its bars alone; processor time is per unit of work.
func TestRows(t *testing.T) {
	w := work{figures: []figure{
		{Name: "rate", Unit: "1/s", back: bars(0.9, 0.95), relayed: bars(0.2, 0.4)},
		{Name: "p50", Unit: "µs", key: "p50_us", cost: true, relayed: bars(4, 3)},
	}}
	samples := []sample{
		{direct: result(100, 0), through: result(50, 0), cpu: 50 * time.Millisecond, length: time.Second},
		{direct: result(1000, 0), through: result(100, 0), cpu: 100 * time.Millisecond, length: time.Second},
		{direct: result(200, 0), through: result(60, 0), cpu: 60 * time.Millisecond, length: time.Second},
	}
	rows := w.rows(modeRelay, samples)
	rate, p50 := rows[0], rows[1]
	if rate.Figure != 0.3 || rate.Min != 0.1 || rate.Max != 0.5 || rate.Kernel != 200 || rate.Gatun != 60 || rate.Rounds != 3 {
		t.Errorf("%+v", rate)
	}
	if rate.met() != "must" || *rate.Must != 0.2 {
		t.Errorf("the bars of another column? %+v", rate)
	}
	if math.Abs(rate.CPU-1000) > 1e-6 || rate.CPUUnit != "µs/op" {
		t.Errorf("processor time %v %s", rate.CPU, rate.CPUUnit)
	}
	if math.Abs(p50.Figure-1/0.3) > 1e-9 || p50.met() != "must" {
		t.Errorf("%+v", p50)
	}
}

func TestRowsOfBulk(t *testing.T) {
	w := work{unit: gigabyte, figures: []figure{
		{Name: "tcp", Unit: "Gbit/s", scale: gigabit, back: bars(0.9, 0.95)},
		{Name: "cpu", Unit: "s/GB", cpu: true, cost: true, absolute: true, back: bars(almostNone, almostNone)},
	}}
	s := sample{direct: result(2e9, 0), through: result(1e9, 1, 1, 20000), cpu: 500 * time.Millisecond, length: 2 * time.Second}
	rows := w.rows(modeUp, []sample{s})
	if rows[0].Gatun != 8 || rows[0].Kernel != 16 || rows[0].Figure != 0.5 || rows[0].CPU != 0.25 || rows[0].Crossed == nil || *rows[0].Crossed != 1 {
		t.Errorf("%+v", rows[0])
	}
	if rows[1].Figure != 0.25 || rows[1].met() != "no" {
		t.Errorf("%+v", rows[1])
	}
	s.cpu = 0
	if r := w.rows(modeUp, []sample{s})[1]; r.met() != "aim" || r.bar(r.Must) != "<=0.00" {
		t.Errorf("no processor time at all: %+v", r)
	}
}

// TestCrossed: nothing is measured under a wrong name.
func TestCrossed(t *testing.T) {
	for _, c := range []struct {
		name, mode          string
		tun, flows, packets float64
		wrong               string
	}{
		{"one packet per flow", modeUp, 1000, 1000, 1000, ""},
		{"a stream", modeUp, 1, 1, 20000, ""},
		{"datagrams while the first is decided", modeUp, 300, 3, 100_000, ""},
		{"too many of them", modeUp, 6000, 3, 100_000, "NOT handed back"},
		{"a relayed stream", modeUp, 9000, 1, 20000, "NOT handed back"},
		{"relayed connections", modeUp, 10_000, 1000, 1000, "NOT handed back"},
		{"relayed, as it says", modeRelay, 9000, 1, 20000, ""},
		{"handed back behind the back", modeRelay, 1, 1, 20000, "NOT relayed"},
		{"relayed between two sockets", modeRelay, 1, 1, -20000, ""},
		{"too little to tell", modeRelay, 1000, 1000, 1000, ""},
		{"nothing known", modeUp, 77, 0, 0, ""},
	} {
		used := time.Duration(0)
		if c.packets < 0 { // work was done
			c.packets, used = -c.packets, time.Second
		}
		r := row{}.crossed(c.mode, []sample{{cpu: used, through: result(1, int(c.tun), c.flows, c.packets)}})
		if (c.wrong == "") != (r.Wrong == "") || !strings.Contains(r.Wrong, c.wrong) {
			t.Errorf("%s: %q", c.name, r.Wrong)
		}
	}
}

// TestServed: queries reach the built-in server in more than one way.
func TestServed(t *testing.T) {
	s := sample{direct: result(1, 0), through: result(1, 0, 8, 4000), length: time.Second}
	figures := []figure{{Name: "names"}}
	if r := (work{figures: figures, served: true}).rows(modeRelay, []sample{s})[0]; r.Wrong != "" {
		t.Error(r.Wrong)
	}
	if r := (work{figures: figures}).rows(modeRelay, []sample{s})[0]; r.Wrong == "" {
		t.Error("a relay that no packet crosses passed")
	}
}

// TestFailed: what could not be measured has not met anything.
func TestFailed(t *testing.T) {
	w := work{figures: []figure{{Name: "a", back: bars(0, 0)}, {Name: "b"}}}
	rows := w.failed(modeUp, errors.New("no such thing"))
	if len(rows) != 2 || rows[0].met() != "no" || !strings.Contains(rows[1].Wrong, "no such thing") || smoke(rows) == nil {
		t.Errorf("%+v", rows)
	}
}

func TestEach(t *testing.T) {
	if got := (crowd{n: 1024, memory: 5 << 20}).each(3 << 20); got != 2 {
		t.Errorf("%v KiB", got)
	}
}

func TestUsageOverIdle(t *testing.T) {
	idle := usage{cpu: 20 * time.Millisecond, wall: time.Second}
	if got := (usage{cpu: 100 * time.Millisecond, wall: 2 * time.Second}).over(idle); got != 60*time.Millisecond {
		t.Errorf("%s", got)
	}
	if got := (usage{cpu: 10 * time.Millisecond, wall: 2 * time.Second}).over(idle); got != 0 {
		t.Errorf("less than nothing: %s", got)
	}
	if got := (usage{cpu: time.Second, wall: time.Second}).over(usage{}); got != time.Second {
		t.Errorf("%s", got)
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 9}, 3}} {
		if got := median(c.values); got != c.want {
			t.Errorf("%v: %v", c.values, got)
		}
	}
	sorted := []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for share, want := range map[float64]float64{0.5: 5, 0.99: 10, 0.1: 1, 1: 10} {
		if got := quantile(sorted, share); got != want {
			t.Errorf("%v of ten: %v", share, got)
		}
	}
	if quantile(nil, 0.5) != 0 || slower([]float64{1, 2, 3}, 2) != 1 {
		t.Error("quantile, slower")
	}
}

// TestTable: every row of the table has a name of its own and a measurement, and every column
// the bars that performance.md gives it.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, w := range works() {
		if w.special == nil && len(w.args) == 0 || len(w.figures) == 0 {
			t.Errorf("%v is not measured", w.names())
		}
		for _, f := range w.figures {
			if seen[f.Name] {
				t.Errorf("%s is there twice", f.Name)
			}
			seen[f.Name] = true
			if f.relayed.must == nil || f.relayed.aim == nil {
				t.Errorf("%s has no bar where it is relayed", f.Name)
			}
			for mode, l := range map[string]limits{modeUp: f.back, modeRelay: f.relayed} {
				if l.must != nil && f.cost != (*l.must >= *l.aim) && *l.must != *l.aim {
					t.Errorf("%s %s: the must (%v) asks for more than the aim (%v)", mode, f.Name, *l.must, *l.aim)
				}
			}
		}
	}
	for _, mode := range []string{modeUp, modeRelay, modeRun} {
		for _, name := range smokeRows(mode) {
			if !seen[name] {
				t.Errorf("-smoke asks for %s", name)
			}
		}
	}
}

func TestWanted(t *testing.T) {
	names := []string{"tcp-up-1", "cpu-up"}
	for asked, want := range map[string]bool{"": true, "tcp": true, "tcp-up": true, "tcp-up-1": true, "cpu-up": true, "tcp-u": false, "udp": false} {
		var list []string
		if asked != "" {
			list = []string{asked}
		}
		if wanted(names, list) != want {
			t.Errorf("%q", asked)
		}
	}
}

func TestMatchStamps(t *testing.T) {
	starts, err := parseStamps("2000:1000 2001:5000 2000:9000 2001:20000 2000:30000", "")
	if err != nil {
		t.Fatal(err)
	}
	// One of another client, one that was sent again, one that came only after the next start.
	arrivals, err := parseStamps("192.0.2.3:2000:1500 192.0.2.2:2000:3000 192.0.2.2:2000:4000 192.0.2.2:2001:6000 192.0.2.2:2000:31000 192.0.2.2:2001:21500", "192.0.2.2")
	if err != nil {
		t.Fatal(err)
	}
	micros, lost := matchStamps(starts, arrivals)
	if lost != 1 || len(micros) != 4 || micros[0] != 1 || micros[1] != 1 || micros[2] != 1.5 || micros[3] != 2 {
		t.Errorf("%v, %d lost", micros, lost)
	}
	if _, err := parseStamps("2000", ""); err == nil {
		t.Error("half a stamp passed")
	}
}

func TestRunning(t *testing.T) {
	for text, want := range map[string]int{"0.50 0.40 0.30 3/512 12345\n": 3, "0.50 0.40 0.30 1/9 7": 1, "": 0, "a b c d": 0} {
		if got := running(text); got != want {
			t.Errorf("%q: %d", text, got)
		}
	}
}

func TestPolicyText(t *testing.T) {
	if text := policyText(modeRelay, true); !strings.Contains(text, "permanentVerdicts: off") || !strings.Contains(text, "releaseLevel: experimental") {
		t.Errorf("relay: %s", text)
	}
	for _, text := range []string{policyText(modeUp, true), policyText(modeRun, true), policyText(modeRelay, false)} {
		if strings.Contains(text, "permanentVerdicts") {
			t.Errorf("got %s", text)
		}
	}
}

func TestParse(t *testing.T) {
	o := parse([]string{"-modes", "relay", "-rows", "tcp,udp-64", "-seconds", "0.5", "-rounds", "7"})
	if len(o.modes) != 1 || o.modes[0] != "relay" || len(o.rows) != 2 || o.length != 500*time.Millisecond || o.rounds != 7 {
		t.Errorf("%+v", o)
	}
	if o := parse([]string{"-profile", "udp-64"}); len(o.rows) != 1 || o.rows[0] != "udp-64" {
		t.Errorf("%+v", o)
	}
	if o := parse(nil); len(o.modes) != 3 || o.rows != nil || o.rounds < 3 || o.long < 9 {
		t.Errorf("the defaults are not those of performance.md: %+v", o)
	}
}

func someReport() report {
	return report{Schema: "gatun/v1", Machine: machine{Date: "2026-01-02", CPUs: 2, Model: "model", Kernel: "6.18", Go: "go1.26"}, Notes: []string{"noted"}, Rows: []row{
		row{Mode: "up", Name: "tcp-up-1", Unit: "Gbit/s", Kernel: 10, Gatun: 5, Figure: 0.5, Min: 0.4, Max: 0.6, Must: at(0.43), Aim: at(0.55), CPU: 1.2, CPUUnit: "s/GB", Crossed: at(1)}.judged(),
		row{Mode: "run", Name: "rtt-tcp", Unit: "µs", Kernel: 20, Gatun: 200, Figure: 10, Min: 9, Max: 11, Must: at(4.8), Aim: at(3.5), Cost: true, Failed: 2, Reason: "refused"}.judged(),
		row{Mode: "up", Name: "memory", Unit: "MiB", Gatun: 30, Figure: 30, Min: 30, Max: 30, Must: at(41), Aim: at(40), Cost: true, Absolute: true, Note: "with <all> of them"}.judged(),
	}}
}

func TestPrint(t *testing.T) {
	var out strings.Builder
	if err := table(&out, someReport()); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 8 {
		t.Fatalf("%d lines:\n%s", len(lines), out.String())
	}
	for i, want := range map[int][]string{
		0: {"2 vCPU", "2026-01-02"}, 2: {"must", ">=0.43", ">=0.55", "1.20 s/GB"}, 3: {"no", "<=4.80"}, 4: {"aim", "<=41.00", "30.00"},
		5: {"2 failed: refused"}, 6: {"with <all>"}, 7: {"noted"},
	} {
		for _, w := range want {
			if !strings.Contains(lines[i], w) {
				t.Errorf("line %d has no %q: %s", i, w, lines[i])
			}
		}
	}
}

func TestMarkdown(t *testing.T) {
	var out strings.Builder
	if err := markdown(&out, someReport()); err != nil {
		t.Fatal(err)
	}
	columns := 0
	for _, line := range strings.Split(out.String(), "\n") {
		if !strings.HasPrefix(line, "|") {
			continue
		}
		if n := strings.Count(line, "|"); columns == 0 {
			columns = n
		} else if n != columns {
			t.Errorf("%d bars instead of %d: %s", n, columns, line)
		}
	}
	for _, want := range []string{"**0.50** (0.40–0.60)", "≥ 0.43", "≤ 4.80", "**30.00 MiB**", "* noted"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestDraw(t *testing.T) {
	rep := someReport()
	rep.Rows = append(rep.Rows, row{Name: "<&>", Absolute: true, Cost: true})
	if err := xml.Unmarshal([]byte(draw(rep.Rows)), new(struct{})); err != nil {
		t.Errorf("the picture is no XML: %v", err)
	}
	for _, c := range []struct {
		r           row
		score, must float64
	}{
		{row{Figure: 0.5, Must: at(0.4)}, 0.5, 0.4},
		{row{Figure: 4, Must: at(2), Cost: true}, 0.25, 0.5},
		{row{Figure: 10, Must: at(40), Cost: true, Absolute: true}, 4, 1},
	} {
		if score, must := c.r.score(); score != c.score || must != c.must {
			t.Errorf("%+v: %v, %v", c.r, score, must)
		}
	}
}

func TestJSON(t *testing.T) {
	b, err := json.Marshal(someReport())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"cpu_unit":"s/GB"`, `"tun_packets_per_flow":1`, `"must":0.43`, `"aim_met":true`, `"kernel":"6.18"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in %s", want, b)
		}
	}
}
