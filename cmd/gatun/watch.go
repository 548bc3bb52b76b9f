package main

import (
	"encoding/json"
	"fmt"
	"os/signal"
	"slices"

	"github.com/spf13/cobra"

	"gatun/api"
	"gatun/config"
	"gatun/network"
)

// change is one line of a watch as JSON.
type change struct {
	Schema string          `json:"schema"`
	Event  string          `json:"event"` // put, delete
	Key    string          `json:"key"`
	Value  json.RawMessage `json:"value,omitempty"`
}

// watchRecords prints what is below a prefix of the virtual database, and every change of it,
// until the user has enough.
func watchRecords(c *cobra.Command, cl *api.Client, prefix string, asJSON bool, line func(change) string) error {
	ctx, stop := signal.NotifyContext(c.Context(), interrupts()...)
	defer stop()
	w := c.OutOrStdout()
	return cl.Watch(ctx, prefix, func(event string, data json.RawMessage) error {
		if event == "ready" {
			return nil
		}
		ch := change{Schema: network.Schema, Event: event}
		if err := json.Unmarshal(data, &ch); err != nil {
			return err
		}
		if asJSON {
			return printJSON(w, ch)
		}
		_, err := fmt.Fprintln(w, line(ch))
		return err
	})
}

func settingLine(ch change) string {
	var st config.SettingState
	if ch.Event != "put" || json.Unmarshal(ch.Value, &st) != nil {
		return ch.Event + " " + ch.Key
	}
	return fmt.Sprintf("%s = %s (%s)", st.Key, plain(st.Value), st.Origin)
}

func contains(list []string, s string) bool { return slices.Contains(list, s) }
