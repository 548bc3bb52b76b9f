package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/signal"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gatun/api"
	"gatun/network"
)

func listCommand(p *places) *cobra.Command {
	status := listStatusCommand(p)
	c := &cobra.Command{
		Use: "list", Short: "Show, update and search the filter lists",
		Long: "Without a subcommand: as `gatun list status`.",
		RunE: status.RunE,
	}
	c.Flags().AddFlagSet(status.Flags())
	c.AddCommand(status, listUpdateCommand(p), listMatchCommand(p))
	return c
}

func listStatusCommand(p *places) *cobra.Command {
	var asJSON, watch bool
	c := &cobra.Command{
		Use: "status", Short: "Show the filter lists and data files, and what they are worth", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if watch {
				return watchRecords(c, p.client(), "lists/", asJSON, func(ch change) string { return ch.Event + " " + ch.Key })
			}
			var all api.FilterLists
			if err := p.client().Get(c.Context(), "/v1/lists", nil, &all); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), all)
			}
			return printLists(c.OutOrStdout(), all)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&watch, "watch", false, "go on printing what changes")
	return c
}

func printLists(w io.Writer, all api.FilterLists) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "ID\tCATEGORY\tENTRIES\tUPDATED\tNEXT\tSTATE\tSOURCE")
	for _, l := range all.Lists {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\n", l.ID, l.Category, l.Entries, moment(l.Updated), moment(l.Next), listState(l), printableName(l.Source))
	}
	for _, d := range all.Data {
		_, _ = fmt.Fprintf(t, "-\t%s\t-\t%s\t-\t%s\t%s\n", d.Kind, moment(d.Built), fault(d.Error), printableName(d.Path))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, l := range all.Lists { // what they left out is said where it is not the normal case
		if l.Invalid+l.Refused > 0 {
			_, _ = fmt.Fprintf(w, "%s: %s cannot be read, %s too large for a list\n", l.ID, counted(l.Invalid, "line"), counted(l.Refused, "entry"))
		}
	}
	return nil
}

func moment(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.Local().Format(time.DateTime)
}

func listState(l api.FilterList) string {
	switch {
	case l.Error != "":
		return fault(l.Error)
	case l.Updated == nil:
		return "not fetched yet"
	case l.Warning != "":
		return "warning: " + printableName(l.Warning)
	default:
		return "ok"
	}
}

func fault(text string) string {
	if text == "" {
		return "ok"
	}
	return "ERROR: " + printableName(text)
}

func listUpdateCommand(p *places) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "update [ID…]", Short: "Read or fetch filter lists now, all without ID", ValidArgsFunction: p.completeLists,
		Long: "Read or fetch filter lists now, all without ID. A list that is named is taken also if it became much smaller.\n" +
			"Exit code: 1 if one could not be used; all others are updated, and its last good copy stays.",
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), interrupts()...)
			defer stop()
			u := listUpdate{client: p.client(), named: len(args) > 0, talk: c.ErrOrStderr(), terminal: isTerminal(c.ErrOrStderr())}
			if err := u.all(ctx, args); err != nil {
				return err
			}
			if asJSON {
				if err := printJSON(c.OutOrStdout(), u.done); err != nil {
					return err
				}
			}
			return u.result()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print what became of them as JSON")
	return c
}

// listUpdate updates lists one after another, so that a person sees which one is slow.
type listUpdate struct {
	client   *api.Client
	named    bool
	talk     io.Writer
	terminal bool // a person watches

	done     api.ListsUpdated
	failures []error
}

// all updates the lists of those ids, or every list. The error is what keeps it from going on.
func (u *listUpdate) all(ctx context.Context, ids []string) error {
	u.done = api.ListsUpdated{Schema: network.Schema, Lists: []api.FilterList{}, Failed: []string{}}
	if !u.named {
		var have api.FilterLists
		if err := u.client.Get(ctx, "/v1/lists", nil, &have); err != nil {
			return err
		}
		for _, l := range have.Lists {
			ids = append(ids, l.ID)
		}
	}
	for i, id := range ids {
		u.progress("%d of %d: %s", i+1, len(ids), id)
		if err := u.one(ctx, id); err != nil {
			u.progress("")
			return err
		}
	}
	u.progress("")
	if u.terminal && len(u.failures) == 0 {
		_, _ = fmt.Fprintf(u.talk, "%s up to date\n", counted(len(u.done.Lists), "filter list"))
	}
	return nil
}

func (u *listUpdate) one(ctx context.Context, id string) error {
	var one api.ListsUpdated
	err := u.client.Send(ctx, http.MethodPost, "/v1/lists/update", api.ListUpdate{IDs: []string{id}, Smaller: u.named}, &one)
	var answer *api.Error
	if errors.As(err, &answer) && answer.Code == http.StatusNotFound {
		u.fail(id, answer)
		return nil
	}
	if err != nil {
		return err
	}
	for _, l := range one.Lists {
		u.done.Lists = append(u.done.Lists, l)
		if l.Error != "" {
			u.fail(id, fmt.Errorf("list %s: %s", id, printableName(l.Error)))
		}
	}
	return nil
}

func (u *listUpdate) fail(id string, why error) {
	u.done.Failed = append(u.done.Failed, id)
	u.failures = append(u.failures, why)
}

// progress replaces the line that says what is being done; it is for terminals only.
func (u *listUpdate) progress(format string, args ...any) {
	if u.terminal {
		_, _ = fmt.Fprintf(u.talk, "\r\x1b[K"+format, args...)
	}
}

func (u *listUpdate) result() error {
	if len(u.failures) == 0 {
		return nil
	}
	return exitStatus{exitFailed, errors.Join(u.failures...)}
}

func listMatchCommand(p *places) *cobra.Command {
	var asJSON, quiet bool
	c := &cobra.Command{
		Use: "match NAME|ADDR", Short: "Show which filter lists a name or an address is on, and where they say so", Args: cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: "Show which filter lists a name or an address is on, with the line that says so. Whether a program may talk to it is answered by `gatun why`.\n" +
			"Exit code: 0. With --quiet nothing is printed, and it is 0 if a list has it and 1 if none does.",
		RunE: func(c *cobra.Command, args []string) error {
			var m api.ListMatches
			if err := p.client().Get(c.Context(), "/v1/lists/match", url.Values{"q": {args[0]}}, &m); err != nil {
				return err
			}
			switch {
			case quiet && len(m.Matches) == 0:
				return exitStatus{code: exitFailed}
			case quiet:
				return nil
			case asJSON:
				return printJSON(c.OutOrStdout(), m)
			case len(m.Matches) == 0:
				_, _ = fmt.Fprintf(c.ErrOrStderr(), "%s is on no filter list\n", printableName(m.Query))
			}
			return printMatches(c.OutOrStdout(), m)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing: the exit code says it")
	return c
}

func printMatches(w io.Writer, m api.ListMatches) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, l := range m.Matches {
		place := printableName(l.Source)
		if l.Line > 0 {
			place += fmt.Sprintf(":%d", l.Line)
		}
		if l.Above {
			place += "\ta name above it: counts with filter/includeSubdomains"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", l.List, l.Category, printableName(l.Entry), place)
	}
	if known := strings.TrimSpace(m.Country + " " + m.Continent); known != "" {
		_, _ = fmt.Fprintf(t, "country\t%s\n", known)
	}
	if m.ASN != 0 {
		_, _ = fmt.Fprintf(t, "network\tAS%d\t%s\n", m.ASN, printableName(m.ASOwner))
	}
	return t.Flush()
}
