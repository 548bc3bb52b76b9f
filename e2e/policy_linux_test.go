package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gatun/e2e/lab"
	"gatun/e2e/policytest"
)

const (
	packetSeed     = 20261122
	packetPolicies = 15
	packetFlows    = 20

	// How long a program waits for an answer: one whose packets nobody shall answer, and any other,
	// whose packets may be answered late.
	briefly, patience = 2500 * time.Millisecond, 40 * time.Second
)

// TestPolicyOnPackets sends random flows through random policies, one `gatun run` each, and
// compares three things with what the second evaluator says (e2e/policytest): what the program
// saw, the verdict and the rule that `flows` shows, and the dry run of `why`.
func TestPolicyOnPackets(t *testing.T) {
	t.Parallel()
	p := params(t, "", nil)
	b, err := bins()
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(lab.Options{Bins: b, Dir: p.WorkdirRoot, NoCount: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	world := packetWorld(t, b.Peer, p.WorkdirRoot)
	base := uint64(packetSeed)
	if text := os.Getenv("GATUN_SEED"); text != "" {
		if base, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("GATUN_SEED: %v", err)
		}
	}
	var mu sync.Mutex
	verdicts := map[string]int{}
	t.Run("policies", func(t *testing.T) {
		for i := range uint64(packetPolicies) {
			t.Run(fmt.Sprint("seed ", base+i), func(t *testing.T) {
				t.Parallel()
				x := newTrial(t, l, world.Generate(base+i))
				x.run()
				mu.Lock()
				defer mu.Unlock()
				for _, f := range x.flows {
					verdicts[visited(f.Proto)+" "+x.ref.Why(f).Verdict]++
				}
			})
		}
	})
	t.Logf("%d flows: %v", packetPolicies*packetFlows, verdicts)
	for _, proto := range []string{"tcp", "udp", "ping"} {
		for verdict, least := range map[string]int{"accept": 10, "block": 10, "drop": 1} {
			if n := verdicts[proto+" "+verdict]; n < least {
				t.Errorf("only %d of %s get %s: the flows say too little", n, proto, verdict)
			}
		}
	}
}

// packetWorld is what the lab can show: programs that differ by their path, names and
// addresses that answer.
func packetWorld(t *testing.T, peer, dir string) *policytest.World {
	t.Helper()
	first, second, far := []string{lab.Server4, lab.Server6}, []string{lab.Second4, lab.Second6}, []string{lab.Far4, lab.Far6}
	w := &policytest.World{
		Names: []policytest.Name{
			{Domain: "a.example.org", Addrs: first}, {Domain: "www.a.example.org", Addrs: first}, {Domain: "ads.example.net", Addrs: second},
			{Domain: "shop.example.net", Addrs: second}, {Domain: "far.example", Addrs: far},
		},
		Addresses: []string{lab.Server4, lab.Server6, lab.Second4, lab.Second6, lab.Far4, lab.Far6},
		Ports:     []int{7, 80, 443, 2003, 2005},
		Protos:    []int{6, 6, 6, 17, 17, 1, 58},
		Layers:    true, Only: true,
		Fixed: map[string]string{"filter/ping": "rules", "filter/dnsQueryInterception": "on"},
	}
	// What one program resolved is known to all its processes. So that no flow depends on another
	// one, each kind of program has a binary for each name, and one for flows without a name.
	for _, kind := range []string{"alpha", "beta"} {
		if err := os.Mkdir(filepath.Join(dir, kind), 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range len(w.Names) + 1 {
			path := filepath.Join(dir, kind, fmt.Sprint("probe", i))
			if err := os.Link(peer, path); err != nil {
				t.Fatal(err)
			}
			w.Programs = append(w.Programs, policytest.Program{Path: path, Tags: map[string]string{"user": "nobody"}})
		}
	}
	return w
}

// programFor is the binary for a flow's name, of the kind that was drawn.
func programFor(w *policytest.World, f *policytest.Flow) policytest.Program {
	drawn := slices.IndexFunc(w.Programs, func(p policytest.Program) bool { return p.Path == f.Program.Path })
	name := slices.IndexFunc(w.Names, func(n policytest.Name) bool { return n.Domain == f.Domain }) + 1
	each := len(w.Names) + 1
	return w.Programs[drawn/each*each+name]
}

// trial is one policy with its flows.
type trial struct {
	t     *testing.T
	lab   *lab.Lab
	dir   string
	text  string
	ref   *policytest.Evaluator
	only  []string
	flows []*policytest.Flow
}

func newTrial(t *testing.T, l *lab.Lab, g *policytest.Generator) *trial {
	t.Helper()
	p := g.Policy()
	x := &trial{t: t, lab: l, text: p.Render()}
	x.ref = policytest.New(p, g.Network, nil)
	for _, rule := range p.Only {
		x.only = append(x.only, "--only", rule)
	}
	for range packetFlows {
		f := g.Flow()
		f.Program = programFor(g.World, f)
		switch {
		case f.Proto == 17:
			f.RemotePort = 7 // the only one that answers datagrams
		case f.Proto != 6:
			f.RemotePort = 0
		}
		var answer []netip.Addr
		for _, a := range f.Answer { // it asks for one family
			if a.Is4() == f.Remote.Is4() {
				answer = append(answer, a)
			}
		}
		f.Answer = answer
		x.flows = append(x.flows, f)
	}
	dir, err := os.MkdirTemp(l.Dir, "policy-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, lab.Nobody, lab.Nobody); err != nil {
		t.Fatal(err)
	}
	x.dir = dir
	return x
}

func (x *trial) file(name string, content []byte) string {
	path := filepath.Join(x.dir, name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		x.t.Fatal(err)
	}
	return path
}

// run sends all flows, several at a time, and compares.
func (x *trial) run() {
	g, err := x.lab.Run(x.file("gatun.yaml", []byte(x.text)), x.only...)
	if err != nil {
		x.t.Fatalf("%v\n%s", err, x.text)
	}
	defer func() {
		if code, err := g.Down(); err != nil || code != 0 {
			x.t.Errorf("gatun run ended with %d, %v: %s", code, err, g.Tail())
		}
	}()
	var commands bytes.Buffer
	for i, f := range x.flows {
		line, err := json.Marshal(x.command(i, f))
		if err != nil {
			x.t.Fatal(err)
		}
		commands.Write(append(line, '\n'))
	}
	list := x.file("flows", commands.Bytes())
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if _, err := g.Program(ctx, "flock", "-at", "6", list); err != nil {
		x.t.Fatal(err)
	}
	saw := x.results(list + ".out")
	flows := x.listed(g, saw)
	for i, f := range x.flows {
		x.compare(f, saw[strconv.Itoa(i)], flows)
		x.dryRun(g, f)
	}
	if x.t.Failed() {
		x.t.Logf("only %v, the policy:\n%s", x.only, x.text)
	}
}

// listed waits until the list has a flow of every program. What it never has is told by compare.
func (x *trial) listed(g *lab.Gatun, saw map[string]lab.Result) []lab.Flow {
	var flows []lab.Flow
	err := lab.Wait(20*time.Second, "every flow is listed", func() (bool, error) {
		var err error
		if flows, err = g.Flows(); err != nil {
			return false, err
		}
		for i, f := range x.flows {
			for _, which := range x.shows(f, saw[strconv.Itoa(i)]) {
				if !slices.ContainsFunc(flows, func(l lab.Flow) bool { return isFlow(l, which) }) {
					return false, nil
				}
			}
		}
		return true, nil
	})
	if err != nil && !errors.Is(err, lab.ErrTimeout) {
		x.t.Fatal(err)
	}
	return flows
}

// decides is what the evaluator says of a flow: of its name, and of its connection, which there is
// only where the name was permitted.
func (x *trial) decides(f *policytest.Flow) (name, link policytest.Decision) {
	name = policytest.Decision{Verdict: "accept"}
	if f.Domain != "" {
		if name = x.ref.BeforeIntel(f); name.Permits() {
			name, _ = x.ref.AfterIntel(f)
		}
	}
	if name.Permits() {
		link = x.ref.FirstPacket(f)
	}
	return name, link
}

// shows is by what the flows of a program are found in the list: that of its name, that of its connection.
func (x *trial) shows(f *policytest.Flow, saw lab.Result) []map[string]string {
	var all []map[string]string
	if f.Domain != "" {
		all = append(all, map[string]string{"pid": strconv.Itoa(saw.PID), "kind": "dns", "domain": f.Domain})
	}
	if name, _ := x.decides(f); name.Permits() {
		all = append(all, map[string]string{"pid": strconv.Itoa(saw.PID), "kind": "link"})
	}
	return all
}

// isFlow says whether a flow of the list is the one that is looked for; a query's packets are none.
func isFlow(l lab.Flow, which map[string]string) bool {
	return l.Match(which) && (which["kind"] != "link" || !strings.HasSuffix(l.Field("remote"), ":53"))
}

// command is what the program of a flow is called with.
func (x *trial) command(i int, f *policytest.Flow) []string {
	wait := patience
	if name, link := x.decides(f); name.Verdict == "drop" || link.Verdict == "drop" {
		wait = briefly
	}
	c := []string{f.Program.Path, "visit", "-tag", strconv.Itoa(i), "-timeout", wait.String()}
	if f.Domain != "" {
		c = append(c, "-name", f.Domain, "-server", lab.Resolver4)
	}
	return append(c, visited(f.Proto), netip.AddrPortFrom(f.Remote, uint16(f.RemotePort)).String())
}

func visited(proto int) string {
	return map[int]string{6: "tcp", 17: "udp", 1: "ping", 58: "ping"}[proto]
}

// results reads what the programs saw, by tag.
func (x *trial) results(file string) map[string]lab.Result {
	b, err := os.ReadFile(file)
	if err != nil {
		x.t.Fatal(err)
	}
	saw := map[string]lab.Result{}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		r, err := lab.ParseResult(lines.Bytes())
		if err != nil {
			x.t.Fatal(err)
		}
		saw[r.Data] = r
	}
	return saw
}

// compare holds one flow against the evaluator: the name first, then the connection.
func (x *trial) compare(f *policytest.Flow, saw lab.Result, flows []lab.Flow) {
	if saw.PID == 0 {
		x.t.Errorf("%+v: the program said nothing", *f)
		return
	}
	name, link := x.decides(f)
	for _, which := range x.shows(f, saw) {
		x.shown(f, flows, which, map[string]policytest.Decision{"dns": name, "link": link}[which["kind"]])
	}
	if !name.Permits() {
		x.sees(f, saw, "dns", map[string]string{"block": "NXDOMAIN", "drop": "timeout"}[name.Verdict])
		return
	}
	refused := map[string]string{"tcp": "ECONNREFUSED", "udp": "ECONNREFUSED", "ping": "EHOSTUNREACH|EACCES"}
	answered := map[string]string{"tcp": "connected", "udp": "answer", "ping": "answer"}
	proto := visited(f.Proto)
	x.sees(f, saw, proto, map[string]string{"accept": answered[proto], "block": refused[proto], "drop": "timeout"}[link.Verdict])
}

// sees checks what the program saw, and where.
func (x *trial) sees(f *policytest.Flow, saw lab.Result, where, want string) {
	for _, w := range strings.Split(want, "|") {
		if saw.Net == where && saw.Result == w {
			return
		}
	}
	x.t.Errorf("%+v: the program saw %s of %s (%s), want %s of %s", *f, saw.Result, saw.Net, saw.Error, want, where)
}

// shown checks what `gatun flows` says of it.
func (x *trial) shown(f *policytest.Flow, flows []lab.Flow, which map[string]string, want policytest.Decision) {
	for _, flow := range flows {
		if !isFlow(flow, which) {
			continue
		}
		if have := decision(flow); have != plain(want) {
			x.t.Errorf("%+v: flows shows %s (%s), want %s", *f, have, flow.Field("reason"), plain(want))
		}
		return
	}
	var near []lab.Flow
	for _, flow := range flows {
		if flow.Field("domain") == which["domain"] && flow.Field("kind") == which["kind"] || flow.Field("pid") == which["pid"] {
			near = append(near, flow)
		}
	}
	x.t.Errorf("%+v: flows has nothing with %v; it has %v", *f, which, near)
}

// decision is a verdict with what decided, of an object of `flows` or `why`.
func decision(f lab.Flow) string {
	line := f.Field("rule.line")
	if line == "" {
		line = "0"
	}
	return fmt.Sprintf("%s by %q, rule %q in line %s", f.Field("verdict"), f.Field("setting"), f.Field("rule.text"), line)
}

func plain(d policytest.Decision) string {
	return fmt.Sprintf("%s by %q, rule %q in line %d", d.Verdict, d.Setting, d.Rule.Text, d.Rule.Line)
}

// dryRun asks `why` for a flow that need not exist.
func (x *trial) dryRun(g *lab.Gatun, f *policytest.Flow) {
	to := netip.AddrPortFrom(f.Remote, uint16(f.RemotePort)).String()
	switch f.Proto {
	case 6:
		to += "/tcp"
	case 17:
		to += "/udp"
	case 1:
		to = f.Remote.String() + "/icmp"
	default:
		to = "[" + f.Remote.String() + "]/icmpv6"
	}
	args := []string{"why", "--json", "--exe", f.Program.Path, "--user", strconv.Itoa(lab.Nobody), "--to", to}
	if f.Domain != "" {
		args = append(args, "--domain", f.Domain)
	}
	out, code, err := g.ClientCode(args...)
	var have lab.Flow
	if err == nil {
		err = json.Unmarshal(out, &have)
	}
	if err != nil {
		x.t.Errorf("%q: %v: %s", args, err, out)
		return
	}
	want := x.ref.Why(f)
	if decision(have) != plain(want) {
		x.t.Errorf("%+v: why says %s, want %s", *f, decision(have), plain(want))
	}
	if exit := map[bool]int{true: 0, false: 10}[want.Permits()]; code != exit {
		x.t.Errorf("%+v: why ends with %d, want %d", *f, code, exit)
	}
}
