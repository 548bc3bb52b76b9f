package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"gatun/config"
	"gatun/intel"
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
	var (
		asJSON bool
		cases  string
	)
	c := &cobra.Command{
		Use: "check [FILE]", Short: "Check a configuration file: all errors at once, and what is doubtful; or test its policy",
		Long: "Checks a configuration file. Warnings do not keep it from being used.\n\n" + casesHelp,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, warnings, err := check(configSource(firstOf(args...)))
			if err == nil && cases != "" {
				return checkCases(c.OutOrStdout(), cfg, cases, asJSON)
			}
			return reportCheck(c.OutOrStdout(), warnings, err, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().StringVar(&cases, "cases", "", "test the policy: decide each case of this file and compare (exit code 1: one came out otherwise)")
	return c
}

// reportCheck prints what was found. Errors end with the exit code for them.
func reportCheck(out io.Writer, warnings config.Problems, err error, asJSON bool) error {
	var problems config.Problems
	if err != nil && !errors.As(err, &problems) {
		return err
	}
	if asJSON {
		err = printJSON(out, checkReport{"gatun/v1", len(problems) == 0, problemsOf(problems), problemsOf(warnings)})
	} else {
		_, err = fmt.Fprint(out, problems.Render(), renderWarnings(warnings))
	}
	if err == nil && len(problems) > 0 {
		err = exitStatus{code: exitConfig}
	}
	return err
}

// checkCases tests the policy with a file of cases.
func checkCases(out io.Writer, cfg *config.Config, file string, asJSON bool) error {
	report, err := runCases(cfg, file)
	switch {
	case err != nil:
		return reportCheck(out, nil, err, asJSON)
	case asJSON:
		err = printJSON(out, report)
	default:
		err = printCases(out, report)
	}
	if err == nil && !report.OK {
		err = exitStatus{code: exitFailed}
	}
	return err
}

func renderWarnings(ps config.Problems) string {
	if len(ps) == 0 {
		return ""
	}
	return "warnings, which do not keep the file from being used:\n" + ps.Render()
}

// check loads a file as `up` would, rules included.
func check(source config.Source) (cfg *config.Config, warnings config.Problems, err error) {
	source.Optional = false // whoever asks wants to know that it is missing
	cfg, err = config.Load(source)
	if err != nil {
		return nil, nil, err
	}
	store, err := profiles.NewStore(cfg, status.Judge(cfg, netenv.Snapshot{}, time.Now()), profiles.Options{})
	if err != nil {
		return nil, nil, err
	}
	have, doubtful := installed(cfg)
	for _, w := range slices.Concat(cfg.Warnings(), store.Warnings(), doubtful, profiles.Lint(cfg, have)) {
		if !slices.Contains(warnings, w) { // the store and the lint agree about some
			warnings = append(warnings, w)
		}
	}
	return cfg, warnings.Sort(), nil
}

// installed reads the lists and data files of a configuration, but nothing from the network, and
// tells what of them cannot be used.
func installed(cfg *config.Config) (have profiles.Installed, doubtful config.Problems) {
	spec, at := intelPlaces(cfg)
	store := intel.New(intel.Options{GeoDirs: intel.GeoDirs()})
	if err := store.Configure(spec); err != nil {
		return have, config.Problems{{Message: err.Error()}}
	}
	for _, l := range store.Status() {
		have.Lists = append(have.Lists, l.ID, l.Category)
		if whole := intel.PartOf(l.Category); whole != "" {
			have.Lists = append(have.Lists, whole)
		}
		if text := firstOf(l.Error, l.Warning); text != "" {
			doubtful = append(doubtful, cfg.Problem(at[l.ID], "lists["+l.ID+"]", text, ""))
		}
	}
	for _, f := range store.Geo() {
		have.Countries = have.Countries || f.Kind == "country" && f.Type != ""
		have.Networks = have.Networks || f.Kind == "asn" && f.Type != ""
		if f.Error != "" {
			doubtful = append(doubtful, cfg.Problem(cfg.Geo().Position, "geo/"+f.Kind, f.Error, ""))
		}
	}
	return have, doubtful
}

func problemsOf(ps config.Problems) []checkProblem {
	out := make([]checkProblem, 0, len(ps))
	for _, p := range ps {
		out = append(out, checkProblem{File: p.File, Line: p.Line, Col: p.Col, Key: p.Key, Message: p.Message, Suggestion: p.Suggestion})
	}
	return out
}
