package route

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// hosts are the machines of the golden files, one constructor each.
func hosts() map[string]HostState {
	p := netip.MustParsePrefix
	a := netip.MustParseAddr
	lo := Link{Index: 1, Name: "lo", Loopback: true, Up: true}
	eth := Link{Index: 2, Name: "eth0", Up: true}
	tun := Link{Index: 9, Name: DeviceName, Up: true}
	any4, any6 := p("0.0.0.0/0"), p("::/0")
	return map[string]HostState{
		"desktop": {
			Links: []Link{lo, eth, tun},
			Addrs: []Addr{
				{Link: "lo", Prefix: p("127.0.0.1/8")}, {Link: "eth0", Prefix: p("192.0.2.10/24")},
				{Link: "eth0", Prefix: p("fe80::10/64")}, {Link: "eth0", Prefix: p("2001:db8::10/64")},
				{Link: "eth0", Prefix: p("2001:db8::1234/64"), Temporary: true},
				{Link: "eth0", Prefix: p("2001:db8::9999/64"), Temporary: true, Deprecated: true},
				{Link: "eth0", Prefix: p("2001:db8::7/64"), Temporary: true, Tentative: true},
			},
			Routes: []MainRoute{
				{Dst: any4, Link: "eth0", Gateway: a("192.0.2.1")}, {Dst: p("192.0.2.0/24"), Link: "eth0", Src: a("192.0.2.10")},
				{Dst: any6, Link: "eth0", Gateway: a("fe80::1"), Metric: 1024}, {Dst: p("2001:db8::/64"), Link: "eth0", Metric: 256},
				{Dst: p("fe80::/64"), Link: "eth0", Metric: 256}, {Dst: p("ff00::/8"), Link: "eth0", Metric: 256},
			},
		},
		// DHCP option 121 pushed two more specific routes; another VPN is up; docker has a bridge.
		"crowded": {
			Links: []Link{lo, eth, tun, {Index: 3, Name: "wlan0", Up: true}, {Index: 4, Name: "wg0", Up: true}, {Index: 5, Name: "docker0", Up: true}},
			Addrs: []Addr{
				{Link: "eth0", Prefix: p("192.0.2.10/24")}, {Link: "eth0", Prefix: p("198.18.0.10/24")}, {Link: "wlan0", Prefix: p("192.0.2.11/24")},
				{Link: "wg0", Prefix: p("10.9.0.2/32")}, {Link: "docker0", Prefix: p("172.17.0.1/16")},
			},
			Routes: []MainRoute{
				{Dst: any4, Link: "wlan0", Gateway: a("192.0.2.1"), Metric: 600}, {Dst: any4, Link: "eth0", Gateway: a("198.18.0.1"), Metric: 100},
				{Dst: p("192.0.2.0/24"), Link: "wlan0", Metric: 600}, {Dst: p("192.0.2.0/24"), Link: "eth0", Metric: 100},
				{Dst: p("0.0.0.0/1"), Link: "eth0", Gateway: a("198.18.0.66")}, {Dst: p("203.0.113.7/32"), Link: "eth0", Gateway: a("198.18.0.66")},
				{Dst: p("10.0.0.0/8"), Link: "wg0"}, {Dst: p("172.17.0.0/16"), Link: "docker0", Src: a("172.17.0.1")},
				{Dst: p("224.0.0.0/4"), Link: "eth0"}, {Dst: p("169.254.0.0/16"), Link: "eth0"},
				{Dst: p("100.64.0.0/10"), Link: DeviceName}, {Dst: p("10.1.0.0/16"), Link: "unknown9"},
			},
		},
		"ipv4 only kernel": {
			Links: []Link{lo, eth, tun}, NoIPv6: true,
			Addrs:  []Addr{{Link: "eth0", Prefix: p("192.0.2.10/24")}},
			Routes: []MainRoute{{Dst: any4, Link: "eth0", Gateway: a("192.0.2.1")}},
		},
		"no addresses": {Links: []Link{lo, eth, tun}},
		"device gone":  {Links: []Link{lo, eth}, Addrs: []Addr{{Link: "eth0", Prefix: p("192.0.2.10/24")}}, Routes: []MainRoute{{Dst: any4, Link: "eth0", Gateway: a("192.0.2.1")}}},
	}
}

var update = flag.Bool("update", false, "write the golden files")

