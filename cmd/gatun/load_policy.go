package main

import (
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"gatun/attribution"
	"gatun/config"
	"gatun/dns"
	"gatun/netenv"
	"gatun/profiles"
	"gatun/status"
)

// loadPolicy reads the policy and looks at the networks that it may depend on. The error is
// config.Problems where the files are wrong. ownDevices are never taken for somebody's VPN.
func loadPolicy(source config.Source, only []string, resolvers dns.SystemOptions, log *zap.Logger, ownDevices ...string) (engineOptions, error) {
	cfg, err := config.Load(source)
	if err != nil {
		return engineOptions{}, err
	}
	o := engineOptions{cfg: cfg, source: source, log: log, environ: &environ{}, system: dns.NewSystem(resolvers, time.Now)}
	var seen netenv.Snapshot
	if o.networks, err = netenv.New(netenv.Options{Ignore: ownDevices, System: systemNames(o.system), Logger: log}); err != nil {
		log.Warn("nothing is known of the networks: rating rules about them do not hold", zap.Error(err))
	} else {
		seen = o.networks.Snapshot()
	}
	o.state = status.Judge(cfg, seen, time.Now())
	created := make(chan struct{}, 1)
	o.created = created
	o.store, err = profiles.NewStore(cfg, o.state, profiles.Options{
		Only: only, Logger: log, Environ: o.environ.of,
		Created: func(config.ProfileSpec) {
			select {
			case created <- struct{}{}:
			default:
			}
		},
	})
	return o, err
}

// environ reads the environment of programs once there is somebody who can: profiles are there
// before the namespace whose programs they judge.
type environ struct {
	finder atomic.Pointer[attribution.Finder]
}

func (e *environ) of(p *attribution.Process) []string {
	if f := e.finder.Load(); f != nil {
		return f.Environ(p)
	}
	return nil
}

// followLevel makes the log as talkative as the configuration wants it.
func followLevel(level *zap.AtomicLevel, cfg *config.Config) {
	if l, err := zapcore.ParseLevel(cfg.String("core/logLevel")); err == nil { // config has checked it
		level.SetLevel(l)
	}
}
