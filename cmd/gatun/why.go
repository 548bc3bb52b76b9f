package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"gatun/api"
	"gatun/attribution"
	"gatun/firewall"
	"gatun/network"
	"gatun/network/packet"
)

// explainer answers the API's "why" from the firewall.
type explainer struct {
	master *firewall.Master
}

// WhyLink implements api.Explainer.
func (e explainer) WhyLink(l *network.Link) api.Why {
	return answer(e.master.WhyLink(l))
}

// WhyDry implements api.Explainer. It touches no state.
func (e explainer) WhyDry(d api.DryRun) (api.Why, error) {
	q, err := question(d)
	if err != nil {
		return api.Why{}, err
	}
	return answer(e.master.Why(q)), nil
}

func answer(d network.Decision, t firewall.Trail) api.Why {
	if t.Steps == nil {
		t.Steps = []firewall.Step{}
	}
	trail, _ := json.Marshal(t.Steps) // strings and numbers: cannot fail
	rule := []byte("null")
	if d.Rule.Text != "" {
		rule, _ = json.Marshal(d.Rule)
	}
	return api.Why{
		Schema: network.Schema, Verdict: d.Verdict.String(), Stage: d.Stage.String(), Reason: d.Reason,
		Setting: d.Setting, Profile: d.Profile, Rule: rule, Trail: trail,
	}
}

func question(d api.DryRun) (firewall.Question, error) {
	owner, err := dryOwner(d.Exe, d.User)
	q := firewall.Question{Owner: owner}
	if err != nil {
		return q, err
	}
	if d.Inbound || d.From != "" {
		q.Direction = network.Inbound
	}
	if d.Domain != "" {
		q.Entity.Domain, q.Entity.Source = strings.ToLower(strings.TrimSuffix(d.Domain, ".")), network.DomainDNS
	}
	if d.To != "" {
		f, err := destination(d.To)
		if err != nil {
			return q, err
		}
		q.Flow, q.Entity.Addr = f, f.Remote.Addr()
	}
	if d.From == "" {
		return q, nil
	}
	from, err := netip.ParseAddr(d.From)
	if err != nil || d.To == "" {
		return q, fmt.Errorf("--from: want the address that a flow to our end (--to) comes from, got %q", d.From)
	}
	q.Flow.Local, q.Flow.Remote = q.Flow.Remote, netip.AddrPortFrom(from.Unmap(), 0)
	q.Entity.Addr = q.Flow.Remote.Addr()
	return q, nil
}

// dryOwner is a program that need not run. It has no process, so nothing that it is asked for is
// kept as a fact of one that does.
func dryOwner(exe, user string) (attribution.Owner, error) {
	if exe == "" {
		return attribution.Unidentified("dry run without --exe"), nil
	}
	uid, name, err := userOf(user)
	if err != nil {
		return attribution.Owner{}, err
	}
	return attribution.Owner{
		Process:    &attribution.Process{Path: exe, Name: filepath.Base(exe), UID: uid, User: name, Kind: attribution.KindProgram},
		Confidence: attribution.Exact, Cause: "dry run",
	}, nil
}

// userOf reads a user's number or name; nobody given means root, as a rule on users may want.
func userOf(s string) (uid uint32, name string, err error) {
	if s == "" {
		return 0, "", nil
	}
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		if u, err := user.LookupId(s); err == nil {
			name = u.Username
		}
		return uint32(n), name, nil
	}
	u, err := user.Lookup(s)
	if err != nil {
		return 0, "", fmt.Errorf("--user: %w", err)
	}
	n, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return 0, "", fmt.Errorf("--user: %s has no numeric id here", s)
	}
	return uint32(n), u.Username, nil
}

// destination reads ADDR:PORT/PROTO, or ADDR/icmp.
func destination(s string) (packet.Flow, error) {
	wrong := fmt.Errorf("--to: want ADDR:PORT/PROTO as in 192.0.2.1:443/tcp or [2001:db8::1]:53/udp, got %q", s)
	at, name, ok := strings.Cut(s, "/")
	if !ok {
		name = "tcp"
	}
	proto, err := packet.ParseProto(name)
	if err != nil {
		return packet.Flow{}, wrong
	}
	if a, err := netip.ParseAddr(strings.Trim(at, "[]")); err == nil && proto != packet.TCP && proto != packet.UDP {
		return packet.Flow{Proto: proto, Remote: netip.AddrPortFrom(a.Unmap(), 0)}, nil
	}
	ap, err := netip.ParseAddrPort(at)
	if err != nil {
		return packet.Flow{}, wrong
	}
	return packet.Flow{Proto: proto, Remote: netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}, nil
}
