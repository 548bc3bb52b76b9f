package main

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// dnsCase is one row of the table of queries: what is sent, and over what.
type dnsCase struct {
	id       string
	net      string // udp, tcp
	messages [][]byte
	replies  int
	pieces   int
	quiet    bool // no reply is expected: not waited for long
}

// decidedRows are the rows that are answered otherwise than unbound does, each with the decision
// that says so. Every other difference is a bug.
func decidedRows() map[string]string {
	rows := map[string]string{
		"no-rd":         "gatun answers in place of whatever server was asked, so it resolves without RD too",
		"tc-set":        "TC in a query says nothing",
		"opcode-4":      "NOTIFY is for servers of zones: not implemented, like the others",
		"manyaddr-4096": "over UDP never more than 1232 bytes (DNS flag day 2020)",
	}
	for _, id := range []string{"chaos-version", "chaos-hostname", "hesiod", "class-any", "class-none", "class-unknown"} {
		rows[id] = "class IN only"
	}
	for _, id := range []string{
		"type-0", "questions-2", "questions-missing", "question-cut", "trailing-bytes", "opt-twice", "opt-cut", "option-cut",
		"pointer-in-question", "label-64", "name-256", "with-answer",
	} {
		rows[id] = "what is malformed is FORMERR in a whole message that repeats only what could be read"
	}
	return rows
}

// decidedDifference says why a difference is right: a decision about the row, or a nameserver that
// breaks a rule which gatun keeps.
func decidedDifference(what string, d difference) string {
	switch {
	case strings.HasPrefix(what, "stubby") && d.what == "OPT":
		return "stubby sends an OPT to who sent none, which RFC 6891 (7) forbids"
	case strings.HasPrefix(what, "dnsmasq") && d.row == "case" && d.what == "id and question":
		return "dnsmasq repeats the question in the case of its cache"
	}
	return decidedRows()[d.row]
}

// table is a list of rows in the making.
type table struct {
	rows []dnsCase
	id   uint16
}

func (t *table) add(name, network string, messages ...[]byte) *dnsCase {
	t.rows = append(t.rows, dnsCase{id: name, net: network, messages: messages, replies: len(messages)})
	return &t.rows[len(t.rows)-1]
}

// ask is an ordinary query with RD, like a libc's.
func (t *table) ask(name string, typ uint16) []byte {
	t.id += 257
	return question(t.id, bitRD, name, typ, 1)
}

// edns is an ordinary query with EDNS and the options given.
func (t *table) edns(name string, typ uint16, options ...byte) []byte {
	return withOPT(t.ask(name, typ), 1232, 0, options...)
}

// dnssec is a query with DO.
func (t *table) dnssec(name string, typ uint16) []byte {
	return withOPT(t.ask(name, typ), 1232, bitDO)
}

// dnsTable is the whole table.
func dnsTable() []dnsCase {
	t := &table{id: 1}
	t.types()
	t.names()
	t.negative()
	t.sizes()
	t.flags()
	t.extensions()
	t.odd()
	t.streams()
	return t.rows
}

// coreTable is the part that is asked of every nameserver over every transport.
func coreTable() []dnsCase {
	core := []string{
		"A", "AAAA", "MX", "TXT", "SRV", "CAA", "HTTPS", "SOA", "cname", "cname-chain", "cname-outside", "dname", "wildcard", "nxdomain",
		"nodata", "bigtxt-udp", "bigtxt-edns", "bigtxt-tcp", "do-A", "case", "escaped-dot", "unknown-type",
	}
	return slices.DeleteFunc(dnsTable(), func(c dnsCase) bool { return !slices.Contains(core, c.id) })
}

