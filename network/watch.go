package network

import "sync/atomic"

// Watcher receives the events of a Table. A watcher that does not keep up loses events, never
// slows a flow down: Lost counts them.
type Watcher struct {
	events chan Event
	lost   atomic.Uint64
	table  *Table
}

// Events is the channel of events; it is never closed.
func (w *Watcher) Events() <-chan Event { return w.events }

// Lost returns how many events did not fit into the watcher's buffer.
func (w *Watcher) Lost() uint64 { return w.lost.Load() }

// Close ends the watch.
func (w *Watcher) Close() {
	w.table.mu.Lock()
	delete(w.table.watchers, w)
	w.table.mu.Unlock()
}

// Watch begins to collect events: first those that are still kept with a sequence number
// above since, then every new one. since = Now skips the past.
func (t *Table) Watch(since uint64) *Watcher {
	w := &Watcher{events: make(chan Event, watchBuffer), table: t}
	t.mu.Lock()
	defer t.mu.Unlock()
	if since < t.seq {
		for i := range t.events {
			// The ring's oldest entry follows its newest one.
			e := t.events[(int(t.seq)+i)%len(t.events)]
			if e.Seq > since {
				w.events <- e // the ring is smaller than the buffer
			}
		}
	}
	t.watchers[w] = struct{}{}
	return w
}

// Now is the sequence number that no event reaches: Watch(Now) starts with the next event.
const Now = ^uint64(0)

func (t *Table) publish(typ EventType, l *Link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seq++
	e := Event{Seq: t.seq, Type: typ, Link: l}
	if len(t.events) < eventsKept {
		t.events = append(t.events, e)
	} else {
		t.events[int(e.Seq-1)%eventsKept] = e
	}
	for w := range t.watchers {
		select {
		case w.events <- e:
		default:
			w.lost.Add(1)
		}
	}
}

// PublishState tells the watchers that the program's own state changed.
func (t *Table) PublishState() { t.publish(EventState, nil) }
