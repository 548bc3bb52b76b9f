package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"gatun/config"
	"gatun/netenv"
	"gatun/profiles"
	"gatun/status"
)

// checkReport is the answer of `check --json`.
type checkReport struct {
	Schema   string         `json:"schema"`
	OK       bool           `json:"ok"`
	Errors   []checkProblem `json:"errors"`
	Warnings []checkProblem `json:"warnings"`
}

type checkProblem struct {
	File       string `json:"file"`
	Line       int    `json:"line"`
	Col        int    `json:"col"`
	Key        string `json:"key"`
	Message    string `json:"message"`
	Suggestion string `json:"suggestion"`
}

func checkCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "check [FILE]", Short: "Check a configuration file: all errors at once", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			warnings, err := check(configSource(firstOf(args...)))
			var problems config.Problems
			if err != nil && !errors.As(err, &problems) {
				return err
			}
			if asJSON {
				err = printJSON(c.OutOrStdout(), checkReport{"gatun/v1", len(problems) == 0, problemsOf(problems), problemsOf(warnings)})
			} else {
				_, err = fmt.Fprint(c.OutOrStdout(), problems.Render(), renderWarnings(warnings))
			}
			if err == nil && len(problems) > 0 {
				err = exitStatus{code: exitConfig}
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func renderWarnings(ps config.Problems) string {
	if len(ps) == 0 {
		return ""
	}
	return "warnings, which do not keep the file from being used:\n" + ps.Render()
}

// check loads a file as `up` would, rules included.
func check(source config.Source) (warnings config.Problems, err error) {
	source.Optional = false // whoever asks wants to know that it is missing
	cfg, err := config.Load(source)
	if err != nil {
		return nil, err
	}
	store, err := profiles.NewStore(cfg, status.Judge(cfg, netenv.Snapshot{}, time.Now()), profiles.Options{})
	if err != nil {
		return nil, err
	}
	return append(cfg.Warnings(), store.Warnings()...), nil
}

func problemsOf(ps config.Problems) []checkProblem {
	out := make([]checkProblem, 0, len(ps))
	for _, p := range ps {
		out = append(out, checkProblem{File: p.File, Line: p.Line, Col: p.Col, Key: p.Key, Message: p.Message, Suggestion: p.Suggestion})
	}
	return out
}
