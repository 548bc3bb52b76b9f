package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"gatun/config"
	"gatun/firewall"
	"gatun/netenv"
	"gatun/network"
	"gatun/profiles"
	"gatun/status"
)

// exitsEvery is how often it is looked whether a process ended whose rules end with it.
const exitsEvery = time.Second

// recordEvery is how long automatic profiles are collected before they are written.
const recordEvery = time.Second

// recordAgain is when they are written that could not be.
const recordAgain = 10 * time.Second

// config returns the configuration in force, with the profiles that were made until now: who
// sees a program wants to change its settings.
func (e *engine) config() *config.Config {
	e.mu.Lock()
	defer e.mu.Unlock()
	_ = e.record() // keepProfiles tries again, and tells
	return e.cfg
}

// rating returns what the network is judged to be.
func (e *engine) rating() status.State {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.state
}

// reload reads the files again. An error leaves the running policy untouched; the same
// configuration changes nothing.
func (e *engine) reload() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	cfg, err := config.Load(e.opt.source)
	if err == nil {
		e.known.store.Poll() // who edited a list and reloads wants it now
		err = e.install(cfg)
	}
	if err == nil {
		e.listsMoved()
	}
	e.problem.set(err)
	return err
}

// change makes an edit of what the program keeps itself, puts it in force and writes it. An
// error leaves everything as it was: config.Problems where the edit is refused.
func (e *engine) change(f func(*config.Edit) error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	cfg, edit, err := e.edited(f)
	if err != nil {
		return err
	}
	old := e.cfg
	if err := e.install(cfg); err != nil {
		return err
	}
	if err := edit.Commit(); err != nil {
		return errors.Join(err, e.install(old))
	}
	return nil
}

func (e *engine) edited(f func(*config.Edit) error) (*config.Config, *config.Edit, error) {
	source := e.opt.source
	source.Edit = source.Data.Edit()
	if err := f(source.Edit); err != nil {
		return nil, nil, err
	}
	cfg, err := config.Load(source)
	return cfg, source.Edit, err
}

// install puts a configuration in force and ends what it no longer permits. e.mu is held.
func (e *engine) install(cfg *config.Config) error {
	st := status.Judge(cfg, e.environment(), time.Now())
	if cfg.Equal(e.cfg) && st.Equal(e.state) {
		return nil
	}
	before := e.opt.store.Revision()
	moved, err := e.known.configure(cfg)
	if err != nil {
		return err
	}
	if err := e.opt.store.Swap(cfg, st); err != nil {
		_, _ = e.known.configure(e.cfg) // it was in force before
		return err
	}
	if moved && e.opt.store.Revision() == before {
		e.opt.store.Renew()
	}
	e.cfg, e.state = cfg, st
	e.server.Configure(dnsConfig(cfg))
	e.followProbe(cfg)
	if e.opt.level != nil {
		followLevel(e.opt.level, cfg)
	}
	if e.opt.store.Revision() == before { // no flow is judged otherwise, as after a profile that sets nothing
		e.stateChanged()
		return nil
	}
	closed := e.policyChanged()
	e.opt.log.Info("policy in force", zap.Uint64("revision", e.opt.store.Revision()), zap.Stringer("rating", st.Rating), zap.Int("flows closed", closed))
	return nil
}

func (e *engine) environment() netenv.Snapshot {
	if e.opt.networks == nil {
		return netenv.Snapshot{}
	}
	return e.opt.networks.Snapshot()
}

// policyChanged decides live flows again and returns how many were closed. Whoever changes a
// temporary rule or a pause in the store calls it.
func (e *engine) policyChanged() int {
	if e.opt.inForce != nil {
		e.opt.inForce()
	}
	closed := e.gate.Reevaluate()
	if err := e.keepTemporaries(); err != nil {
		e.opt.log.Error("temporary rules hold, but not over a restart", zap.Error(err))
	}
	e.stateChanged()
	return closed
}

