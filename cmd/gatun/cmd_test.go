package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatun/api"
	"gatun/config"
	"gatun/network"
	"gatun/tun/route"
)

func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{exitStatus{exitUsage, errors.New("x")}, 2},
		{config.Problems{{Message: "x"}}, 3},
		{fmt.Errorf("up: %w", os.ErrPermission), 4},
		{fmt.Errorf("%w: x", api.ErrNotRunning), 5},
		{fmt.Errorf("x: %w", route.ErrAlreadyRunning), 6},
		{fmt.Errorf("%w: x", api.ErrServed), 6},
		{&api.Error{Code: 400}, 1},
		{&api.Error{Code: 400, Failure: api.Failure{Problems: []api.Problem{{}}}}, 3},
		{&api.Error{Code: 404, Failure: api.Failure{Problems: []api.Problem{{}}}}, 3},
		{&api.Error{Code: 409, Failure: api.Failure{Problems: []api.Problem{{}}}}, 1},
		{&api.Error{Code: 403}, 4},
		{exitStatus{code: exitBlocked}, 10},
		{exitStatus{exitConfig, config.Problems{{Message: "x"}}}, 3},
	} {
		if got := exitCode(tt.err); got != tt.want {
			t.Errorf("%v: got %d, want %d", tt.err, got, tt.want)
		}
	}
}

// execute runs the command line and returns its data, its talk and its exit code.
func execute(t *testing.T, args ...string) (out, talk string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	root := newRoot(&o, &e)
	root.SetArgs(rulesAsWords(args))
	err := root.Execute()
	if err != nil {
		fmt.Fprintln(&e, err)
	}
	return o.String(), e.String(), exitCode(err)
}

func TestCommandLine(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none.sock")
	for _, tt := range []struct {
		args string
		code int
		says string
	}{
		{"frobnicate", 2, "unknown command"},
		{"status --frob", 2, "unknown flag"},
		{"status extra", 2, ""},
		{"kill", 2, ""},
		{"run", 125, "which command"},
		{"why", 2, "which flow"},
		{"why 7 --to 192.0.2.1:1/tcp", 2, "not both"},
		{"status --socket " + none, 5, "not running"},
		{"flows --socket " + none, 5, "not running"},
		{"down --socket " + none, 5, "not running"},
		{"confirm --socket " + none, 5, "not running"},
		{"confirm now", 2, ""},
		{"up --confirm", 2, "needs an argument"},
		{"up --confirm soon", 2, "1s to 24h"},
		{"up --confirm 60", 2, "1s to 24h"},
		{"up --confirm 0s", 2, "1s to 24h"},
		{"up --confirm -60s", 2, "1s to 24h"},
		{"up --confirm 999ms", 2, "1s to 24h"},
		{"up --confirm 24h1s", 2, "1s to 24h"},
		{"up --confirm=", 2, "1s to 24h"},
		{"check /nonexistent/gatun.yaml", 3, ""},
		{"version", 0, ""},
		{"completion bash", 0, ""},
		{"run --only us -- true", 125, ""},
		{"run --publish x -- true", 125, "--publish"},
		{"run -c /nonexistent.yaml -- true", 125, ""},
	} {
		_, talk, code := execute(t, strings.Fields(tt.args)...)
		if code != tt.code || !strings.Contains(talk, tt.says) {
			t.Errorf("gatun %s: got %d %q, want %d %q", tt.args, code, talk, tt.code, tt.says)
		}
	}
}

