package main

import (
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"gatun/api"
)

func pauseCommand(p *places) *cobra.Command {
	var asJSON, off bool
	c := &cobra.Command{
		Use: "pause [DURATION]", Short: "Stop filtering for a while, or say whether it is stopped", Args: cobra.MaximumNArgs(1),
		Long: "Stop filtering for at most a day: everything is permitted, `gatun status` says so, and filtering begins again by itself.",
		RunE: func(c *cobra.Command, args []string) error {
			var state api.Pause
			var err error
			switch {
			case off && len(args) > 0:
				return exitStatus{exitUsage, fmt.Errorf("give either a duration or --off")}
			case off:
				err = p.client().Delete(c.Context(), "/v1/pause", &state)
			case len(args) == 1:
				if _, err := api.ParsePause(args[0]); err != nil {
					return exitStatus{exitUsage, err}
				}
				err = p.client().Send(c.Context(), http.MethodPut, "/v1/pause", api.PauseFor{For: args[0]}, &state)
			default:
				err = p.client().Get(c.Context(), "/v1/pause", nil, &state)
			}
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), state)
			}
			return tellPause(c, state, len(args) == 0 && !off)
		},
	}
	c.Flags().BoolVar(&off, "off", false, "filter again now")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// tellPause answers a question on stdout and confirms an order on stderr.
func tellPause(c *cobra.Command, p api.Pause, asked bool) error {
	w := c.ErrOrStderr()
	if asked {
		w = c.OutOrStdout()
	}
	_, err := fmt.Fprintln(w, pauseText(p.Until))
	return err
}

func pauseText(until *time.Time) string {
	if until == nil {
		return "not paused"
	}
	return "PAUSED: nothing is filtered until " + until.Local().Format(time.DateTime)
}
