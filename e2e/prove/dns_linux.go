package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"gatun/e2e/lab"
)

// proveDNSTable asks the table of queries of unbound, directly and through gatun.
func proveDNSTable(b *bench) (err error) {
	w, err := b.dnsWorld("unbound")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	unbound := w.peers["unbound"]
	// The first time is for unbound's cache: what it adds to an answer depends on what it knows.
	if _, err := w.exchange(w.direct, dnsTable(), unbound.at4().String()); err != nil {
		return err
	}
	direct, err := w.exchange(w.direct, dnsTable(), unbound.at4().String())
	if err != nil {
		return err
	}
	if err := b.controls(w, direct); err != nil {
		return err
	}
	for _, mode := range []string{"up", "run"} {
		g, err := started(w.Lab, mode, upstreams(unbound.url("dns")))
		if err != nil {
			return err
		}
		if !b.small || mode == "up" {
			through, err := w.exchange(g.Program, dnsTable(), unbound.at4().String())
			if err != nil {
				return err
			}
			b.compareTable("unbound, gatun "+mode, dnsTable(), through, direct)
			if err := b.mutations(w, g); err != nil {
				return err
			}
		}
		if !b.small || mode == "run" {
			if err := b.compareTools(w, g); err != nil {
				return err
			}
		}
		if _, err := g.Down(); err != nil {
			return err
		}
	}
	return nil
}

// mutations sends the table's messages with bytes changed at random. Whatever comes back is a whole
// reply to that message, and the next ordinary query is answered.
func (b *bench) mutations(w *dnsWorld, g *lab.Gatun) error {
	random := rand.New(rand.NewPCG(20261122, 4))
	var rows []dnsCase
	for _, row := range dnsTable() {
		for i := range b.size(6, 1) {
			m := slices.Clone(row.messages[0])
			for range 1 + random.IntN(4) {
				m[random.IntN(len(m))] = byte(random.IntN(256))
			}
			rows = append(rows, dnsCase{id: fmt.Sprint(row.id, i), net: "udp", messages: [][]byte{m}, replies: 1, quiet: true})
		}
	}
	got, err := w.exchange(g.Program, rows, w.peers["unbound"].at4().String(), "-at", "64")
	if err != nil {
		return err
	}
	replies, bad := 0, 0
	for _, row := range rows {
		list, err := sortedMessages(got[row.id])
		for _, m := range list {
			replies++
			if m.id != binary.BigEndian.Uint16(row.messages[0]) || m.flags&bitQR == 0 {
				bad++
			}
		}
		if err != nil {
			bad++
		}
	}
	b.atLeast(g.Mode+": spoilt queries that were answered", float64(replies), float64(len(rows))/2, fmt.Sprintf("of %d", len(rows)))
	b.exactly(g.Mode+": replies to them that are malformed or not theirs", float64(bad), 0)
	r, err := w.exchange(g.Program, queries(1, "after.wild.kinds.example."), w.peers["unbound"].at4().String())
	if err != nil {
		return err
	}
	b.exactly(g.Mode+": the next ordinary query is answered", float64(trueAnswers(r)), 1)
	return nil
}

// upstreams is a configuration with these resolvers.
func upstreams(urls ...string) string {
	text := "version: 1\nfilter: {defaultAction: permit}\ndns:\n  noAssignedNameservers: true\n  nameservers:\n"
	for _, u := range urls {
		text += fmt.Sprintf("    - %q\n", u)
	}
	return text
}

// controls: a comparison that finds everything equal says nothing. Asked twice, unbound must be
// equal to itself, and each row compared with its neighbour's answer must differ.
func (b *bench) controls(w *dnsWorld, direct map[string]dnsReply) error {
	rows := dnsTable()
	again, err := w.exchange(w.direct, rows, w.peers["unbound"].at4().String())
	if err != nil {
		return err
	}
	same, seen := 0, 0
	for i, row := range rows {
		if hard, _ := compareReplies(row, direct[row.id], again[row.id]); len(hard) == 0 {
			same++
		} else {
			b.note("unbound differs from itself", hard[0].String())
		}
		other := direct[rows[(i+1)%len(rows)].id]
		if hard, _ := compareReplies(row, direct[row.id], other); len(hard) > 0 {
			seen++
		}
	}
	b.exactly("control: rows in which unbound equals itself", float64(same), float64(len(rows)))
	b.atLeast("control: rows that differ from the next row's answer", float64(seen), float64(len(rows)-6), fmt.Sprintf("of %d", len(rows)))
	return nil
}
