package network

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gatun/attribution"
	"gatun/network/packet"
)

func flowTo(port uint16, remote string) packet.Flow {
	return packet.Flow{
		Proto: packet.TCP, Local: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), port), Remote: netip.MustParseAddrPort(remote),
	}
}

func program(pid int) attribution.Owner {
	return attribution.Owner{
		Process:    &attribution.Process{PID: pid, Path: "/usr/bin/curl", Kind: attribution.KindProgram},
		Confidence: attribution.Exact, Cause: "socket held by one process",
	}
}

func TestVerdictNames(t *testing.T) {
	want := map[Verdict]string{
		Undecided: "undecided", Accept: "accept", Block: "block", Drop: "drop", PermanentAccept: "permanent-accept",
		PermanentBlock: "permanent-block", PermanentDrop: "permanent-drop",
		RerouteToNameserver: "reroute-nameserver", RerouteToTunnel: "reroute-tunnel",
	}
	for v, s := range want {
		if v.String() != s {
			t.Errorf("%d: got %q, want %q", v, v, s)
		}
	}
	var zero Decision
	if zero.Decided() || zero.Verdict.Permits() {
		t.Error("the zero decision must be undecided and permit nothing")
	}
}

func TestScopeOf(t *testing.T) {
	for addr, want := range map[string]Scope{
		"127.0.0.1": Localhost, "::1": Localhost, "0.0.0.0": Localhost, "::": Localhost, "::ffff:127.0.0.1": Localhost,
		"10.1.2.3": LAN, "172.31.0.1": LAN, "192.168.1.1": LAN, "169.254.1.1": LAN, "100.64.0.1": LAN, "100.127.255.255": LAN,
		"224.0.0.251": LAN, "255.255.255.255": LAN, "fe80::1": LAN, "fd00::1": LAN, "ff02::fb": LAN, "0.1.2.3": LAN,
		"100.128.0.1": Internet, "172.32.0.1": Internet, "198.51.100.1": Internet, "2001:db8::1": Internet, "8.8.8.8": Internet,
	} {
		if got := ScopeOf(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: got %v, want %v", addr, got, want)
		}
	}
	if ScopeOf(netip.Addr{}) != ScopeUnknown {
		t.Error("no address has no scope")
	}
}

func TestLinkLifecycle(t *testing.T) {
	table := NewTable(time.Now)
	w := table.Watch(Now)
	defer w.Close()
	f := flowTo(40000, "198.51.100.1:443")
	l, known := table.Link(f)
	if known {
		t.Fatal("a new flow must not be known")
	}
	if again, known := table.Link(f); !known || again != l {
		t.Fatal("a live flow must be found again")
	}
	table.Decide(l, Decision{Verdict: Accept, Stage: StageLink})
	table.Decide(l, Decision{Verdict: Block, Stage: StageLink})
	table.End(l, "server closed")
	table.End(l, "late")
	if table.Find(f) != nil || table.LiveCount() != 0 {
		t.Error("an ended link must not be live")
	}
	if got := table.Get(l.ID()); got != l || got.Report().CloseCause != "server closed" {
		t.Error("an ended link must be kept with its first cause")
	}
	var got []string
	for len(w.Events()) > 0 {
		got = append(got, (<-w.Events()).Type.String())
	}
	if fmt.Sprint(got) != "[decided updated ended]" {
		t.Errorf("events: got %v", got)
	}
}

func TestEndKeepsANewerLinkOfTheSameFlow(t *testing.T) {
	table := NewTable(time.Now)
	f := flowTo(40000, "198.51.100.1:443")
	old, _ := table.Link(f)
	table.End(old, "replaced")
	newer, _ := table.Link(f)
	table.End(old, "again")
	if table.Find(f) != newer {
		t.Error("ending a link twice must not take its successor away")
	}
}

func TestEndedRingIsBounded(t *testing.T) {
	table := NewTable(time.Now)
	for i := range endedKept + 10 {
		l := table.NewQuery(flowTo(uint16(i), "198.51.100.1:53"))
		table.End(l, "answered")
	}
	all := table.All()
	if len(all) != endedKept {
		t.Fatalf("kept %d, want %d", len(all), endedKept)
	}
	if all[0].ID() != "11" {
		t.Errorf("the oldest must go first: got %s", all[0].ID())
	}
}

func TestWatchReplaysAndLoses(t *testing.T) {
	table := NewTable(time.Now)
	for range eventsKept + 5 {
		table.PublishState()
	}
	w := table.Watch(eventsKept)
	defer w.Close()
	if n := len(w.Events()); n != 5 {
		t.Fatalf("replayed %d events, want 5", n)
	}
	for want := uint64(eventsKept + 1); len(w.Events()) > 0; want++ {
		if e := <-w.Events(); e.Seq != want {
			t.Fatalf("replayed %d, want %d", e.Seq, want)
		}
	}
	for range watchBuffer + 7 {
		table.PublishState()
	}
	if w.Lost() != 7 {
		t.Errorf("lost %d events, want 7", w.Lost())
	}
}

