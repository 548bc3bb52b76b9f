package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"gatun/api"
	"gatun/config"
	"gatun/network"
)

// group is a command that only has subcommands.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return exitStatus{exitUsage, fmt.Errorf("say what to do; see `%s --help`", c.CommandPath())}
		},
	}
	c.AddCommand(commands...)
	return c
}

func settingsCommand(p *places) *cobra.Command {
	return group("settings", "List, show and change settings",
		settingsListCommand(p), settingsShowCommand(p), settingsSetCommand(p), settingsUnsetCommand(p))
}

func settingsListCommand(p *places) *cobra.Command {
	var asJSON, origin, watch bool
	var level, file string
	c := &cobra.Command{
		Use: "list", Short: "List the settings with their values", Args: cobra.NoArgs,
		Long: "List the settings with their values. --level only says what is shown: a hidden setting stays in effect.\nWithout a running gatun the files are read.",
		RunE: func(c *cobra.Command, _ []string) error {
			if level != "" && !contains(api.Levels(), level) {
				return exitStatus{exitUsage, fmt.Errorf("--level: want %s, got %q", strings.Join(api.Levels(), ", "), level)}
			}
			if watch {
				return watchRecords(c, p.client(), "settings/", asJSON, settingLine)
			}
			list, err := p.settings(c.Context(), file, level)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), list)
			}
			return printSettings(c.OutOrStdout(), list.Settings, origin)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&origin, "origin", false, "say where each value comes from")
	c.Flags().BoolVar(&watch, "watch", false, "go on printing what changes")
	c.Flags().StringVar(&level, "level", "", "user, expert or developer (default core/expertiseLevel)")
	c.Flags().StringVarP(&file, "config", "c", "", "read this file instead of asking the running gatun")
	_ = c.RegisterFlagCompletionFunc("level", cobra.FixedCompletions(api.Levels(), cobra.ShellCompDirectiveNoFileComp))
	return c
}

// settings asks the running program, or reads the files where there is none.
func (p *places) settings(ctx context.Context, file, level string) (api.SettingList, error) {
	var list api.SettingList
	if file == "" {
		q := map[string][]string{}
		if level != "" {
			q["level"] = []string{level}
		}
		err := p.client().Get(ctx, "/v1/settings", q, &list)
		if !errors.Is(err, api.ErrNotRunning) {
			return list, err
		}
	}
	cfg, err := config.Load(p.source(file))
	if err != nil {
		return list, err
	}
	return api.NewSettingList(cfg, level)
}

