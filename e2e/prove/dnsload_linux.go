package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	n := b.size(40, 3)
	alone, err := b.oneByOne(w, "alone", n, alive)
	if err != nil {
		return err
	}
	usual := median(alone)
	b.note("the second resolver alone, median, longest", fmt.Sprintf("%.1f ms, %.1f ms", usual, slices.Max(alone)))
	limit := float64(b.size(250, 2500)) // a busy machine says little; without a hedge it would be seconds
	for _, name := range slices.Sorted(maps.Keys(dead)) {
		took, err := b.oneByOne(w, strings.ReplaceAll(name, " ", ""), n, dead[name], alive)
		if err != nil {
			return err
		}
		what := "dead first (" + name + ")"
		b.atMost(what+": added, 90 % of "+fmt.Sprint(n), percentile(took, 0.9)-usual, limit, "ms")
		b.atMost(what+": added, the longest", slices.Max(took)-usual, 4*limit, "ms")
		b.note(what+": added, first query, median", fmt.Sprintf("%.1f ms, %.1f ms", took[0]-usual, median(took)-usual))
		b.note(what+": queries until it is asked last", fmt.Sprint(1+lastSlow(took, usual+100)))
	}
	return nil
}

// percentile is the value that this share of the list does not exceed.
func percentile(list []float64, share float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[min(int(share*float64(len(list))), len(list)-1)]
}

// lastSlow is the index of the last value above the limit, -1 where there is none.
func lastSlow(list []float64, limit float64) int {
	for i := len(list) - 1; i >= 0; i-- {
		if list[i] > limit {
			return i
		}
	}
	return -1
}

// oneByOne returns how long each query took, in order; one without an answer counts as a minute.
func (b *bench) oneByOne(w *hostileWorld, name string, n int, urls ...string) ([]float64, error) {
	if err := reconfigure(w.Lab, w.g, upstreams(urls...)); err != nil {
		return nil, err
	}
	rows := queries(n, "dead-"+name+"-%d.hostile.example.")
	got, err := w.exchange(w.g.Program, rows, hostileAddr+":53", "-at", "1", "-timeout", "6s")
	if err != nil {
		return nil, err
	}
	var list []float64
	for _, row := range rows {
		r := got[row.id]
		if trueAnswers(map[string]dnsReply{"": r}) == 0 {
			r.MS = 60000
		}
		list = append(list, r.MS)
	}
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
		var ratios, rates, direct, cpu []float64
		for round := range b.size(5, 1) {
			file, err := w.dnsperfNames(work, round, b.size(400_000, 80_000))
			if err != nil {
				return err
			}
			a, err := b.dnsperf(w, w.Twin, file)
			if err != nil {
				return err
			}
			before, err := lab.CPU(g.Process.PID)
			if err != nil {
				return err
			}
			c, err := b.dnsperf(w, w.Host, file)
			if err != nil {
				return err
			}
			after, err := lab.CPU(g.Process.PID)
			if err != nil {
				return err
			}
			cpu = append(cpu, (after-before).Seconds()*1e6/(c*float64(b.dnsperfSeconds())))
			ratios, rates, direct = append(ratios, c/a), append(rates, c), append(direct, a)
		}
		b.note("dnsperf, "+work+": gatun to unbound", fmt.Sprintf("%.2f (%.2f to %.2f), %.0f/s against %.0f/s",
			median(ratios), slices.Min(ratios), slices.Max(ratios), median(rates), median(direct)))
		b.note("dnsperf, "+work+": gatun's processor time per query", fmt.Sprintf("%.0f us", median(cpu)))
		b.atLeast("dnsperf, "+work+": answers through gatun", slices.Min(rates), 1, "/s")
	}
	_, err = g.Down()
	return err
}

// dnsperfNames writes the queries: one, or as many different ones as a round can need.
func (w *dnsWorld) dnsperfNames(work string, round, n int) (string, error) {
	var s strings.Builder
	if work == "cached" {
		s.WriteString("www.kinds.example A\n")
	} else {
		for i := range n {
			fmt.Fprintf(&s, "r%d-%d.load.example A\n", round, i)
		}
	}
	file := filepath.Join(w.Dir, "dnsperf-"+work)
	return file, os.WriteFile(file, []byte(s.String()), 0o644)
}

func (b *bench) dnsperfSeconds() int { return b.size(5, 1) }

// dnsperf returns the queries per second that it counts.
func (b *bench) dnsperf(w *dnsWorld, ns lab.Namespace, file string) (float64, error) {
	out, err := ns.Command(context.Background(), lab.Spec{User: lab.Nobody}, "dnsperf", "-s", w.peers["unbound"].addr4(), "-d", file,
		"-c", "8", "-T", "1", "-q", "100", "-l", fmt.Sprint(b.dnsperfSeconds())).CombinedOutput()
	m := perSecond.FindSubmatch(out)
	if err != nil || m == nil {
		return 0, fmt.Errorf("dnsperf: %w: %s", err, out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}
