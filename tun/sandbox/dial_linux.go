package sandbox

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"
)

// DialInside connects to a TCP port on the loopback of the command's network: the inbound way
// of --publish. The command sees a client at 127.0.0.1 (or ::1 if it listens there only).
// Wait must be running. A refusal is ECONNREFUSED, as from any host.
func (b *Box) DialInside(ctx context.Context, port uint16) (*net.TCPConn, error) {
	ch := make(chan dialed, 1)
	b.mu.Lock()
	open := b.dials != nil
	b.dialID++
	id := b.dialID
	if open {
		b.dials[id] = ch
	}
	b.mu.Unlock()
	if !open {
		return nil, net.ErrClosed
	}
	if err := b.ctl.send(message{Op: opDial, ID: id, Port: port}); err != nil {
		b.forget(id)
		return nil, fmt.Errorf("dial port %d inside: %w", port, err)
	}
	select {
	case d := <-ch:
		return d.conn, d.err
	case <-ctx.Done():
		if b.forget(id) {
			return nil, ctx.Err()
		}
		if d := <-ch; d.conn != nil { // the answer came at the same moment
			d.conn.Close()
		}
		return nil, ctx.Err()
	}
}

// forget reports whether the dial was still waiting.
func (b *Box) forget(id uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, waiting := b.dials[id]
	delete(b.dials, id)
	return waiting
}

// answer gives the caller of DialInside its connection.
func (b *Box) answer(m message, fds []int) {
	b.mu.Lock()
	ch := b.dials[m.ID]
	delete(b.dials, m.ID)
	b.mu.Unlock()
	if ch == nil {
		closeAll(fds)
		return
	}
	var d dialed
	switch {
	case len(fds) == 1:
		d.conn, d.err = tcpConn(fds[0])
	case m.Errno != 0:
		d.err = &setUpError{m.Text, syscall.Errno(m.Errno)}
	default:
		d.err = fmt.Errorf("dial inside: %s", m.Text)
	}
	ch <- d
}

func tcpConn(fd int) (*net.TCPConn, error) {
	file := os.NewFile(uintptr(fd), "inside")
	defer file.Close() // FileConn has a copy
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("dial inside: %w", err)
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("dial inside: got a %T", conn)
	}
	return tcp, nil
}

// failDials answers every dial that is waiting and refuses later ones.
func (b *Box) failDials() {
	b.mu.Lock()
	waiting := b.dials
	b.dials = nil
	b.mu.Unlock()
	for _, ch := range waiting {
		ch <- dialed{err: net.ErrClosed}
	}
}
