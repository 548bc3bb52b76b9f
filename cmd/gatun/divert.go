package main

import (
	"context"
	"fmt"

	"gatun/firewall/interception"
	"gatun/network/packet"
	"gatun/status"
	"gatun/tun/route"
)

// divert lets the kernel end a connection that is relayed.
func (o *engineOptions) divert(ctx context.Context, f packet.Flow, syn []byte) (interception.Upstream, error) {
	if !o.diverts() {
		return nil, route.ErrNotDiverted
	}
	c, err := o.diverter.Divert(ctx, f, syn)
	if err != nil {
		return nil, err // not a nil pointer in an interface
	}
	return c, nil
}

// relayModule says in `status` where relayed connections end.
func (e *engine) relayModule() status.Module {
	m := status.Module{Name: "relay", Message: "connections end in netstack"}
	if e.opt.diverter == nil || !e.opt.diverts() {
		return m
	}
	m.Message = "connections end in the kernel"
	if n := e.relay.Counters().TCPUndiverted; n > 0 {
		m.State, m.Message = status.Info, fmt.Sprintf("%s, but for %d that it did not end: something filters what goes over loopback", m.Message, n)
	}
	return m
}

func openPipe() (interception.Pipe, error) {
	p, err := route.OpenPipe()
	if err != nil {
		return nil, err
	}
	return p, nil
}
