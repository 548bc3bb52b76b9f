package main

import (
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gatun/api"
)

func allowCommand(p *places) *cobra.Command {
	return ruleCommand(p, "allow", "Allow a program to reach something")
}

func blockCommand(p *places) *cobra.Command {
	return ruleCommand(p, "block", "Block a program from reaching something")
}

func ruleCommand(p *places, action, short string) *cobra.Command {
	var asJSON bool
	var lasts string
	c := &cobra.Command{
		Use: action + " PROGRAM ENTITY [PROTO/PORTS]", Short: short, Args: cobra.RangeArgs(2, 3), ValidArgsFunction: p.completeProfiles,
		Long: short + ".\n\nPROGRAM is the name of a profile, a path, the name of a program, or * for everybody. ENTITY is what a rule takes: a domain,\n" +
			"an address, a country, a scope. For good it becomes the first of the program's own rules; for a time it is written nowhere\nand `gatun status` shows it.",
		Example: "  gatun " + action + " curl .example.org TCP/443 --for 10m",
		RunE: func(c *cobra.Command, args []string) error {
			if _, err := api.ParseFor(lasts); err != nil {
				return exitStatus{exitUsage, fmt.Errorf("--%w", err)}
			}
			n := api.NewRule{Program: p.program(c, args[0]), Entity: strings.Join(args[1:], " "), Action: action, For: lasts}
			var made api.RuleMade
			if err := p.client().Send(c.Context(), http.MethodPost, "/v1/rules", n, &made); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), made)
			}
			return tellRule(c, made)
		},
	}
	c.Flags().StringVar(&lasts, "for", "always", "how long: a duration such as 10m, exit (until the program ends), or always")
	c.Flags().BoolVar(&asJSON, "json", false, "print the rule as JSON")
	_ = c.RegisterFlagCompletionFunc("for", cobra.FixedCompletions([]string{"10m", "1h", "1d", "exit", "always"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// program is what the daemon is told: a path as it is on this machine, or a name. A name that no
// profile has is looked up as the shell would.
func (p *places) program(c *cobra.Command, name string) string {
	if strings.ContainsRune(name, filepath.Separator) {
		return resolved(name)
	}
	if name == "*" || p.knowsProfile(c.Context(), name) {
		return name
	}
	if path, err := exec.LookPath(name); err == nil {
		return resolved(path)
	}
	return name
}

// resolved is the path of the binary itself: a program is known by that, not by a link to it.
func resolved(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return path
}

func tellRule(c *cobra.Command, made api.RuleMade) error {
	whose := firstOf(made.Profile, "everybody")
	if made.Created {
		whose += " (new profile)"
	}
	until := ""
	for _, t := range made.Temporary {
		switch {
		case t.PID != 0:
			until += fmt.Sprintf(" until process %d ends", t.PID)
		default:
			until += " until " + t.Until.Local().Format(time.DateTime)
		}
	}
	_, err := fmt.Fprintf(c.ErrOrStderr(), "%s: %q%s\n", whose, made.Rule, until)
	return err
}
