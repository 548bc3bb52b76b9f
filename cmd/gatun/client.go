package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os/signal"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gatun/api"
	"gatun/network"
	"gatun/profiles"
	"gatun/status"
)

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func statusCommand(p *places) *cobra.Command {
	var asJSON, watch bool
	c := &cobra.Command{
		Use: "status", Short: "Show whether gatun runs, and what it does not control", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if watch {
				return watchStatus(c, p.client(), asJSON)
			}
			return showStatus(c.Context(), c.OutOrStdout(), p.client(), asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&watch, "watch", false, "print it again after every change")
	return c
}

func showStatus(ctx context.Context, w io.Writer, cl *api.Client, asJSON bool) error {
	var s api.Status
	if err := cl.Get(ctx, "/v1/status", nil, &s); err != nil {
		return err
	}
	if asJSON {
		return printJSON(w, s)
	}
	return printStatus(w, s)
}

// watchStatus prints the status whenever a part of it changed that is more than a counter.
func watchStatus(c *cobra.Command, cl *api.Client, asJSON bool) error {
	ctx, stop := signal.NotifyContext(c.Context(), interrupts()...)
	defer stop()
	changed := false
	return cl.Watch(ctx, "status/", func(event string, _ json.RawMessage) error {
		if event != "ready" || !changed {
			changed = event != "ready"
			return nil
		}
		changed = false
		if err := showStatus(ctx, c.OutOrStdout(), cl, asJSON); ctx.Err() == nil {
			return err
		}
		return nil // it was to end
	})
}

func printStatus(w io.Writer, s api.Status) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	row := func(k string, v ...any) { _, _ = fmt.Fprintf(t, "%s\t%s\n", k, fmt.Sprint(v...)) }
	row("state", s.State)
	row("mode", s.Mode, ", pid ", s.PID, ", since ", s.Started.Local().Format(time.DateTime))
	row("config", firstOf(s.Config.File, "built-in defaults"), ", revision ", s.Config.Revision)
	if s.Config.Problem != "" {
		row("", "NOT IN FORCE: ", s.Config.Problem)
	}
	if s.Confirm != nil {
		row("confirm", "NOT CONFIRMED", ": ", confirmText(s.Confirm))
	}
	if s.PausedUntil != nil {
		row("filtering", pauseText(s.PausedUntil))
	}
	row("rating", s.Rating, " (", firstOf(s.RatingOrigin, "default"), ")")
	if s.Worst != "" {
		row("health", s.Worst)
	}
	for _, m := range s.Modules {
		if m.State != status.OK {
			row("", m.Name, ": ", m.State, ": ", m.Message)
		}
	}
	row("inbound", s.Inbound)
	if s.Online != "" {
		row("online", s.Online)
	}
	row("resolvers", strings.Join(s.Resolvers, " "))
	row("links", s.Links.Live, " live, ", s.Links.Decided, " decided, ", s.Links.Denied, " denied")
	if g := s.Guard; g != nil {
		state := "in place"
		if !g.OK {
			state = "MISSING"
		}
		row("guard", state, ", ", g.Repairs, " repairs, ", g.Snapshot, " older flows left on their path")
	}
	if s.Prompts > 0 {
		row("questions", s.Prompts, " wait for an answer: gatun prompt")
	}
	for _, r := range s.Temporary {
		row("temporary", temporaryText(r))
	}
	for _, n := range s.Notes {
		row("note", n)
	}
	for _, n := range s.Config.Warnings {
		row("warning", n)
	}
	return t.Flush()
}

// temporaryText says what a temporary rule permits or blocks, for whom and until when.
func temporaryText(r profiles.Temporary) string {
	until := "until " + r.Until.Local().Format(time.DateTime)
	if r.PID != 0 {
		until = fmt.Sprintf("until process %d ends", r.PID)
	}
	return fmt.Sprintf("%s: %q %s, id %s", firstOf(r.Profile, "everybody"), r.Rule, until, r.ID)
}

// filters are the flags that select flows.
type filters struct {
	values url.Values
	flags  map[string]*string
}

func addFilters(c *cobra.Command) *filters {
	f := &filters{values: url.Values{}, flags: map[string]*string{}}
	for name, help := range map[string]string{
		"verdict": "only flows with this verdict", "proto": "only this protocol", "kind": "only link or dns", "direction": "only outbound or inbound",
		"domain": "only flows whose domain contains this", "remote": "only flows whose remote address contains this",
		"process": "only flows of this program: name, path or pid",
	} {
		f.flags[name] = c.Flags().String(name, "", help)
	}
	return f
}

func (f *filters) query() url.Values {
	for name, v := range f.flags {
		if *v != "" {
			f.values.Set(name, *v)
		}
	}
	return f.values
}

func flowsCommand(p *places) *cobra.Command {
	var asJSON, watch, live bool
	c := &cobra.Command{
		Use: "flows", Short: "List the flows with their programs, verdicts and reasons", Args: cobra.NoArgs,
	}
	f := addFilters(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&watch, "watch", false, "go on printing what happens")
	c.Flags().BoolVar(&live, "live", false, "only flows that have not ended")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if watch {
			return watchFlows(c, p.client(), asJSON, f.query())
		}
		q := f.query()
		if live {
			q.Set("live", "1")
		}
		var list api.FlowList
		if err := p.client().Get(c.Context(), "/v1/flows", q, &list); err != nil {
			return err
		}
		if asJSON {
			return printJSON(c.OutOrStdout(), list)
		}
		return printFlows(c.OutOrStdout(), list.Flows)
	}
	return c
}

