package main

import (
	"context"
	"net"
	"os"

	"gatun/api"
)

// door is the API's socket in `up`. It is opened before anything is changed on the machine, and closed when
// everything is undone: whoever has ordered `down` asks until nobody answers, and the next instance finds
// nothing of this one.
type door struct {
	path     string
	listener net.Listener
	end      context.CancelFunc // of the server; nil: none was started
	ended    chan struct{}
}

func openDoor(path string) (*door, error) {
	l, err := api.Listen(path)
	if err != nil {
		return nil, err
	}
	return &door{path: path, listener: l}, nil
}

// serve starts the server, which outlives ctx. What it returns waits for ctx, or for the server's failure.
func (d *door) serve(ctx context.Context, s *api.Server) func() error {
	outer, end := context.WithCancel(context.WithoutCancel(ctx))
	d.end, d.ended = end, make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		defer close(d.ended)
		failed <- s.Serve(outer, d.listener)
	}()
	return func() error {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		}
	}
}

// close ends the server. The file goes first: afterwards it may be another instance's.
func (d *door) close() {
	_ = os.Remove(d.path)
	if d.end != nil {
		d.end()
		<-d.ended
	}
	_ = d.listener.Close()
}
