package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"math"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"gatun/e2e/lab"
)

// curve is one cost over the number of something.
type curve struct {
	Of     string  `json:"of"`   // what grows
	Name   string  `json:"name"` // what is done
	Flat   bool    `json:"must_be_flat"`
	Points []point `json:"points"`
}

// point is the cost of one operation at a size.
type point struct {
	N     float64 `json:"n"`
	Micro float64 `json:"us"`
}

// flatFactor is how much a cost may grow from ten to the largest size and still be called flat:
// what grows is what the processor's caches no longer hold.
const flatFactor = 3

// growth is the cost at the largest size, relative to that at the smallest of at least ten.
func (c curve) growth() float64 {
	if len(c.Points) == 0 {
		return 0
	}
	first := c.Points[0]
	for _, p := range c.Points {
		if first.N < 10 {
			first = p
		}
	}
	return c.Points[len(c.Points)-1].Micro / first.Micro
}

func (c curve) met() string {
	switch {
	case !c.Flat:
		return ""
	case c.growth() <= flatFactor:
		return "yes"
	default:
		return "no"
	}
}

// source is a Go benchmark whose subtests are named KIND/N or N.
type source struct {
	of, pkg, bench, length string
	linear                 []string // kinds that may grow
}

// sources are performance.md's "where cost must not grow".
func sources() []source {
	return []source{
		{of: "rules", pkg: "./profiles", bench: "First", length: "50ms", linear: []string{"contains", "prefix", "regex"}},
		{of: "names in lists", pkg: "./intel", bench: "Stamp", length: "100ms"},
		{of: "live flows", pkg: "./firewall", bench: "Live", length: "200ms"},
		{of: "processes", pkg: "./attribution", bench: "Processes", length: "300x"},
		{of: "profiles", pkg: "./profiles", bench: "For", length: "100ms"},
	}
}

// runCurves runs the benchmarks three times each and prints the medians.
func runCurves(out io.Writer, o options) error {
	root, err := lab.Root()
	if err != nil {
		return err
	}
	var curves []curve
	for _, s := range sources() {
		fmt.Fprintf(o.talk, "\r%-20s", s.of)
		cmd := exec.Command("go", "test", "-run", "^$", "-bench", "^Benchmark"+s.bench+"$", "-benchtime", s.length, "-count", "3", s.pkg)
		cmd.Dir = root
		text, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", s.of, err, text)
		}
		found := s.parse(string(text))
		if len(found) == 0 {
			return fmt.Errorf("%s: no figures in %s", s.of, text)
		}
		curves = append(curves, found...)
	}
	if o.svg != "" {
		if err := os.WriteFile(o.svg, []byte(drawCurves(curves)), 0o644); err != nil {
			return err
		}
	}
	switch {
	case o.json:
		return json.NewEncoder(out).Encode(map[string]any{"schema": "gatun/v1", "machine": thisMachine(), "curves": curves})
	case o.markdown:
		return curvesMarkdown(out, curves)
	default:
		return curvesTable(out, curves)
	}
}

// parse reads what `go test -bench` printed. Where a benchmark tells a median of its own, that
// counts.
func (s source) parse(text string) (curves []curve) {
	figures := map[string]map[float64][]float64{}
	for _, line := range strings.Split(text, "\n") {
		kind, n, micro, ok := parseLine(line)
		if !ok {
			continue
		}
		if figures[kind] == nil {
			figures[kind] = map[float64][]float64{}
		}
		figures[kind][n] = append(figures[kind][n], micro)
	}
	for kind, sizes := range figures {
		c := curve{Of: s.of, Name: kind, Flat: !slices.Contains(s.linear, kind)}
		for n, values := range sizes {
			c.Points = append(c.Points, point{n, median(values)})
		}
		slices.SortFunc(c.Points, func(a, b point) int { return cmp.Compare(a.N, b.N) })
		curves = append(curves, c)
	}
	slices.SortFunc(curves, func(a, b curve) int { return strings.Compare(a.Name, b.Name) })
	return curves
}

