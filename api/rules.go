package api

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"gatun/config"
	"gatun/network"
	"gatun/profiles"
)

// maxPause and maxRule bound what is meant to be temporary.
const (
	maxPause = 24 * time.Hour
	maxRule  = 720 * time.Hour
)

// Overrides are what holds for a time only and is written nowhere.
type Overrides interface {
	Temporaries() []profiles.Temporary
	// AddTemporary puts a rule in front of the others. A rule until exit has a PID.
	AddTemporary(profiles.Temporary) (profiles.Temporary, error)
	RemoveTemporary(id string) bool
	// Running lists the live processes of a program that had flows; path is that of the binary,
	// or "" for all programs of the profile.
	Running(profile, path string) []Running
	Pause(until time.Time) // zero ends it
	Paused() time.Time     // zero: not
}

// Running is one process, by its identity.
type Running struct {
	PID     int
	Started time.Time
}

// RuleList is the answer to GET /v1/rules: the temporary rules.
type RuleList struct {
	Schema string               `json:"schema"`
	Rules  []profiles.Temporary `json:"rules"`
}

// NewRule is the body of POST /v1/rules.
type NewRule struct {
	Program string `json:"program"`       // name of a profile, absolute path, name of a program that a profile is for, or * for everybody
	Entity  string `json:"entity"`        // as in a rule, with its protocol and ports: "example.org TCP/443"
	Action  string `json:"action"`        // allow, block
	For     string `json:"for,omitempty"` // a duration such as 10m, exit, always; "" is always
}

// RuleMade is the answer to POST /v1/rules. A rule for always has no temporary one: it is the first of
// the profile's own rules.
type RuleMade struct {
	Schema    string               `json:"schema"`
	Profile   string               `json:"profile"`
	Rule      string               `json:"rule"`
	For       string               `json:"for"`
	Created   bool                 `json:"created"`   // the profile was made for this rule
	Temporary []profiles.Temporary `json:"temporary"` // one per process where it holds until exit
}

// Lifetime is how long something holds: until a process ends, for a duration, or always (zero).
type Lifetime struct {
	Duration time.Duration
	Exit     bool
}

// ParseFor reads a lifetime: a duration such as 10m or 2d, exit, or always.
func ParseFor(s string) (Lifetime, error) {
	switch s {
	case "", "always":
		return Lifetime{}, nil
	case "exit":
		return Lifetime{Exit: true}, nil
	}
	d, err := parseDuration(s)
	if err != nil || d < time.Second || d > maxRule {
		return Lifetime{}, fmt.Errorf("for: want exit, always or a duration from 1s to 30d such as 10m, got %q", s)
	}
	return Lifetime{Duration: d}, nil
}

// parseDuration reads what time.ParseDuration does, and days.
func parseDuration(s string) (time.Duration, error) {
	if days, found := strings.CutSuffix(s, "d"); found {
		d, err := time.ParseDuration(days + "h")
		if err == nil && d > maxRule {
			err = errors.New("too long")
		}
		return 24 * d, err
	}
	return time.ParseDuration(s)
}

func checkAction(a string) error {
	if a != "allow" && a != "block" {
		return fmt.Errorf("action: want allow or block, got %q", a)
	}
	return nil
}