func TestPlansAreAsWrittenDown(t *testing.T) {
	policy := Policy{UID: 0, MTU: 1500}
	for name, h := range hosts() {
		for system, compute := range map[string]func(Names, HostState, Policy) Plan{"linux": Compute, "darwin": ComputeDarwin, "windows": ComputeWindows} {
			t.Run(name+"/"+system, func(t *testing.T) {
				golden(t, strings.ReplaceAll(name, " ", "-")+"."+system, compute(DefaultNames(), h, policy).String())
			})
		}
	}
	t.Run("blockLAN", func(t *testing.T) {
		n := DefaultNames().WithMark(0x00010000).WithTable(77)
		golden(t, "guard-blocklan.linux", NewGuard(n, Policy{UID: 990, BlockLAN: true}).String()+"\n")
	})
	t.Run("inbound", func(t *testing.T) {
		golden(t, "guard-inbound.linux", NewGuard(DefaultNames(), Policy{Inbound: InboundQueued}).String()+"\n")
	})
	t.Run("dns", func(t *testing.T) {
		golden(t, "guard-dns.linux", NewGuard(DefaultNames(), Policy{DNSPort: 325}).String()+"\n")
	})
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// The properties that no golden file may lose by an -update.
func TestLinuxPlanProperties(t *testing.T) {
	for name, h := range hosts() {
		t.Run(name, func(t *testing.T) {
			n := DefaultNames()
			ops := Compute(n, h, Policy{MTU: 1500}).Ops
			if _, ok := ops[0].(Guard); !ok {
				t.Error("the guard is not the first operation")
			}
			captures, floors, sawRule := 0, 0, false
			for _, op := range ops {
				switch op := op.(type) {
				case Route:
					if sawRule {
						t.Error("a route comes after the first rule: traffic would find an unfinished table")
					}
					if op.Unreachable {
						floors++
					} else if op.Link != n.Device {
						t.Errorf("%s does not lead into the TUN device", op)
					}
				case Rule:
					sawRule = true
					if op.Table == n.Table {
						captures++
					} else if op.Mask == 0 && !op.To.IsValid() {
						t.Errorf("%s lets main win for ordinary sockets", op)
					}
				}
			}
			if want := len(families(h)); captures != want || floors != want {
				t.Errorf("%d capturing rules and %d floors, want %d each", captures, floors, want)
			}
			if r, ok := ops[len(ops)-1].(Rule); !ok || r.Table != n.Table {
				t.Error("the last operation is not the rule that captures")
			}
		})
	}
}

func TestHalvesCoverAndWin(t *testing.T) {
	for _, s := range []string{"0.0.0.0/0", "::/0", "10.0.0.0/8", "192.0.2.0/24", "203.0.113.6/31", "2001:db8::/64"} {
		p := netip.MustParsePrefix(s)
		two := halves(p)
		if len(two) != 2 || two[0].Bits() != p.Bits()+1 || two[0].Overlaps(two[1]) || !p.Overlaps(two[0]) || !p.Overlaps(two[1]) {
			t.Errorf("halves(%s) = %v", p, two)
		}
	}
	if h := halves(netip.MustParsePrefix("203.0.113.7/32")); h != nil {
		t.Errorf("a host route has no halves, got %v", h)
	}
}

func TestNamesValidate(t *testing.T) {
	n := DefaultNames()
	if err := n.Validate(); err != nil {
		t.Error(err)
	}
	if n.OldMark != 0x67620000 {
		t.Errorf("old mark %#x", n.OldMark)
	}
	for _, bad := range []Names{{}, n.WithMark(0), n.WithMark(5), n.WithMark(0xffff0000), n.WithTable(254), n.WithTable(0), n.WithTable(-1)} {
		if bad.Validate() == nil {
			t.Errorf("%+v is valid", bad)
		}
	}
}

func TestStateDiagram(t *testing.T) {
	states := []State{Off, Starting, On, Reconfiguring, Degraded, Stopping}
	for _, s := range states {
		if s.may(Off) && s != Stopping {
			t.Errorf("%s may become off without stopping", s)
		}
		if Off.may(s) && s != Starting {
			t.Errorf("off may become %s without starting", s)
		}
		if strings.HasPrefix(s.String(), "state") {
			t.Errorf("state %d has no name", s)
		}
	}
	if State(99).may(On) || State(99).String() != "state 99" {
		t.Error("an unknown state has edges or a name")
	}
}

func testJournal() journal {
	return journal{Names: DefaultNames().WithTable(4711), Ops: []string{"nft table inet gatun", "link gatun0"},
		Sysctls: []sysctlRecord{{Key: "net.ipv4.conf.all.src_valid_mark", Old: "0", New: "1"}}}
}

func TestJournalSurvivesTheDisk(t *testing.T) {
	dir := t.TempDir()
	if err := writeJournal(dir, testJournal()); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, journalFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	got, ok, err := readJournal(dir)
	if !ok || err != nil || cmp.Diff(testJournal(), got) != "" {
		t.Errorf("%v %v %s", ok, err, cmp.Diff(testJournal(), got))
	}
	if err := os.WriteFile(filepath.Join(dir, journalFile+".123"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := removeJournal(dir); err != nil {
			t.Error(err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if _, ok, err := readJournal(dir); ok || err != nil {
		t.Errorf("an absent journal: %v %v", ok, err)
	}
}

// Any prefix is recoverable: it yields the names or nothing, and never a half record.
func TestEveryJournalPrefixDecodes(t *testing.T) {
	b, err := testJournal().encode()
	if err != nil {
		t.Fatal(err)
	}
	first := bytes.IndexByte(b, '\n')
	for i := range len(b) + 1 {
		j := decodeJournal(b[:i])
		if (j.Names == testJournal().Names) != (i >= first) || j.Names != testJournal().Names && j.Names != (Names{}) {
			t.Fatalf("prefix %d: names %+v", i, j.Names)
		}
		if len(j.Sysctls) > 0 && j.Sysctls[0] != testJournal().Sysctls[0] {
			t.Fatalf("prefix %d: sysctl %+v", i, j.Sysctls[0])
		}
	}
}

func FuzzJournal(f *testing.F) {
	b, err := testJournal().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"sysctl":{"key":"kernel.core_pattern","old":"|/bin/sh","new":"core"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		j := decodeJournal(b)
		if j.Names != (Names{}) && j.Names.Validate() != nil {
			t.Errorf("invalid names %+v", j.Names)
		}
		for _, s := range j.Sysctls {
			if !sysctlKnown(s.Key) {
				t.Errorf("a journal may write %q", s.Key)
			}
		}
	})
}
