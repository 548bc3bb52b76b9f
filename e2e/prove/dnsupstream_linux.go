package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"gatun/e2e/lab"
)

// proveDNSPeers asks the core of the table of each nameserver, directly and through a gatun that
// has it as its only resolver, over each transport that the nameserver has.
func proveDNSPeers(b *bench) (err error) {
	names := []string{"unbound", "named", "kresd", "dnsmasq", "stubby"}
	if b.small {
		names = names[:2]
	}
	w, err := b.dnsWorld(names...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := w.startForwarder(); err != nil {
		return err
	}
	for _, mode := range []string{"up", "run"}[:b.size(2, 1)] {
		if err := b.transports(w, mode); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) transports(w *dnsWorld, mode string) error {
	b.note("mode", mode)
	g, err := started(w.Lab, mode, upstreams(w.peers["unbound"].url("dot")))
	if err != nil {
		return err
	}
	// Plain ones last: the end of a connection that they leave would count as clear text.
	if err := errors.Join(b.peerCores(w, g, encrypted), b.wrongNames(w, g), b.strict(w, g), b.peerCores(w, g, plain), b.restart(w, g)); err != nil {
		return err
	}
	_, err = g.Down()
	return err
}

// The transports.
var (
	encrypted = []string{"doh", "doq", "dot", "h3"}
	plain     = []string{"dns", "dns6", "tcp"}
)

// peerCores asks every nameserver over those of the transports that it has.
func (b *bench) peerCores(w *dnsWorld, g *lab.Gatun, schemes []string) error {
	for _, name := range slices.Sorted(maps.Keys(w.peers)) {
		if name == "root" {
			continue
		}
		if err := b.peerCore(w, g, w.peers[name], schemes); err != nil {
			return err
		}
	}
	return nil
}

// restart ends and starts the nameserver under gatun's open connections: the next query is answered
// as if nothing had been.
func (b *bench) restart(w *dnsWorld, g *lab.Gatun) error {
	urls := b.peerURLs(w.peers["unbound"])
	for _, scheme := range []string{"tcp", "dot", "doh"} {
		before, _, err := w.askOnce(g, upstreams(urls[scheme]), "before-"+scheme+".wild.kinds.example.")
		if err != nil {
			return err
		}
		w.running["unbound"].Kill()
		if err := w.startPeers([]string{"unbound"}); err != nil {
			return err
		}
		after, err := w.exchange(g.Program, queries(3, "after-"+scheme+"-%d.wild.kinds.example."), w.peers["unbound"].at4().String(), "-timeout", "6s")
		if err != nil {
			return err
		}
		longest := 0.0
		for _, r := range after {
			longest = max(longest, r.MS)
		}
		b.figure("the nameserver restarts under a connection, "+scheme, fmt.Sprintf("%s, then %d of 3 answered, %.0f ms at most", before, trueAnswers(after), longest),
			before == "NOERROR" && trueAnswers(after) == 3)
	}
	return nil
}

// peerURLs are the resolver URLs of a peer, by transport.
func (b *bench) peerURLs(p dnsPeer) map[string]string {
	urls := map[string]string{"dns": p.url("dns"), "tcp": p.url("tcp")}
	if !b.small {
		urls["dns6"] = p.url("dns6")
	}
	if p.dot != 0 {
		urls["dot"], urls["doh"] = p.url("dot"), p.url("doh")
	}
	if p.name == "unbound" {
		urls["doq"] = fmt.Sprintf("doq://%s:853?verify=peer.example.org", forwarderAddr)
		urls["h3"] = fmt.Sprintf("h3://%s:8443/dns-query?verify=peer.example.org", forwarderAddr)
	}
	return urls
}

// wrongNames gives the encrypted resolvers a name that their certificate does not have: nothing may
// be asked of them. The same URLs with the right name were answered above.
func (b *bench) wrongNames(w *dnsWorld, g *lab.Gatun) error {
	for scheme, url := range b.peerURLs(w.peers["unbound"]) {
		wrong := strings.Replace(url, "peer.example.org", "peer.example.invalid", 1)
		if wrong == url || b.small && scheme != "dot" && scheme != "h3" {
			continue
		}
		answer, clear, err := w.askOnce(g, upstreams(wrong), "wrong-"+scheme+".wild.kinds.example.")
		if err != nil {
			return err
		}
		b.figure("another name in the certificate, "+scheme, fmt.Sprintf("%s, %d packets in clear text", answer, clear), answer == "SERVFAIL" && clear == 0)
	}
	return nil
}

// strict has only resolvers that are dead and encrypted, beside the system's, which answers in
// clear text: it must not be asked. It is where the dead one is a plain one.
func (b *bench) strict(w *dnsWorld, g *lab.Gatun) error {
	allowed := func(urls ...string) string {
		return strings.Replace(upstreams(urls...), "noAssignedNameservers: true", "noAssignedNameservers: false", 1)
	}
	dead := "198.51.100.69" // in the server's namespace, where nobody listens
	answer, clear, err := w.askOnce(g, allowed("dot://"+dead+"?verify=peer.example.org", "doh://"+dead+"/dns-query?verify=peer.example.org"), "strict.example.org.")
	if err != nil {
		return err
	}
	b.figure("only encrypted resolvers, all dead", fmt.Sprintf("%s, %d packets in clear text", answer, clear), answer == "SERVFAIL" && clear == 0)
	answer, clear, err = w.askOnce(g, allowed("dns://"+dead), "loose.example.org.")
	if err != nil {
		return err
	}
	b.figure("control: a plain resolver, dead", fmt.Sprintf("%s, %d packets in clear text", answer, clear), answer == "NOERROR" && clear > 0)
	return nil
}

// askOnce puts a configuration in place, asks for one name and returns the rcode, and how many
// packets went to port 53 meanwhile.
func (w *dnsWorld) askOnce(g *lab.Gatun, config, name string) (rcode string, clear int, err error) {
	if err := reconfigure(w.Lab, g, config); err != nil {
		return "", 0, err
	}
	if err := w.ResetCounters(); err != nil {
		return "", 0, err
	}
	r, err := w.exchange(g.Program, queries(1, name), w.peers["unbound"].at4().String(), "-timeout", "6s")
	if err != nil {
		return "", 0, err
	}
	rcode = r["0"].Error
	if list, err := sortedMessages(r["0"]); err == nil && len(list) == 1 {
		rcode = rcodeName(list[0].rcode())
	}
	clear, err = w.Count(lab.Match{Port: 53})
	return rcode, clear, err
}

// peerCore asks one nameserver over those of the transports that it has.
func (b *bench) peerCore(w *dnsWorld, g *lab.Gatun, p dnsPeer, schemes []string) error {
	rows := coreTable()
	first, err := w.exchange(w.direct, rows, p.at4().String())
	if err != nil {
		return err
	}
	second, err := w.exchange(w.direct, rows, p.at4().String())
	if err != nil {
		return err
	}
	urls := b.peerURLs(p)
	for _, scheme := range schemes {
		if urls[scheme] == "" {
			continue
		}
		what := p.name + " over " + scheme
		if err := reconfigure(w.Lab, g, upstreams(urls[scheme])); err != nil {
			b.figure(what, err.Error(), false)
			continue
		}
		if err := w.ResetCounters(); err != nil {
			return err
		}
		begin := time.Now()
		through, err := w.exchange(g.Program, rows, p.at4().String(), "-timeout", "6s")
		if err != nil {
			return err
		}
		b.compareTable(what, rows, through, first, second)
		took := time.Since(begin).Round(time.Millisecond)
		clear, other, err := w.upstreamPackets(scheme)
		if err != nil {
			return err
		}
		b.note(what+": the whole core", took.String())
		b.atLeast(what+": packets of that transport on the wire", float64(other), 10, "")
		if slices.Contains(encrypted, scheme) {
			b.exactly(what+": packets in clear text", float64(clear), 0)
		}
	}
	return nil
}

// upstreamPackets counts what the router saw of DNS from the host: to port 53, and of a transport.
func (w *dnsWorld) upstreamPackets(scheme string) (clear, transport int, err error) {
	match := map[string]lab.Match{
		"dns": {Proto: "udp", Port: 53}, "dns6": {Proto: "udp", Port: 53}, "tcp": {Proto: "tcp", Port: 53}, "dot": {Proto: "tcp", Port: 853},
		"doh": {Proto: "tcp", Port: 8443}, "doq": {Proto: "udp", Port: 853}, "h3": {Proto: "udp", Port: 8443},
	}[scheme]
	if clear, err = w.Count(lab.Match{Port: 53}); err != nil {
		return 0, 0, err
	}
	transport, err = w.Count(match)
	return clear, transport, err
}

// reconfigure puts another configuration in place and waits until it is in effect.
func reconfigure(l *lab.Lab, g *lab.Gatun, text string) error {
	file, err := policy(l, text)
	if err != nil {
		return err
	}
	if err := os.Chmod(file, 0o644); err != nil {
		return err
	}
	_, err = g.Client("reload")
	return err
}

// forwarderAddr is where the helper serves DNS over QUIC and over HTTP/3 for unbound.
const forwarderAddr = "198.51.100.67"

func (w *dnsWorld) startForwarder() error {
	cert, key := w.CertFiles()
	p, err := w.Start(w.Server, lab.Spec{Pipe: true}, w.Bins.Peer, "forward", "-doq", forwarderAddr+":853", "-h3", forwarderAddr+":8443",
		"-cert", cert, "-key", key, "198.51.100.61:53")
	if err != nil {
		return err
	}
	if _, err := p.Stdout.Read(make([]byte, 64)); err != nil {
		text, _ := os.ReadFile(p.Log)
		return fmt.Errorf("the forwarder: %w: %s", err, text)
	}
	return nil
}
