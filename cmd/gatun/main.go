// Command gatun is a userspace application firewall: it captures the traffic of one command or
// of the machine, finds out which program every flow belongs to, and decides it.
//
// This package holds the commands and the wiring, and nothing else: every long-lived part is
// made and started here, in plain struct fields. Nobody imports it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"gatun/tun/sandbox"
)

func main() {
	if sandbox.IsChild() { // before anything slow: this is the inner half of `gatun run`
		sandbox.ChildMain()
	}
	err := command()
	var status exitStatus
	if err != nil && !(errors.As(err, &status) && status.silent()) {
		fmt.Fprintln(os.Stderr, "gatun:", err)
	}
	os.Exit(exitCode(err))
}

func command() (err error) {
	stop, err := profileCPU()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	root := newRoot(os.Stdout, os.Stderr)
	root.SetArgs(rulesAsWords(os.Args[1:]))
	return root.ExecuteContext(context.Background())
}
