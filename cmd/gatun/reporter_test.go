package main

import (
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
)

// slate is a terminal that counts how often it was written to, and may refuse.
type slate struct {
	mu      sync.Mutex
	text    strings.Builder
	writes  int
	refuses bool
	wrote   chan struct{}
}

func newSlate() *slate { return &slate{wrote: make(chan struct{}, 1)} }

func (s *slate) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	select {
	case s.wrote <- struct{}{}:
	default:
	}
	if s.refuses {
		return 0, errors.New("no room")
	}
	return s.text.Write(b)
}

func (s *slate) lines() (lines, writes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.text.String(), "\n"), s.writes
}

// decide enters a flow that was permitted, or blocked, and has ended.
func decide(t *network.Table, port uint16, v network.Verdict) {
	l, _ := t.Link(packet.Flow{Proto: packet.UDP, Local: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), port), Remote: netip.MustParseAddrPort("192.0.2.1:7")})
	t.Bind(l, &network.Communication{Owner: attribution.Unidentified("test")})
	t.Decide(l, network.Decision{Verdict: v})
	t.End(l, "test")
}

func TestReporter(t *testing.T) {
	table, out := network.NewTable(time.Now), newSlate()
	r, err := newReporter(runOptions{talk: out}, table)
	if err != nil {
		t.Fatal(err)
	}
	decide(table, 1, network.Accept)
	select {
	case <-out.wrote: // at once, without another one
	case <-time.After(20 * time.Second):
		t.Fatal("the line of a quiet command is not written")
	}
	const flows = 2000
	for n := range uint16(flows) {
		decide(table, 100+n, network.Accept)
	}
	decide(table, 5000, network.Block)
	if !r.finish() {
		t.Error("nobody says that something was blocked")
	}
	lines, writes := out.lines()
	if lines != flows+3 {
		t.Errorf("%d lines for %d decisions and a summary", lines, flows+2)
	}
	if writes > flows/2 {
		t.Errorf("%d writes for %d lines", writes, lines)
	}
	if text := out.text.String(); !strings.Contains(text, "gatun: 2002 flows, 0 names, 1 blocked in ") {
		t.Errorf("the summary is wrong: %s", text[strings.LastIndex(text, "gatun:"):])
	}
}

// TestReporterRefused: a terminal that had no room for a line gets the next ones.
func TestReporterRefused(t *testing.T) {
	table, out := network.NewTable(time.Now), newSlate()
	out.refuses = true
	r, err := newReporter(runOptions{talk: out}, table)
	if err != nil {
		t.Fatal(err)
	}
	decide(table, 1, network.Accept)
	<-out.wrote
	out.mu.Lock()
	out.refuses = false
	out.mu.Unlock()
	decide(table, 2, network.Accept)
	r.finish()
	if lines, _ := out.lines(); lines != 2 {
		t.Errorf("%d lines, want that of the second flow and the summary: %s", lines, out.text.String())
	}
}

// TestReporterQuiet: a command that is quiet has its flows counted.
func TestReporterQuiet(t *testing.T) {
	table, out := network.NewTable(time.Now), newSlate()
	r, err := newReporter(runOptions{talk: out, quiet: true}, table)
	if err != nil {
		t.Fatal(err)
	}
	decide(table, 1, network.Block)
	if blocked := r.finish(); !blocked || r.flows != 1 {
		t.Errorf("%d flows, blocked %v", r.flows, blocked)
	}
	if lines, writes := out.lines(); lines+writes > 0 {
		t.Errorf("it said something: %s", out.text.String())
	}
}
