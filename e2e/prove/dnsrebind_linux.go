package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"gatun/e2e/lab"
)

// rogueAddr is where a nameserver answers that leads names anywhere (peer rebind).
const (
	rogueAddr, rogueAddr6 = "198.51.100.69", "2001:db8:2::69"
	typeSVCB              = 64
)

// Addresses of this machine and network: every form that a public name must not lead to. The
// second list is what no host has; another decider refuses those, so the control leaves them out.
func reboundAddrs() (own, nobody []string) {
	return []string{
			"127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.127.255.255",
			"::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "fe80::1", "fc00::1", "fdff::1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::c0a8:101",
		}, []string{
			"0.0.0.0", "0.1.2.3", "::",
		}
}

// rebound is one row: a way to lead a name to an address.
type rebound struct {
	dnsCase
	addr netip.Addr
	way  string
	typ  uint16
}

// rebinding makes the matrix of addresses, ways and types.
func rebinding(addrs []string, small bool) []rebound {
	var rows []rebound
	t := &table{}
	add := func(addr netip.Addr, way, network string, typ uint16) {
		text := strings.NewReplacer(".", "x", ":", "x").Replace(plainText(addr))
		name := way + "-" + text + ".rebind.example."
		if way == "dname" {
			name = "host." + name
		}
		t.add(fmt.Sprintf("%s %s %d %s", way, addr, typ, network), network, t.edns(name, typ))
		rows = append(rows, rebound{dnsCase: t.rows[len(t.rows)-1], addr: addr, way: way, typ: typ})
	}
	for _, text := range addrs {
		addr := netip.MustParseAddr(text)
		typ := uint16(typeA)
		if addr.Is6() {
			typ = typeAAAA
		}
		for _, way := range []string{"plain", "first", "second", "cname", "chain", "outside", "dname", "extra"} {
			add(addr, way, "udp", typ)
			if !small {
				add(addr, way, "udp", typeHTTPS)
				add(addr, way, "udp", typeSVCB)
				add(addr, way, "tcp", typ)
			} else if way == "plain" || way == "second" || way == "cname" {
				add(addr, way, "udp", typeHTTPS)
			}
		}
	}
	return rows
}

// plainText writes an IPv4 address in IPv6 in hexadecimal, as labels have no dot.
func plainText(a netip.Addr) string {
	if !a.Is4In6() {
		return a.String()
	}
	b := a.As16()
	return fmt.Sprintf("::ffff:%x:%x", binary.BigEndian.Uint16(b[12:]), binary.BigEndian.Uint16(b[14:]))
}

// rogueWorld is a lab with the rogue nameserver; gatun has nobody else to ask.
func (b *bench) rogueWorld() (*dnsWorld, error) {
	l, err := b.lab(lab.Options{})
	if err != nil {
		return nil, err
	}
	w := &dnsWorld{Lab: l}
	p, err := w.startRogue()
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if _, err := p.Stdout.Read(make([]byte, 64)); err != nil {
		text, _ := os.ReadFile(p.Log)
		return nil, errors.Join(fmt.Errorf("the rogue nameserver: %w: %s", err, text), l.Close())
	}
	return w, nil
}

func (w *dnsWorld) startRogue() (*lab.Process, error) {
	if err := w.addresses(); err != nil {
		return nil, err
	}
	if err := w.publicResolver(); err != nil {
		return nil, err
	}
	addrs := strings.Join([]string{rogueAddr, rogueAddr6, knownAddr, knownAddr6, listedAddr, chosenAddr}, ",")
	return w.Start(w.Server, lab.Spec{Pipe: true}, w.Bins.Peer, "rebind", "-echo", "443/udp,853,5353,5355,5443,8443", addrs)
}