func TestCommunicationIsShared(t *testing.T) {
	table := NewTable(time.Now)
	bind := func(port uint16, pid int, domain string) (*Link, *Communication) {
		l, _ := table.Link(flowTo(port, "198.51.100.1:443"))
		e := Entity{Addr: l.Flow.Remote.Addr(), Domain: domain}
		return l, table.Bind(l, &Communication{Owner: program(pid), Entity: e})
	}
	l1, c1 := bind(1, 7, "a.example")
	l2, c2 := bind(2, 7, "a.example")
	_, other := bind(3, 7, "b.example")
	_, stranger := bind(4, 8, "a.example")
	if c1 != c2 || c1 == other || c1 == stranger {
		t.Fatal("links share a Communication if program and name are the same, and only then")
	}
	d := Decision{Verdict: Accept}
	c1.Cache(3, &d)
	if c2.Cached(3) != &d || c2.Cached(4) != nil {
		t.Error("a cached decision holds for its revision only")
	}
	table.End(l1, "done")
	if _, c := bind(5, 7, "a.example"); c != c1 {
		t.Error("a Communication lives while one of its links does")
	}
	table.End(l2, "done")
	l5 := table.Find(flowTo(5, "198.51.100.1:443"))
	table.End(l5, "done")
	if _, c := bind(6, 7, "a.example"); c == c1 {
		t.Error("a Communication ends with its last link")
	}
}

func TestUnidentifiedOwnersShareNothing(t *testing.T) {
	table := NewTable(time.Now)
	l1, _ := table.Link(flowTo(1, "198.51.100.1:443"))
	l2, _ := table.Link(flowTo(2, "198.51.100.1:443"))
	e := Entity{Addr: l1.Flow.Remote.Addr()}
	c1 := table.Bind(l1, &Communication{Owner: attribution.Unidentified("gone"), Entity: e})
	c2 := table.Bind(l2, &Communication{Owner: attribution.Unidentified("gone"), Entity: e})
	if c1 == c2 {
		t.Error("two unknown processes must not share a decision")
	}
}

func TestKillOnce(t *testing.T) {
	table := NewTable(time.Now)
	l, _ := table.Link(flowTo(1, "198.51.100.1:443"))
	if l.Kill("x") {
		t.Error("nobody carries the link yet")
	}
	var causes []string
	kill := func(c string) { causes = append(causes, c) }
	l.OnKill(kill)
	if fmt.Sprint(causes) != "[x]" {
		t.Errorf("killed before it was carried: %v", causes)
	}
	causes = nil
	l, _ = table.Link(flowTo(2, "198.51.100.1:443"))
	l.OnKill(kill)
	if !l.Kill("first") || l.Kill("second") || fmt.Sprint(causes) != "[first]" {
		t.Errorf("kill: %v", causes)
	}
}

func TestDone(t *testing.T) {
	table := NewTable(time.Now)
	l, _ := table.Link(flowTo(1, "198.51.100.1:443"))
	open := l.Done()
	select {
	case <-open:
		t.Fatal("a live link is done")
	default:
	}
	if l.Done() != open {
		t.Error("two who wait have different channels")
	}
	table.End(l, "server closed")
	<-open
	<-l.Done()
	if next, known := table.Link(l.Flow); known || next == l {
		t.Error("the flow still has the old link")
	}
	late, _ := table.Link(flowTo(2, "198.51.100.1:443"))
	table.End(late, "server closed")
	<-late.Done()
	hidden := table.Unlisted(flowTo(3, "198.51.100.1:443"))
	table.End(hidden, "idle")
	<-hidden.Done()
}

func TestReportJSON(t *testing.T) {
	clock := func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("x", 3600)) }
	table := NewTable(clock)
	l, _ := table.Link(flowTo(40000, "[2001:db8::1]:443"))
	table.Bind(l, &Communication{Owner: program(7), Entity: Entity{Addr: l.Flow.Remote.Addr(), Domain: "a.example", Source: DomainDNS}})
	table.Decide(l, Decision{Verdict: Block, Stage: StageLink, Code: "rule", Rule: RuleRef{Text: "- *", File: "g.yaml", Line: 3}})
	l.AddSent(3)
	b, err := json.Marshal(l.Report())
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{
		"kind": "link", "direction": "outbound", "proto": "tcp", "local": "192.0.2.2:40000", "remote": "[2001:db8::1]:443",
		"domain": "a.example", "domain_source": "dns", "owner_confidence": "exact", "verdict": "block", "stage": "link",
		"started": "2026-01-02T02:04:05.000000006Z", "rule": "map[file:g.yaml line:3 text:- *]", "bytes_sent": "3", "ended": "<nil>",
	} {
		if got := fmt.Sprint(m[k]); got != want {
			t.Errorf("%s: got %s, want %s", k, got, want)
		}
	}
}

func TestTableRace(t *testing.T) {
	table := NewTable(time.Now)
	var wg sync.WaitGroup
	for p := range 4 {
		wg.Go(func() {
			for i := range 500 {
				l, _ := table.Link(flowTo(uint16(i), "198.51.100.1:443"))
				table.Bind(l, &Communication{Owner: program(p), Entity: Entity{Addr: l.Flow.Remote.Addr()}})
				table.Decide(l, Decision{Verdict: Accept})
				_ = table.All()[0].Report()
				table.End(l, "done")
			}
		})
	}
	wg.Wait()
	if n := table.LiveCount(); n != 0 {
		t.Errorf("%d links are left", n)
	}
}
