package handback

import (
	"fmt"
	"time"

	"gatun/network/packet"
)

// astray says whether a packet of f, of another protocol, that came here may be sent on: the flow is accepted,
// and in the set as well. ErrOver says that it is not, and takes it out; so does what comes back again and again.
func (t *Table) astray(f packet.Flow) error {
	t.mu.Lock()
	e, ok := t.flows[f]
	back := false
	if ok {
		e.strays++
		t.flows[f] = e
		if back = e.strays > maxStrays; back {
			t.returned[f] = time.Now()
		}
	}
	t.mu.Unlock()
	if !ok {
		return fmt.Errorf("%s: %w", f, ErrOver)
	}
	there := false
	if !back {
		if err := t.get(setAccept, []packet.Flow{f}, func(int, found) { there = true }); err != nil {
			return err
		}
	}
	if there {
		return nil
	}
	if err := t.over([]packet.Flow{f}, Expired); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", f, ErrOver)
}

// pardon lets flows be tried again whose packets came back long ago.
func (t *Table) pardon() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for f, at := range t.returned {
		if time.Since(at) > t.o.OtherTimeout {
			delete(t.returned, f)
		}
	}
}