// types asks for every usual type, and some that few know.
func (t *table) types() {
	for _, c := range []struct {
		id, name string
		typ      uint16
	}{
		{"A", "www", typeA}, {"AAAA", "www", typeAAAA}, {"MX", "", typeMX}, {"TXT", "", typeTXT}, {"SRV", "_sip._tcp.", typeSRV}, {"CAA", "", 257},
		{"NS", "", typeNS}, {"SOA", "", typeSOA}, {"CNAME", "alias", typeCNAME}, {"DNAME", "tree", typeDNAME}, {"HTTPS", "https", typeHTTPS},
		{"HTTPS-apex", "", typeHTTPS}, {"HTTPS-alias", "httpsalias", typeHTTPS}, {"HTTPS-many", "httpsmany", typeHTTPS}, {"SVCB", "svc", 64},
		{"NAPTR", "naptr", 35}, {"TLSA", "_443._tcp.www", 52}, {"SSHFP", "sshfp", 44}, {"LOC", "loc", 29}, {"HINFO", "hinfo", typeHINFO}, {"RP", "rp", 17},
		{"AFSDB", "afsdb", 18}, {"URI", "uri", 256}, {"EUI48", "eui48", 108}, {"EUI64", "eui64", 109}, {"KX", "kx", 36}, {"CERT", "cert", 37},
		{"DHCID", "dhcid", 49}, {"APL", "apl", 42}, {"OPENPGPKEY", "openpgp", 61}, {"SMIMEA", "smime", 53}, {"SPF", "spf", 99}, {"NID", "nid", 104},
		{"DNSKEY", "", typeDNSKEY}, {"DS", "", typeDS}, {"NSEC", "www", 47}, {"RRSIG", "www", typeRRSIG}, {"ANY", "www", typeANY},
		{"ANY-alias", "alias", typeANY}, {"unknown-type", "unknown", 65280}, {"unknown-type-empty", "unknown", 65281}, {"unknown-type-nodata", "www", 65300},
		{"TXT-bytes", "txt", typeTXT}, {"TXT-empty", "emptytxt", typeTXT}, {"PTR", "ptr", typePTR},
	} {
		name := "kinds.example."
		if c.name != "" {
			name = c.name + "." + name
		}
		t.add(c.id, "udp", t.ask(name, c.typ))
	}
	t.add("PTR-reverse", "udp", t.ask("10.100.51.198.in-addr.arpa.", typePTR))
	t.add("PTR-classless", "udp", t.ask("11.100.51.198.in-addr.arpa.", typePTR))
}

// names asks for names that are written unusually, and for aliases.
func (t *table) names() {
	names := map[string]string{
		"case": "wWw.KiNdS.eXaMpLe.", "case-of-zone": "mixedcase.kinds.example.", "escaped-dot": `a\.dot.kinds.example.`, "space": `a\032space.kinds.example.`,
		"nul": `a\000nul.kinds.example.`, "high-byte": `a\255high.kinds.example.`, "backslash": `a\\back.kinds.example.`, "at-sign": `at\@sign.kinds.example.`,
		"underscore": "_under_score.kinds.example.", "idn": "xn--bcher-kva.kinds.example.", "label-63": "abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0.kinds.example.",
		"name-255": longName(), "cname": "alias.kinds.example.", "cname-chain": "one.kinds.example.", "cname-8": "eight1.kinds.example.",
		"cname-outside": "outside.kinds.example.", "dname": "host.tree.kinds.example.", "dname-cname": "alias.tree.kinds.example.",
		"wildcard": "any.thing.wild.kinds.example.", "wildcard-cname": "x.wildalias.kinds.example.", "wildcard-star": "*.wild.kinds.example.",
		"unsigned": "www.plain.example.", "ttl0": "ttl0.kinds.example.",
	}
	for _, id := range slices.Sorted(maps.Keys(names)) {
		t.add(id, "udp", t.ask(names[id], typeA))
	}
	t.add("root-NS", "udp", t.ask(".", typeNS))
	t.add("root-SOA", "udp", t.ask(".", typeSOA))
	t.add("root-A", "udp", t.ask(".", typeA))
}

// negative asks for what does not exist or cannot be told.
func (t *table) negative() {
	names := map[string]string{
		"nxdomain": "nothing.kinds.example.", "nxdomain-deep": "a.b.c.nothing.kinds.example.", "nxdomain-plain": "nothing.plain.example.", "nxdomain-tld": "nothing.nowhere.",
		"nodata": "only6.kinds.example.", "nodata-ent": "ent.kinds.example.", "cname-dangling": "dangling.kinds.example.", "cname-loop": "loop1.kinds.example.",
		"cname-outside-missing": "outmissing.kinds.example.", "dname-missing": "nothing.tree.kinds.example.", "bogus-signature": "bogus.kinds.example.",
	}
	for _, id := range slices.Sorted(maps.Keys(names)) {
		t.add(id, "udp", t.ask(names[id], typeA))
		t.add(id+"-do", "udp", t.dnssec(names[id], typeA))
	}
	t.add("nodata-AAAA", "udp", t.ask("only4.kinds.example.", typeAAAA))
}

