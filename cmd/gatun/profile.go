package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"gatun/api"
	"gatun/config"
)

func profileCommand(p *places) *cobra.Command {
	return group("profile", "List, show and change the settings of programs",
		profileListCommand(p), profileShowCommand(p), profileSetCommand(p), profileUnsetCommand(p),
		profileEditCommand(p), profileExportCommand(p), profileImportCommand(p), profileDeleteCommand(p))
}

func profilePath(name string) string { return "/v1/profiles/" + url.PathEscape(name) }

func settingPath(key string) string { return "/v1/settings/" + escapeKey(key) }

// escapeKey keeps the slashes of a key.
func escapeKey(key string) string { return (&url.URL{Path: key}).EscapedPath() }

func profileListCommand(p *places) *cobra.Command {
	var asJSON, watch bool
	c := &cobra.Command{
		Use: "list", Short: "List the profiles", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if watch {
				return watchRecords(c, p.client(), "profiles/", asJSON, func(ch change) string { return ch.Event + " " + ch.Key })
			}
			var list api.ProfileList
			if err := p.client().Get(c.Context(), "/v1/profiles", nil, &list); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), list)
			}
			return printProfiles(c.OutOrStdout(), list)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&watch, "watch", false, "go on printing what changes")
	return c
}

func profileShowCommand(p *places) *cobra.Command {
	var asJSON, origin bool
	c := &cobra.Command{
		Use: "show NAME|PATH", Short: "Show a profile, or that of a program, with what holds for it", Args: cobra.ExactArgs(1), ValidArgsFunction: p.completeProfiles,
		RunE: func(c *cobra.Command, args []string) error {
			name, why, err := p.profileOf(c.Context(), args[0])
			if err != nil {
				return err
			}
			var prof api.Profile
			if err := p.client().Get(c.Context(), profilePath(name), nil, &prof); err != nil {
				return err
			}
			if why != "" {
				_, _ = fmt.Fprintln(c.ErrOrStderr(), why)
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), prof)
			}
			return printProfile(c.OutOrStdout(), prof, origin)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&origin, "origin", false, "say where each value comes from")
	return c
}

// profileOf is the name of a profile, or of the one that judges the program at a path, with why.
func (p *places) profileOf(ctx context.Context, arg string) (name, why string, err error) {
	if !filepath.IsAbs(arg) {
		return arg, "", nil
	}
	var m api.Match
	if err := p.client().Get(ctx, "/v1/match", url.Values{"program": {resolved(arg)}}, &m); err != nil {
		return "", "", err
	}
	why = fmt.Sprintf("%s has no profile of its own: the global settings hold", m.Program)
	if m.Fingerprint != "" {
		why = fmt.Sprintf("%s has the profile %s: %s, score %d", m.Program, m.Profile, m.Fingerprint, m.Score)
	}
	if len(m.Ties) > 0 {
		why += "; as well as " + strings.Join(m.Ties, ", ")
	}
	return m.Profile, why, nil
}

func profileSetCommand(p *places) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "set NAME KEY VALUE…", Short: "Change a setting of a profile", Args: cobra.MinimumNArgs(3), ValidArgsFunction: p.completeInProfile,
		RunE: func(c *cobra.Command, args []string) error {
			var st api.Setting
			path := profilePath(args[0]) + "/settings/" + escapeKey(args[1])
			if err := p.client().Send(c.Context(), http.MethodPut, path, api.SettingValue{Value: valueOf(args[2:])}, &st); err != nil {
				return err
			}
			return tellSetting(c, st, asJSON, "")
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the new state as JSON")
	return c
}

func profileUnsetCommand(p *places) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "unset NAME KEY", Short: "Leave a setting of a profile to the layers below", Args: cobra.ExactArgs(2), ValidArgsFunction: p.completeInProfile,
		RunE: func(c *cobra.Command, args []string) error {
			var st api.Setting
			if err := p.client().Delete(c.Context(), profilePath(args[0])+"/settings/"+escapeKey(args[1]), &st); err != nil {
				return err
			}
			return tellSetting(c, st, asJSON, "")
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the new state as JSON")
	return c
}

func profileDeleteCommand(p *places) *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME…", Short: "Delete profiles", Args: cobra.MinimumNArgs(1), ValidArgsFunction: p.completeProfiles,
		RunE: func(c *cobra.Command, args []string) error {
			for _, name := range args {
				var done api.Deleted
				if err := p.client().Delete(c.Context(), profilePath(name), &done); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func profileExportCommand(p *places) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "export [NAME…]", Short: "Print profiles as YAML, all of them without NAME", ValidArgsFunction: p.completeProfiles,
		RunE: func(c *cobra.Command, args []string) error {
			text, err := p.client().Raw(c.Context(), "/v1/profiles/export", url.Values{"name": args})
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), map[string]string{"schema": "gatun/v1", "yaml": string(text)})
			}
			_, err = c.OutOrStdout().Write(text)
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func profileImportCommand(p *places) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "import FILE", Short: "Make or replace the profiles of a file that export wrote (- is stdin), all or none", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			text, err := readInput(c.InOrStdin(), args[0])
			if err != nil {
				return err
			}
			if _, err := config.ParseProfiles(args[0], text); err != nil { // so that positions have the file's name
				return err
			}
			var done api.Imported
			if err := p.client().SendYAML(c.Context(), http.MethodPost, "/v1/profiles/import", text, &done); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), done)
			}
			_, err = fmt.Fprintf(c.ErrOrStderr(), "imported %s\n", strings.Join(done.Imported, ", "))
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print what was imported as JSON")
	return c
}

