package main

import (
	"fmt"
	"os"
	"runtime/pprof"
)

// profileVariable names the file into which a developer has the processor's time written. It is
// no setting: whoever may set a program's environment may do more than that, and no port or
// socket is opened for it.
const profileVariable = "GATUN_CPUPROFILE"

// profileCPU writes where this program spends the processor's time, from now until stop, if the
// environment asks for it. The variable is taken away: a command started by `gatun run` would
// write over the file.
func profileCPU() (stop func() error, err error) {
	name := os.Getenv(profileVariable)
	if name == "" {
		return func() error { return nil }, nil
	}
	if err := os.Unsetenv(profileVariable); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", profileVariable, err)
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("%s: %w", profileVariable, err)
	}
	return func() error {
		pprof.StopCPUProfile()
		return file.Close()
	}, nil
}
