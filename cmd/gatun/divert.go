package main

import (
	"context"

	"gatun/firewall/interception"
	"gatun/network/packet"
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

func openPipe() (interception.Pipe, error) {
	p, err := route.OpenPipe()
	if err != nil {
		return nil, err
	}
	return p, nil
}
