package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"

	"gatun/network"
)

// TestRemoveEveryForm: an address that the firewall removes is in no part of the answer, in
// whatever form it came and wherever it stood, and the public one beside it stays.
func TestRemoveEveryForm(t *testing.T) {
	bad4 := []string{
		"127.0.0.1", "127.255.255.254", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.255.255",
		"169.254.1.1", "169.254.169.254", "100.64.0.1", "100.127.255.255", "0.0.0.0", "0.1.2.3",
	}
	bad6 := []string{"::1", "::", "::ffff:127.0.0.1", "::ffff:192.168.0.1", "fe80::1", "febf::1", "fc00::1", "fdff::1", "64:ff9b::10.0.0.1", "64:ff9b::7f00:1"}
	const good4, good6 = "198.51.100.7", "2001:db8::7"
	// Where the address stands: OWNER is the asked name, BAD the address, GOOD a public one.
	places := map[string][]string{
		"alone":            {"OWNER 60 IN TYPE BAD"},
		"second":           {"OWNER 60 IN TYPE GOOD", "OWNER 60 IN TYPE BAD"},
		"first":            {"OWNER 60 IN TYPE BAD", "OWNER 60 IN TYPE GOOD"},
		"behind a CNAME":   {"OWNER 60 IN CNAME c.other.", "c.other. 60 IN TYPE BAD"},
		"behind two":       {"OWNER 60 IN CNAME c.other.", "c.other. 60 IN CNAME d.other.", "d.other. 60 IN TYPE GOOD", "d.other. 60 IN TYPE BAD"},
		"behind a DNAME":   {"example. 60 IN DNAME other.", "OWNER 60 IN CNAME v.other.", "v.other. 60 IN TYPE BAD"},
		"hint":             {`OWNER 60 IN HTTPS 1 . alpn="h2" HINT="BAD"`},
		"second hint":      {`OWNER 60 IN HTTPS 1 . alpn="h2" HINT="GOOD,BAD"`},
		"hint behind one":  {"OWNER 60 IN CNAME c.other.", `c.other. 60 IN HTTPS 1 . HINT="BAD" ech="AAAA"`},
		"mandatory hint":   {`OWNER 60 IN HTTPS 1 . mandatory=HINT HINT="BAD"`},
		"hint of SVCB":     {`OWNER 60 IN SVCB 1 t.other. HINT="BAD"`},
		"second SVCB":      {`OWNER 60 IN SVCB 1 t.other. HINT="GOOD"`, `OWNER 60 IN SVCB 2 u.other. HINT="GOOD,BAD"`},
		"in an ANY answer": {`OWNER 60 IN TXT "x"`, "OWNER 60 IN TYPE BAD", `OWNER 60 IN HTTPS 1 . HINT="BAD,GOOD"`},
	}
	cells := 0
	for place, lines := range places {
		for i, bad := range append(slices.Clone(bad4), bad6...) {
			typ, hint, good := "A", "ipv4hint", good4
			if i >= len(bad4) {
				typ, hint, good = "AAAA", "ipv6hint", good6
			}
			if hint == "ipv6hint" && strings.Contains(bad, "ffff:") && strings.Contains(strings.Join(lines, ""), "HINT") {
				continue // the library refuses a mapped address in an ipv6hint, as presentation and on the wire
			}
			cells++
			checkRemoved(t, fmt.Sprint(place, " ", bad), lines, strings.NewReplacer("OWNER", "v.example.", "TYPE", typ, "HINT", hint, "BAD", bad, "GOOD", good), bad, good)
		}
	}
	t.Logf("%d forms removed, 0 passed", cells)
}

func checkRemoved(t *testing.T, what string, lines []string, form *strings.Replacer, bad, good string) {
	t.Helper()
	var qtype uint16
	up := answering(t, func(q *mdns.Msg) *mdns.Msg {
		m := respond(t, q, mdns.RcodeSuccess)
		for _, l := range lines {
			m.Answer = append(m.Answer, record(t, form.Replace(l)))
		}
		return m
	})
	first := record(t, form.Replace(lines[len(lines)-1]))
	qtype = first.Header().Rrtype
	if strings.Contains(what, "ANY") {
		qtype = mdns.TypeANY
	}
	server := up.resolver()
	server.BlockedIf = BlockDisabled // else 0.0.0.0 is taken for a word of the resolver's own
	r := newRig(t, nil, server)
	evil := netip.MustParseAddr(bad).Unmap()
	r.firewall.after = func(_ *Query, a *Answer) network.Decision {
		if !slices.Contains(a.Addrs, evil) || a.Local {
			t.Errorf("%s: the firewall does not see the address: %+v", what, a)
		}
		for _, addr := range a.Addrs {
			if addr == evil {
				a.Remove = append(a.Remove, addr)
			}
		}
		return accepted
	}
	for range 2 { // from the upstream and from the cache
		reply := r.query(t, ask("v.example", qtype))
		text := ""
		for _, rr := range slices.Concat(reply.Answer, reply.Ns, reply.Extra) {
			text += rr.String() + "\n"
		}
		hasGood := strings.Contains(strings.Join(lines, ""), "GOOD")
		if reply.Rcode != mdns.RcodeSuccess || hasAddr(reply, evil) || hasGood != hasAddr(reply, netip.MustParseAddr(good)) {
			t.Fatalf("%s: got\n%s", what, text)
		}
		if strings.Contains(text, "mandatory") {
			t.Fatalf("%s: what is mandatory is gone:\n%s", what, text)
		}
		if strings.Contains(strings.Join(lines, ""), "ech=") && !strings.Contains(text, "ech=") {
			t.Fatalf("%s: ech is gone:\n%s", what, text)
		}
	}
	if e := r.memory.Entity(owner("/usr/bin/app", 1000), evil); e.Domain != "" {
		t.Fatalf("%s: remembered as %s", what, e.Domain)
	}
}

// hasAddr looks with its own eyes, on the wire form.
func hasAddr(m *mdns.Msg, a netip.Addr) bool {
	for _, rr := range slices.Concat(m.Answer, m.Ns, m.Extra) {
		b := make([]byte, mdns.Len(rr)+1)
		n, err := mdns.PackRR(rr, b, 0, nil, false)
		if err != nil {
			return true
		}
		head := mdns.Len(&mdns.NULL{Hdr: *rr.Header()})
		if a.Is4() {
			four, mapped := a.As4(), a.As16()
			if strings.Contains(string(b[head:n]), string(four[:])) && rr.Header().Rrtype != mdns.TypeTXT || strings.Contains(string(b[head:n]), string(mapped[:])) {
				return true
			}
			continue
		}
		sixteen := a.As16()
		if strings.Contains(string(b[head:n]), string(sixteen[:])) {
			return true
		}
	}
	return false
}
