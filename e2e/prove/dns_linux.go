package main

import (
	"errors"
	"fmt"
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
