package main

import (
	"github.com/spf13/cobra"

	"gatun/config"
)

func schemaCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "schema", Short: "Print the JSON schema of the configuration file", Args: cobra.NoArgs,
		Long:    "Print the JSON schema of the configuration file. An editor checks and completes the file with it; it needs no running gatun.",
		Example: "  gatun schema >gatun.schema.json",
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := c.OutOrStdout().Write(config.Schema())
			return err
		},
	}
	c.Flags().Bool("json", true, "print JSON; it is nothing else")
	return c
}
