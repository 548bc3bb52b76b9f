package docs

import (
	"bytes"
	"encoding/xml"
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"

	"gatun/firewall"
	"gatun/network"
)

var update = flag.Bool("update", false, "write the generated files instead of comparing them")

// TestDecisionFlow keeps docs/decision-flow.svg what the list of deciders says (SB-28). Run
// `go test ./docs -run DecisionFlow -update` after a change of the list.
func TestDecisionFlow(t *testing.T) {
	want := decisionFlow(firewall.Deciders())
	if err := xml.Unmarshal(want, new(struct{})); err != nil {
		t.Fatalf("not XML: %v", err)
	}
	if *update {
		if err := os.WriteFile("decision-flow.svg", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile("decision-flow.svg")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Error("decision-flow.svg is not what the deciders say: run `go test ./docs -run DecisionFlow -update`")
	}
}

const (
	rowHeight = 46
	listTop   = 150
	listLeft  = 330
	listWidth = 230
)

// flowStages are the columns, in the order in which a flow meets them.
func flowStages() []struct {
	stage network.Stage
	text  string
} {
	return []struct {
		stage network.Stage
		text  string
	}{
		{network.StageBeforeIntel, "name, before it is resolved"}, {network.StageAfterIntel, "name, with its addresses"},
		{network.StageCommunication, "program and name"}, {network.StageLink, "first packet, all facts"},
	}
}

// decisionFlow draws one row per decider: left the stages in which it runs, right what it may say.
func decisionFlow(list []firewall.DeciderInfo) []byte {
	var b bytes.Buffer
	height := listTop + len(list)*rowHeight + 60
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="960" height="%d" viewBox="0 0 960 %d" font-family="sans-serif" font-size="13">`+"\n", height, height)
	b.WriteString(`<title>How gatun decides</title>
<style>text{fill:#1b1f24}.quiet{fill:#57606a;font-size:11px}.box{fill:#f6f8fa;stroke:#8c959f}.dot{fill:#0969da}.line{stroke:#8c959f;fill:none}.bg{fill:#fff}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.quiet{fill:#9198a1}.box{fill:#161b22;stroke:#6e7681}.dot{fill:#4493f8}.line{stroke:#6e7681}.bg{fill:#0d1117}}</style>
<rect class="bg" width="100%" height="100%"/>
<text x="30" y="32" font-size="18" font-weight="bold">How gatun decides</text>
<text class="quiet" x="30" y="52">From top to bottom, once per stage; the first decider that says something ends the stage. A dot: it runs in that stage.</text>
`)
	for i, s := range flowStages() {
		x := 60 + i*70
		fmt.Fprintf(&b, `<text class="quiet" transform="translate(%d,%d) rotate(-28)">%s</text>`+"\n", x, listTop-14, s.text)
		fmt.Fprintf(&b, `<line class="line" x1="%d" y1="%d" x2="%d" y2="%d"/>`+"\n", x, listTop, x, listTop+len(list)*rowHeight-16)
	}
	for i, d := range list {
		flowRow(&b, listTop+i*rowHeight, d)
	}
	y := listTop + len(list)*rowHeight
	fmt.Fprintf(&b, `<text class="quiet" x="%d" y="%d">undecided at a name's stage: resolve, then decide again; undecided at the end: blocked</text>`+"\n</svg>\n", listLeft, y+14)
	return b.Bytes()
}

func flowRow(b *bytes.Buffer, y int, d firewall.DeciderInfo) {
	for i, s := range flowStages() {
		if slices.Contains(d.Stages, s.stage) {
			fmt.Fprintf(b, `<circle class="dot" cx="%d" cy="%d" r="5"/>`+"\n", 60+i*70, y+15)
		}
	}
	fmt.Fprintf(b, `<rect class="box" x="%d" y="%d" width="%d" height="30" rx="5"/><text x="%d" y="%d">%d  %s</text>`+"\n", listLeft, y, listWidth, listLeft+12, y+20, d.Number, d.Name)
	if d.Results != "" {
		fmt.Fprintf(b, `<path class="line" d="M%d %dh28l-5-4m5 4l-5 4"/><text x="%d" y="%d">%s</text>`+"\n", listLeft+listWidth, y+15, listLeft+listWidth+38, y+14, d.Results)
	}
	if d.Setting != "" {
		fmt.Fprintf(b, `<text class="quiet" x="%d" y="%d">%s</text>`+"\n", listLeft+listWidth+38, y+29, d.Setting)
	}
	fmt.Fprintf(b, `<path class="line" d="M%d %dv%dl-4-5m4 5l4-5"/>`+"\n", listLeft+listWidth/2, y+30, rowHeight-30)
}
