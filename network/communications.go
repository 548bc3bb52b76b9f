package network

import (
	"net/netip"
	"time"

	"gatun/attribution"
)

// commKey tells Communications apart: the process, its direction, and the domain or the
// address where there is none.
type commKey struct {
	pid       int
	started   time.Time
	path      string
	direction Direction
	domain    string
	addr      netip.Addr
}

type commEntry struct {
	comm *Communication
	live int // links that are bound to it
}

func keyOf(c *Communication) commKey {
	k := commKey{
		pid: c.Owner.Process.PID, started: c.Owner.Process.Started, path: c.Owner.Process.Path,
		direction: c.Direction, domain: c.Entity.Domain,
	}
	if k.domain == "" {
		k.addr = c.Entity.Addr
	}
	return k
}

// Bind gives the link its Communication: the live one with the same program and the same
// domain or address, or c itself where there is none yet. An unidentified owner shares
// nothing, because nobody knows whether two of them are the same.
func (t *Table) Bind(l *Link, c *Communication) *Communication {
	if c.Owner.Process.Kind == attribution.KindUnidentified {
		l.SetComm(c)
		return c
	}
	k := keyOf(c)
	t.commMu.Lock()
	e := t.comms[k]
	if e == nil {
		e = &commEntry{comm: c}
		t.comms[k] = e
	}
	e.live++
	t.commMu.Unlock()
	l.SetComm(e.comm)
	l.flags.Or(flagBound)
	return e.comm
}

// unbind forgets the Communication when its last link has ended.
func (t *Table) unbind(l *Link) {
	c := l.Comm()
	if c == nil || l.flags.And(^uint32(flagBound))&flagBound == 0 {
		return
	}
	k := keyOf(c)
	t.commMu.Lock()
	defer t.commMu.Unlock()
	if e := t.comms[k]; e != nil && e.comm == c {
		if e.live--; e.live <= 0 {
			delete(t.comms, k)
		}
		if len(t.comms) == 0 {
			t.comms = map[commKey]*commEntry{} // a Go map never shrinks
		}
	}
}
