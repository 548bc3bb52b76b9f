package intel

import (
	"context"
	"sync"
)

// turns lets one at a time work on a list, by its id. A server that does not answer holds up nobody
// who wants another list.
type turns struct {
	mu    sync.Mutex
	taken map[string]chan struct{} // closed when the turn is over
}

// take waits for the turn; with an error, that of ctx, it was not taken.
func (t *turns) take(ctx context.Context, id string) error {
	for ctx.Err() == nil {
		t.mu.Lock()
		over, busy := t.taken[id]
		if !busy {
			t.taken[id] = make(chan struct{})
		}
		t.mu.Unlock()
		if !busy {
			return nil
		}
		select {
		case <-over:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// leave ends the turn.
func (t *turns) leave(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.taken[id])
	delete(t.taken, id)
}
