package network

import (
	"slices"
	"strings"

	"gatun/attribution"
	"gatun/intel"
)

// Compact copies what is kept of ended links into fresh memory and makes the maps as large as
// their content. After a flood each link that is kept, with its decision and its end, lies alone
// between thousands that are gone, and keeps a whole page of the heap from being given back. It
// is slow (milliseconds) and to be called when it is quiet; readers are not disturbed, but for the
// pointer of an ended link, which is another one then.
func (t *Table) Compact() {
	t.compactEnded()
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		s.links = fitted(s.links)
		s.mu.Unlock()
	}
	t.commMu.Lock()
	t.comms = fitted(t.comms)
	t.commMu.Unlock()
}

// fitted is a copy of m; a Go map never shrinks.
func fitted[K comparable, V any](m map[K]V) map[K]V {
	n := make(map[K]V, len(m))
	for k, v := range m {
		n[k] = v
	}
	return n
}

func (t *Table) compactEnded() {
	c := compactor{
		links: map[*Link]*Link{}, decisions: map[Decision]*Decision{}, comms: t.liveComms(),
		processes: map[*attribution.Process]*attribution.Process{}, texts: map[string]string{}, stamps: map[*intel.Stamp]*intel.Stamp{},
		answers: map[Answered]*Answered{},
	}
	for live := range c.comms {
		c.processes[live.Owner.Process] = live.Owner.Process
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, l := range t.ended {
		t.ended[i] = c.link(l)
	}
	for i := range t.events {
		t.events[i].Link = c.link(t.events[i].Link)
	}
}

// liveComms returns the Communications that a live link may have: each stands for itself.
func (t *Table) liveComms() map[*Communication]*Communication {
	t.commMu.Lock()
	defer t.commMu.Unlock()
	live := make(map[*Communication]*Communication, len(t.comms))
	for _, e := range t.comms {
		live[e.comm] = e.comm
	}
	return live
}

// compactor copies links and lets those with the same decision share it.
type compactor struct {
	links     map[*Link]*Link
	decisions map[Decision]*Decision
	comms     map[*Communication]*Communication
	processes map[*attribution.Process]*attribution.Process
	texts     map[string]string
	stamps    map[*intel.Stamp]*intel.Stamp
	answers   map[Answered]*Answered
}

// link returns a copy of an ended link, always the same, and a live link itself.
func (c *compactor) link(l *Link) *Link {
	if l == nil {
		return nil
	}
	end := l.ended.Load()
	if end == nil {
		return l
	}
	if n := c.links[l]; n != nil {
		return n
	}
	kept := &struct {
		Link
		end ending
	}{end: *end}
	n := &kept.Link
	n.Kind, n.Flow, n.started, n.id, n.unlisted = l.Kind, l.Flow, l.started, l.id, l.unlisted
	n.comm.Store(c.comm(l.comm.Load()))
	n.decision.Store(c.decision(l.decision.Load()))
	n.sent.Store(l.sent.Load())
	n.received.Store(l.received.Load())
	n.killed.Store(l.killed.Load())
	n.answered.Store(c.answer(l.answered.Load()))
	n.stamp.Store(c.stamp(l.stamp.Load()))
	n.ended.Store(&kept.end)
	c.links[l] = n
	return n
}

// comm returns a copy without the cached decision: nothing is decided any more.
func (c *compactor) comm(old *Communication) *Communication {
	if old == nil {
		return nil
	}
	n := c.comms[old]
	if n == nil {
		n = &Communication{
			Owner: old.Owner, Direction: old.Direction, Entity: old.Entity, Profile: old.Profile, Solicited: old.Solicited,
		}
		n.Owner.Process = c.process(old.Owner.Process)
		c.comms[old] = n
	}
	return n
}

// process returns a copy of the facts of a process that has no live link. Those of the many
// processes of one program share their texts.
func (c *compactor) process(old *attribution.Process) *attribution.Process {
	n := c.processes[old]
	if n == nil && old != nil {
		kept := *old
		n = &kept
		for _, s := range []*string{&n.Path, &n.Name, &n.User, &n.Unit, &n.Container, &n.CGroup, &n.Script, &n.Flatpak, &n.Snap, &n.AppImage} {
			*s = c.text(*s)
		}
		n.Args = make([]string, len(old.Args))
		for i, s := range old.Args {
			n.Args[i] = c.text(s)
		}
		c.processes[old] = n
	}
	return n
}

// stamp returns a copy of what lists say; what data files say is shared by all links.
func (c *compactor) stamp(old *intel.Stamp) *intel.Stamp {
	if old == nil || old.Lists == nil {
		return old
	}
	n := c.stamps[old]
	if n == nil {
		kept := *old
		kept.Lists = slices.Clone(old.Lists)
		for i := range kept.Lists {
			kept.Lists[i].Name = c.text(kept.Lists[i].Name)
		}
		n, c.stamps[old] = &kept, &kept
	}
	return n
}

func (c *compactor) answer(old *Answered) *Answered {
	if old == nil {
		return nil
	}
	n := c.answers[*old]
	if n == nil {
		n = &Answered{Type: c.text(old.Type), Resolver: c.text(old.Resolver), Rcode: c.text(old.Rcode)}
		c.answers[*old] = n
	}
	return n
}

func (c *compactor) text(old string) string {
	n, ok := c.texts[old]
	if !ok {
		n = strings.Clone(old)
		c.texts[n] = n
	}
	return n
}

func (c *compactor) decision(d *Decision) *Decision {
	if d == nil {
		return nil
	}
	n := c.decisions[*d]
	if n == nil {
		n = new(Decision)
		*n = *d
		c.decisions[*d] = n
	}
	return n
}
