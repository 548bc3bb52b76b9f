package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"gatun/api"
	"gatun/firewall"
	"gatun/network"
)

// line renders a flow as one line for people: time, protocol, program[pid], name:port, country/ASN
// if known, verdict, reason.
func line(r *network.Report) string {
	return strings.Join([]string{
		r.Started.Local().Format("15:04:05.000"), protoOf(r), programOf(r), remoteOf(r) + placeOf(r), verdictWord(r.Verdict), reasonOf(r),
	}, " ")
}

// verdictWord is the verdict for people, who need not know for how long it holds.
func verdictWord(v string) string { return strings.ToUpper(strings.TrimPrefix(v, "permanent-")) }

// placeOf is where the other end is, behind a blank: " DE/AS64496".
func placeOf(r *network.Report) string {
	switch {
	case r.ASN == 0 && r.Country == "":
		return ""
	case r.ASN == 0:
		return " " + r.Country
	case r.Country == "":
		return fmt.Sprintf(" AS%d", r.ASN)
	default:
		return fmt.Sprintf(" %s/AS%d", r.Country, r.ASN)
	}
}

// queryLine renders a query of a program as one line for people: time, program[pid], name, type,
// verdict, what came of it, how long it took, from whom, reason.
func queryLine(r *network.Report) string {
	parts := []string{r.Started.Local().Format("15:04:05.000"), programOf(r), printableName(r.Domain), r.QueryType, strings.ToUpper(r.Verdict), firstOf(r.Rcode, r.CloseCause)}
	if r.Ended != nil {
		parts = append(parts, r.Ended.Sub(r.Started).Round(10*time.Microsecond).String())
	}
	if r.Resolver != "" {
		parts = append(parts, printableName(r.Resolver))
	}
	return strings.Join(append(parts, reasonOf(r)), " ")
}

func protoOf(r *network.Report) string {
	if r.Kind == network.KindDNS.String() {
		return "DNS"
	}
	return strings.ToUpper(r.Proto)
}

func programOf(r *network.Report) string {
	if r.Process == nil {
		return "?"
	}
	if r.Process.PID == 0 {
		return printableName(r.Process.Name)
	}
	return fmt.Sprintf("%s[%d]", printableName(r.Process.Name), r.Process.PID)
}

// printableName keeps control characters of a program's name off the terminal.
func printableName(s string) string {
	return strings.Map(func(c rune) rune {
		if c < 0x20 || c == 0x7f {
			return '?'
		}
		return c
	}, s)
}

func remoteOf(r *network.Report) string {
	if r.Domain == "" {
		return r.Remote
	}
	if r.Kind == network.KindDNS.String() {
		return r.Domain
	}
	return r.Domain + r.Remote[strings.LastIndexByte(r.Remote, ':'):]
}

func reasonOf(r *network.Report) string {
	if r.Rule == nil || r.Rule.File == "" {
		return r.Reason
	}
	return fmt.Sprintf("%s (%s)", r.Reason, r.Rule)
}

func printWhy(out io.Writer, w api.Why) error {
	var trail []firewall.Step
	if err := json.Unmarshal(w.Trail, &trail); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "%s: %s\n", verdictWord(w.Verdict), w.Reason)
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, s := range trail {
		rule := ""
		if s.Rule != nil {
			rule = fmt.Sprintf("%q %s", s.Rule.Text, where(s.Rule))
		}
		if p := s.Place; p != nil {
			rule = listed(s.List, p)
		}
		_, _ = fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\n", s.Stage, s.Decider, s.Result, s.Setting, rule)
	}
	return t.Flush()
}

// listed tells the place in a filter list: "list ads (ADS) /etc/gatun/lists/ads.txt:12".
func listed(id string, p *firewall.ListPlace) string {
	text := fmt.Sprintf("list %s (%s) %s", id, p.Category, printableName(p.Source))
	if p.Line > 0 {
		text += fmt.Sprintf(":%d", p.Line)
	}
	return text
}

func where(r *network.RuleRef) string {
	if r.File == "" {
		return "(command line)"
	}
	return r.String()
}

// elapsed rounds a duration for people.
func elapsed(d time.Duration) string { return d.Round(time.Millisecond).String() }