// stateChanged tells who watches the state, and who waits for the end of something.
func (e *engine) stateChanged() {
	e.table.PublishState()
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// keepTemporaries writes the temporary rules, so that a restart neither frees nor closes anything.
func (e *engine) keepTemporaries() error {
	if e.opt.source.Data == nil {
		return nil
	}
	b, err := json.Marshal(temporaryFile{Version: 1, Rules: e.opt.store.Temporaries()})
	if err != nil {
		return err
	}
	e.keeping.Lock()
	defer e.keeping.Unlock()
	if bytes.Equal(b, e.kept) {
		return nil
	}
	if err := e.opt.source.Data.WriteTemporary(b); err != nil {
		return err
	}
	e.kept = b
	return nil
}

// temporaryFile is temporary.json.
type temporaryFile struct {
	Version int                  `json:"version"`
	Rules   []profiles.Temporary `json:"rules"`
}

// restoreTemporaries puts the rules in force that were temporary before a restart. What cannot
// be read keeps the program from starting: a rule may have denied something.
func (e *engine) restoreTemporaries() error {
	if e.opt.source.Data == nil {
		return nil
	}
	b, err := e.opt.source.Data.ReadTemporary()
	if err != nil || len(b) == 0 {
		return err
	}
	var f temporaryFile
	if err := json.Unmarshal(b, &f); err != nil || f.Version != 1 {
		return config.Problems{{Position: config.Position{File: "temporary.json"}, Message: fmt.Sprintf("not what gatun wrote (%v, version %d): delete it, its rules are gone then", err, f.Version)}}
	}
	for _, t := range f.Rules {
		if !t.Until.IsZero() && !t.Until.After(time.Now()) {
			continue
		}
		if _, err := e.opt.store.AddTemporary(t); err != nil {
			return err
		}
	}
	e.opt.store.Expire(time.Now(), e.opt.owners.Alive)
	return nil
}

// keepTime ends what ends with time, and judges the network when it changes.
func (e *engine) keepTime(ctx context.Context) error {
	var networks <-chan struct{}
	if e.opt.networks != nil {
		networks = e.opt.networks.Changed()
	}
	var place whereabouts
	place.moved(e.environment())
	for {
		timer := time.NewTimer(e.untilNext(time.Now()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-e.wake:
		case <-networks:
			e.known.store.Retry()
			if place.moved(e.environment()) {
				e.server.Moved()
			}
			e.rejudge()
			e.stateChanged() // be it online or not
		case <-timer.C:
			if e.opt.store.Expire(time.Now(), e.opt.owners.Alive) {
				e.policyChanged()
			}
			e.rejudge()
		}
		timer.Stop()
	}
}

// rejudge puts the same configuration in force in the network as it is now.
func (e *engine) rejudge() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.install(e.cfg); err != nil { // it was in force before
		e.opt.log.Error("the network changed and the policy cannot follow", zap.Error(err))
	}
	e.state.Next = status.Judge(e.cfg, e.environment(), time.Now()).Next
}

// untilNext is how long nothing ends.
func (e *engine) untilNext(now time.Time) time.Duration {
	wait := time.Hour
	if d, ok := e.rating().Wait(now); ok {
		wait = min(wait, d)
	}
	if t := e.opt.store.NextExpiry(); !t.IsZero() {
		wait = min(wait, t.Sub(now))
	}
	for _, t := range e.opt.store.Temporaries() {
		if t.PID != 0 {
			wait = min(wait, exitsEvery)
		}
	}
	return max(wait, 10*time.Millisecond)
}

// keepProfiles writes the profiles that were made for programs seen first, and tries again where
// that fails: while the human's file is wrong nothing can be written.
func (e *engine) keepProfiles(ctx context.Context) error {
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			e.recordOrTell()
			return nil
		case <-e.opt.created:
			if due == nil { // others are on their way
				due = time.After(recordEvery)
			}
		case <-due:
			due = nil
			if !e.recordOrTell() {
				due = time.After(recordAgain)
			}
		}
	}
}

func (e *engine) recordOrTell() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	err := e.record()
	if err != nil {
		e.opt.log.Warn("the profiles of new programs hold, but are not kept yet", zap.Error(err))
	}
	return err == nil
}

// record writes the profiles that were made for programs seen first. They set nothing, but the
// files may have changed meanwhile, and what was read is what is in force. e.mu is held.
func (e *engine) record() error {
	fresh := slices.DeleteFunc(e.opt.store.Pending(), func(p config.ProfileSpec) bool { // a person took the name since: it is made again
		return slices.ContainsFunc(e.cfg.Profiles(), func(o config.ProfileSpec) bool { return o.Name == p.Name })
	})
	if len(fresh) == 0 {
		return nil
	}
	cfg, edit, err := e.edited(func(edit *config.Edit) error {
		for _, p := range fresh {
			edit.PutProfile(p)
		}
		return nil
	})
	if err == nil {
		err = e.install(cfg)
	}
	if err == nil {
		err = edit.Commit()
	}
	return err
}

// remember keeps an answer that lasts: a rule of the program's profile, or one for a time.
func (e *engine) remember(i firewall.PromptInfo, a firewall.Answer) error {
	sign, key := "- ", "filter/endpoints"
	if a.Action == profiles.Allow {
		sign = "+ "
	}
	if i.Direction == network.Inbound.String() {
		key = "filter/serviceEndpoints"
	}
	if !a.For.Always {
		return e.rememberForATime(i, a, sign)
	}
	return e.change(func(edit *config.Edit) error {
		if !slices.ContainsFunc(e.cfg.Profiles(), func(p config.ProfileSpec) bool { return p.Name == i.Profile }) {
			p, err := profileFor(i)
			if err != nil {
				return err
			}
			edit.PutProfile(p)
		}
		for _, entity := range i.Entities() {
			edit.PrependRule(i.Profile, key, sign+entity)
		}
		return nil
	})
}

// profileFor is the profile that an answer about a program without one is kept in.
func profileFor(i firewall.PromptInfo) (config.ProfileSpec, error) {
	match := config.Fingerprint{Type: "path", Op: "equals", Value: i.Path}
	if i.Path == "" {
		return config.ProfileSpec{}, errors.New("nobody knows for sure which program asks, so that no profile can keep the answer: answer once or for a time")
	}
	return config.NewProfile(i.Profile, []config.Fingerprint{match}, config.Runtime, map[string]string{"path": i.Path}), nil
}

func (e *engine) rememberForATime(i firewall.PromptInfo, a firewall.Answer, sign string) error {
	for _, entity := range i.Entities() {
		t := profiles.Temporary{Profile: i.Profile, Rule: sign + entity, Created: time.Now(), Reason: "answer of " + a.By}
		if a.For.UntilExit {
			t.PID, t.Started = i.PID, i.Start
		} else {
			t.Until = time.Now().Add(a.For.Time)
		}
		if _, err := e.opt.store.AddTemporary(t); err != nil {
			return err
		}
	}
	e.policyChanged()
	return nil
}
