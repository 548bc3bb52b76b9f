package firewall

import (
	"net/netip"
	"testing"
	"time"

	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
	"gatun/profiles"
)

// as is a policy of one Settings for everybody.
type as struct{ settings *profiles.Settings }

func (a as) For(attribution.Owner) *profiles.Settings { return a.settings }

// TestDecidersOneByOne holds each entry of the list against the case that it is for, with
// everything behind it saying the opposite.
func TestDecidersOneByOne(t *testing.T) {
	block := profiles.Settings{DefaultAction: profiles.Block}
	permit := profiles.Settings{DefaultAction: profiles.Allow}
	on := profiles.Switch{Active: true}
	with := func(s profiles.Settings, f func(*profiles.Settings)) *profiles.Settings { f(&s); return &s }
	self := curl()
	self.Process = &attribution.Process{Kind: attribution.KindSelf}
	spotify := curl()
	spotify.Process = &attribution.Process{Kind: attribution.KindProgram, Path: "/opt/spotify-client/spotify"}
	tests := []struct {
		name      string
		settings  *profiles.Settings
		owner     attribution.Owner
		direction network.Direction
		solicited bool
		domain    string
		to        string
		proto     packet.Proto
		want      network.Verdict
		code      string
	}{
		{"own traffic, even while paused", with(permit, func(s *profiles.Settings) { s.Paused = true }), self, network.Outbound, false, "", "198.51.100.1:443", packet.TCP, network.Block, "own-traffic"},
		{"paused", with(block, func(s *profiles.Settings) { s.Paused, s.BlockInternet = true, on }), curl(), network.Outbound, false, "", "198.51.100.1:443", packet.TCP, network.Accept, "paused"},
		{"paused, inbound", with(block, func(s *profiles.Settings) { s.Paused, s.BlockInbound = true, on }), curl(), network.Inbound, false, "", "198.51.100.1:443", packet.TCP, network.Accept, "paused"},
		{"reply to our own query", with(block, func(s *profiles.Settings) { s.BlockInbound = on }), curl(), network.Inbound, true, "", "192.168.1.9:5353", packet.UDP, network.Accept, "own-query"},
		{"solicited means inbound only", &block, curl(), network.Outbound, true, "", "192.168.1.9:5353", packet.UDP, network.Block, "default-action"},
		{"inbound", with(permit, func(s *profiles.Settings) { s.BlockInbound = on }), curl(), network.Inbound, false, "", "198.51.100.1:443", packet.TCP, network.Drop, "block-inbound"},
		{"inbound from this machine", with(permit, func(s *profiles.Settings) { s.BlockInbound = on }), curl(), network.Inbound, false, "", "127.0.0.1:443", packet.TCP, network.Drop, "default-inbound"},
		{"p2p by address", with(permit, func(s *profiles.Settings) { s.BlockP2P = on }), curl(), network.Outbound, false, "", "198.51.100.1:443", packet.TCP, network.Block, "block-p2p"},
		{"p2p with a name", with(permit, func(s *profiles.Settings) { s.BlockP2P = on }), curl(), network.Outbound, false, "a.example", "198.51.100.1:443", packet.TCP, network.Accept, "default-action"},
		{"p2p by STUN", with(permit, func(s *profiles.Settings) { s.BlockP2P = on }), curl(), network.Outbound, false, "stun.example", "198.51.100.1:3478", packet.UDP, network.Block, "block-p2p"},
		{"p2p in the LAN", with(permit, func(s *profiles.Settings) { s.BlockP2P = on }), curl(), network.Outbound, false, "", "192.168.1.9:443", packet.TCP, network.Accept, "default-action"},
		{"address of nobody, 4", &permit, curl(), network.Outbound, false, "", "240.1.2.3:443", packet.TCP, network.Block, "invalid-address"},
		{"address of nobody, 0", &permit, curl(), network.Outbound, false, "", "0.1.2.3:443", packet.TCP, network.Block, "invalid-address"},
		{"address of nobody, 6", &permit, curl(), network.Outbound, false, "", "[::]:443", packet.TCP, network.Block, "invalid-address"},
		{"broadcast is one", &permit, curl(), network.Outbound, false, "", "255.255.255.255:9", packet.UDP, network.Accept, "default-action"},
		{"related", with(block, func(s *profiles.Settings) { s.AutoPermitRelated = true }), spotify, network.Outbound, false, "api.spotify.com", "198.51.100.1:443", packet.TCP, network.Accept, "related"},
		{"related needs the setting", &block, spotify, network.Outbound, false, "api.spotify.com", "198.51.100.1:443", packet.TCP, network.Block, "default-action"},
		{"related needs the whole word", with(block, func(s *profiles.Settings) { s.AutoPermitRelated = true }), spotify, network.Outbound, false, "spot.example", "198.51.100.1:443", packet.TCP, network.Block, "default-action"},
		{"related needs the registered name", with(block, func(s *profiles.Settings) { s.AutoPermitRelated = true }), spotify, network.Outbound, false, "spotify.evil.example", "198.51.100.1:443", packet.TCP, network.Block, "default-action"},
		{"default asks", &profiles.Settings{DefaultAction: profiles.Ask}, curl(), network.Outbound, false, "", "198.51.100.1:443", packet.TCP, network.Undecided, "ask"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := New(as{tt.settings})
			f := flow(tt.proto, tt.to)
			c := comm(tt.domain, f.Remote.Addr().String())
			c.Owner, c.Direction, c.Solicited = tt.owner, tt.direction, tt.solicited
			d := m.Decide(c, f)
			if d.Verdict != tt.want || d.Code != tt.code {
				t.Errorf("got %v %q (%s)", d.Verdict, d.Code, d.Reason)
			}
			if d.Asks() != (tt.code == "ask") {
				t.Errorf("asks: %+v", d)
			}
		})
	}
}