func printFlows(w io.Writer, flows []network.Report) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "ID\tTIME\tPROTO\tPROGRAM\tREMOTE\tVERDICT\tREASON")
	for i := range flows {
		r := &flows[i]
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.Started.Local().Format(time.TimeOnly), protoOf(r), programOf(r), remoteOf(r), r.Verdict, reasonOf(r))
	}
	return t.Flush()
}

// watchFlows prints events until the user has enough, with a filter those of flows that pass it.
func watchFlows(c *cobra.Command, cl *api.Client, asJSON bool, filter url.Values) error {
	ctx, stop := signal.NotifyContext(c.Context(), interrupts()...)
	defer stop()
	w, match := c.OutOrStdout(), api.Matcher(filter)
	return cl.Events(ctx, nil, func(b json.RawMessage) error {
		var e network.ReportEvent
		if err := json.Unmarshal(b, &e); err != nil {
			return err
		}
		switch {
		case e.Flow == nil && (!asJSON || len(filter) > 0), e.Flow != nil && !match(e.Flow):
			return nil
		case asJSON:
			_, err := fmt.Fprintf(w, "%s\n", b)
			return err
		}
		_, err := fmt.Fprintln(w, e.Event, line(e.Flow))
		return err
	})
}

func logCommand(p *places) *cobra.Command {
	var asJSON, watch bool
	var last int
	c := &cobra.Command{
		Use: "log", Short: "Print one line per decision, oldest first", Args: cobra.NoArgs,
	}
	f := addFilters(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per line")
	c.Flags().BoolVar(&watch, "watch", false, "go on with new decisions")
	c.Flags().IntVarP(&last, "last", "n", 1000, "at most that many decisions")
	c.RunE = func(c *cobra.Command, _ []string) error {
		q := f.query()
		q.Set("last", fmt.Sprint(last))
		var list api.FlowList
		if err := p.client().Get(c.Context(), "/v1/flows", q, &list); err != nil {
			return err
		}
		w := c.OutOrStdout()
		for i := range list.Flows {
			if asJSON {
				if err := printJSON(w, list.Flows[i]); err != nil {
					return err
				}
				continue
			}
			if _, err := fmt.Fprintln(w, line(&list.Flows[i])); err != nil {
				return err
			}
		}
		if !watch {
			return nil
		}
		return watchFlows(c, p.client(), asJSON, f.query())
	}
	return c
}

func killCommand(p *places) *cobra.Command {
	return &cobra.Command{
		Use: "kill FLOW-ID…", Short: "End live flows", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			for _, id := range args {
				var done struct{ Killed string }
				if err := p.client().Delete(c.Context(), "/v1/flows/"+url.PathEscape(id), &done); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func reloadCommand(p *places) *cobra.Command {
	return &cobra.Command{
		Use: "reload", Short: "Read the configuration again", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var s api.Status
			return p.client().Post(c.Context(), "/v1/reload", &s)
		},
	}
}

func whyCommand(p *places) *cobra.Command {
	var (
		dry    api.DryRun
		asJSON bool
	)
	c := &cobra.Command{
		Use: "why [FLOW-ID]", Short: "Explain a verdict, of a flow that exists or of one that might", Args: cobra.MaximumNArgs(1),
		Long: "Explain a verdict: every decider in order, with the rule and its file and line.\nExit code: 0 allow, 10 block, 11 ask.",
	}
	c.Flags().StringVar(&dry.Exe, "exe", "", "path of the program")
	c.Flags().StringVar(&dry.User, "user", "", "user, as a number or a name")
	c.Flags().StringVar(&dry.Domain, "domain", "", "name that the program resolved")
	c.Flags().StringVar(&dry.To, "to", "", "destination, ADDR:PORT/PROTO")
	c.Flags().StringVar(&dry.From, "from", "", "the flow comes in from this address, and --to is our end")
	c.Flags().BoolVar(&dry.Inbound, "inbound", false, "the flow comes in")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		q := dry.Values()
		switch {
		case len(args) == 1 && len(q) > 0:
			return exitStatus{exitUsage, fmt.Errorf("give either a flow id or a description, not both")}
		case len(args) == 1:
			q.Set("id", args[0])
		case dry.Domain == "" && dry.To == "":
			return exitStatus{exitUsage, fmt.Errorf("say which flow: an id from `gatun flows`, or --to and --domain")}
		}
		var w api.Why
		if err := p.client().Get(c.Context(), "/v1/why", q, &w); err != nil {
			return err
		}
		print := printWhy
		if asJSON {
			print = func(out io.Writer, w api.Why) error { return printJSON(out, w) }
		}
		if err := print(c.OutOrStdout(), w); err != nil {
			return err
		}
		return whyExit(w.Verdict)
	}
	return c
}

func whyExit(verdict string) error {
	switch verdict {
	case network.Accept.String(), network.PermanentAccept.String(), network.RerouteToNameserver.String(), network.RerouteToTunnel.String():
		return nil
	case network.Undecided.String():
		return exitStatus{code: exitAsk}
	default:
		return exitStatus{code: exitBlocked}
	}
}
