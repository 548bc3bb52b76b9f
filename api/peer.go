package api

import (
	"context"
	"net"
)

type peerKey struct{}

// withPeer keeps the user of the process at the other end, as the kernel reports it.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	uid, err := credentials(u)
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, uid)
}

func peerUID(ctx context.Context) (uid int, known bool) {
	uid, known = ctx.Value(peerKey{}).(int)
	return uid, known
}
