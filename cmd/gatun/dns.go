package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os/signal"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gatun/api"
	"gatun/network"
)

func dnsCommand(p *places) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "dns", Short: "Show whom the nameserver asks, resolve as a program would, and see what was asked",
		Long: "Without a subcommand: the nameservers in the order in which they are asked, with their state, the cache and the counters.",
		RunE: func(c *cobra.Command, _ []string) error {
			var st api.NameserverStatus
			if err := p.client().Get(c.Context(), "/v1/dns", nil, &st); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), st)
			}
			return printNameserver(c.OutOrStdout(), st)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.AddCommand(dnsQueryCommand(p), dnsCacheCommand(p), dnsFlushCommand(p), dnsLogCommand(p))
	return c
}

func printNameserver(w io.Writer, st api.NameserverStatus) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "RESOLVER\tSOURCE\tSTATE\tLATENCY")
	for _, r := range st.Resolvers {
		state, latency := "ok", "-"
		switch {
		case r.Failing:
			state = "FAILING: " + printableName(r.Error)
		case r.Error != "":
			state = fmt.Sprintf("%s: %s", counted(r.Failures, "failure"), printableName(r.Error))
		}
		if r.LatencyMS > 0 {
			latency = milliseconds(r.LatencyMS)
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", printableName(r.URL), r.Source, state, latency)
	}
	_, _ = fmt.Fprintf(t, "\ncache\t%s, %d KiB\n", counted(st.Cache.Entries, "entry"), (st.Cache.Bytes+1023)>>10)
	for _, k := range slices.Sorted(maps.Keys(st.Counters)) {
		_, _ = fmt.Fprintf(t, "%s\t%d\n", k, st.Counters[k])
	}
	return t.Flush()
}

func milliseconds(ms float64) string {
	return time.Duration(ms * float64(time.Millisecond)).Round(10 * time.Microsecond).String()
}

func dnsQueryCommand(p *places) *cobra.Command {
	var (
		q      api.DNSQuestion
		asJSON bool
	)
	c := &cobra.Command{
		Use: "query NAME [TYPE]", Short: "Resolve a name through the running gatun as a program would", Args: cobra.RangeArgs(1, 2),
		ValidArgsFunction: completeTypes,
		Long: "Resolve a name through the running gatun as a program would: the decision with its reason, and the answer. TYPE is A without one.\n" +
			"Without --exe nobody known asks. Nothing is remembered for the program: its connections are judged as if it had not asked.\n" +
			"Exit code: 0 answered, also where there is no such name; 10 blocked; 1 no nameserver answered.",
		Example: "  gatun dns query www.example.org --exe /usr/bin/curl --user 1000\n  gatun dns query example.org HTTPS --json",
		RunE: func(c *cobra.Command, args []string) error {
			if q.Name = args[0]; len(args) > 1 {
				q.Type = strings.ToUpper(args[1])
			}
			if q.User != "" && q.Program == "" {
				return exitStatus{exitUsage, fmt.Errorf("--user says whose program asks: name the program with --exe")}
			}
			if q.Program != "" {
				q.Program = resolved(q.Program)
			}
			var a api.DNSAnswer
			if err := p.client().Get(c.Context(), "/v1/dns/query", q.Values(), &a); err != nil {
				return err
			}
			print := printDNSAnswer
			if asJSON {
				print = func(w io.Writer, a api.DNSAnswer) error { return printJSON(w, a) }
			}
			if err := print(c.OutOrStdout(), a); err != nil {
				return err
			}
			return outcomeExit(a)
		},
	}
	c.Flags().StringVar(&q.Program, "exe", "", "path of the program that asks")
	c.Flags().StringVar(&q.User, "user", "", "user who runs it, as a number or a name (default root)")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func outcomeExit(a api.DNSAnswer) error {
	switch a.Outcome {
	case api.DNSAnswered:
		return nil
	case api.DNSBlocked:
		return exitStatus{code: exitBlocked}
	default:
		return exitStatus{exitFailed, fmt.Errorf("%s %s was not resolved: %s", printableName(a.Name), a.Type, printableName(firstOf(a.EDE, a.Rcode)))}
	}
}

func printDNSAnswer(w io.Writer, a api.DNSAnswer) error {
	_, _ = fmt.Fprintf(w, "%s: %s\n", strings.ToUpper(a.Verdict), printableName(a.Reason))
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	row := func(k, v string) {
		if v != "" {
			_, _ = fmt.Fprintf(t, "  %s\t%s\n", k, printableName(v))
		}
	}
	if a.Rule != nil {
		row("rule", fmt.Sprintf("%q %s", a.Rule.Text, where(a.Rule)))
	}
	row("setting", a.Setting)
	row("profile", a.Profile)
	row("list", a.List)
	row("answer", answerText(a))
	row("extended error", a.EDE)
	row("resolver", a.Resolver)
	row("took", milliseconds(a.DurationMS))
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range a.Records {
		if _, err := fmt.Fprintln(w, recordText(r)); err != nil {
			return err
		}
	}
	return nil
}

// counted is a number of things.
func counted(n int, thing string) string {
	if stem, found := strings.CutSuffix(thing, "y"); found && n != 1 {
		return fmt.Sprintf("%d %sies", n, stem)
	}
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// answerText sums up what came back.
func answerText(a api.DNSAnswer) string {
	if a.Rcode == "" {
		return ""
	}
	text := a.Rcode + ", " + counted(len(a.Records), "record")
	if a.TTL > 0 {
		text += fmt.Sprintf(", for %s", time.Duration(a.TTL)*time.Second)
	}
	if a.Cached {
		text += ", from the cache"
	}
	if a.Stale {
		text += ", expired"
	}
	return text
}

// recordText is a record on one line. Who answered chose what is in it.
func recordText(r string) string { return printableName(strings.ReplaceAll(r, "\t", " ")) }

func dnsCacheCommand(p *places) *cobra.Command {
	var asJSON bool
	var limit int
	c := &cobra.Command{
		Use: "cache [NAME]", Short: "List what is cached, for a name and those below it, or for all", Args: cobra.MaximumNArgs(1), ValidArgsFunction: p.completeCached,
		RunE: func(c *cobra.Command, args []string) error {
			q := url.Values{"limit": {fmt.Sprint(limit)}}
			if len(args) > 0 {
				q.Set("name", args[0])
			}
			var list api.CachedList
			if err := p.client().Get(c.Context(), "/v1/dns/cache", q, &list); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), list)
			}
			if n := len(list.Entries); n < list.Total {
				_, _ = fmt.Fprintf(c.ErrOrStderr(), "%d of %s; --limit shows more\n", n, counted(list.Total, "entry"))
			}
			return printCached(c.OutOrStdout(), list.Entries)
		},
	}
	c.Flags().IntVar(&limit, "limit", 1000, "at most that many")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printCached(w io.Writer, list []api.CachedAnswer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "NAME\tTYPE\tEXPIRES\tSCOPE\tRESOLVER\tANSWER")
	for _, e := range list {
		data := make([]string, len(e.Records))
		for i, r := range e.Records {
			data[i] = recordData(r)
		}
		expires := e.Expires.Local().Format(time.TimeOnly)
		if e.Stale {
			expires = "expired"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", printableName(e.Name), e.Type, expires, e.Scope, printableName(e.Resolver), firstOf(strings.Join(data, ", "), e.Rcode))
	}
	return t.Flush()
}

