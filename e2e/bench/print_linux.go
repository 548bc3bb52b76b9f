package main

import (
	"fmt"
	"html"
	"io"
	"strings"
	"text/tabwriter"
)

// table prints the rows for people.
func table(out io.Writer, rows []row) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "mode\twork\tunit\tkernel\tgatun\tratio\tmin\tmax\tmust\tmet\tCPU s/GB\tfailed\t")
	for _, r := range rows {
		bar, met := fmt.Sprintf(">=%.2f", r.Must), "yes"
		if r.Cost {
			bar = fmt.Sprintf("<=%.2f", r.Must)
		}
		if !r.met() {
			met = "no"
		}
		cpu := ""
		if r.CPU > 0 {
			cpu = fmt.Sprintf("%.2f", r.CPU)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%.4g\t%.4g\t%.2f\t%.2f\t%.2f\t%s\t%s\t%s\t%.0f\t\n",
			r.Mode, r.Name, r.Unit, r.Kernel, r.Gatun, r.Ratio, r.Min, r.Max, bar, met, cpu, r.Failed)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, r := range rows {
		if r.Failed > 0 {
			fmt.Fprintf(out, "%s %s: %.0f failed: %s\n", r.Mode, r.Name, r.Failed, r.Reason)
		}
	}
	return nil
}

// draw makes the table a picture: one bar per row, as long as its ratio, with a line at the bar
// that it must reach.
func draw(rows []row) string {
	const height, scale, left = 22, 300.0, 190
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n",
		left+int(scale*2)+120, height*(len(rows)+2))
	fmt.Fprintf(&b, `<text x="4" y="15">ratio to the plain kernel path (line: must)</text>`+"\n")
	for i, r := range rows {
		y := height * (i + 1)
		ratio, must := r.Ratio, r.Must
		if r.Cost { // less is better: draw the inverse, so that longer is better everywhere
			ratio, must = 1/max(ratio, 1e-9), 1/must
		}
		colour := "#3a7"
		if !r.met() {
			colour = "#c63"
		}
		fmt.Fprintf(&b, `<text x="4" y="%d">%s</text><rect x="%d" y="%d" width="%.0f" height="%d" fill="%s"/><path d="M%.0f %d v%d" stroke="#000"/><text x="%.0f" y="%d">%.2f</text>`+"\n",
			y+15, html.EscapeString(r.Mode+" "+r.Name), left, y+3, scale*min(ratio, 2), height-6, colour,
			left+scale*min(must, 2), y+1, height-2, left+scale*min(ratio, 2)+6, y+15, r.Ratio)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
