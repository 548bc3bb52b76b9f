package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gatun/e2e/lab"
)

// deadFirst measures what a dead first resolver adds, one query after another, from the very first:
// an address that nobody has, one that takes everything and answers nothing, and a closed port,
// each plain and, for the mute one, over every transport.
func (b *bench) deadFirst(w *hostileWorld) error {
	alive := "dns://" + hostileAddr
	dead := map[string]string{
		"nobody": "dns://" + lab.Dead4, "mute": "dns://" + muteAddr, "closed port": "dns://" + hostileAddr + ":9953", "mute over tcp": "tcp://" + muteAddr,
		"mute over dot": "dot://" + muteAddr + "?verify=peer.example.org", "mute over doh": "doh://" + muteAddr + ":8443/dns-query?verify=peer.example.org",
		"mute over doq": "doq://" + muteAddr + "?verify=peer.example.org", "mute over h3": "h3://" + muteAddr + ":8443/dns-query?verify=peer.example.org",
	}
	if b.small {
		dead = map[string]string{"mute": dead["mute"], "mute over dot": dead["mute over dot"]}
	}
	n := b.size(20, 3)
	alone, err := b.oneByOne(w, "alone", n, alive)
	if err != nil {
		return err
	}
	b.note("the second resolver alone, median, longest", fmt.Sprintf("%.1f ms, %.1f ms", alone[len(alone)/2], alone[len(alone)-1]))
	for name, url := range dead {
		took, err := b.oneByOne(w, strings.ReplaceAll(name, " ", ""), n, url, alive)
		if err != nil {
			return err
		}
		b.atMost("dead first ("+name+"): the longest of "+fmt.Sprint(n)+" queries", took[len(took)-1]-alone[len(alone)/2], 250, "ms more")
		b.note("dead first ("+name+"): median", fmt.Sprintf("%.1f ms", took[len(took)/2]))
	}
	return nil
}

// oneByOne returns how long each query took, sorted; one without an answer counts as a minute.
func (b *bench) oneByOne(w *hostileWorld, name string, n int, urls ...string) ([]float64, error) {
	if err := reconfigure(w.Lab, w.g, upstreams(urls...)); err != nil {
		return nil, err
	}
	got, err := w.exchange(w.g.Program, queries(n, "dead-"+name+"-%d.hostile.example."), hostileAddr+":53", "-at", "1", "-timeout", "6s")
	if err != nil {
		return nil, err
	}
	var list []float64
	for _, r := range got {
		if trueAnswers(map[string]dnsReply{"": r}) == 0 {
			r.MS = 60000
		}
		list = append(list, r.MS)
	}
	slices.Sort(list)
	return list, nil
}

var perSecond = regexp.MustCompile(`(?m)^\s*Queries per second:\s+([0-9.]+)`)

// proveDNSLoad lets dnsperf, which others wrote, compare gatun with unbound itself, in alternating
// rounds. The figures are reported: e2e/bench has the bars.
func proveDNSLoad(b *bench) (err error) {
	w, err := b.dnsWorld("unbound")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	g, err := started(w.Lab, "up", upstreams(w.peers["unbound"].url("dns")))
	if err != nil {
		return err
	}
	for _, work := range []string{"cached", "distinct"} {
		var ratios, rates, direct []float64
		for round := range b.size(5, 1) {
			file, err := w.dnsperfNames(work, round)
			if err != nil {
				return err
			}
			a, err := b.dnsperf(w, w.Twin, file)
			if err != nil {
				return err
			}
			c, err := b.dnsperf(w, w.Host, file)
			if err != nil {
				return err
			}
			ratios, rates, direct = append(ratios, c/a), append(rates, c), append(direct, a)
		}
		b.note("dnsperf, "+work+": gatun to unbound", fmt.Sprintf("%.2f (%.2f to %.2f), %.0f/s against %.0f/s",
			median(ratios), slices.Min(ratios), slices.Max(ratios), median(rates), median(direct)))
		b.atLeast("dnsperf, "+work+": answers through gatun", slices.Min(rates), 1, "/s")
	}
	_, err = g.Down()
	return err
}

// dnsperfNames writes the queries: one, or as many different ones as a round can need.
func (w *dnsWorld) dnsperfNames(work string, round int) (string, error) {
	var s strings.Builder
	if work == "cached" {
		s.WriteString("www.kinds.example A\n")
	} else {
		for i := range 400_000 {
			fmt.Fprintf(&s, "r%d-%d.load.example A\n", round, i)
		}
	}
	file := filepath.Join(w.Dir, "dnsperf-"+work)
	return file, os.WriteFile(file, []byte(s.String()), 0o644)
}

// dnsperf returns the queries per second that it counts.
func (b *bench) dnsperf(w *dnsWorld, ns lab.Namespace, file string) (float64, error) {
	out, err := ns.Command(context.Background(), lab.Spec{User: lab.Nobody}, "dnsperf", "-s", w.peers["unbound"].addr4(), "-d", file,
		"-c", "8", "-T", "1", "-q", "100", "-l", fmt.Sprint(b.size(5, 1))).CombinedOutput()
	m := perSecond.FindSubmatch(out)
	if err != nil || m == nil {
		return 0, fmt.Errorf("dnsperf: %w: %s", err, out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}