// recordData is a record without what the row says already: its name, lifetime, class and type.
func recordData(r string) string {
	fields := strings.SplitN(recordText(r), " ", 5)
	return fields[len(fields)-1]
}

func dnsFlushCommand(p *places) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "flush [NAME]", Short: "Forget what is cached, for a name and those below it, or all", Args: cobra.MaximumNArgs(1), ValidArgsFunction: p.completeCached,
		RunE: func(c *cobra.Command, args []string) error {
			q := url.Values{}
			if len(args) > 0 {
				q.Set("name", args[0])
			}
			var done api.Flushed
			if err := p.client().DeleteSome(c.Context(), "/v1/dns/cache", q, &done); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), done)
			}
			_, err := fmt.Fprintf(c.ErrOrStderr(), "%s forgotten\n", counted(done.Flushed, "answer"))
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// loggedQuery is one line of `dns log --json`.
type loggedQuery struct {
	Schema string          `json:"schema"`
	Flow   *network.Report `json:"flow"`
}

func dnsLogCommand(p *places) *cobra.Command {
	var asJSON, watch bool
	var last int
	var program, verdict, domain string
	c := &cobra.Command{
		Use: "log", Short: "Print one line per query of a program, oldest first", Args: cobra.NoArgs,
		Long: "Print one line per query of a program, oldest first: time, program, name, type, verdict, what came of it and from whom, how long it took, and the reason of the verdict.",
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per line")
	c.Flags().BoolVar(&watch, "watch", false, "go on with new queries")
	c.Flags().IntVarP(&last, "last", "n", 1000, "at most that many queries")
	c.Flags().StringVar(&program, "program", "", "only queries of this program: name, path or pid")
	c.Flags().StringVar(&verdict, "verdict", "", "only queries with this verdict")
	c.Flags().StringVar(&domain, "domain", "", "only queries whose name contains this")
	c.RunE = func(c *cobra.Command, _ []string) error {
		q := url.Values{"kind": {network.KindDNS.String()}}
		for k, v := range map[string]string{"process": program, "verdict": verdict, "domain": domain} {
			if v != "" {
				q.Set(k, v)
			}
		}
		return dnsLog(c, p.client(), q, last, watch, func(r *network.Report) error {
			if asJSON {
				return printJSON(c.OutOrStdout(), loggedQuery{network.Schema, r})
			}
			_, err := fmt.Fprintln(c.OutOrStdout(), queryLine(r))
			return err
		})
	}
	return c
}

// dnsLog prints the queries that are kept and, with watch, those that come.
func dnsLog(c *cobra.Command, cl *api.Client, q url.Values, last int, watch bool, print func(*network.Report) error) error {
	ctx, stop := signal.NotifyContext(c.Context(), interrupts()...)
	defer stop()
	kept := maps.Clone(q)
	kept.Set("last", fmt.Sprint(last))
	var list api.FlowList
	if err := cl.Get(ctx, "/v1/flows", kept, &list); err != nil {
		return err
	}
	for i := range list.Flows {
		if err := print(&list.Flows[i]); err != nil {
			return err
		}
	}
	if !watch {
		return nil
	}
	match := api.Matcher(q)
	return cl.Events(ctx, nil, func(b json.RawMessage) error {
		var e network.ReportEvent
		if err := json.Unmarshal(b, &e); err != nil {
			return err
		}
		if e.Flow == nil || !match(e.Flow) {
			return nil
		}
		return print(e.Flow)
	})
}
