package main

import (
	"fmt"
	"html"
	"io"
	"strings"
	"text/tabwriter"
)

// table prints the rows for people.
func table(out io.Writer, rep report) error {
	fmt.Fprintln(out, rep.Machine)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "mode\trow\tunit\tkernel\tgatun\tratio\tmin\tmax\tmust\taim\tmet\tCPU\tTUN/flow\tfailed\t")
	for _, r := range rep.Rows {
		fmt.Fprintln(w, strings.Join([]string{
			r.Mode, r.Name, r.Unit, r.kernel(), number(r.Gatun), r.ratio(), number(r.Min), number(r.Max),
			r.bar(r.Must), r.bar(r.Aim), r.met(), r.cpu(), r.perFlow(), fmt.Sprintf("%.0f", r.Failed), "",
		}, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, line := range remarks(rep) {
		fmt.Fprintln(out, line)
	}
	return nil
}

// markdown prints what docs/performance.md has: the same table, and below it what is to be said.
func markdown(out io.Writer, rep report) error {
	fmt.Fprintf(out, "%s.\n\n| mode | row | kernel | gatun | ratio (min–max) | must | aim | met | CPU |\n|---|---|---|---|---|---|---|---|---|\n", rep.Machine)
	for _, r := range rep.Rows {
		kernel, spread := r.kernel(), fmt.Sprintf("**%s** (%s–%s)", r.ratio(), number(r.Min), number(r.Max))
		if kernel != "" {
			kernel += " " + r.Unit
		}
		if r.Absolute {
			spread = fmt.Sprintf("(%s–%s)", number(r.Min), number(r.Max))
		}
		gatun := number(r.Gatun) + " " + r.Unit
		if r.Absolute {
			gatun = "**" + number(r.Figure) + " " + r.Unit + "**"
		}
		fmt.Fprintf(out, "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", r.Mode, r.Name, kernel, gatun, spread,
			strings.NewReplacer(">=", "≥ ", "<=", "≤ ").Replace(r.bar(r.Must)), strings.NewReplacer(">=", "≥ ", "<=", "≤ ").Replace(r.bar(r.Aim)), r.met(), r.cpu())
	}
	fmt.Fprintln(out)
	for _, line := range remarks(rep) {
		fmt.Fprintln(out, "* "+line)
	}
	return nil
}

// remarks are what the columns have no room for.
func remarks(rep report) (lines []string) {
	for _, r := range rep.Rows {
		if r.Wrong != "" {
			lines = append(lines, fmt.Sprintf("%s %s: %s", r.Mode, r.Name, r.Wrong))
		}
		if r.Failed > 0 {
			lines = append(lines, fmt.Sprintf("%s %s: %.0f failed: %s", r.Mode, r.Name, r.Failed, r.Reason))
		}
		if r.Note != "" {
			lines = append(lines, fmt.Sprintf("%s %s: %s", r.Mode, r.Name, r.Note))
		}
	}
	return append(lines, rep.Notes...)
}

// number has as many places as are of use.
func number(v float64) string {
	switch {
	case v >= 1000 || v <= -1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 100 || v <= -100:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func (r row) kernel() string {
	if r.Kernel == 0 {
		return ""
	}
	return number(r.Kernel)
}

func (r row) ratio() string {
	if r.Absolute {
		return ""
	}
	return number(r.Figure)
}

func (r row) bar(v *float64) string {
	switch {
	case v == nil:
		return ""
	case r.Cost:
		return "<=" + number(*v)
	default:
		return ">=" + number(*v)
	}
}

func (r row) cpu() string {
	if r.CPUUnit == "" {
		return ""
	}
	return number(r.CPU) + " " + r.CPUUnit
}

func (r row) perFlow() string {
	if r.Crossed == nil {
		return ""
	}
	return number(*r.Crossed)
}

// score is how good a row is, for the picture: its ratio to the kernel, or to its must where the
// number itself counts; longer is better.
func (r row) score() (score, must float64) {
	score, must = r.Figure, 1
	if r.Must != nil {
		must = *r.Must
	}
	switch {
	case r.Absolute:
		return must / max(r.Figure, 1e-9), 1
	case r.Cost:
		return 1 / max(r.Figure, 1e-9), 1 / must
	default:
		return score, must
	}
}

// draw makes the table a picture: one bar per row, with a line at what it must reach.
func draw(rows []row) string {
	const height, scale, left = 22, 300.0, 210
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n",
		left+int(scale*2)+120, height*(len(rows)+2))
	fmt.Fprintf(&b, `<text x="4" y="15">ratio to the plain kernel path, longer is better (line: must)</text>`+"\n")
	for i, r := range rows {
		y := height * (i + 1)
		score, must := r.score()
		colour, label := "#3a7", r.ratio()
		if r.Absolute {
			label = number(r.Figure) + " " + r.Unit
		}
		if r.met() == "no" {
			colour = "#c63"
		}
		fmt.Fprintf(&b, `<text x="4" y="%d">%s</text><rect x="%d" y="%d" width="%.0f" height="%d" fill="%s"/><path d="M%.0f %d v%d" stroke="#000"/><text x="%.0f" y="%d">%s</text>`+"\n",
			y+15, html.EscapeString(r.Mode+" "+r.Name), left, y+3, scale*max(0, min(score, 2)), height-6, colour,
			left+scale*min(must, 2), y+1, height-2, left+scale*max(0, min(score, 2))+6, y+15, html.EscapeString(label))
	}
	b.WriteString("</svg>\n")
	return b.String()
}