func settingsShowCommand(p *places) *cobra.Command {
	var asJSON bool
	var file string
	c := &cobra.Command{
		Use: "show KEY", Short: "Show one setting with all that is known of it", Args: cobra.ExactArgs(1), ValidArgsFunction: completeKeys,
		RunE: func(c *cobra.Command, args []string) error {
			list, err := p.settings(c.Context(), file, config.Developer.String())
			if err != nil {
				return err
			}
			st, ok := api.FindSetting(list.Settings, args[0])
			if !ok {
				return config.Problems{api.UnknownSetting(args[0], list.Settings)}
			}
			return showSetting(c.OutOrStdout(), api.Setting{Schema: network.Schema, SettingState: st}, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().StringVarP(&file, "config", "c", "", "read this file instead of asking the running gatun")
	return c
}

func settingsSetCommand(p *places) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "set KEY VALUE…", Short: "Change a setting at once and for good", Args: cobra.MinimumNArgs(2), ValidArgsFunction: completeValues,
		Long:    "Change a setting. The change is kept in the state directory; the configuration file is never written, and what it sets cannot be changed here.\nA list takes one VALUE per item.",
		Example: "  gatun settings set filter/blockLAN untrusted\n  gatun settings set filter/endpoints '- .ads.example' '+ *'",
		RunE: func(c *cobra.Command, args []string) error {
			value := valueOf(args[1:])
			var st api.Setting
			err := p.client().Send(c.Context(), http.MethodPut, settingPath(args[0]), api.SettingValue{Value: value}, &st)
			if errors.Is(err, api.ErrNotRunning) {
				return p.changeOffline(c, err, args[0], asJSON, func(e *config.Edit) { e.Set(args[0], value) })
			}
			if err != nil {
				return err
			}
			return tellSetting(c, st, asJSON, "")
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the new state as JSON")
	return c
}

func settingsUnsetCommand(p *places) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "unset KEY", Short: "Take back a change: the file, the preset or the default holds again", Args: cobra.ExactArgs(1), ValidArgsFunction: completeKeys,
		RunE: func(c *cobra.Command, args []string) error {
			var st api.Setting
			err := p.client().Delete(c.Context(), settingPath(args[0]), &st)
			if errors.Is(err, api.ErrNotRunning) {
				return p.changeOffline(c, err, args[0], asJSON, func(e *config.Edit) { e.Unset(args[0]) })
			}
			if err != nil {
				return err
			}
			return tellSetting(c, st, asJSON, "")
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the new state as JSON")
	return c
}

// ruleMark stands before a word that begins with a dash and is a rule. No argument of a program
// can contain it.
const ruleMark = "\x00"

// rulesAsWords marks the rules among the values of `settings set` and `profile set`: "- RU" begins
// with a dash and is no flag.
func rulesAsWords(args []string) []string {
	sets := false
	out := slices.Clone(args)
	for i, a := range out {
		switch {
		case a == "--":
			return out
		case a == "set" && i > 0 && (out[i-1] == "settings" || out[i-1] == "profile"):
			sets = true
		case sets && strings.HasPrefix(strings.TrimLeft(a, "-"), " ") && strings.HasPrefix(a, "-"):
			out[i] = ruleMark + a
		}
	}
	return out
}

// valueOf is what the words of a command line say: one is text, several are a list.
func valueOf(words []string) any {
	if len(words) == 1 {
		return strings.TrimPrefix(words[0], ruleMark)
	}
	list := make([]any, len(words))
	for i, w := range words {
		list[i] = strings.TrimPrefix(w, ruleMark)
	}
	return list
}

// changeOffline changes what the next start will read. Only who may write the state directory
// gets that far.
func (p *places) changeOffline(c *cobra.Command, notRunning error, key string, asJSON bool, edit func(*config.Edit)) error {
	if !p.mayWriteState() {
		return fmt.Errorf("%w; only root changes its settings while it is down", notRunning)
	}
	source := p.source("")
	before, err := config.Load(source)
	if err != nil {
		return err
	}
	old, ok := api.FindSetting(before.States(), key)
	if !ok {
		return config.Problems{api.UnknownSetting(key, before.States())}
	}
	e := source.Data.Edit()
	edit(e)
	source.Edit = e
	cfg, err := config.Load(source)
	if err == nil {
		err = checkRules(cfg)
	}
	if err != nil && old.Pinned {
		return exitStatus{exitFailed, err}
	}
	if err != nil {
		return err
	}
	if err := e.Commit(); err != nil {
		return err
	}
	st, _ := api.FindSetting(cfg.States(), key)
	return tellSetting(c, api.Setting{Schema: network.Schema, SettingState: st}, asJSON, "; gatun is not running: it holds from the next start on")
}

// tellSetting says what a change led to: on stdout as data, else as talk.
func tellSetting(c *cobra.Command, st api.Setting, asJSON bool, more string) error {
	if asJSON {
		return printJSON(c.OutOrStdout(), st)
	}
	if st.RestartRequired && more == "" {
		more = "; it takes effect when gatun starts again"
	}
	if st.Inactive != "" {
		more += "; " + st.Inactive
	}
	where := st.Key
	if st.Profile != "" {
		where = st.Profile + ": " + st.Key
	}
	_, err := fmt.Fprintf(c.ErrOrStderr(), "%s is %s (%s)%s\n", where, plain(st.Value), st.Origin, more)
	return err
}

func printSettings(w io.Writer, list []config.SettingState, origin bool) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if origin {
		_, _ = fmt.Fprintln(t, "KEY\tVALUE\tORIGIN\tNOTE")
	} else {
		_, _ = fmt.Fprintln(t, "KEY\tVALUE\tNOTE")
	}
	for _, s := range list {
		note := s.Inactive
		if s.Inactive != "" && s.Stored != nil {
			note = plain(s.Stored) + " is " + s.Inactive
		}
		if origin {
			_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", s.Key, plain(s.Value), s.Origin, note)
		} else {
			_, _ = fmt.Fprintf(t, "%s\t%s\t%s\n", s.Key, plain(s.Value), note)
		}
	}
	return t.Flush()
}

func showSetting(w io.Writer, s api.Setting, asJSON bool) error {
	if asJSON {
		return printJSON(w, s)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	row := func(k, v string) {
		if v != "" {
			_, _ = fmt.Fprintf(t, "%s\t%s\n", k, v)
		}
	}
	row("key", s.Key)
	row("name", s.Name)
	row("about", s.Description)
	row("value", plain(s.Value))
	row("origin", s.Origin)
	row("default", plain(s.Default))
	row("type", s.Type)
	row("values", strings.Join(s.PossibleValues, ", "))
	row("levels", s.Expertise+", "+s.Release)
	row("per app", yes(s.PerApp))
	row("stacked", yes(s.Stacked))
	row("restart", yes(s.RestartRequired))
	row("note", s.Inactive)
	return t.Flush()
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

// plain writes a value as the configuration file would, without quotes around single words.
func plain(v any) string {
	switch v := v.(type) {
	case nil:
		return "-"
	case bool:
		if v {
			return "on"
		}
		return "off"
	case string:
		if v == "" {
			return `""`
		}
		return printableName(v)
	case []string:
		list := make([]any, len(v))
		for i, s := range v {
			list[i] = s
		}
		return plain(list)
	case []any:
		items := make([]string, len(v))
		for i, item := range v {
			items[i] = fmt.Sprintf("%q", fmt.Sprint(item))
		}
		return "[" + strings.Join(items, ", ") + "]"
	case float64:
		return fmt.Sprintf("%v", v)
	default:
		return printableName(fmt.Sprint(v))
	}
}
