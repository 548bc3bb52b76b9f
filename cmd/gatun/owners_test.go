package main

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"gatun/network/packet"
	"gatun/network/state"
	"gatun/status"
)

// TestWitnesses: without hooks nobody is seen, and status says why; with them they are there
// until the end.
func TestWitnesses(t *testing.T) {
	w := &witnesses{local: func(netip.Addr) bool { return true }, log: zap.NewNop()}
	if m := w.module(); m.State != status.OK || !strings.Contains(m.Message, "being attached") {
		t.Errorf("before: %+v", m)
	}
	if s, found := w.Sender(packet.Flow{}); found {
		t.Errorf("nobody was seen, got %+v", s)
	}
	if i, found := w.Image(state.ImageID{}); found {
		t.Errorf("no image was noted, got %+v", i)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- w.Run(ctx) }()
	var err error
	running := true
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for running && w.open.Load() == nil {
		select {
		case err = <-ended:
			running = false
		case <-tick.C:
		}
	}
	m := w.module()
	if !running {
		missing := w.missing.Load()
		if err != nil || missing == nil || !errors.Is(*missing, state.ErrNoHooks) || m.State != status.Info || !strings.Contains(m.Message, "not available") {
			t.Errorf("error %v, module %+v", err, m)
		}
		cancel()
		return
	}
	if m.State != status.OK || !strings.Contains(m.Message, "exact at once") {
		t.Errorf("with hooks: %+v", m)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, found := w.Sender(packet.Flow{}); found {
		t.Error("the hooks are gone and still see")
	}
}
