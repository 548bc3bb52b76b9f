package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"gatun/e2e/lab"
)

// knownAddr is an address that a public resolver is known by; the lab's server has it too.
const knownAddr, knownAddr6 = "1.1.1.1", "2606:4700:4700::1111"

// listedAddr is an address that only a list of resolvers knows, listedName a name; chosenAddr is
// the nameserver that gatun asks.
const listedAddr, listedName, chosenAddr = "198.51.100.70", "doh.listed.example", "198.51.100.68"

// publicResolver brings the known addresses into the lab.
func (w *dnsWorld) publicResolver() error {
	for _, step := range [][]string{
		{"-n", string(w.Server), "address", "add", knownAddr + "/32", "dev", "lo"},
		{"-n", string(w.Server), "address", "add", knownAddr6 + "/128", "dev", "lo", "nodad"},
		{"-n", string(w.Router), "route", "add", knownAddr + "/32", "via", lab.Server4},
		{"-n", string(w.Router), "-6", "route", "add", knownAddr6 + "/128", "via", lab.Server6},
	} {
		if err := ip(step...); err != nil {
			return err
		}
	}
	return nil
}

// A bypass is one way to resolve a name past the built-in nameserver.
type bypass struct {
	form  string
	proto string // tcp, udp: a flow to an address; name: a query
	to    string // ADDR:PORT, or the name
	port  bool   // port 53: it may be taken over
	// canary tells that the name is asked to find out whether the program may resolve names itself:
	// only that it does not exist says no.
	canary bool
}

// bypasses are the forms of the design that can be told by an address, a port or a name.
func bypasses() []bypass {
	both := func(form, proto string, port int) []bypass {
		return []bypass{
			{form: form + ", IPv4", proto: proto, to: fmt.Sprintf("%s:%d", rogueAddr, port), port: port == 53},
			{form: form + ", IPv6", proto: proto, to: fmt.Sprintf("[%s]:%d", rogueAddr6, port), port: port == 53},
		}
	}
	var list []bypass
	for _, f := range []struct {
		form, proto string
		port        int
	}{
		{"DNS over UDP, another server", "udp", 53}, {"DNS over TCP, another server", "tcp", 53},
		{"DoT", "tcp", 853}, {"DoQ", "udp", 853}, {"DNSCrypt over UDP", "udp", 5443}, {"DNSCrypt over TCP", "tcp", 5443},
		{"mDNS", "udp", 5353}, {"LLMNR", "udp", 5355},
	} {
		list = append(list, both(f.form, f.proto, f.port)...)
	}
	return append(list,
		bypass{form: "DoH by known address, IPv4", proto: "tcp", to: knownAddr + ":443"},
		bypass{form: "DoH by known address, IPv6", proto: "tcp", to: "[" + knownAddr6 + "]:443"},
		bypass{form: "DoH3 by known address, IPv4", proto: "udp", to: knownAddr + ":443"},
		bypass{form: "DoH3 by known address, IPv6", proto: "udp", to: "[" + knownAddr6 + "]:443"},
		bypass{form: "DoH at a listed address", proto: "tcp", to: listedAddr + ":8443"},
		bypass{form: "DoH by name", proto: "name", to: "dns.google"},
		bypass{form: "DoH by a name below one", proto: "name", to: "mozilla.cloudflare-dns.com"},
		bypass{form: "DoH by a listed name", proto: "name", to: listedName},
		bypass{form: "canary", proto: "name", to: "use-application-dns.net", canary: true},
		bypass{form: "private relay", proto: "name", to: "mask.icloud.com", canary: true},
		bypass{form: "private relay, HTTP/2", proto: "name", to: "mask-h2.icloud.com", canary: true},
		bypass{form: "DNSCrypt certificate", proto: "name", to: "2.dnscrypt-cert.resolver.example"},
		bypass{form: "discovery of encrypted resolvers", proto: "name", to: "_dns.resolver.example"},
	)
}

// later are the forms that only the inspection of connections can see, with what they wait for.
func later() map[string]string {
	return map[string]string{
		"DoH by SNI":                        "waits for inspection: the name is in the TLS handshake",
		"a resolver at another port by app": "waits for inspection: app=dns is known by what is said",
	}
}

// bypassPolicy is one column of the matrix.
type bypassPolicy struct {
	name, filter, extra string
	want                func(bypass) string
	style               string // dns/blockStyle; "" the default
}