// parseLine reads "BenchmarkX/kind/N-2   1000   123 ns/op   7 p50-µs".
func parseLine(line string) (kind string, n, micro float64, ok bool) {
	f := strings.Fields(line)
	if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
		return "", 0, 0, false
	}
	_, name, _ := strings.Cut(f[0], "/")
	if i := strings.LastIndexByte(name, '-'); i >= 0 { // the number of processors
		if _, err := strconv.Atoi(name[i+1:]); err == nil {
			name = name[:i]
		}
	}
	i := strings.LastIndexByte(name, '/')
	kind = name[:max(i, 0)]
	n, err := strconv.ParseFloat(name[i+1:], 64)
	for j := 2; j+1 < len(f) && err == nil; j += 2 {
		v, wrong := strconv.ParseFloat(f[j], 64)
		switch err = errors.Join(err, wrong); f[j+1] {
		case "ns/op":
			micro = v / 1000
		case "p50-µs":
			return kind, n, v, err == nil
		}
	}
	return kind, n, micro, err == nil && micro > 0
}

func (c curve) text() string {
	var parts []string
	for _, p := range c.Points {
		parts = append(parts, fmt.Sprintf("%s: %.3g", size(p.N), p.Micro))
	}
	return strings.Join(parts, "  ")
}

func size(n float64) string {
	switch {
	case n >= 1e6:
		return fmt.Sprintf("%gM", n/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%gk", n/1e3)
	default:
		return fmt.Sprintf("%g", n)
	}
}

func curvesTable(out io.Writer, curves []curve) error {
	fmt.Fprintln(out, thisMachine())
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "of\tkind\tµs at number\tgrows\tflat")
	for _, c := range curves {
		fmt.Fprintf(w, "%s\t%s\t%s\t%.2f\t%s\n", c.Of, c.Name, c.text(), c.growth(), c.met())
	}
	return w.Flush()
}

func curvesMarkdown(out io.Writer, curves []curve) error {
	_, err := fmt.Fprintf(out, "%s.\n\n| number of | kind | µs at number | grows | flat |\n|---|---|---|---|---|\n", thisMachine())
	for _, c := range curves {
		_, wrong := fmt.Fprintf(out, "| %s | %s | %s | %.2f | %s |\n", c.Of, c.Name, c.text(), c.growth(), c.met())
		err = errors.Join(err, wrong)
	}
	return err
}

// drawCurves draws one picture per thing that grows, both axes logarithmic: sizes from 1 to ten
// millions, costs from ten nanoseconds to ten milliseconds.
func drawCurves(curves []curve) string {
	const width, height, gap, decades = 420.0, 260.0, 60.0, 6.0
	colours := []string{"#36c", "#3a7", "#c63", "#939", "#690", "#066", "#a33", "#555"}
	var panels []string
	count := map[string]int{}
	var b strings.Builder
	for _, c := range curves {
		if !slices.Contains(panels, c.Of) {
			panels = append(panels, c.Of)
		}
		top := float64(slices.Index(panels, c.Of)) * (height + gap)
		x := func(n float64) float64 { return gap + width*math.Log10(max(n, 1))/7 }
		y := func(micro float64) float64 {
			return top + gap/2 + height*(1-(math.Log10(max(micro, 0.01))+2)/decades)
		}
		if count[c.Of] == 0 {
			fmt.Fprintf(&b, `<text x="%.0f" y="%.0f">%s</text><rect x="%.0f" y="%.0f" width="%.0f" height="%.0f" fill="none" stroke="#999"/>`+"\n",
				gap, top+gap/2-6, html.EscapeString("µs over the number of "+c.Of), gap, top+gap/2, width, height)
			for d := -2.0; d <= 4; d++ {
				fmt.Fprintf(&b, `<text x="4" y="%.0f">%g</text>`, y(math.Pow(10, d)), math.Pow(10, d))
			}
			for d := 0.0; d <= 7; d++ {
				fmt.Fprintf(&b, `<text x="%.0f" y="%.0f">%s</text>`, x(math.Pow(10, d)), top+gap/2+height+14, size(math.Pow(10, d)))
			}
		}
		colour := colours[count[c.Of]%len(colours)]
		var line []string
		for _, p := range c.Points {
			line = append(line, fmt.Sprintf("%.1f,%.1f", x(p.N), y(p.Micro)))
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s"/><text x="%.0f" y="%.0f" fill="%s">%s</text>`+"\n",
			strings.Join(line, " "), colour, gap+width+8, top+gap/2+12+float64(count[c.Of])*14, colour, html.EscapeString(c.Name))
		count[c.Of]++
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" font-family="sans-serif" font-size="11">`+"\n%s</svg>\n",
		width+4*gap, float64(len(panels))*(height+gap)+gap, b.String())
}