func TestCheckReportsEverything(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gatun.yaml")
	yaml := "version: 1\nfilter:\n  blockLAN: yess\n  endponts: []\n  endpoints:\n    - \"+ us\"\n"
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _, code := execute(t, "check", file)
	for _, want := range []string{file + ":3:13: filter/blockLAN", file + ":4:3", "filter/endpoints", file + ":6:"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if code != exitConfig {
		t.Errorf("exit code %d", code)
	}
	if out, _, code := execute(t, "check", "--json", file); code != exitConfig || !strings.Contains(out, `"line":3,"col":13`) {
		t.Errorf("json: %d %s", code, out)
	}
}

func TestPlaces(t *testing.T) {
	t.Setenv("GATUN_STATE", "")
	t.Setenv("GATUN_SOCKET", "")
	check := func(p places, state, socket string) {
		t.Helper()
		if p.stateDir() != state || p.socketPath() != socket {
			t.Errorf("got %s %s, want %s %s", p.stateDir(), p.socketPath(), state, socket)
		}
	}
	check(places{}, defaultState, defaultSocket)
	check(places{state: "/a"}, "/a", "/a/gatun.sock")
	check(places{state: "/a", socket: "/b"}, "/a", "/b")
	t.Setenv("GATUN_STATE", "/c")
	check(places{}, "/c", "/c/gatun.sock")
	t.Setenv("GATUN_SOCKET", "/d")
	check(places{}, "/c", "/d")
	check(places{state: "/a", socket: "/b"}, "/a", "/b")
}

func TestDestination(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1:443/tcp": "tcp 192.0.2.1:443", "192.0.2.1:443": "tcp 192.0.2.1:443", "[2001:db8::1]:53/udp": "udp [2001:db8::1]:53",
		"192.0.2.1/icmp": "icmp 192.0.2.1:0", "::ffff:192.0.2.1/icmp": "icmp 192.0.2.1:0", "[2001:db8::1]/icmpv6": "icmpv6 [2001:db8::1]:0",
	} {
		f, err := destination(in)
		if got := f.Proto.String() + " " + f.Remote.String(); err != nil || got != want {
			t.Errorf("%s: got %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "example.org:443", "192.0.2.1", "192.0.2.1:x/tcp", "192.0.2.1:1/frob", "192.0.2.1:70000/tcp"} {
		if _, err := destination(in); err == nil {
			t.Errorf("%q was accepted", in)
		}
	}
}

// An inbound flow comes from the other end, and --to is ours: rules on our ports are about it.
func TestInboundQuestion(t *testing.T) {
	q, err := question(api.DryRun{From: "198.51.100.7", To: "10.0.0.1:22/tcp"})
	if err != nil || q.Direction != network.Inbound || q.Flow.Local.String() != "10.0.0.1:22" || q.Flow.Remote.Addr().String() != "198.51.100.7" || q.Entity.Addr != q.Flow.Remote.Addr() {
		t.Errorf("%+v %v", q, err)
	}
	for _, d := range []api.DryRun{{From: "x", To: "10.0.0.1:22"}, {From: "198.51.100.7"}} {
		if _, err := question(d); err == nil || !strings.Contains(err.Error(), "--from") {
			t.Errorf("%+v: %v", d, err)
		}
	}
}

func TestWhyExit(t *testing.T) {
	for verdict, want := range map[string]int{"accept": 0, "permanent-accept": 0, "reroute-nameserver": 0, "reroute-tunnel": 0, "block": 10, "drop": 10, "permanent-drop": 10, "undecided": 11} {
		if got := exitCode(whyExit(verdict)); got != want {
			t.Errorf("%s: got %d, want %d", verdict, got, want)
		}
	}
}

// A program chooses its own name: it must not be able to write to the terminal with it.
func TestLineIsPrintable(t *testing.T) {
	r := network.Report{Proto: "tcp", Kind: "link", Remote: "192.0.2.1:443", Domain: "a.example", Verdict: "block", Reason: "r",
		Process: &network.ReportProcess{PID: 7, Name: "x\x1b[2J\n"}, Rule: &network.RuleRef{Text: "- *", File: "g.yaml", Line: 3}}
	got := line(&r)
	if strings.ContainsAny(got, "\x1b\n") || !strings.Contains(got, "TCP x?[2J?[7] a.example:443 BLOCK r (g.yaml:3)") {
		t.Errorf("got %q", got)
	}
}

// TestLinePlace: where the other end is, as far as it is known.
func TestLinePlace(t *testing.T) {
	for _, c := range []struct {
		country string
		asn     uint32
		want    string
	}{{"", 0, " a.example:443 ACCEPT r"}, {"DE", 0, " a.example:443 DE ACCEPT r"}, {"DE", 64496, " a.example:443 DE/AS64496 ACCEPT r"}, {"", 64496, " a.example:443 AS64496 ACCEPT r"}} {
		r := network.Report{Proto: "tcp", Kind: "link", Remote: "192.0.2.1:443", Domain: "a.example", Verdict: "accept", Reason: "r", Country: c.country, ASN: c.asn}
		if got := line(&r); !strings.HasSuffix(got, c.want) {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestPublish(t *testing.T) {
	p, err := parsePublish([]string{"8080:80"})
	if err != nil || p[0] != (publication{8080, 80}) {
		t.Errorf("got %v %v", p, err)
	}
	for _, s := range []string{"80", "a:b", "1:0", "70000:1", ":", "1:2:3"} {
		if _, err := parsePublish([]string{s}); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

func TestStatusIsReadable(t *testing.T) {
	var b bytes.Buffer
	err := printStatus(&b, api.Status{State: "on", Inbound: "not controlled", Guard: &api.GuardStatus{}, Notes: []string{"loopback traffic is not seen"}})
	for _, want := range []string{"on", "not controlled", "MISSING", "loopback traffic is not seen"} {
		if !strings.Contains(b.String(), want) || err != nil {
			t.Errorf("no %q in:\n%s", want, b.String())
		}
	}
	_ = printFlows(io.Discard, nil)
}