// sizes asks for answers that fit into nothing, with and without EDNS, and over TCP.
func (t *table) sizes() {
	for _, q := range []struct {
		id  string
		typ uint16
	}{{"bigtxt", typeTXT}, {"midtxt", typeTXT}, {"sixty", typeA}, {"manyaddr", typeA}} {
		id, name := q.id, q.id+".kinds.example."
		t.add(id+"-udp", "udp", t.ask(name, q.typ))
		t.add(id+"-edns", "udp", t.edns(name, q.typ))
		t.add(id+"-tcp", "tcp", t.ask(name, q.typ))
		t.add(id+"-512", "udp", withOPT(t.ask(name, q.typ), 512, 0))
		t.add(id+"-100", "udp", withOPT(t.ask(name, q.typ), 100, 0))
		t.add(id+"-4096", "udp", withOPT(t.ask(name, q.typ), 4096, 0))
	}
	t.add("bigtxt-edns-tcp", "tcp", t.edns("bigtxt.kinds.example.", typeTXT))
	t.add("dnskey-do", "udp", t.dnssec("kinds.example.", typeDNSKEY))
	t.add("root-dnskey-do-tcp", "tcp", t.dnssec(".", typeDNSKEY))
}

// flags sets and clears the bits of the header.
func (t *table) flags() {
	with := func(id string, bits uint16, name string) {
		t.id += 257
		t.add(id, "udp", question(t.id, bits, name, typeA, 1))
	}
	with("ad", bitRD|bitAD, "www.kinds.example.")
	with("ad-unsigned", bitRD|bitAD, "www.plain.example.")
	with("cd", bitRD|bitCD, "www.kinds.example.")
	with("cd-bogus", bitRD|bitCD, "bogus.kinds.example.")
	with("no-rd", 0, "www.kinds.example.")
	with("aa-set", bitRD|bitAA, "www.kinds.example.")
	with("tc-set", bitRD|bitTC, "www.kinds.example.")
	with("ra-set", bitRD|bitRA, "www.kinds.example.")
	with("z-set", bitRD|bitZ, "www.kinds.example.")
	with("rcode-set", bitRD|5, "www.kinds.example.")
	t.add("do-A", "udp", t.dnssec("www.kinds.example.", typeA))
	t.add("do-MX", "udp", t.dnssec("kinds.example.", typeMX))
	t.add("do-cname", "udp", t.dnssec("one.kinds.example.", typeA))
	t.add("do-dname", "udp", t.dnssec("host.tree.kinds.example.", typeA))
	t.add("do-wildcard", "udp", t.dnssec("x.wild.kinds.example.", typeA))
	t.add("do-unsigned", "udp", t.dnssec("www.plain.example.", typeA))
	t.add("do-cd-bogus", "udp", withOPT(question(t.id, bitRD|bitCD, "bogus.kinds.example.", typeA, 1), 1232, bitDO))
}

// extensions are EDNS's versions and options.
func (t *table) extensions() {
	const www = "www.kinds.example."
	t.add("edns", "udp", t.edns(www, typeA))
	t.add("edns-tcp", "tcp", t.edns(www, typeA))
	t.add("edns-version-1", "udp", withOPT(t.ask(www, typeA), 1232, 1<<16))
	t.add("edns-version-255", "udp", withOPT(t.ask(www, typeA), 1232, 255<<16))
	t.add("edns-z-bits", "udp", withOPT(t.ask(www, typeA), 1232, 0x7fff))
	t.add("edns-size-0", "udp", withOPT(t.ask(www, typeA), 0, 0))
	t.add("edns-size-65535", "udp", withOPT(t.ask(www, typeA), 65535, 0))
	t.add("cookie", "udp", t.edns(www, typeA, ednsOption(10, 1, 2, 3, 4, 5, 6, 7, 8)...))
	t.add("cookie-long", "udp", t.edns(www, typeA, ednsOption(10, make([]byte, 24)...)...))
	t.add("nsid", "udp", t.edns(www, typeA, ednsOption(3)...))
	t.add("padding", "udp", t.edns(www, typeA, ednsOption(12, make([]byte, 64)...)...))
	t.add("ecs", "udp", t.edns(www, typeA, ednsOption(8, 0, 1, 24, 0, 203, 0, 113)...))
	t.add("keepalive-tcp", "tcp", t.edns(www, typeA, ednsOption(11)...))
	t.add("keepalive-udp", "udp", t.edns(www, typeA, ednsOption(11)...))
	t.add("option-unknown", "udp", t.edns(www, typeA, ednsOption(65001, 1, 2, 3)...))
	t.add("option-many", "udp", t.edns(www, typeA, slices.Concat(ednsOption(65001, 1), ednsOption(65002), ednsOption(3), ednsOption(12, 0))...))
	t.add("ede-bogus", "udp", t.edns("bogus.kinds.example.", typeA))
}