// A rule that asks lets the name be resolved, because a query cannot be held for long; the
// connection is what a person is asked about.
func TestAskAtEveryStage(t *testing.T) {
	m := policy(t, "filter: {endpoints: [\"? .example\", \"- *\"]}\n")
	n := Name{Owner: curl(), Domain: "a.example"}
	if d := m.DecideOnCommunicationBeforeIntel(n); d.Decided() || d.Asks() {
		t.Errorf("before: %+v", d)
	}
	if d, removed := m.DecideOnCommunicationAfterIntel(n, []netip.Addr{netip.MustParseAddr("198.51.100.1")}); d.Verdict != network.Accept || len(removed) > 0 {
		t.Errorf("after: %+v", d)
	}
	f := flow(packet.TCP, "198.51.100.1:443")
	d := m.Decide(comm("a.example", "198.51.100.1"), f)
	if !d.Asks() || d.Rule.Text != "? .example" || d.Setting != "filter/endpoints" {
		t.Errorf("first packet: %+v", d)
	}
	why, _ := m.Why(Question{Owner: curl(), Entity: network.Entity{Domain: "a.example", Source: network.DomainDNS, Addr: f.Remote.Addr()}, Flow: f})
	if !why.Asks() {
		t.Errorf("why: %+v", why)
	}
}

// The answer of a person is what "why" says about the flow that lives by it.
func TestWhyOfAnAnsweredFlow(t *testing.T) {
	m := policy(t, "filter: {defaultAction: ask}\n")
	table := network.NewTable(time.Now)
	l, _ := table.Link(flow(packet.TCP, "198.51.100.1:443"))
	table.Bind(l, comm("", "198.51.100.1"))
	if d, _ := m.WhyLink(l); !d.Asks() {
		t.Errorf("while it is held: %+v", d)
	}
	table.Decide(l, network.Decision{Verdict: network.Accept, Stage: network.StagePrompt, Code: "prompt-answer", Reason: "allowed by root (once)"})
	d, trail := m.WhyLink(l)
	if d.Verdict != network.Accept || trail.Steps[len(trail.Steps)-1].Decider != "prompt" {
		t.Errorf("%+v %+v", d, trail.Steps)
	}
}

// What became permanent stays it in "why" while the policy says the same, and only then.
func TestWhyOfAPermanentVerdict(t *testing.T) {
	for yaml, want := range map[string]network.Verdict{
		"filter: {endpoints: [\"- 198.51.100.1\"]}\n": network.PermanentBlock, "filter: {endpoints: [\"-- 198.51.100.1\"]}\n": network.Drop,
		"filter: {endpoints: [\"+ 198.51.100.1\"]}\n": network.Accept,
	} {
		m := policy(t, yaml)
		table := network.NewTable(time.Now)
		l, _ := table.Link(flow(packet.UDP, "198.51.100.1:443"))
		table.Bind(l, comm("", "198.51.100.1"))
		table.Decide(l, network.Decision{Verdict: network.PermanentBlock, Stage: network.StageCommunication})
		if d, _ := m.WhyLink(l); d.Verdict != want {
			t.Errorf("%s%s, want %s", yaml, d.Verdict, want)
		}
	}
}
