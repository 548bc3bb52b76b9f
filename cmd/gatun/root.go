package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"gatun/api"
)

const (
	defaultConfig = "/etc/gatun/gatun.yaml"
	defaultState  = "/var/lib/gatun"
	defaultSocket = "/run/gatun/gatun.sock"
)

// places are where a daemon and its clients meet.
type places struct {
	state, socket string
}

// stateDir is --state, else GATUN_STATE, else the system's folder.
func (p places) stateDir() string { return firstOf(p.state, os.Getenv("GATUN_STATE"), defaultState) }

// socketPath is --socket, else GATUN_SOCKET, else inside a state folder that was moved, else
// the system's.
func (p places) socketPath() string {
	if s := firstOf(p.socket, os.Getenv("GATUN_SOCKET")); s != "" {
		return s
	}
	if p.state != "" || os.Getenv("GATUN_STATE") != "" {
		return filepath.Join(p.stateDir(), "gatun.sock")
	}
	return defaultSocket
}

func (p places) client() *api.Client { return api.NewClient(p.socketPath()) }

func firstOf(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}

// newRoot returns the whole command tree. Data goes to out, talk to talk.
func newRoot(out, talk io.Writer) *cobra.Command {
	p := &places{}
	root := &cobra.Command{
		Use:           "gatun",
		Short:         "A userspace application firewall: which program may talk to whom, and why",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return c.Help()
		},
	}
	root.SetOut(out)
	root.SetErr(talk)
	root.PersistentFlags().StringVar(&p.state, "state", "", "state directory (default $GATUN_STATE or "+defaultState+")")
	root.PersistentFlags().StringVar(&p.socket, "socket", "", "unix socket (default $GATUN_SOCKET, STATE/gatun.sock or "+defaultSocket+")")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return exitStatus{usageCode(c), fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())}
	})
	root.AddCommand(
		runCommand(), upCommand(p), confirmCommand(p), downCommand(p), statusCommand(p), flowsCommand(p), logCommand(p), whyCommand(p),
		checkCommand(), killCommand(p), recoverCommand(p), reloadCommand(p), versionCommand(),
		settingsCommand(p), profileCommand(p), allowCommand(p), blockCommand(p), pauseCommand(p), ratingCommand(p), promptCommand(p), schemaCommand(), completionCommand(),
		dnsCommand(p), listCommand(p),
	)
	checkUsage(root.Commands())
	root.Args = usageArgs(unknownSubcommand)
	return root
}

// checkUsage gives wrong arguments of all commands the exit code of wrong usage.
func checkUsage(commands []*cobra.Command) {
	for _, c := range commands {
		if c.HasSubCommands() { // what is left over is the name of a subcommand that is not there
			c.Args = unknownSubcommand
		}
		c.Args = usageArgs(c.Args)
		checkUsage(c.Commands())
	}
}

func unknownSubcommand(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unknown command %q", args[0])
	}
	return nil
}

// usageCode is the exit code of wrong usage. `run` keeps every code but 125 for its command.
func usageCode(c *cobra.Command) int {
	if c.Name() == "run" {
		return exitRunFailed
	}
	return exitUsage
}

// usageArgs gives wrong arguments the exit code of wrong usage.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if check == nil {
			return nil
		}
		if err := check(c, args); err != nil {
			return exitStatus{usageCode(c), fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())}
		}
		return nil
	}
}

func versionCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if asJSON {
				return printJSON(c.OutOrStdout(), map[string]string{
					"schema": "gatun/v1", "version": version(), "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
				})
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "gatun %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// version is the module's version, or the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return s.Value[:12]
		}
	}
	if info.Main.Version == "(devel)" || info.Main.Version == "" {
		return "devel"
	}
	return info.Main.Version
}
