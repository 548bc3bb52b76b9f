package main

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"gatun/e2e/lab"
)

// toolQueries are what people type. Each is asked of unbound and, word for word, under gatun.
func toolQueries() []string {
	return []string{
		"dig @U www.kinds.example A", "dig @U www.kinds.example AAAA +tcp", "dig @U kinds.example MX +dnssec", "dig @U kinds.example ANY",
		"dig @U kinds.example ANY +notcp", "dig @U bigtxt.kinds.example TXT", "dig @U bigtxt.kinds.example TXT +ignore +noedns", "dig @U bigtxt.kinds.example TXT +bufsize=512 +ignore",
		"dig @U nothing.kinds.example", "dig @U bogus.kinds.example", "dig @U bogus.kinds.example +cdflag", "dig @U one.kinds.example +nocookie",
		"dig @U host.tree.kinds.example +dnssec", "dig @U x.wild.kinds.example +adflag", "dig @U https.kinds.example HTTPS", "dig @U unknown.kinds.example TYPE65280",
		"dig @U -x 198.51.100.10", "dig @U . NS", "dig @U www.kinds.example +nsid +subnet=203.0.113.0/24 +padding=128 +keepalive", "dig @U www.kinds.example +edns=1 +noednsneg",
		"dig @U www.kinds.example +edns=1", "dig @U www.kinds.example +ednsopt=65001:0102", "dig @U wWw.KiNdS.eXaMpLe", `dig @U a\.dot.kinds.example`, `dig @U a\032space.kinds.example`,
		"dig @U www.kinds.example A mail.kinds.example A kinds.example TXT +tcp +keepopen", "dig @U x.onion", "dig @U localhost", "dig @U6 www.kinds.example AAAA", "dig @U6 sixty.kinds.example +tcp",
		"kdig @U www.kinds.example A", "kdig @U kinds.example MX +dnssec", "kdig @U bigtxt.kinds.example TXT +tcp", "kdig @U bigtxt.kinds.example TXT +ignore", "kdig @U www.kinds.example +nsid +padding=64 +cookie",
		"kdig @U svc.kinds.example SVCB", "kdig @U dangling.kinds.example", "kdig @U www.kinds.example +subnet=203.0.113.0/24", "kdig @U6 www.kinds.example AAAA",
		"drill www.kinds.example @U A", "drill -D kinds.example @U SOA", "drill -t bigtxt.kinds.example @U TXT", "drill -b 512 bigtxt.kinds.example @U TXT", "drill -o CD bogus.kinds.example @U A",
		"drill nothing.kinds.example @U", "drill -x 198.51.100.10 @U", "drill alias.kinds.example @U6 AAAA",
	}
}

var (
	toolStatus = regexp.MustCompile(`(?:status|rcode): ([A-Z0-9]+)`)
	toolTC     = regexp.MustCompile(`(?i)flags:[^;]*\btc\b`)
	toolOPT    = regexp.MustCompile(`(?i)EDNS PSEUDO|OPT PSEUDO|; EDNS: version`)
)

// toolAnswer is what a tool's output says of the answer: status, TC, OPT, and the records of the
// answer section without their lifetimes.
func toolAnswer(out string) string {
	var lines, found []string
	inside := false
	for _, line := range strings.Split(out, "\n") {
		switch {
		case strings.Contains(line, "ANSWER SECTION"):
			inside = true
		case line == "" || strings.HasPrefix(line, ";"):
			inside = false
		case inside:
			f := strings.Fields(line)
			if len(f) > 2 {
				f[1] = "TTL"
			}
			lines = append(lines, strings.Join(f, " "))
		}
	}
	slices.Sort(lines)
	for _, m := range toolStatus.FindAllStringSubmatch(out, -1) {
		found = append(found, m[1])
	}
	return fmt.Sprintf("%s TC=%t OPT=%t %s", strings.Join(found, ","), toolTC.MatchString(out), toolOPT.MatchString(out), strings.Join(lines, " | "))
}

// compareTools runs every line on the twin and under gatun.
func (b *bench) compareTools(w *dnsWorld, g *lab.Gatun) error {
	p := w.peers["unbound"]
	same, records := 0, 0
	for _, line := range toolQueries() {
		line = strings.Replace(strings.Replace(line, "@U6", "@"+p.addr6(), 1), "@U", "@"+p.addr4(), 1)
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		out, directly := w.Twin.Command(ctx, lab.Spec{User: lab.Nobody}, strings.Fields(line)...).Output()
		cancel()
		r, err := g.Exec(strings.Fields(line)...)
		if err != nil {
			return err
		}
		direct, through := toolAnswer(string(out)), toolAnswer(r.Data)
		if strings.Contains(direct, "TTL") {
			records++
		}
		if direct == through && (directly == nil) == (r.Result == "ok") {
			same++
		} else {
			b.note("difference", difference{line, "output", oneLine(direct), oneLine(through)}.String())
		}
	}
	b.exactly(g.Mode+": command lines of dig, kdig, drill with the same answer", float64(same), float64(len(toolQueries())))
	b.atLeast("control: of them answered with records", float64(records), float64(len(toolQueries()))/2, "")
	return nil
}
