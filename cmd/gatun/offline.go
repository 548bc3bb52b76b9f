package main

import (
	"os"
	"time"

	"gatun/config"
	"gatun/netenv"
	"gatun/profiles"
	"gatun/status"
)

// source is what a daemon of these places would read: the named file or the usual one, and what
// was changed at run time. Without root there is run-time data only where the state directory
// was moved, because the system's is not for everybody to read.
func (p *places) source(file string) config.Source {
	source := configSource(file)
	if os.Geteuid() <= 0 || p.movedState() {
		source.Data = config.OpenData(p.stateDir())
	}
	return source
}

func (p *places) movedState() bool { return p.state != "" || os.Getenv("GATUN_STATE") != "" }

// checkRules finds what Load cannot: what is wrong with the policy as a whole.
func checkRules(cfg *config.Config) error {
	_, err := profiles.NewStore(cfg, status.Judge(cfg, netenv.Snapshot{}, time.Now()), profiles.Options{})
	return err
}

// mayWriteState reports whether this user keeps the state directory.
func (p *places) mayWriteState() bool {
	return os.Geteuid() == 0 || p.movedState() && owns(p.stateDir())
}
