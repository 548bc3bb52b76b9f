package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gatun/api"
	"gatun/attribution"
	"gatun/config"
	"gatun/firewall"
	"gatun/network"
	"gatun/profiles"
)

// policyOwner is the engine as far as the API changes what it does.
type policyOwner interface {
	config() *config.Config
	change(func(*config.Edit) error) error
	policyChanged() int // decides the live flows again and tells the watchers
}

// control implements what the API asks for and changes, over the parts of an engine.
type control struct {
	owner policyOwner
	store *profiles.Store
	asked *firewall.Prompts
	table *network.Table
	alive func(pid int, started time.Time) bool
	names api.Names
	lists api.Lists
}

// Config implements api.Policy.
func (c *control) Config() *config.Config { return c.owner.config() }

// Change implements api.Policy.
func (c *control) Change(f func(*config.Edit) error) error { return c.owner.change(f) }

// Profiles implements api.Programs.
func (c *control) Profiles() []profiles.Info { return c.store.Profiles() }

// Match implements api.Programs.
func (c *control) Match(path string) profiles.MatchReport {
	return c.store.Match(attribution.Owner{
		Process:    &attribution.Process{Path: path, Name: filepath.Base(path), Kind: attribution.KindProgram},
		Confidence: attribution.Exact,
	})
}

// Temporaries implements api.Overrides.
func (c *control) Temporaries() []profiles.Temporary { return c.store.Temporaries() }

// AddTemporary implements api.Overrides.
func (c *control) AddTemporary(t profiles.Temporary) (profiles.Temporary, error) {
	added, err := c.store.AddTemporary(t)
	if err == nil {
		c.owner.policyChanged()
	}
	return added, err
}

// RemoveTemporary implements api.Overrides.
func (c *control) RemoveTemporary(id string) bool {
	if !c.store.RemoveTemporary(id) {
		return false
	}
	c.owner.policyChanged()
	return true
}

// Pause implements api.Overrides.
func (c *control) Pause(until time.Time) {
	c.store.Pause(until)
	c.owner.policyChanged()
}

// Paused implements api.Overrides.
func (c *control) Paused() time.Time { return c.store.Paused() }

// Running implements api.Overrides.
func (c *control) Running(profile, path string) []api.Running {
	var list []api.Running
	for _, l := range c.table.All() {
		comm := l.Comm()
		if comm == nil || comm.Owner.Process.PID == 0 {
			continue
		}
		p := comm.Owner.Process
		if path != "" && p.Path != path || path == "" && profile != "" && comm.Profile != profile {
			continue
		}
		r := api.Running{PID: p.PID, Started: p.Started}
		if !slices.Contains(list, r) && c.alive(r.PID, r.Started) {
			list = append(list, r)
		}
	}
	return list
}

// Prompts implements api.Prompts.
func (c *control) Prompts() []api.Prompt {
	var list []api.Prompt
	for _, i := range c.asked.List() {
		list = append(list, api.Prompt{
			ID: i.ID, State: i.State, Program: i.Program, Path: i.Path, PID: i.PID, Start: i.Start, User: i.User, Profile: i.Profile,
			Direction: i.Direction, Domain: i.Domain, Scope: i.Scope, Names: i.Names, Remotes: i.Remotes, Setting: i.Setting,
			Rule: i.Rule, Flows: i.Flows, Asked: i.Asked, Until: i.Until, Default: i.Default,
		})
	}
	return list
}

// Answer implements api.Prompts.
func (c *control) Answer(id string, a api.Answer) error {
	answer := firewall.Answer{By: a.By, Action: profiles.Block}
	if a.Action == "allow" {
		answer.Action = profiles.Allow
	}
	if !a.Once {
		answer.For = firewall.Lasting{Time: a.Lifetime.Duration, UntilExit: a.Lifetime.Exit, Always: a.Lifetime == api.Lifetime{}}
	}
	err := c.asked.Answer(id, answer)
	if errors.Is(err, firewall.ErrNoPrompt) {
		return fmt.Errorf("%w: %w", err, api.ErrNotFound)
	}
	if err == nil {
		c.table.PublishState()
	}
	return err
}

// status fills what the API says of overrides and questions.
func (c *control) status(s *api.Status) {
	s.Temporary = c.store.Temporaries()
	if s.Temporary == nil {
		s.Temporary = []profiles.Temporary{}
	}
	if until := c.store.Paused(); !until.IsZero() {
		until = until.UTC()
		s.PausedUntil = &until
	}
	for _, i := range c.asked.List() {
		if i.State == "waiting" {
			s.Prompts++
		}
	}
}

// database is the virtual database of a daemon.
func (c *control) database(status func() api.Status) *network.Database {
	return network.NewDatabase(map[string]network.Source{
		"flows":          c.table.Flows(),
		"communications": c.table.Communications(),
		"settings": source(func() []network.Record {
			return records(c.Config().States(), func(s config.SettingState) string { return s.Key })
		}),
		"profiles": source(func() []network.Record { return records(c.Profiles(), func(p profiles.Info) string { return p.Name }) }),
		"prompts":  source(func() []network.Record { return records(c.Prompts(), func(p api.Prompt) string { return p.ID }) }),
		"rules": source(func() []network.Record {
			return records(c.Temporaries(), func(t profiles.Temporary) string { return t.ID })
		}),
		"status": source(func() []network.Record { return statusRecords(status()) }),
		"dns":    source(func() []network.Record { return dnsRecords(c.names) }),
		"lists": source(func() []network.Record {
			return records(c.lists.Lists(), func(l api.FilterList) string { return l.ID })
		}),
	})
}

// source is a branch of the virtual database that is small enough to be listed as a whole.
type source func() []network.Record

// Get implements network.Source.
func (s source) Get(key string) (any, bool) {
	for _, r := range s() {
		if r.Key == key {
			return r.Value, true
		}
	}
	return nil, false
}

// Query implements network.Source.
func (s source) Query(prefix string) []network.Record {
	return slices.DeleteFunc(s(), func(r network.Record) bool { return !strings.HasPrefix(r.Key, prefix) })
}

func records[T any](list []T, key func(T) string) []network.Record {
	out := make([]network.Record, len(list))
	for i, v := range list {
		out[i] = network.Record{Key: key(v), Value: v}
	}
	return out
}

// statusRecords are the parts of the status that are more than counters, one record each.
func statusRecords(s api.Status) []network.Record {
	b, err := json.Marshal(s)
	if err != nil {
		return nil
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(b, &fields) != nil {
		return nil
	}
	var list []network.Record
	for key, v := range fields {
		switch key {
		case "schema", "links", "packets", "owners":
		default:
			list = append(list, network.Record{Key: key, Value: v})
		}
	}
	slices.SortFunc(list, func(a, b network.Record) int { return strings.Compare(a.Key, b.Key) })
	return list
}
