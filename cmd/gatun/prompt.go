package main

import (
	"bufio"
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
)

func promptCommand(p *places) *cobra.Command {
	var asJSON, watch bool
	c := &cobra.Command{
		Use: "prompt", Short: "List and answer the questions of the firewall", Args: cobra.NoArgs,
		Long: "Answer the questions of the firewall, one after the other; off a terminal it lists them.\nNobody has to: after filter/askTimeout the default action applies once, and the question stays listed.",
		RunE: func(c *cobra.Command, _ []string) error {
			if asJSON || watch || !isTerminal(c.InOrStdin()) || !isTerminal(c.OutOrStdout()) {
				return listPrompts(c, p.client(), asJSON, watch)
			}
			ctx, stop := signal.NotifyContext(c.Context(), interrupts()...)
			defer stop()
			return askAll(ctx, p.client(), c.InOrStdin(), c.OutOrStdout(), time.Now)
		},
	}
	addListFlags(c, &asJSON, &watch)
	c.AddCommand(promptListCommand(p), answerCommand(p, "allow"), answerCommand(p, "block"))
	return c
}

func addListFlags(c *cobra.Command, asJSON, watch *bool) {
	c.Flags().BoolVar(asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(watch, "watch", false, "go on printing what changes")
}

func promptListCommand(p *places) *cobra.Command {
	var asJSON, watch bool
	c := &cobra.Command{
		Use: "list", Short: "List the questions", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return listPrompts(c, p.client(), asJSON, watch) },
	}
	addListFlags(c, &asJSON, &watch)
	return c
}

func listPrompts(c *cobra.Command, cl *api.Client, asJSON, watch bool) error {
	if watch {
		return watchRecords(c, cl, "prompts/", asJSON, func(ch change) string { return ch.Event + " " + ch.Key + " " + string(ch.Value) })
	}
	var list api.PromptList
	if err := cl.Get(c.Context(), "/v1/prompts", nil, &list); err != nil {
		return err
	}
	if asJSON {
		return printJSON(c.OutOrStdout(), list)
	}
	t := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "ID\tSTATE\tPROGRAM\tWANTS\tFLOWS\tLEFT\tTHEN")
	for i := range list.Prompts {
		q := &list.Prompts[i]
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", q.ID, q.State, printableName(q.Program), wants(q), q.Flows, left(q, time.Now()), q.Default)
	}
	return t.Flush()
}

func wants(q *api.Prompt) string {
	if q.Domain != "" {
		return q.Domain
	}
	return q.Scope
}

// left is the time until the default applies.
func left(q *api.Prompt, now time.Time) string {
	if d := q.Until.Sub(now); q.State == "waiting" && d > 0 {
		return d.Round(time.Second).String()
	}
	return "-"
}

