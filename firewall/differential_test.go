package firewall

import (
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gatun/attribution"
	"gatun/e2e/policytest"
	"gatun/network"
	"gatun/network/packet"
)

const (
	differentialSeed     = 20261122
	differentialPolicies = 1250
	flowsPerPolicy       = 8
)

// seed is fixed, so that a failure is seen again; GATUN_SEED names another.
func seed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv("GATUN_SEED")
	if text == "" {
		return differentialSeed
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("GATUN_SEED: %v", err)
	}
	return n
}

// oneGoroutine leaves a long test out of the short run, which is for the race detector: that has
// nothing to see in it.
func oneGoroutine(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("long, and of one goroutine: the whole run has it")
	}
}

// TestDifferential holds 10 000 random pairs of flow and policy against the evaluator that was
// written from the policy's text alone: at each stage the same verdict, by the same rule of the
// same line, and `why` says so too.
func TestDifferential(t *testing.T) {
	oneGoroutine(t)
	world, dir, base := policytest.DefaultWorld(), t.TempDir(), seed(t)
	t.Logf("seed %d (GATUN_SEED)", base)
	verdicts, by, layers, touched, failures := map[string]int{}, map[string]int{}, map[string]int{}, 0, 0
	for i := range uint64(differentialPolicies) {
		g := world.Generate(base + i)
		p := g.Policy()
		l, err := load(dir, p, world.Network)
		if err != nil {
			t.Fatalf("seed %d: the program refuses a policy: %v\n%s", base+i, err, p.Render())
		}
		for range flowsPerPolicy {
			f := g.Flow()
			d := l.ref.FirstPacket(f)
			verdicts[d.Verdict]++
			by[d.Setting]++
			layers[d.Profile]++
			if d.Rule.Text != "" || f.Domain != "" && (l.ref.BeforeIntel(f).Rule.Text != "" || after(l.ref, f).Rule.Text != "") {
				touched++
			}
			if s := l.differ(f); s == "" {
				continue
			}
			failures++
			t.Errorf("seed %d: %s", base+i, minimal(t, p, world.Network, f))
			if failures >= 10 {
				t.Fatal("and so on")
			}
		}
	}
	pairs := differentialPolicies * flowsPerPolicy
	t.Logf("%d pairs, %d of them touched by a rule; verdicts %v, by %v, of layers %v", pairs, touched, verdicts, by, layers)
	enough := func(counts map[string]int, least int, names ...string) {
		for _, name := range names {
			if counts[name] < least {
				t.Errorf("only %d of %d flows have %q, want %d: the pairs say too little", counts[name], pairs, name, least)
			}
		}
	}
	enough(verdicts, pairs/100, "accept", "block", "drop", "ask", "nameserver")
	enough(by, pairs/500, "filter/endpoints", "filter/serviceEndpoints", "filter/defaultAction", "filter/blockInbound", "filter/blockP2P",
		"filter/blockInternet", "filter/blockLAN", "filter/blockLocal", "filter/lists", "filter/customLists", "filter/domainHeuristics")
	enough(layers, pairs/500, "", "here", "temporary", "p0", "p1")
	if touched < pairs/2 {
		t.Errorf("only %d of %d flows are touched by a rule", touched, pairs)
	}
}

// TestDifferentialRelated is the same where related names decide: the programs that all others
// rarely meet.
func TestDifferentialRelated(t *testing.T) {
	oneGoroutine(t)
	world, dir, base := policytest.DefaultWorld(), t.TempDir(), seed(t)
	world.Programs = slices.DeleteFunc(world.Programs, func(p policytest.Program) bool { return !strings.Contains(p.Path, "shop") })
	world.Names = slices.DeleteFunc(world.Names, func(n policytest.Name) bool {
		return !strings.HasSuffix(n.Domain, "example") && !strings.Contains(n.Domain, "shop")
	})
	world.Fixed = map[string]string{"filter/autoPermitRelated": "on", "core/releaseLevel": "beta", "filter/defaultAction": "block"}
	related := 0
	for i := range uint64(150) {
		g := world.Generate(base + i)
		p := g.Policy()
		l, err := load(dir, p, world.Network)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			f := g.Flow()
			if l.ref.FirstPacket(f).Setting == "filter/autoPermitRelated" {
				related++
			}
			if l.differ(f) != "" {
				t.Fatalf("seed %d: %s", base+i, minimal(t, p, world.Network, f))
			}
		}
	}
	if related < 30 {
		t.Errorf("only %d flows are permitted as related", related)
	}
}

func after(e *policytest.Evaluator, f *policytest.Flow) policytest.Decision {
	d, _ := e.AfterIntel(f)
	return d
}

// TestFoundByDifferential keeps the faults that the random pairs have found.
func TestFoundByDifferential(t *testing.T) {
	t.Run("who asks this machine on port 53 is no client of the nameserver", func(t *testing.T) {
		m := policy(t, "")
		c := comm("", "203.0.113.1")
		c.Direction = network.Inbound
		f := packet.Flow{Proto: packet.UDP, Local: netip.MustParseAddrPort("192.0.2.2:53"), Remote: netip.MustParseAddrPort("203.0.113.1:5000")}
		if d := m.Decide(c, f); d.Verdict != network.Drop || d.Setting != "filter/blockInbound" {
			t.Errorf("got %v by %q, want silence by blockInbound", d.Verdict, d.Setting)
		}
	})
	t.Run("a name is not cached as permitted while one of its addresses may be impossible", func(t *testing.T) {
		m := policy(t, "filter: {dnsQueryInterception: off}\ncore: {releaseLevel: experimental}\n")
		c := comm("a.example", "198.51.100.1")
		if d := m.Decide(c, flow(packet.TCP, "198.51.100.1:443")); d.Verdict != network.Accept {
			t.Fatalf("got %v", d.Verdict)
		}
		if d := m.Decide(c, flow(packet.TCP, "0.0.0.0:443")); d.Verdict != network.Block || d.Code != "invalid-address" {
			t.Errorf("got %v %q, want the address refused", d.Verdict, d.Code)
		}
	})
	t.Run("why does not know the aliases before the name is resolved", func(t *testing.T) {
		m := policy(t, "filter: {endpoints: [\"- .tracker.test\", \"-- *\"]}\n")
		q := Question{Owner: curl(), Entity: comm("a.example", "198.51.100.1").Entity, Flow: flow(packet.TCP, "198.51.100.1:443")}
		q.Entity.CNAMEs = []string{"cdn.tracker.test"}
		live := m.DecideOnCommunicationBeforeIntel(Name{Owner: curl(), Domain: "a.example"})
		if d, _ := m.Why(q); d != live {
			t.Errorf("why says %v, the live decision is %v", d, live)
		}
	})
	t.Run("what a process is counts for nothing while it is not sure that it is the owner", func(t *testing.T) {
		m := policy(t, "filter: {autoPermitRelated: on, defaultAction: block}\ncore: {releaseLevel: beta}\n")
		for confidence, want := range map[attribution.Confidence]network.Verdict{attribution.Exact: network.Accept, attribution.Ambiguous: network.Block} {
			c := comm("api.spotify.test", "198.51.100.1")
			c.Owner = attribution.Owner{Process: &attribution.Process{PID: 7, Path: "/opt/spotify/spotify", Kind: attribution.KindProgram}, Confidence: confidence}
			if d := m.Decide(c, flow(packet.TCP, "198.51.100.1:443")); d.Verdict != want {
				t.Errorf("%v: got %v (%s), want %v", confidence, d.Verdict, d.Reason, want)
			}
		}
	})
}
