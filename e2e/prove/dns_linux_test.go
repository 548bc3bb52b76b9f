package main

import (
	"encoding/hex"
	"strings"
	"testing"
)

// TestWire: names in every notation come back as they were, and what is cut is not read.
func TestWire(t *testing.T) {
	for in, want := range map[string]string{
		".": ".", "www.Example.": "www.example.", `a\.b.c.`: `a\046b.c.`, `\000\255x.`: `\000\255x.`, `a\\b.`: `a\092b.`,
	} {
		b := wireName(in)
		got, next, err := readName(b, 0)
		if err != nil || got != want || next != len(b) {
			t.Errorf("%q: %q at %d of %d, %v", in, got, next, len(b), err)
		}
	}
	if n := len(wireName(longName())); n != 255 {
		t.Errorf("the longest name has %d bytes", n)
	}
	whole := withOPT(question(1, bitRD, "www.example.", typeA, 1), 1232, bitDO, ednsOption(3)...)
	m, err := parseMessage(whole)
	if err != nil || m.opt == nil || !m.opt.do || m.opt.size != 1232 || len(m.opt.codes) != 1 || len(m.questions) != 1 {
		t.Errorf("%+v %v", m, err)
	}
	for n := range whole {
		if _, err := parseMessage(whole[:n]); err == nil {
			t.Errorf("cut at %d it is still a message", n)
		}
	}
	if _, err := parseMessage(append(whole, 0)); err == nil {
		t.Error("a byte behind the message is not seen")
	}
	if _, _, err := readName([]byte{0xc0, 0}, 0); err == nil {
		t.Error("a pointer to itself ends")
	}
}

// answered is a reply to a query with one address in a compressed record.
func answered(q []byte, addr byte, flags uint16) dnsReply {
	b := append([]byte{}, q...)
	b[2], b[3] = b[2]|0x80|byte(flags>>8), b[3]|byte(flags)
	b[7] = 1
	b = append(b, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, addr)
	return dnsReply{Replies: []string{hex.EncodeToString(b)}}
}

// TestCompareReplies: each kind of difference is seen, and lifetimes and the order of replies on
// one socket are none.
func TestCompareReplies(t *testing.T) {
	q := question(1, bitRD, "www.example.", typeA, 1)
	other := question(2, bitRD, "www.example.", typeA, 1)
	row := dnsCase{id: "x"}
	good := answered(q, 1, bitRA)
	two := dnsReply{Replies: []string{good.Replies[0], answered(other, 1, bitRA).Replies[0]}}
	swapped := dnsReply{Replies: []string{two.Replies[1], two.Replies[0]}}
	older := dnsReply{Replies: []string{strings.Replace(good.Replies[0], "0000003c", "0000000c", 1)}}
	for name, c := range map[string]struct {
		a, b       dnsReply
		hard, soft int
	}{
		"the same":       {good, good, 0, 0},
		"lifetime":       {good, older, 0, 0},
		"order":          {two, swapped, 0, 0},
		"address":        {good, answered(q, 2, bitRA), 1, 0},
		"rcode":          {good, answered(q, 1, bitRA|3), 1, 0},
		"TC":             {good, answered(q, 1, bitRA|bitTC), 1, 0},
		"TC of both":     {answered(q, 1, bitRA|bitTC), answered(q, 2, bitRA|bitTC), 0, 0},
		"RA":             {good, answered(q, 1, 0), 0, 1},
		"id":             {good, answered(other, 1, bitRA), 1, 0},
		"no reply":       {good, dnsReply{Error: "timeout"}, 1, 0},
		"one reply less": {two, good, 1, 0},
		"malformed":      {good, dnsReply{Replies: []string{good.Replies[0][:30]}}, 2, 0},
	} {
		hard, soft := compareReplies(row, c.a, c.b)
		if len(hard) != c.hard || len(soft) != c.soft {
			t.Errorf("%s: %v, %v", name, hard, soft)
		}
	}
}

// TestTable: the rows have names of their own, enough of them, and every decision is about one.
func TestTable(t *testing.T) {
	rows := map[string]bool{}
	for _, c := range dnsTable() {
		if rows[c.id] {
			t.Errorf("two rows are called %s", c.id)
		}
		rows[c.id] = true
	}
	if len(rows) < 60 || len(coreTable()) < 15 {
		t.Errorf("%d rows, %d in the core", len(rows), len(coreTable()))
	}
	for id := range decidedRows() {
		if !rows[id] {
			t.Errorf("a decision about %s, which is no row", id)
		}
	}
}

func TestToolAnswer(t *testing.T) {
	dig := ";; ->>HEADER<<- opcode: QUERY, status: NOERROR, id: 1\n;; flags: qr tc rd ra; QUERY: 1\n\n;; OPT PSEUDOSECTION:\n; EDNS: version: 0\n" +
		";; ANSWER SECTION:\nb. 5 IN A 192.0.2.2\na.\t300 IN A 192.0.2.1\n\n;; ADDITIONAL SECTION:\nx. 1 IN A 192.0.2.3\n"
	if got, want := toolAnswer(dig), "NOERROR TC=true OPT=true a. TTL IN A 192.0.2.1 | b. TTL IN A 192.0.2.2"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := toolAnswer(";; ->>HEADER<<- opcode: QUERY, rcode: NXDOMAIN, id: 1\n;; flags: qr rd ra ; \n"); got != "NXDOMAIN TC=false OPT=false " {
		t.Errorf("%q", got)
	}
}

// TestSpread: even counts are probable, a counter and a constant are not.
func TestSpread(t *testing.T) {
	even := make([]int, 64)
	for i := range even {
		even[i] = 30 + i%3
	}
	if p := chiSquare(even); p < 0.5 {
		t.Errorf("even counts have p %g", p)
	}
	even[0] += 200
	if p := chiSquare(even); p > 1e-6 {
		t.Errorf("an outlier has p %g", p)
	}
	var list []asked
	for i := range 500 {
		list = append(list, asked{Port: uint16(i % 7), ID: uint16(i)})
	}
	ports, p := spread(list)
	if ports != 7 || p["high byte"] > 1e-6 || p["difference"] > 1e-6 {
		t.Errorf("%d ports, %v", ports, p)
	}
}