// odd are messages that no honest program sends: what must be answered with an error or not at all.
func (t *table) odd() {
	const www = "www.kinds.example."
	class := func(id string, n, typ uint16, name string) {
		t.id += 257
		t.add(id, "udp", question(t.id, bitRD, name, typ, n))
	}
	class("chaos-version", 3, typeTXT, "version.bind.")
	class("chaos-hostname", 3, typeTXT, "hostname.bind.")
	class("hesiod", 4, typeTXT, www)
	class("class-any", 255, typeA, www)
	class("class-none", 254, typeA, www)
	class("class-unknown", 1000, typeA, www)
	for _, opcode := range []uint16{1, 2, 3, 4, 5, 6, 15} {
		t.id += 257
		t.add(fmt.Sprintf("opcode-%d", opcode), "udp", question(t.id, bitRD|opcode<<11, www, typeA, 1))
	}
	for _, typ := range []uint16{0, typeOPT, 128, 249, 250, 251, 252, 253, 254, 65535} {
		t.add(fmt.Sprintf("type-%d", typ), "udp", t.ask(www, typ))
	}
	t.add("axfr-tcp", "tcp", t.ask("kinds.example.", 252))
	q := t.ask(www, typeA)
	none := slices.Clone(q[:12])
	none[5] = 0
	t.add("questions-0", "udp", none)
	t.add("questions-0-edns", "udp", withOPT(none, 1232, 0))
	two := append(slices.Clone(q), q[12:]...)
	two[5] = 2
	t.add("questions-2", "udp", two)
	t.add("questions-missing", "udp", t.ask(www, typeA)[:12])
	t.add("question-cut", "udp", t.ask(www, typeA)[:20])
	t.add("header-cut", "udp", t.ask(www, typeA)[:11]).quiet = true
	t.add("trailing-bytes", "udp", append(t.ask(www, typeA), 1, 2, 3))
	t.add("response", "udp", question(7, bitRD|bitQR, www, typeA, 1)).quiet = true
	t.add("opt-twice", "udp", withOPT(withOPT(t.ask(www, typeA), 1232, 0), 1232, 0))
	t.add("opt-cut", "udp", t.edns(www, typeA)[:len(q)+5])
	t.add("option-cut", "udp", t.edns(www, typeA, 0, 10, 0, 8, 1))
	t.add("pointer-in-question", "udp", append(slices.Clone(q[:12]), 0xc0, 12, 0, 1, 0, 1))
	t.add("label-64", "udp", append(slices.Clone(q[:12]), append(append([]byte{64}, make([]byte, 64)...), 0, 0, 1, 0, 1)...))
	t.add("name-256", "udp", t.ask("x"+longName(), typeA))
	t.add("with-answer", "udp", withAnswer(t.ask(www, typeA)))
	t.add("localhost", "udp", t.ask("localhost.", typeA))
	t.add("localhost-AAAA", "udp", t.ask("localhost.", typeAAAA))
	t.add("localhost-below", "udp", t.ask("x.localhost.", typeA))
	t.add("invalid", "udp", t.ask("x.invalid.", typeA))
	t.add("onion", "udp", t.ask("x.onion.", typeA))
	t.add("loopback-reverse", "udp", t.ask("1.0.0.127.in-addr.arpa.", typePTR))
}

// withAnswer puts a record into the answer section of a query.
func withAnswer(b []byte) []byte {
	b = append(slices.Clone(b), 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 66)
	b[7] = 1
	return b
}

// streams are several messages on one connection, and messages in pieces.
func (t *table) streams() {
	const www = "www.kinds.example."
	t.add("tcp", "tcp", t.ask(www, typeA))
	t.add("tcp-twice", "tcp", t.ask(www, typeA), t.ask(www, typeAAAA))
	var many [][]byte
	for i := range 20 {
		many = append(many, t.ask(fmt.Sprintf("p%d.wild.kinds.example.", i), typeA))
	}
	t.add("tcp-pipelined", "tcp", many...)
	t.add("tcp-mixed", "tcp", t.ask("nothing.kinds.example.", typeA), t.ask("bigtxt.kinds.example.", typeTXT), t.edns(www, typeA), t.dnssec(www, typeA))
	t.add("tcp-bytes", "tcp", t.ask(www, typeA)).pieces = 1
	t.add("tcp-same-id", "tcp", question(9, bitRD, www, typeA, 1), question(9, bitRD, www, typeAAAA, 1))
	var udp [][]byte
	for i := range 20 {
		udp = append(udp, t.ask(fmt.Sprintf("u%d.wild.kinds.example.", i), typeA))
	}
	t.add("udp-one-socket", "udp", udp...)
}

// order is a row as the helper wants it.
func (c dnsCase) order() map[string]any {
	var list []string
	for _, m := range c.messages {
		list = append(list, hex.EncodeToString(m))
	}
	return map[string]any{"id": c.id, "net": c.net, "messages": list, "replies": c.replies, "pieces": c.pieces, "quiet": c.quiet}
}
