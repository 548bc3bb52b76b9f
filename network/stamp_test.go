package network

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gatun/attribution"
	"gatun/intel"
	"gatun/network/packet"
)

// TestStampInReports: a flow shows where its other end is, the lists that it is on, and the place in
// the one that decided; also after the table was compacted.
func TestStampInReports(t *testing.T) {
	table := NewTable(time.Now)
	f := packet.Flow{Proto: packet.TCP, Local: netip.MustParseAddrPort("10.0.0.2:40000"), Remote: netip.MustParseAddrPort("198.51.100.1:443")}
	l, _ := table.Link(f)
	var bare map[string]any
	b, err := json.Marshal(l.Report())
	if err == nil {
		err = json.Unmarshal(b, &bare)
	}
	if lists, ok := bare["lists"].([]any); err != nil || !ok || len(lists) != 0 || bare["country"] != "" || bare["asn"] != 0.0 || bare["list"] != nil {
		t.Errorf("nothing is known: %v %s", err, b)
	}
	l.SetComm(&Communication{Owner: attribution.Unidentified("test")})
	l.SetStamp(&intel.Stamp{
		Country: "DE", Continent: "EU", ASN: 64500, ASOwner: "Net",
		Lists: []intel.Match{
			{ID: "first", Category: "UNBREAK", Source: "/fix", Line: 1, Name: "x.example"},
			{ID: "ads", Category: "ADS", Source: "/ads", Line: 7, Name: strings.Repeat("a", 10) + ".example"},
			{ID: "ads", Category: "ADS", Source: "/ads", Line: 8, Name: "example"},
		},
	})
	table.Decide(l, Decision{Verdict: Block, Stage: StageLink, List: "ads"})
	check := func(when string) {
		t.Helper()
		r := table.Get(l.ID()).Report()
		if diff := cmp.Diff([]string{"first", "ads"}, r.Lists); diff != "" || r.Country != "DE" || r.ASN != 64500 || r.ASOwner != "Net" {
			t.Errorf("%s: %s %+v", when, diff, r)
		}
		if diff := cmp.Diff(&ReportList{"ads", "ADS", "/ads", 7, "aaaaaaaaaa.example"}, r.List); diff != "" {
			t.Errorf("%s: %s", when, diff)
		}
	}
	check("live")
	was := l.Stamp()
	table.End(l, "blocked")
	table.Compact()
	check("compacted")
	if now := table.Get(l.ID()).Stamp(); now == was {
		t.Error("what lists say was not copied")
	}
}