func bypassPolicies() []bypassPolicy {
	refused := func(f bypass) string {
		switch {
		case f.port:
			return "redirected"
		case f.proto == "name":
			return "NXDOMAIN"
		}
		return "ECONNREFUSED"
	}
	reached := func(f bypass) string {
		return map[string]string{"name": "NOERROR", "tcp": "connected", "udp": "answer"}[f.proto]
	}
	const experimental = "core: {releaseLevel: experimental}\n"
	return []bypassPolicy{
		{"allow", "preventBypassing: off, dnsQueryInterception: off", experimental, reached, ""},
		// Nobody answers queries then, so that names cannot be asked at all.
		{"block", "preventBypassing: on, dnsQueryInterception: off", experimental, func(bypass) string { return "ECONNREFUSED" }, ""},
		{"redirect", "preventBypassing: on", "", refused, ""},
		{"redirect, blocked names are refused", "preventBypassing: on", "", func(f bypass) string {
			if f.proto == "name" && !f.canary {
				return "REFUSED"
			}
			return refused(f)
		}, "refused"},
		{"allow by a rule", "preventBypassing: on, dnsQueryInterception: off, endpoints: [\"+ *\"]", experimental, reached, ""},
	}
}

// proveBypass tries every form under every policy.
func proveBypass(b *bench) (err error) {
	w, err := b.rogueWorld()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	lists := "lists:\n"
	for format, entry := range map[string]string{"domains": listedName, "ips": listedAddr} {
		file := filepath.Join(w.Dir, "resolvers-"+format)
		if err := os.WriteFile(file, []byte(entry+"\n"), 0o644); err != nil {
			return err
		}
		lists += fmt.Sprintf("  - {id: resolvers-%s, category: SECUREDNS, format: %s, path: %q}\n", format, format, file)
	}
	modes := []string{"up", "run"}
	if b.small {
		modes = modes[:1]
	}
	for _, mode := range modes {
		for _, p := range bypassPolicies() {
			if err := b.bypassColumn(w, mode, p, lists); err != nil {
				return fmt.Errorf("%s, %s: %w", mode, p.name, err)
			}
		}
	}
	for form, why := range later() {
		b.note("not tried: "+form, why)
	}
	return nil
}

func (b *bench) bypassColumn(w *dnsWorld, mode string, p bypassPolicy, lists string) error {
	g, err := started(w.Lab, mode, fmt.Sprintf("version: 1\n%sfilter: {defaultAction: permit, %s}\ndns: {blockStyle: %s, noAssignedNameservers: true, nameservers: [%q]}\n%s",
		p.extra, p.filter, cmp.Or(p.style, "nxdomain"), "dns://"+chosenAddr, lists))
	if err != nil {
		return err
	}
	wrong := 0
	for _, f := range bypasses() {
		got, err := w.tryBypass(g, f)
		if err != nil {
			return err
		}
		if want := p.want(f); got != want {
			wrong++
			b.figure(fmt.Sprintf("%s, %s: %s", mode, p.name, f.form), got+", want "+want, false)
		}
	}
	b.exactly(fmt.Sprintf("%s, %s: of %d forms decided otherwise", mode, p.name, len(bypasses())), float64(wrong), 0)
	_, err = g.Down()
	return err
}

// tryBypass tries one form and says what came of it: what the program saw, and whether packets
// left for that place. A refusal that let packets out, or an answer that came from elsewhere,
// shows.
func (w *dnsWorld) tryBypass(g *lab.Gatun, f bypass) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := w.ResetCounters(); err != nil {
		return "", err
	}
	if f.proto == "name" {
		r, err := g.Program(ctx, "dns", f.to, chosenAddr)
		return w.withPackets(r.Result, lab.Match{Dst: netip.MustParseAddr(chosenAddr), Port: 53}, err)
	}
	to := netip.MustParseAddrPort(f.to)
	m := lab.Match{Proto: f.proto, Dst: to.Addr(), Port: int(to.Port())}
	if !f.port {
		r, err := g.Program(ctx, f.proto, "-timeout", "1500ms", f.to)
		return w.withPackets(r.Result, m, err)
	}
	args := []string{"dns", "-timeout", "1500ms", "www.example.org", to.Addr().String()}
	if f.proto == "tcp" {
		args = append([]string{"dns", "-tcp"}, args[1:]...)
	}
	r, err := g.Program(ctx, args...)
	if r.Result != "NOERROR" {
		return w.withPackets(r.Result, m, err)
	}
	n, err2 := w.Count(m)
	if err = errors.Join(err, err2); n == 0 {
		return "redirected", err
	}
	return map[string]string{"udp": "answer", "tcp": "connected"}[f.proto], err
}

// withPackets adds to what a program saw whether it fits what left.
func (w *dnsWorld) withPackets(saw string, m lab.Match, err error) (string, error) {
	n, err2 := w.Count(m)
	reached := saw == "connected" || saw == "answer" || saw == "NOERROR"
	switch {
	case reached && n == 0:
		saw += ", but no packet left"
	case !reached && n > 0:
		saw += fmt.Sprintf(", but %d packets left", n)
	}
	return saw, errors.Join(err, err2)
}

// ip runs an ip command.
func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}
