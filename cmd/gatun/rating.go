package main

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"gatun/api"
)

func ratings() []string { return []string{"trusted", "untrusted", "danger", "auto"} }

func ratingCommand(p *places) *cobra.Command {
	var asJSON, watch bool
	c := &cobra.Command{
		Use: "rating [trusted|untrusted|danger|auto]", Short: "Show or set how far the network is trusted", Args: cobra.MaximumNArgs(1),
		Long:      "Show how far the network is trusted, or set it by hand. auto leaves it to the rules (network/ratingRules) and the file.",
		ValidArgs: ratings(),
		RunE: func(c *cobra.Command, args []string) error {
			if watch {
				return watchRecords(c, p.client(), "status/rating", asJSON, func(ch change) string { return ch.Key + " " + string(ch.Value) })
			}
			var r api.Rating
			var err error
			switch {
			case len(args) == 0:
				err = p.client().Get(c.Context(), "/v1/rating", nil, &r)
			case !contains(ratings(), args[0]):
				return exitStatus{exitUsage, fmt.Errorf("want %s, got %q", strings.Join(ratings(), ", "), args[0])}
			default:
				err = p.client().Send(c.Context(), http.MethodPut, "/v1/rating", api.RatingValue{Rating: args[0]}, &r)
			}
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), r)
			}
			w := c.OutOrStdout()
			if len(args) > 0 {
				w = c.ErrOrStderr()
			}
			_, err = fmt.Fprintf(w, "%s (%s)\n", r.Rating, r.Origin)
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&watch, "watch", false, "go on printing what changes")
	return c
}
