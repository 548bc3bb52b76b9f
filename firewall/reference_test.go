package firewall

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatun/attribution"
	"gatun/config"
	"gatun/e2e/policytest"
	"gatun/intel"
	"gatun/netenv"
	"gatun/network"
	"gatun/network/packet"
	"gatun/profiles"
	"gatun/status"
)

// live is the program's own path from the text of a file to a decision, with the other evaluator
// beside it.
type live struct {
	text   string
	file   string
	master *Master
	ref    *policytest.Evaluator
}

// load reads a policy as the program does. dir is reused: the file is written anew.
func load(dir string, p *policytest.Policy, in policytest.Network) (*live, error) {
	l := &live{text: p.Render(), file: filepath.Join(dir, "gatun.yaml")}
	if err := os.WriteFile(l.file, []byte(l.text), 0o600); err != nil {
		return nil, err
	}
	data := config.OpenData("")
	edit := data.Edit()
	for key, value := range p.Runtime {
		edit.Set(key, value)
	}
	if len(p.Runtime) > 0 { // made before the file, which may say otherwise
		if _, err := config.Load(config.Source{Data: data, Edit: edit}); err != nil {
			return nil, err
		}
		if err := edit.Commit(); err != nil {
			return nil, err
		}
	}
	cfg, err := config.Load(config.Source{File: l.file, Data: data, CheckRule: profiles.CheckRule})
	if err != nil {
		return nil, err
	}
	opt := profiles.Options{Only: p.Only, Environ: environ}
	store, err := profiles.NewStore(cfg, status.Judge(cfg, snapshot(in), time.Unix(1_800_000_000, 0)), opt)
	if err != nil {
		return nil, err
	}
	for _, r := range p.Temporary {
		if _, err := store.AddTemporary(profiles.Temporary{Profile: r.Profile, Rule: r.Rule}); err != nil {
			return nil, err
		}
	}
	if p.Paused {
		store.Pause(time.Now().Add(time.Hour))
	}
	world, known, err := intelOf(dir)
	if err != nil {
		return nil, err
	}
	l.master, l.ref = New(store), policytest.New(p, in, world)
	l.master.Intel = known
	return l, nil
}

// intelOf is the intelligence of the default world, from files as the program reads them.
func intelOf(dir string) (*policytest.Data, Intel, error) {
	data := policytest.DefaultData()
	spec := intel.Spec{Country: filepath.Join(dir, "country.mmdb"), ASN: filepath.Join(dir, "asn.mmdb")}
	if _, err := os.Stat(spec.Country); err != nil {
		if err := data.Write(dir); err != nil {
			return nil, nil, err
		}
	}
	for _, l := range data.Lists {
		spec.Lists = append(spec.Lists, intel.ListSpec{ID: l.ID, Category: l.Category, Format: intel.AutoFormat, Path: filepath.Join(dir, l.ID)})
	}
	known := intel.New(intel.Options{})
	if err := known.Configure(spec); err != nil {
		return nil, nil, err
	}
	for _, st := range known.Status() {
		if st.Error != "" || st.Entries == 0 {
			return nil, nil, fmt.Errorf("list %s: %+v", st.ID, st)
		}
	}
	return data, known, nil
}

func snapshot(in policytest.Network) netenv.Snapshot {
	var s netenv.Snapshot
	for name, addrs := range in.Interfaces {
		s.Interfaces = append(s.Interfaces, netenv.Interface{Name: name, Index: len(s.Interfaces) + 1, Kind: "ethernet", Up: true, Addrs: addrs})
	}
	for name, a := range in.Gateways {
		s.Gateways = append(s.Gateways, netenv.Gateway{Addr: a, Interface: name})
	}
	return s
}

// environ knows the program by its path only.
func environ(p *attribution.Process) []string {
	var list []string
	for _, prog := range policytest.DefaultWorld().Programs {
		for name, value := range prog.Env {
			if prog.Path == p.Path {
				list = append(list, name+"="+value)
			}
		}
	}
	return list
}

func ownerOf(p *policytest.Program) attribution.Owner {
	o := attribution.Owner{Process: &attribution.Process{
		PID: 7, Path: p.Path, Name: filepath.Base(p.Path), UID: 1000, User: p.Tags["user"], Unit: p.Tags["systemd-unit"],
		Container: p.Tags["container"], Flatpak: p.Tags["flatpak"], Script: p.Tags["script"], Kind: attribution.KindProgram,
	}, Confidence: attribution.Exact}
	if p.Cmdline != "" {
		o.Process.Args = strings.Split(p.Cmdline, " ")
	}
	switch p.Special {
	case "unidentified":
		if p.Path == "" {
			return attribution.Unidentified("no socket")
		}
		o.Confidence = attribution.Ambiguous
	case "unsolicited":
		o.Process = &attribution.Process{Kind: attribution.KindUnsolicited}
	case "system":
		o.Process = &attribution.Process{Kind: attribution.KindSystem}
	case "self":
		o.Process = &attribution.Process{PID: 1, Kind: attribution.KindSelf}
	}
	return o
}

