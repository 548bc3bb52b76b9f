package main

import (
	"context"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gatun/api"
	"gatun/config"
)

// completionTime is how long the shell waits for the running gatun.
const completionTime = 500 * time.Millisecond

func completionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "completion bash|zsh|fish|powershell", Short: "Print the completion script of a shell",
		Long:      "Print the completion script of a shell: commands, flags, keys and values of settings, and the profiles of the running gatun.",
		Example:   "  source <(gatun completion bash)\n  gatun completion zsh >\"${fpath[1]}/_gatun\"\n  gatun completion fish | source\n  gatun completion powershell | Out-String | Invoke-Expression",
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(c *cobra.Command, args []string) error {
			root, w := c.Root(), c.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(w, true)
			case "zsh":
				return root.GenZshCompletion(w)
			case "fish":
				return root.GenFishCompletion(w, true)
			default:
				return root.GenPowerShellCompletionWithDesc(w)
			}
		},
	}
}

// completeKeys completes the key of a setting, with what it is.
func completeKeys(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return keys(func(config.Setting) bool { return true }), cobra.ShellCompDirectiveNoFileComp
}

func keys(wanted func(config.Setting) bool) []string {
	var list []string
	for _, s := range config.Table() {
		if wanted(s) && s.Missing == "" {
			list = append(list, s.Key+"\t"+s.Name)
		}
	}
	return list
}

// completeValues completes a key and then the values that it can have.
func completeValues(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return completeKeys(c, args, typed)
	}
	return values(args[0]), cobra.ShellCompDirectiveNoFileComp
}

// values lists what a setting can be set to, as far as that is a list.
func values(key string) []string {
	for _, s := range config.Table() {
		if s.Key != key {
			continue
		}
		switch s.Type {
		case config.TypeBool:
			return []string{"on", "off"}
		case config.TypeGrade:
			return []string{"off", "trusted", "untrusted", "danger", "on"}
		}
		var list []string
		for _, v := range s.PossibleValues {
			if s.MissingValues[v] == "" {
				list = append(list, v)
			}
		}
		return list
	}
	return nil
}

// completeProfiles completes the name of a profile of the running gatun.
func (p *places) completeProfiles(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return p.profileNames(c.Context()), cobra.ShellCompDirectiveNoFileComp
}

// completeInProfile completes a profile, a key that it can set, and the values of that.
func (p *places) completeInProfile(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return p.completeProfiles(c, args, typed)
	case 1:
		return keys(func(s config.Setting) bool { return s.PerApp && s.MissingPerApp == "" }), cobra.ShellCompDirectiveNoFileComp
	default:
		if strings.HasPrefix(c.Use, "unset") {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return values(args[1]), cobra.ShellCompDirectiveNoFileComp
	}
}

// ask asks the running gatun as long as the shell may wait. Where nobody answers there is nothing
// to offer.
func (p *places) ask(ctx context.Context, path string, q url.Values, out any) bool {
	if ctx == nil { // cobra completes without the context of Execute
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	return p.client().Get(ctx, path, q, out) == nil
}

func (p *places) profileNames(ctx context.Context) []string {
	var list api.ProfileList
	p.ask(ctx, "/v1/profiles", nil, &list)
	var names []string
	for _, prof := range list.Profiles {
		names = append(names, prof.Name)
	}
	return names
}

func (p *places) knowsProfile(ctx context.Context, name string) bool {
	return contains(p.profileNames(ctx), name)
}

// completeLists completes the ids of filter lists that were not named yet.
func (p *places) completeLists(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var all api.FilterLists
	p.ask(c.Context(), "/v1/lists", nil, &all)
	var ids []string
	for _, l := range all.Lists {
		if !contains(args, l.ID) {
			ids = append(ids, l.ID+"\t"+printableName(l.Source))
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

// completeCached completes a name that is cached.
func (p *places) completeCached(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var list api.CachedList
	p.ask(c.Context(), "/v1/dns/cache", nil, &list)
	var names []string
	for _, e := range list.Entries {
		if strings.HasPrefix(e.Name, strings.ToLower(typed)) && !contains(names, e.Name) {
			names = append(names, e.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeTypes completes the type of the records that are asked for.
func completeTypes(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return []string{"A", "AAAA", "CNAME", "HTTPS", "MX", "NS", "PTR", "SOA", "SRV", "SVCB", "TXT"}, cobra.ShellCompDirectiveNoFileComp
}
