package netenv

import (
	"encoding/json"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestStateIsTheTable reads the table of the package's documentation and compares it with
// evidence.state for every combination there is: nobody may change one without the other.
func TestStateIsTheTable(t *testing.T) {
	src, err := os.ReadFile("snapshot.go")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(src), "//\tway ")
	table, _, ok2 := strings.Cut(rest, "//\n")
	if !ok || !ok2 {
		t.Fatal("the table is not there")
	}
	row := regexp.MustCompile(`^//\t(nowhere|local|out) +(\*|foreign|as known|failed|not asked) +(\*|failed) +(\*|made|failed) +([a-z-]+)`)
	var rows [][]string
	for _, line := range strings.Split(strings.TrimSpace(table), "\n")[1:] {
		m := row.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("not a row: %q", line)
		}
		rows = append(rows, m[1:])
	}
	ways := map[way]string{nowhere: "nowhere", local: "local", out: "out"}
	pages := map[finding]string{unasked: "not asked", failed: "failed", succeeded: "as known", foreign: "foreign"}
	names := map[finding]string{unasked: "not asked", failed: "failed", succeeded: "answered"}
	conns := map[finding]string{unasked: "not heard of", failed: "failed", succeeded: "made"}
	used, n := map[string]bool{}, 0
	for w, wt := range ways {
		for p, pt := range pages {
			for a, at := range names {
				for c, ct := range conns {
					want := ""
					for _, r := range rows {
						if fits(r[0], wt) && fits(r[1], pt) && fits(r[2], at) && fits(r[3], ct) {
							want = r[4]
							used[strings.Join(r, " ")] = true
							break
						}
					}
					if got := (evidence{w, p, a, c}).state().String(); got != want {
						t.Errorf("%s, page %s, names %s, connections %s: %s, the table says %q", wt, pt, at, ct, got, want)
					}
					n++
				}
			}
		}
	}
	if n != 108 || len(used) != len(rows) {
		t.Errorf("%d combinations, %d of %d rows of the table are ever the first", n, len(used), len(rows))
	}
}

func fits(pattern, value string) bool { return pattern == "*" || pattern == value }

// TestPortalBeatsEverything: no hint and no name makes a machine online while something else
// answers for the page.
func TestPortalBeatsEverything(t *testing.T) {
	for a := range foreign {
		for c := range foreign {
			if s := (evidence{out, foreign, a, c}).state(); s != Portal {
				t.Errorf("names %d, connections %d: %s", a, c, s)
			}
		}
	}
}

func TestOnlineStateText(t *testing.T) {
	for s := Unknown; s <= Online; s++ {
		b, err := json.Marshal(s)
		var back OnlineState
		if err2 := json.Unmarshal(b, &back); err != nil || err2 != nil || back != s || string(b) != `"`+s.String()+`"` {
			t.Errorf("%s: %s, %v, %v", s, b, err, err2)
		}
	}
	if got := OnlineState(99).String(); got != "unknown" {
		t.Errorf("what is no state is %q", got)
	}
	var s OnlineState
	if err := json.Unmarshal([]byte(`"offlin"`), &s); err == nil {
		t.Errorf("offlin is read as %s", s)
	}
}

func TestWay(t *testing.T) {
	iface := func(kind string, up bool, addrs ...string) Snapshot {
		i := Interface{Name: "x", Kind: kind, Up: up}
		for _, a := range addrs {
			i.Addrs = append(i.Addrs, netip.MustParsePrefix(a))
		}
		return Snapshot{Interfaces: []Interface{i}}
	}
	route := iface(kindEthernet, true, "192.0.2.2/24")
	route.DefaultRoute = true
	for name, c := range map[string]struct {
		s    Snapshot
		want way
	}{
		"nothing":           {Snapshot{}, nowhere},
		"loopback":          {iface(kindLoopback, true, "127.0.0.1/8"), nowhere},
		"no address":        {iface(kindEthernet, true), nowhere},
		"link-local only":   {iface(kindEthernet, true, "169.254.1.2/16", "fe80::1/64"), nowhere},
		"pulled cable":      {iface(kindEthernet, false, "192.0.2.2/24"), nowhere},
		"address, no route": {iface(kindEthernet, true, "192.0.2.2/24"), local},
		"with a route":      {route, out},
	} {
		if got := c.s.way(); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func TestElsewhere(t *testing.T) {
	make := func(edit func(*Snapshot)) Snapshot {
		s := Snapshot{DefaultRoute: true, Nameservers: []netip.Addr{netip.MustParseAddr("192.0.2.53")},
			Gateways: []Gateway{{Addr: netip.MustParseAddr("192.0.2.1"), Interface: "eth0", MAC: "02:00:5e:10:00:01"}}}
		edit(&s)
		return s
	}
	same := make(func(*Snapshot) {})
	for name, c := range map[string]struct {
		edit func(*Snapshot)
		want bool
	}{
		"nothing":                 {func(*Snapshot) {}, false},
		"the MAC is forgotten":    {func(s *Snapshot) { s.Gateways[0].MAC = "" }, false},
		"an interface came":       {func(s *Snapshot) { s.Interfaces = []Interface{{Name: "veth1", Up: true}} }, false},
		"a suffix":                {func(s *Snapshot) { s.DNSSuffixes = []string{"x"} }, false},
		"another gateway":         {func(s *Snapshot) { s.Gateways[0].Addr = netip.MustParseAddr("192.0.2.2") }, true},
		"the same address by MAC": {func(s *Snapshot) { s.Gateways[0].MAC = "02:00:5e:10:00:02" }, true},
		"other nameservers":       {func(s *Snapshot) { s.Nameservers = nil }, true},
		"no way out":              {func(s *Snapshot) { s.DefaultRoute = false }, true},
	} {
		if got := same.elsewhere(make(c.edit)); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
		if got := make(c.edit).elsewhere(same); got != c.want {
			t.Errorf("%s, the other way round: %v", name, got)
		}
	}
}