// question is a flow in the words of the firewall.
func question(f *policytest.Flow) Question {
	q := Question{Owner: ownerOf(&f.Program), Entity: network.Entity{Addr: f.Remote, Domain: f.Domain, CNAMEs: f.CNAMEs}}
	if f.Domain != "" {
		q.Entity.Source = network.DomainDNS
	}
	if f.Inbound {
		q.Direction = network.Inbound
	}
	local := netip.MustParseAddr("10.0.0.2")
	if f.Remote.Is6() {
		local = netip.MustParseAddr("fd00::2")
	}
	q.Flow = packet.Flow{Proto: packet.Proto(f.Proto), Local: netip.AddrPortFrom(local, uint16(f.LocalPort)), Remote: netip.AddrPortFrom(f.Remote, uint16(f.RemotePort))}
	return q
}

func communication(q Question, f *policytest.Flow) *network.Communication {
	return &network.Communication{Owner: q.Owner, Direction: q.Direction, Entity: q.Entity, Solicited: f.Solicited}
}

// plain is a decision of the firewall in the words of the other evaluator.
func (l *live) plain(d network.Decision) (policytest.Decision, error) {
	p := policytest.Decision{Setting: d.Setting, Profile: d.Profile, Rule: policytest.Rule{Text: d.Rule.Text, Line: d.Rule.Line}}
	switch d.Verdict {
	case network.Accept:
		p.Verdict = "accept"
	case network.Block:
		p.Verdict = "block"
	case network.Drop:
		p.Verdict = "drop"
	case network.RerouteToNameserver:
		p.Verdict = "nameserver"
	case network.Undecided:
		p.Verdict = "undecided"
		if d.Asks() {
			p.Verdict = "ask"
		}
	default:
		return p, fmt.Errorf("verdict %v", d.Verdict)
	}
	if d.Rule.Line > 0 && d.Rule.File != l.file {
		return p, fmt.Errorf("the rule's file is %q", d.Rule.File)
	}
	return p, nil
}

// differ compares the program with the evaluator at every stage of one flow and tells the first
// difference, "" if there is none.
func (l *live) differ(f *policytest.Flow) string {
	q := question(f)
	compare := func(stage string, have network.Decision, want policytest.Decision) string {
		got, err := l.plain(have)
		if err != nil {
			return fmt.Sprintf("%s: %v", stage, err)
		}
		if got != want {
			return fmt.Sprintf("%s: the program says %v (%s), the reference %v", stage, got, have.Reason, want)
		}
		return ""
	}
	if f.Domain != "" && !f.Inbound {
		n := Name{Owner: q.Owner, Domain: f.Domain}
		if s := compare("before intel", l.master.DecideOnCommunicationBeforeIntel(n), l.ref.BeforeIntel(f)); s != "" {
			return s
		}
		n.CNAMEs = f.CNAMEs
		have, removed := l.master.DecideOnCommunicationAfterIntel(n, f.Answer)
		want, remove := l.ref.AfterIntel(f)
		if s := compare("after intel", have, want); s != "" {
			return s
		}
		if want.Permits() && fmt.Sprint(removed) != fmt.Sprint(remove) {
			return fmt.Sprintf("after intel: the program removes %v, the reference %v", removed, remove)
		}
	}
	c := communication(q, f)
	first := l.master.Decide(c, q.Flow)
	if s := compare("first packet", first, l.ref.FirstPacket(f)); s != "" {
		return s
	}
	if again := l.master.Decide(c, q.Flow); again != first {
		return fmt.Sprintf("first packet: %+v, and from the cache %+v", first, again)
	}
	if f.Solicited { // no question about a flow that is not there knows that it is an answer
		return ""
	}
	why, trail := l.master.Why(q)
	if s := compare("why", why, l.ref.Why(f)); s != "" {
		return s
	}
	if len(trail.Steps) == 0 {
		return "why: no trail"
	}
	return ""
}

// minimal finds the smallest policy with which the flow is still decided differently.
func minimal(t *testing.T, p *policytest.Policy, in policytest.Network, f *policytest.Flow) string {
	t.Helper()
	dir := t.TempDir()
	p = policytest.Shrink(p, func(p *policytest.Policy) bool {
		l, err := load(dir, p, in)
		return err == nil && l.differ(f) != ""
	})
	l, err := load(dir, p, in)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s\nflow: %+v\nonly %q, at run time %v, temporary %v, paused %v\n%s", l.differ(f), *f, p.Only, p.Runtime, p.Temporary, p.Paused, l.text)
}