// proveRebinding asks for names that lead into this machine or network, in every form.
func proveRebinding(b *bench) (err error) {
	w, err := b.rogueWorld()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	own, nobody := reboundAddrs()
	all := rebinding(slices.Concat(own, nobody), b.small)
	offered, err := w.askRebound(w.direct, all)
	if err != nil {
		return err
	}
	b.exactly("control: replies of the rogue that lead inside", float64(offered.inside), float64(len(all)))
	modes := []string{"up", "run"}
	if b.small {
		modes = modes[:1]
	}
	for _, mode := range modes {
		if err := b.rebindingMode(w, mode, all, rebinding(own, b.small)); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) rebindingMode(w *dnsWorld, mode string, all, own []rebound) error {
	g, err := started(w.Lab, mode, upstreams("dns://"+rogueAddr))
	if err != nil {
		return err
	}
	got, err := w.askRebound(g.Program, all)
	if err != nil {
		return err
	}
	b.exactly(mode+": names that lead inside: passed, of "+fmt.Sprint(len(all)), float64(got.inside), 0)
	b.exactly(mode+": of them without any reply", float64(got.silent), 0)
	b.exactly(mode+": honest addresses beside them: kept", float64(got.honest), float64(mixed(all)))
	if len(got.leaks) > 0 {
		b.note(mode+": passed", strings.Join(got.leaks[:min(len(got.leaks), 8)], ", "))
	}
	if err := b.reboundShown(g, mode); err != nil {
		return err
	}
	if _, err := g.Down(); err != nil {
		return err
	}
	off := strings.Replace(upstreams("dns://"+rogueAddr), "defaultAction: permit", "defaultAction: permit, removeOutOfScopeDNS: off", 1)
	if g, err = started(w.Lab, mode, off); err != nil {
		return err
	}
	control, err := w.askRebound(g.Program, own)
	if err != nil {
		return err
	}
	want := count(own, func(r rebound) bool { return r.way != "extra" && !unreadable(r) }) // no additional record is ever passed on
	b.exactly(mode+": control: passed while filter/removeOutOfScopeDNS is off", float64(control.inside), float64(want))
	_, err = g.Down()
	return err
}

// reboundShown looks at what a person is told of one of them.
func (b *bench) reboundShown(g *lab.Gatun, mode string) error {
	flows, err := g.Flows()
	if err != nil {
		return err
	}
	for _, f := range flows {
		if f.Match(map[string]string{"kind": "dns", "domain": "plain-10x0x0x1.rebind.example"}) {
			b.figure(mode+": why", f.Field("reason"), f.Field("setting") == "filter/removeOutOfScopeDNS")
			return nil
		}
	}
	b.figure(mode+": why", "the query is not among the flows", false)
	return nil
}

// reboundResult counts replies.
type reboundResult struct {
	inside, honest, silent int
	leaks                  []string
}

func (w *dnsWorld) askRebound(ask asker, rows []rebound) (res reboundResult, err error) {
	var cases []dnsCase
	for _, r := range rows {
		cases = append(cases, r.dnsCase)
	}
	replies, err := w.exchange(ask, cases, rogueAddr+":53", "-timeout", "12s")
	if err != nil {
		return res, err
	}
	for _, r := range rows {
		list, err := sortedMessages(replies[r.id])
		if err != nil || len(list) != 1 {
			res.silent++
			res.leaks = append(res.leaks, fmt.Sprintf("%s: %v %s", r.id, err, replies[r.id].Error))
			continue
		}
		addrs := addressesIn(list[0])
		if slices.Contains(addrs, r.addr) {
			res.inside++
			res.leaks = append(res.leaks, r.id)
		}
		if isMixed(r) && slices.ContainsFunc(addrs, isHonest) {
			res.honest++
		}
	}
	return res, nil
}

// isMixed tells whether the rogue gives an honest address as well.
func isMixed(r rebound) bool {
	return (r.way == "first" || r.way == "second" || r.way == "extra") && !unreadable(r)
}

// unreadable tells of hints for IPv6 with an IPv4 address in them: the whole reply counts as
// malformed.
func unreadable(r rebound) bool { return r.addr.Is4In6() && (r.typ == typeHTTPS || r.typ == typeSVCB) }

func mixed(rows []rebound) int { return count(rows, isMixed) }

func count[T any](list []T, is func(T) bool) (n int) {
	for _, v := range list {
		if is(v) {
			n++
		}
	}
	return n
}

func isHonest(a netip.Addr) bool {
	return a == netip.MustParseAddr(lab.Server4) || a == netip.MustParseAddr(lab.Server6)
}

// addressesIn returns every address in a message: in A and AAAA records and in hints, in all
// sections.
func addressesIn(m message) (list []netip.Addr) {
	for _, r := range slices.Concat(m.answer, m.ns, m.extra) {
		b, err := hex.DecodeString(strings.ReplaceAll(r.data, " ", ""))
		if err != nil {
			continue // a record of names
		}
		switch r.typ {
		case typeA, typeAAAA:
			if a, ok := netip.AddrFromSlice(b); ok {
				list = append(list, a)
			}
		case typeHTTPS, typeSVCB:
			list = append(list, hintsIn(b)...)
		}
	}
	return list
}

// hintsIn reads the hints of SVCB data: priority, the root as target, then keys with values.
func hintsIn(b []byte) (list []netip.Addr) {
	for b = b[min(3, len(b)):]; len(b) >= 4; {
		key, n := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
		if len(b) < 4+n {
			break
		}
		size := map[uint16]int{4: 4, 6: 16}[key]
		for value := b[4 : 4+n]; size > 0 && len(value) >= size; value = value[size:] {
			a, _ := netip.AddrFromSlice(value[:size])
			list = append(list, a)
		}
		b = b[4+n:]
	}
	return list
}
