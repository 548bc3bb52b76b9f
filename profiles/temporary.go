package profiles

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"gatun/attribution"
	"gatun/network"
)

// maxTemporaries bounds the temporary rules; each change makes everybody's settings anew.
const maxTemporaries = 4096

// Temporary is a rule for outgoing connections that holds for a while, in front of the rules of
// all profiles. Of several the newest comes first.
type Temporary struct {
	ID      string    `json:"id"`
	Profile string    `json:"profile"` // whose programs it is for, "" for everybody
	Rule    string    `json:"rule"`
	Until   time.Time `json:"until,omitzero"` // zero: no end by time
	// PID and Started name the one process that it is for, whatever its profile; it ends with
	// that process. 0: all processes of the profile.
	PID     int       `json:"pid,omitzero"`
	Started time.Time `json:"started,omitzero"`
	Created time.Time `json:"created"`
	Reason  string    `json:"reason,omitempty"` // who wanted it, for people
}

// temporary is a Temporary with its rule, parsed.
type temporary struct {
	Temporary
	rule Rule
}

// concerns reports whether the rule is for p, which may be nil, under that profile.
func (t *temporary) concerns(profile string, p *attribution.Process) bool {
	if t.PID != 0 {
		return p != nil && p.PID == t.PID && p.Started.Equal(t.Started)
	}
	return t.Profile == "" || t.Profile == profile
}

func (t *temporary) over(now time.Time) bool { return !t.Until.IsZero() && !now.Before(t.Until) }

// temporaryLayer is the layer of the temporary rules for a profile, or for one process of it.
func temporaryLayer(list []temporary, profile string, p *attribution.Process) overlay {
	var rules []Rule
	for i := range list {
		if list[i].concerns(profile, p) {
			rules = append(rules, list[i].rule)
		}
	}
	if len(rules) == 0 {
		return overlay{}
	}
	return overlay{names: []string{TemporaryLayer}, endpoints: []Layer{{Profile: TemporaryLayer, Rules: NewRuleSet(rules)}}}
}

// AddTemporary puts a rule in force and returns it as it is kept. The same rule for the same
// programs is replaced: it begins anew. An ID may be given for a rule that was kept over a
// restart.
func (s *Store) AddTemporary(t Temporary) (Temporary, error) {
	rule, err := ParseRule(t.Rule, network.RuleRef{Text: t.Rule})
	if err != nil {
		return Temporary{}, err
	}
	now := s.clock()
	if t.Created.IsZero() {
		t.Created = now
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.current.Load()
	added := temporary{t, rule}
	switch {
	case added.over(now):
		return Temporary{}, fmt.Errorf("the rule would have ended at %s already", t.Until.Format(time.RFC3339))
	case t.PID != 0 && t.Started.IsZero():
		return Temporary{}, errors.New("a rule for one process needs its start as well: numbers are used again")
	case t.Profile != "" && !s.knows(c.policy, t.Profile):
		return Temporary{}, fmt.Errorf("there is no profile %q", t.Profile)
	}
	list := slices.DeleteFunc(slices.Clone(c.temporaries), func(o temporary) bool {
		same := t.ID != "" && o.ID == t.ID ||
			o.Profile == t.Profile && o.rule.String() == rule.String() && o.PID == t.PID && o.Started.Equal(t.Started)
		if same && added.ID == "" {
			added.ID = o.ID
		}
		return same
	})
	if len(list) >= maxTemporaries {
		return Temporary{}, fmt.Errorf("there are %d temporary rules already; remove some", len(list))
	}
	added.ID = s.temporaryID(added.ID)
	s.publish(c.policy, c.revision+1, append([]temporary{added}, list...), c.paused)
	return added.Temporary, nil
}

// temporaryID returns id, or a new one. The caller holds mu.
func (s *Store) temporaryID(id string) string {
	if id == "" {
		s.lastTemporary++
		return "t" + strconv.Itoa(s.lastTemporary)
	}
	if number, found := strings.CutPrefix(id, "t"); found {
		if n, err := strconv.Atoi(number); err == nil {
			s.lastTemporary = max(s.lastTemporary, n)
		}
	}
	return id
}

// knows reports whether there is a profile of that name. The caller holds mu.
func (s *Store) knows(p *policy, name string) bool {
	if i, known := p.byName[name]; known {
		return i != p.nobody
	}
	_, made := s.pending.names[name]
	return made
}

// RemoveTemporary takes a temporary rule out of force; false if there is none of that ID.
func (s *Store) RemoveTemporary(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keep(func(t *temporary) bool { return t.ID != id }, s.current.Load().paused)
}

// keep puts the temporary rules in force that are still wanted, and whether there is a pause.
// The caller holds mu.
func (s *Store) keep(wanted func(*temporary) bool, paused time.Time) (changed bool) {
	c := s.current.Load()
	var list []temporary
	for i := range c.temporaries {
		if wanted(&c.temporaries[i]) {
			list = append(list, c.temporaries[i])
		}
	}
	revision := c.revision
	changed = len(list) != len(c.temporaries) || paused.IsZero() != c.paused.IsZero()
	if changed {
		revision++
	}
	if changed || !paused.Equal(c.paused) {
		s.publish(c.policy, revision, list, paused)
	}
	return changed
}

// Temporaries returns the temporary rules in force, in the order in which they count: the newest
// first.
func (s *Store) Temporaries() []Temporary {
	c := s.now()
	list := make([]Temporary, len(c.temporaries))
	for i := range list {
		list[i] = c.temporaries[i].Temporary
	}
	return list
}

// Expire ends the temporary rules whose time is over or whose process alive, which may be nil,
// says has ended, and the pause. For never follows a rule or a pause beyond its time, also where
// nobody calls Expire; who calls it can have live connections decided again.
func (s *Store) Expire(now time.Time, alive func(pid int, started time.Time) bool) (changed bool) {
	ended := map[string]bool{}
	if alive != nil {
		for _, t := range s.current.Load().temporaries {
			if t.PID != 0 && !alive(t.PID, t.Started) { // asks the system: not under the lock
				ended[t.ID] = true
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	paused := s.current.Load().paused
	if !now.Before(paused) {
		paused = time.Time{}
	}
	return s.keep(func(t *temporary) bool { return !t.over(now) && !ended[t.ID] }, paused)
}

// NextExpiry returns when Expire has something to do because of the time, zero for never.
func (s *Store) NextExpiry() time.Time { return s.current.Load().deadline }

// Pause lets everything through until then, which Settings.Paused says; a time that is over, or
// zero, ends the pause.
func (s *Store) Pause(until time.Time) {
	if !s.clock().Before(until) {
		until = time.Time{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(func(*temporary) bool { return true }, until)
}

// Paused returns until when there is a pause, zero for none.
func (s *Store) Paused() time.Time { return s.now().paused }