func (s *Server) rules(w http.ResponseWriter, _ *http.Request) {
	reply(w, RuleList{Schema: network.Schema, Rules: notNil(s.Control.Temporaries())})
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (s *Server) addRule(w http.ResponseWriter, r *http.Request) {
	var n NewRule
	if !decode(w, r, &n) {
		return
	}
	life, err := ParseFor(n.For)
	if err == nil {
		err = checkAction(n.Action)
	}
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	text := map[string]string{"allow": "+ ", "block": "- "}[n.Action] + strings.TrimSpace(n.Entity)
	if col, message, meant := profiles.CheckRule(text); col > 0 {
		refuse(w, http.StatusBadRequest, config.Problems{{Key: "entity", Message: fmt.Sprintf("%q: character %d: %s", n.Entity, max(1, col-2), message), Suggestion: meant}})
		return
	}
	target, err := s.target(n.Program)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	made := RuleMade{Schema: network.Schema, Profile: target.profile, Rule: text, For: n.For, Created: target.spec != nil, Temporary: []profiles.Temporary{}}
	if life == (Lifetime{}) {
		made.For = "always"
		s.addForAlways(w, target, made)
		return
	}
	s.addTemporary(w, target, life, made, peerName(r.Context()))
}

// target is the profile that a rule is for.
type target struct {
	profile string
	path    string              // of the program, "" if a profile was named
	spec    *config.ProfileSpec // the profile to make, nil if there is one
	builtIn bool                // the profile cannot keep rules
}

// builtIn is the origin of a profile that stands in where there is no program.
const builtIn = "built-in"

// target finds the profile of a program by the profile's name, the program's path, or the name
// of a program that a profile is for.
func (s *Server) target(program string) (target, error) {
	if program == "" {
		return target{}, config.Problems{{Key: "program", Message: "want the name of a profile or the path of a program"}}
	}
	if program == "*" || program == "global" {
		return target{}, nil
	}
	if _, ok := specOf(s.Control.Config(), program); ok {
		return target{profile: program}, nil
	}
	if p, ok := s.info(program); ok && p.Origin == builtIn {
		return target{profile: program, builtIn: true}, nil
	}
	if !filepath.IsAbs(program) {
		return s.named(program)
	}
	name := ""
	if m := s.Control.Match(program); m.Fingerprint != "" {
		name = m.Profile
	}
	if _, ok := specOf(s.Control.Config(), name); ok {
		return target{profile: name, path: program}, nil
	}
	if name == "" { // else it was made automatically, and is not kept yet
		name = s.freeName(filepath.Base(program))
	}
	spec := config.NewProfile(name, []config.Fingerprint{{Type: "path", Op: "equals", Value: program}}, config.Runtime, map[string]string{"path": program})
	return target{profile: name, path: program, spec: &spec}, nil
}

// named finds the profiles for a path with that base name. Two of them are a question that the
// program does not answer by itself.
func (s *Server) named(program string) (target, error) {
	var found []string
	for _, p := range s.Control.Config().Profiles() {
		for _, m := range p.Match {
			if m.Type == "path" && m.Op == "equals" && filepath.Base(m.Value) == program {
				found = append(found, p.Name)
				break
			}
		}
	}
	switch len(found) {
	case 0:
		return target{}, fmt.Errorf("no profile and no program that was seen has the name %q; give the program's absolute path: %w", program, ErrNotFound)
	case 1:
		return target{profile: found[0]}, nil
	default:
		return target{}, fmt.Errorf("%q is the name of several programs, with the profiles %s; name one of them: %w", program, strings.Join(found, ", "), ErrConflict)
	}
}

// freeName is a name for a profile that nobody has.
func (s *Server) freeName(base string) string {
	name := base
	for i := 2; ; i++ {
		if _, taken := s.info(name); !taken {
			return name
		}
		name = fmt.Sprintf("%s (%d)", base, i)
	}
}

const endpointsKey = "filter/endpoints"

func (s *Server) addForAlways(w http.ResponseWriter, t target, made RuleMade) {
	if where := s.keptFrom(t); where != "" {
		fail(w, http.StatusConflict, fmt.Sprintf("the rules of %s are set in %s: change them there, or say how long this one is to hold (--for 10m)", firstOf(t.profile, "everybody"), where))
		return
	}
	if t.builtIn {
		fail(w, http.StatusConflict, fmt.Sprintf("%s is built in and keeps no rules: say how long this one is to hold (--for 10m), or make a profile with match: [{tag: special, equals: %s}]", t.profile, t.profile))
		return
	}
	ok := s.changeProfile(w, t.profile, func(e *config.Edit) {
		if t.spec != nil {
			e.PutProfile(*t.spec)
		}
		e.PrependRule(t.profile, endpointsKey, made.Rule)
	})
	if ok {
		reply(w, made)
	}
}

// keptFrom says where the human's file keeps the rules of a target from being changed, "" if it
// does not.
func (s *Server) keptFrom(t target) string {
	cfg := s.Control.Config()
	if t.profile == "" {
		if st, _ := FindSetting(cfg.States(), endpointsKey); st.Pinned {
			return st.Origin
		}
		return ""
	}
	spec, ok := specOf(cfg, t.profile)
	if !ok || spec.Origin != config.Pinned {
		return ""
	}
	if v, ok := spec.Value(endpointsKey); ok {
		return v.Origin.String()
	}
	return config.Position{File: spec.File, Line: spec.Line}.String()
}

func (s *Server) addTemporary(w http.ResponseWriter, t target, life Lifetime, made RuleMade, by string) {
	reason := fmt.Sprintf("%s, for %s", by, made.For)
	rules := []profiles.Temporary{{Profile: t.profile, Rule: made.Rule, Reason: reason}}
	if life.Exit {
		running := s.Control.Running(t.profile, t.path)
		if len(running) == 0 {
			fail(w, http.StatusConflict, fmt.Sprintf("no running process of %s has had a flow, so there is none to wait for: say how long (--for 10m)", firstOf(t.profile, "anybody")))
			return
		}
		rules = rules[:0]
		for _, p := range running {
			rules = append(rules, profiles.Temporary{Profile: t.profile, Rule: made.Rule, PID: p.PID, Started: p.Started, Reason: reason})
		}
	}
	if t.spec != nil && !s.changeProfile(w, t.profile, func(e *config.Edit) { e.PutProfile(*t.spec) }) {
		return
	}
	for _, rule := range rules {
		if life.Duration > 0 {
			rule.Until = time.Now().Add(life.Duration)
		}
		added, err := s.Control.AddTemporary(rule)
		if err != nil {
			fail(w, http.StatusBadRequest, err.Error())
			return
		}
		made.Temporary = append(made.Temporary, added)
	}
	reply(w, made)
}

func (s *Server) removeRule(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if !s.Control.RemoveTemporary(id) {
		fail(w, http.StatusNotFound, fmt.Sprintf("no temporary rule has the id %q; `gatun status` lists them", id))
		return
	}
	reply(w, Deleted{Schema: network.Schema, Deleted: id})
}

// Pause is the answer to GET /v1/pause.
type Pause struct {
	Schema string     `json:"schema"`
	Paused bool       `json:"paused"`
	Until  *time.Time `json:"paused_until"` // null: not paused
}

// PauseFor is the body of PUT /v1/pause.
type PauseFor struct {
	For string `json:"for"` // a duration of at most 24h
}

func (s *Server) pause(w http.ResponseWriter, _ *http.Request) {
	until := s.Control.Paused()
	p := Pause{Schema: network.Schema, Paused: !until.IsZero()}
	if p.Paused {
		until = until.UTC()
		p.Until = &until
	}
	reply(w, p)
}

// ParsePause reads how long a pause is to be.
func ParsePause(text string) (time.Duration, error) {
	d, err := parseDuration(text)
	if err != nil || d < time.Second || d > maxPause {
		return 0, fmt.Errorf("want a duration from 1s to 24h such as 5m, got %q", text)
	}
	return d, nil
}

func (s *Server) setPause(w http.ResponseWriter, r *http.Request) {
	var p PauseFor
	if !decode(w, r, &p) {
		return
	}
	d, err := ParsePause(p.For)
	if err != nil {
		fail(w, http.StatusBadRequest, "for: "+err.Error())
		return
	}
	s.Control.Pause(time.Now().Add(d))
	s.pause(w, r)
}

func (s *Server) endPause(w http.ResponseWriter, r *http.Request) {
	s.Control.Pause(time.Time{})
	s.pause(w, r)
}
