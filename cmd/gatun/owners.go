package main

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"

	"go.uber.org/zap"

	"gatun/attribution"
	"gatun/network/packet"
	"gatun/network/state"
	"gatun/status"
	"gatun/tun/route"
)

// witnesses are the kernel's hooks that see who sends. Loading them takes a moment in which
// nothing should wait for them: until then, and where they cannot be had, owners are looked up.
type witnesses struct {
	local func(netip.Addr) bool
	log   *zap.Logger
	ahead *ahead      // permits connections by the hooks; nil: nobody does
	names route.Names // the mark of these

	redirect *route.DNSListener // where redirected queries arrive; nil: nowhere

	open    atomic.Pointer[state.Owners]
	missing atomic.Pointer[error]
}

// Run loads the hooks and takes them away when ctx ends.
func (w *witnesses) Run(ctx context.Context) error {
	opt := state.OwnersOptions{Local: w.local, Ours: true}
	if w.redirect != nil {
		opt.Arrival = w.redirect.Port
	}
	if w.ahead != nil {
		opt.Mark, opt.Mask = w.names.BackMark, w.names.Mask
	}
	o, err := state.OpenOwners(opt)
	if err != nil {
		w.missing.Store(&err)
		w.log.Info("owners of flows are looked up after their first packet", zap.Error(err))
		return nil
	}
	w.open.Store(o)
	if w.ahead != nil {
		err = w.ahead.run(ctx, o)
	} else {
		<-ctx.Done()
	}
	w.open.Store(nil)
	return errors.Join(err, o.Close())
}

// Sender implements attribution.Senders.
func (w *witnesses) Sender(f packet.Flow) (s state.Sender, found bool) {
	if o := w.open.Load(); o != nil {
		return o.Sender(f)
	}
	return s, false
}

// Image implements attribution.Senders.
func (w *witnesses) Image(id state.ImageID) (*state.Image, bool) {
	if o := w.open.Load(); o != nil {
		return o.Image(id)
	}
	return nil, false
}

// module says how owners are found. It is no fault to be without the hooks.
func (w *witnesses) module() status.Module {
	m := status.Module{Name: "attribution", Message: "exact at once (cgroup hooks)"}
	switch missing := w.missing.Load(); {
	case missing != nil:
		m.State = status.Info
		m.Message = "by look-up: programs that send one datagram and end stay unidentified; " + (*missing).Error()
	case w.open.Load() == nil:
		m.Message = "by look-up; the cgroup hooks are being attached"
	}
	return m
}

var _ attribution.Senders = (*witnesses)(nil)