func answerCommand(p *places, action string) *cobra.Command {
	var asJSON bool
	var lasts string
	c := &cobra.Command{
		Use: action + " ID", Short: map[string]string{"allow": "Allow what a question is about", "block": "Block what a question is about"}[action], Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := checkLasts(lasts); err != nil {
				return exitStatus{exitUsage, fmt.Errorf("--%w", err)}
			}
			done, err := sendAnswer(c.Context(), p.client(), args[0], action, lasts)
			if err == nil && asJSON {
				err = printJSON(c.OutOrStdout(), done)
			}
			return err
		},
	}
	c.Flags().StringVar(&lasts, "for", "once", "how long the answer holds: once, a duration such as 10m, exit, or always")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	_ = c.RegisterFlagCompletionFunc("for", cobra.FixedCompletions([]string{"once", "10m", "exit", "always"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func checkLasts(s string) error {
	if s == "once" {
		return nil
	}
	_, err := api.ParseFor(s)
	return err
}

func sendAnswer(ctx context.Context, cl *api.Client, id, action, lasts string) (api.Answered, error) {
	var done api.Answered
	err := cl.Send(ctx, http.MethodPost, "/v1/prompts/"+url.PathEscape(id), api.Answer{Action: action, For: lasts}, &done)
	return done, err
}

// errEnough says that the person wants to answer no more.
var errEnough = errors.New("enough")

// askAll asks the person one question after the other until none waits.
func askAll(ctx context.Context, cl *api.Client, in io.Reader, out io.Writer, now func() time.Time) error {
	lines := bufio.NewReader(in)
	skipped := map[string]bool{}
	for ctx.Err() == nil {
		var list api.PromptList
		if err := cl.Get(ctx, "/v1/prompts", nil, &list); err != nil {
			return err
		}
		q, more := next(list.Prompts, skipped)
		if q == nil {
			_, err := fmt.Fprintln(out, "No question waits.")
			return err
		}
		describePrompt(out, q, more, now())
		err := askOne(ctx, cl, lines, out, q)
		if errors.Is(err, errEnough) || errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		skipped[q.ID] = true // answered or skipped: it does not come again
	}
	return nil
}

// next is the question to ask, flows that wait first, and how many come after it.
func next(list []api.Prompt, skipped map[string]bool) (q *api.Prompt, more int) {
	for i := range list {
		switch {
		case skipped[list[i].ID]:
		case q == nil:
			q = &list[i]
		default:
			more++
			if q.State != "waiting" && list[i].State == "waiting" {
				q = &list[i]
			}
		}
	}
	return q, more
}

func describePrompt(out io.Writer, q *api.Prompt, more int, now time.Time) {
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(k, v string) {
		if v != "" {
			_, _ = fmt.Fprintf(t, "  %s\t%s\n", k, printableName(v))
		}
	}
	_, _ = fmt.Fprintf(t, "%s wants %s\n", printableName(q.Program), printableName(wants(q)))
	row("program", q.Path)
	if q.PID != 0 {
		row("process", fmt.Sprintf("%d of %s", q.PID, q.User))
	}
	row("profile", q.Profile)
	row("direction", q.Direction)
	row("names", strings.Join(q.Names, " "))
	row("to", strings.Join(q.Remotes, " "))
	row("asked by", firstOf(q.Rule, q.Setting))
	row("waiting", fmt.Sprintf("%d flows, %s left, then %s", q.Flows, left(q, now), q.Default))
	if more > 0 {
		row("after this", fmt.Sprintf("%d more", more))
	}
	_ = t.Flush()
}

// askOne reads keys until they are an answer: a or b with how long, s to skip, q to leave.
func askOne(ctx context.Context, cl *api.Client, in *bufio.Reader, out io.Writer, q *api.Prompt) error {
	for {
		_, _ = fmt.Fprint(out, "[a]llow or [b]lock (then how long: once, 10m, exit, always), [s]kip, [q]uit: ")
		text, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		action, lasts, err := readAnswer(text)
		switch {
		case err == nil && action == "":
			return nil
		case errors.Is(err, errEnough):
			return err
		case err == nil:
			if _, err = sendAnswer(ctx, cl, q.ID, action, lasts); err == nil {
				return nil
			}
			var refused *api.Error
			if !errors.As(err, &refused) {
				return err
			}
			if refused.Code == http.StatusNotFound { // somebody else was faster
				_, _ = fmt.Fprintln(out, err)
				return nil
			}
		}
		_, _ = fmt.Fprintln(out, err)
	}
}

// readAnswer reads a line such as "a", "b 10m" or "s"; no action is a skip.
func readAnswer(line string) (action, lasts string, err error) {
	words := strings.Fields(line)
	if len(words) == 0 || len(words) > 2 {
		return "", "", errors.New("say a, b, s or q")
	}
	if lasts = "once"; len(words) == 2 {
		lasts = words[1]
	}
	switch words[0] {
	case "a", "allow":
		return "allow", lasts, checkLasts(lasts)
	case "b", "block":
		return "block", lasts, checkLasts(lasts)
	case "s", "skip":
		return "", "", nil
	case "q", "quit":
		return "", "", errEnough
	}
	return "", "", fmt.Errorf("%q is neither a, b, s nor q", words[0])
}
