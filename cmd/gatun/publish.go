package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"

	"gatun/tun/sandbox"
)

// publication is one --publish: a port of this host's loopback that leads to a port inside.
type publication struct {
	host, inside uint16
}

func parsePublish(list []string) ([]publication, error) {
	var out []publication
	for _, s := range list {
		h, i, ok := strings.Cut(s, ":")
		host, err1 := strconv.ParseUint(h, 10, 16)
		inside, err2 := strconv.ParseUint(i, 10, 16)
		if !ok || err1 != nil || err2 != nil || inside == 0 {
			return nil, fmt.Errorf("--publish: want HOST-PORT:PORT as in 8080:80, got %q", s)
		}
		out = append(out, publication{host: uint16(host), inside: uint16(inside)})
	}
	return out, nil
}

func (p publication) listen() (net.Listener, error) {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(p.host))))
	if err != nil {
		return nil, fmt.Errorf("--publish: %w", err)
	}
	return l, nil
}

// serve connects whoever comes to the port inside, until ctx ends.
func (p publication) serve(ctx context.Context, l net.Listener, box *sandbox.Box) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("--publish: %w", err)
		}
		conns.Go(func() { p.join(ctx, c, box) })
	}
}

func (p publication) join(ctx context.Context, c net.Conn, box *sandbox.Box) {
	defer c.Close()
	in, err := box.DialInside(ctx, p.inside)
	if err != nil {
		return // nobody listens inside: the caller sees a closed connection
	}
	defer in.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close(); _ = in.Close() })
	defer stop()
	var up sync.WaitGroup
	up.Go(func() {
		_, _ = io.Copy(in, c)
		_ = in.CloseWrite()
	})
	_, _ = io.Copy(c, in)
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.CloseWrite()
	}
	up.Wait()
}