func readInput(in io.Reader, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(in)
	}
	return os.ReadFile(name)
}

func profileEditCommand(p *places) *cobra.Command {
	return &cobra.Command{
		Use: "edit NAME", Short: "Change a profile in your editor", Args: cobra.ExactArgs(1), ValidArgsFunction: p.completeProfiles,
		Long: "Open a profile in $VISUAL or $EDITOR. What is saved is checked; if it is wrong the editor opens again with the errors on top.\nSaving nothing, or the same errors twice, changes nothing.",
		RunE: func(c *cobra.Command, args []string) error {
			return editProfile(c, p.client(), args[0])
		},
	}
}

// editProfile lets the user edit until the text is right or was not touched any more.
func editProfile(c *cobra.Command, cl *api.Client, name string) error {
	old, err := cl.Raw(c.Context(), "/v1/profiles/export", url.Values{"name": {name}})
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "gatun-edit-") // 0700: a profile says what somebody uses
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "profile.yaml")
	text, last := old, error(nil)
	for {
		if err := os.WriteFile(file, append(commented(last), text...), 0o600); err != nil {
			return err
		}
		if err := runEditor(c, file); err != nil {
			return err
		}
		saved, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		saved = uncommented(saved)
		switch {
		case bytes.Equal(saved, text) && last != nil:
			return fmt.Errorf("nothing was changed: %w", last)
		case bytes.Equal(saved, text), len(bytes.TrimSpace(saved)) == 0:
			_, err := fmt.Fprintln(c.ErrOrStderr(), "nothing was changed")
			return err
		}
		text = saved
		if last = putProfile(c, cl, name, file, text); last == nil {
			return nil
		}
		if exitCode(last) != exitConfig { // no edit will mend it
			return last
		}
	}
}

func putProfile(c *cobra.Command, cl *api.Client, name, file string, text []byte) error {
	if _, err := config.ParseProfiles(file, text); err != nil {
		return err
	}
	var done api.Profile
	return cl.SendYAML(c.Context(), http.MethodPut, profilePath(name), text, &done)
}

// errorMark begins the lines that say what was wrong; they are taken out again.
const errorMark = "#! "

func commented(err error) []byte {
	if err == nil {
		return nil
	}
	var problems config.Problems
	text := err.Error()
	if errors.As(err, &problems) {
		text = strings.TrimSpace(problems.Render())
	}
	return []byte(errorMark + strings.ReplaceAll(text, "\n", "\n"+errorMark) + "\n")
}

func uncommented(text []byte) []byte {
	var out []byte
	for _, line := range bytes.SplitAfter(text, []byte("\n")) {
		if !bytes.HasPrefix(line, []byte(strings.TrimSpace(errorMark))) {
			out = append(out, line...)
		}
	}
	return out
}

// runEditor runs the user's editor, which may have arguments of its own.
func runEditor(c *cobra.Command, file string) error {
	editor := strings.Fields(firstOf(os.Getenv("VISUAL"), os.Getenv("EDITOR"), "vi"))
	if len(editor) == 0 {
		return errors.New("no editor: set $EDITOR")
	}
	cmd := exec.CommandContext(c.Context(), editor[0], append(editor[1:], file)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.InOrStdin(), c.OutOrStdout(), c.ErrOrStderr()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the editor %s failed, nothing was changed: %w", editor[0], err)
	}
	return nil
}

func printProfiles(w io.Writer, list api.ProfileList) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "NAME\tORIGIN\tPROCESSES\tMATCH")
	for _, p := range list.Profiles {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%d\t%s\n", printableName(p.Name), p.Origin, p.Processes, printableName(strings.Join(p.Match, ", ")))
	}
	return t.Flush()
}

func printProfile(w io.Writer, p api.Profile, origin bool) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	row := func(k, v string) {
		if v != "" {
			_, _ = fmt.Fprintf(t, "%s\t%s\n", k, printableName(v))
		}
	}
	row("name", p.Name)
	row("origin", strings.TrimSpace(p.Origin+" "+p.Position))
	row("match", strings.Join(p.Match, ", "))
	for _, l := range p.Layers {
		row("over", strings.TrimSpace(l.Name+" "+l.Position))
	}
	if p.Condition {
		row("holds", map[bool]string{true: "now", false: "not now"}[p.Holds])
	}
	row("processes", fmt.Sprint(p.Processes))
	for _, k := range slices.Sorted(maps.Keys(p.Facts)) {
		row(k, p.Facts[k])
	}
	if err := t.Flush(); err != nil || len(p.Settings) == 0 {
		return err
	}
	_, _ = fmt.Fprintln(w)
	return printSettings(w, p.Settings, origin)
}
